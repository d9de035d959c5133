"""Checks of a saved run before anything of it is taken over: files are data, and may belong to something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.data import Sampler
from hypergrad.errors import InputError, TreeError
from hypergrad.tree import Tree

S = TypeVar("S")
SAME_SETTINGS = "resume with the settings that wrote the checkpoint, or start afresh in another directory"
FORMAT = 1
ENTRIES: dict[str, type] = {
    "format": int,
    "algorithm": str,
    "outer": str,
    "seed": int,
    "step_number": int,
    "hparams": dict,
    "params": dict,
    "algorithm_state": dict,
    "outer_state": dict,
    "samplers": list,
    "callbacks": dict,
}


def unfit(found: str, expected: str) -> InputError:
    """Return the error for something of another run."""
    return InputError(passed=f"a saved run {found}", expected=expected, do=SAME_SETTINGS)


def check_entries(
    state: Mapping[str, Any], names: Mapping[str, Any], entries: Mapping[str, type | tuple[type, ...]] = ENTRIES
) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for a missing entry, one of another type, or other names."""
    for key, kind in entries.items():
        if key not in state:
            raise unfit(f"without {key!r}", f"the entries {list(entries)}")
        if not isinstance(state[key], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(one.__name__ for one in kinds)
            raise unfit(f"whose {key!r} is of type {type(state[key]).__name__}", f"{key!r} of type {wanted}")
    found = {key: state[key] for key in names}
    if found != names:
        raise unfit(f"with {found}", str(dict(names)))


def tree_like(name: str, value: Any, like: Mapping[str, Tensor]) -> Tree:
    """Return a saved tree on the device of ``like``, with its keys, shapes and dtypes.

    Raises:
        TreeError: anything that differs.
    """
    if not isinstance(value, Mapping) or not all(isinstance(entry, Tensor) for entry in value.values()):
        raise TreeError(f"{name} that are no tensors", "a mapping from names to tensors", SAME_SETTINGS)
    tree.check_keys(name, value, like)
    tree.check_shapes(name, value, like)
    for key, entry in value.items():
        if entry.dtype != like[key].dtype:
            raise TreeError(f"{name} with {key!r} of {entry.dtype}", f"{like[key].dtype}", SAME_SETTINGS)
    return {key: value[key].detach().to(like[key].device, copy=True) for key in like}


def algorithm_state(value: Mapping[str, Any], like: S, device: torch.device) -> S:
    """Return a saved algorithm state as a dataclass like ``like``, with its tensors on ``device``."""
    state: Any = tree.unpack(like, value)
    mine: Any = like
    if not isinstance(state.steps, int):
        raise unfit("whose algorithm state has no number of steps", "a whole number")
    params = tree_like("the saved params of the algorithm", state.params, mine.params)
    moved: S = tree.moved(dataclasses.replace(state, params=params), device)
    return moved


def load_part(name: str, load: Callable[[Any], None], value: Any) -> None:
    """Call a ``load_state_dict`` and turn what it raises into an :class:`~hypergrad.errors.InputError`."""
    try:
        load(value)
    except InputError:
        raise
    except Exception as error:  # what a torch optimizer, scheduler or foreign sampler raises is not ours to choose
        raise unfit(
            f"whose {name!r} cannot be taken over ({type(error).__name__}: {error})", f"{name} of this run"
        ) from error


def load_samplers(positions: list[Any], samplers: tuple[Sampler | None, ...]) -> None:
    """Move all samplers to saved positions, or none of them.

    Raises:
        InputError: positions that belong to other samplers.
    """
    if [position is None for position in positions] != [sampler is None for sampler in samplers]:
        held = ["no sampler" if sampler is None else type(sampler).__name__ for sampler in samplers]
        found = ["none" if position is None else "a position" for position in positions]
        raise unfit(f"whose 'samplers' have {found}", f"positions of inner_data and outer_data: {held}")
    pairs = [(sampler, position) for sampler, position in zip(samplers, positions, strict=True) if sampler is not None]
    before = [(sampler, sampler.state_dict()) for sampler, _ in pairs]
    try:
        for sampler, position in pairs:
            load_part("samplers", sampler.load_state_dict, position)
    except InputError:
        for sampler, position in before:
            sampler.load_state_dict(position)
        raise
