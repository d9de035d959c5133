"""The state of a torch optimizer as slots: trees of tensors, which snapshots and checkpoints can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hypergrad.inner import Slots
from hypergrad.solvers.inner.follow import refusal

State = dict[str, dict[str, Any]]
"""What an optimizer knows about each parameter, by name: tensors, numbers, ``None``."""

LIVE = "live"
NUMBERS: dict[str, type] = {"bool": bool, "int": int, "float": float}


def kind_of(name: str, value: Any) -> str:
    """Return what a constant entry of the state is, by a name that says how to restore it.

    Raises:
        UnsupportedError: what no tensor can hold.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_sparse:
            raise refusal(f"an optimizer whose state {name!r} is a {value.layout} tensor of {value.dtype}")
        return str(value.dtype).removeprefix("torch.")
    if value is None:
        return "none"
    if type(value).__name__ in NUMBERS:
        return type(value).__name__
    raise refusal(f"an optimizer whose state {name!r} is of type {type(value).__name__}")


def encode(state: State, live: set[str]) -> Slots:
    """Return the state as slots: those in ``live`` under their own name, constants under ``name#kind``.

    Args:
        state: of all parameters.
        live: ``parameter/name`` of the entries that depend on parameters, gradients or hyperparameters.
    """
    slots: Slots = {}
    for key, entries in state.items():
        for name, value in entries.items():
            if f"{key}/{name}" in live:
                slots.setdefault(name, {})[key] = value
                continue
            kind = kind_of(name, value)
            if isinstance(value, Tensor):
                held = value.detach()
                held = held if held.is_floating_point() else held.double()
            else:
                held = torch.tensor(0.0 if value is None else float(value), dtype=torch.float64)
            slots.setdefault(f"{name}#{kind}", {})[key] = held
    return slots


def decode(slots: Slots) -> tuple[State, set[str]]:
    """Return the state that :func:`encode` made slots of, and which of its entries are live."""
    state: State = {}
    live = set()
    for slot, entries in slots.items():
        name, _, kind = slot.partition("#")
        for key, held in entries.items():
            if not kind:
                live.add(f"{key}/{name}")
            state.setdefault(key, {})[name] = held if not kind else _restored(kind, held)
    return state, live


def _restored(kind: str, held: Tensor) -> Any:
    if kind == "none":
        return None
    if kind in NUMBERS:
        return NUMBERS[kind](held.item())
    return held.detach().to(getattr(torch, kind), copy=True)


def same_kinds(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two states of a parameter hold entries of the same names and types."""
    return {name: type(value) for name, value in mine.items()} == {name: type(v) for name, v in theirs.items()}
