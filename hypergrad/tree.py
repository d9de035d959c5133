"""Trees of tensors: ``dict[str, Tensor]`` at the boundary, one flat vector inside.

Parameters and hyperparameters are named tensors. Solvers work on one contiguous 1-D tensor, and a
:class:`Layout` translates between the two without copies where it can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from hypergrad.errors import InputError, TreeError, did_you_mean

Tree = dict[str, Tensor]
S = TypeVar("S")


class NamedTree(dict[str, Tensor]):
    """A tree that answers a wrong key with the names it has."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Remember what the tree is called in messages."""
        super().__init__(tensors)
        self.name = name

    def __missing__(self, key: str) -> NoReturn:
        """Raise a :class:`~hypergrad.errors.TreeError` that names the nearest key."""
        raise TreeError(
            passed=f"{self.name}[{key!r}]{did_you_mean(key, self)}",
            expected=f"one of the keys of {self.name}: {list(self)}",
            do=f"rename the key, or add the tensor to {self.name}",
        )


def check_keys(name: str, tree: Iterable[str], expected: Iterable[str]) -> None:
    """Raise :class:`~hypergrad.errors.TreeError` unless ``tree`` has exactly the expected keys."""
    tree, expected = list(tree), list(expected)
    missing = [key for key in expected if key not in tree]
    extra = [key for key in tree if key not in expected]
    if missing or extra:
        hints = "".join(f" {key!r}{did_you_mean(key, missing)}" for key in extra)
        raise TreeError(
            passed=f"{name} with missing keys {missing} and extra keys {extra}"
            + (f": got{hints}" if missing and extra else ""),
            expected=f"the keys {expected}",
            do="pass the same names everywhere; dict(model.named_parameters()) gives a model's",
        )


def check_shapes(name: str, tree: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raise :class:`~hypergrad.errors.TreeError` unless the tensors have the shapes of those in ``like``."""
    wrong = [key for key in like if tree[key].shape != like[key].shape]
    if wrong:
        raise TreeError(
            passed=f"{name} with the shapes { ({key: tuple(tree[key].shape) for key in wrong}) }",
            expected=f"the shapes { ({key: tuple(like[key].shape) for key in wrong}) }",
            do="reshape the tensors before they are returned",
        )


def check_names(what: str, names: Iterable[str], hparams: Iterable[str]) -> None:
    """Raise :class:`~hypergrad.errors.TreeError` for a setting of a hyperparameter that does not exist."""
    hparams = list(hparams)
    for name in names:
        if name not in hparams:
            raise TreeError(
                passed=f"{what} for {name!r}{did_you_mean(name, hparams)}",
                expected=f"names of hyperparameters: {hparams}",
                do=f"rename it in {what}, or take it out",
            )


def check_mapping(name: str, value: object, like: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return what a user's function returned after checking that it is a mapping with the keys of ``like``.

    Args:
        name: the function's.
        value: what it returned.
        like: the parameters.

    Raises:
        InputError: not a mapping.
        TreeError: other keys.
    """
    if not isinstance(value, Mapping):
        raise InputError(
            passed=f"{name}, which returned {type(value).__name__}",
            expected=f"a dict of tensors with the keys {list(like)}",
            do=f"return one tensor for each tensor of params from {name}",
        )
    check_keys(f"the value of {name}", value, like)
    return value


def check_like(name: str, value: object, like: Mapping[str, Tensor], what: str = "params") -> Tree:
    """Return what a user's function returned as a tree with the keys, shapes, dtype and device of ``like``.

    Args:
        name: the function's.
        value: what it returned.
        like: the tree to compare with.
        what: what that tree is called in messages.

    Raises:
        InputError: not a mapping.
        TreeError: anything else that differs.
    """
    found = {key: check_mapping(name, value, like)[key] for key in like}
    for key, entry in found.items():
        if not isinstance(entry, Tensor):
            raise TreeError(
                passed=f"the value of {name} with {key!r} of type {type(entry).__name__}",
                expected="a tensor under each key",
                do=f"compute every entry with torch operations in {name}",
            )
        if (entry.dtype, entry.device) != (like[key].dtype, like[key].device):
            raise TreeError(
                passed=f"the value of {name} with {key!r} of {entry.dtype} on {entry.device}",
                expected=f"{like[key].dtype} on {like[key].device}, as in {what}",
                do=f"convert it in {name} with .to({what}[{key!r}])",
            )
    check_shapes(f"the value of {name}", found, like)
    return found


def check_tree(name: str, tree: object) -> Tree:
    """Return ``tree`` as a plain dict after checking that it holds floating-point tensors of one dtype and device.

    Args:
        name: what to call the tree in a message, ``"params"`` or ``"hparams"``.
        tree: a mapping from names to tensors.

    Raises:
        TreeError: not a mapping, empty, a value that is no tensor, an integer tensor, mixed dtypes or devices.
    """
    if not isinstance(tree, Mapping):
        raise TreeError(
            passed=f"{name} of type {type(tree).__name__}",
            expected="a mapping from names to tensors",
            do=f'pass {name}={{"name": tensor}}; dict(model.named_parameters()) gives a model\'s',
        )
    if not tree:
        raise TreeError(f"{name} with no tensors", "at least one tensor", f"add what is to be used as {name}")
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TreeError(f"{name}[{key!r}]", "a string key", "rename it: every tensor has a name, which is a string")
        if not isinstance(value, Tensor):
            raise TreeError(
                passed=f"{name}[{key!r}] of type {type(value).__name__}",
                expected="a torch.Tensor under each key",
                do=f"wrap it: torch.as_tensor({name}[{key!r}], dtype=torch.float32)",
            )
        _check_kind(name, key, value)
    _check_uniform(name, tree)
    return dict(tree)


def _check_kind(name: str, key: str, value: Tensor) -> None:
    if value.layout is not torch.strided:
        raise TreeError(
            passed=f"{name}[{key!r}] of layout {value.layout}",
            expected="a dense (strided) tensor",
            do=f"pass {name}[{key!r}].to_dense(); sparse data may be used inside the objectives",
        )
    if not value.is_floating_point():
        remedy = f"convert it ({name}[{key!r}].float()), or keep integer data out of {name}"
        if value.is_complex():
            remedy = f"pass torch.view_as_real({name}[{key!r}]) and call torch.view_as_complex in the objectives"
        if value.is_quantized:
            remedy = f"pass {name}[{key!r}].dequantize(): a quantised tensor has no derivative"
        raise TreeError(
            passed=f"{name}[{key!r}] of dtype {value.dtype}",
            expected="a floating-point tensor, since derivatives are taken with respect to it",
            do=remedy,
        )


def _check_uniform(name: str, tree: Mapping[str, Tensor]) -> None:
    kinds: dict[tuple[torch.dtype, torch.device], str] = {}
    for key, value in tree.items():
        kinds.setdefault((value.dtype, value.device), key)
    if len(kinds) > 1:
        found = ", ".join(f"{key!r} is {dtype} on {device}" for (dtype, device), key in kinds.items())
        raise TreeError(
            passed=f"{name} of mixed dtypes or devices: {found}",
            expected="one floating-point dtype on one device",
            do="move all tensors with .to(device=..., dtype=...) before the call",
        )


def check_same_kind(params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> None:
    """Raise :class:`~hypergrad.errors.TreeError` unless both trees share one dtype and one device."""
    _check_uniform(
        "params and hparams",
        {f"{n}.{k}": v for n, t in (("params", params), ("hparams", hparams)) for k, v in t.items()},
    )


def detached(tree: Mapping[str, Tensor]) -> Tree:
    """Return the same values cut from any graph, sharing storage."""
    return {key: value.detach() for key, value in tree.items()}


def leaves(tree: Mapping[str, Tensor]) -> Tree:
    """Return leaf tensors that require grad and share storage with ``tree``."""
    return {key: value.detach().requires_grad_() for key, value in tree.items()}


def attached(tree: Mapping[str, Tensor]) -> Tree:
    """Return tensors that require grad: those that already do as they are, the others as new leaves.

    A live hyperparameter that a closure captured must stay the same object, or no graph reaches it.
    """
    return {key: value if value.requires_grad else value.detach().requires_grad_() for key, value in tree.items()}


def device_of(tree: Mapping[str, Tensor]) -> torch.device:
    """Return the device of the first tensor."""
    return next(iter(tree.values())).device


def cloned(tree: Mapping[str, Tensor]) -> Tree:
    """Return detached copies."""
    return {key: value.detach().clone() for key, value in tree.items()}


def zeros_like(tree: Mapping[str, Tensor]) -> Tree:
    """Return a tree of zeros of the same shapes."""
    return {key: torch.zeros_like(value, requires_grad=False) for key, value in tree.items()}


def dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product over the keys of ``left``; 0 for an empty tree."""
    return sum(((left[key] * right[key]).sum() for key in left), start=torch.zeros(()))


def norm(tree: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of all entries together."""
    if len(tree) == 1:
        return torch.linalg.vector_norm(_entries(next(iter(tree.values()))))  # type: ignore[no-any-return]
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(_entries(v)) for v in tree.values()])
    )
    return total


def numbers(*scalars: Tensor) -> list[float]:
    """Return the values of 0-d tensors with one look at the device."""
    if scalars[0].device.type == "cpu":  # nothing to wait for, and a stack costs more than the looks
        return [scalar.item() for scalar in scalars]
    found: list[float] = torch.stack(list(scalars)).tolist()
    return found


def dense(value: Tensor) -> Tensor:
    """Return a sparse gradient with all its zeros, and any other tensor as it is."""
    return value.to_dense() if value.is_sparse else value


def plus(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of two gradients, either of which may be sparse."""
    return right + left if left.is_sparse else left + right


def _entries(value: Tensor) -> Tensor:
    """Return a tensor with the same entries other than 0: those of a sparse gradient, each once."""
    return value.coalesce().values() if value.is_sparse else value


def first_non_finite(tree: Mapping[str, Tensor]) -> str | None:
    """Return the key of the first tensor that holds NaN or infinity, or ``None``; one look at the device if none."""
    if not tree or math.isfinite(norm(tree).item()):
        return None
    return next((key for key, value in tree.items() if not bool(torch.isfinite(_entries(value)).all())), None)


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a tree lies in one flat vector.

    Attributes:
        shapes: the shape under each key, in order.
        dtype: the common dtype.
        device: the common device.
    """

    shapes: dict[str, torch.Size]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tree: Mapping[str, Tensor]) -> Layout:
        """Return the layout of ``tree``, whose tensors share one dtype and device."""
        some = next(iter(tree.values()))
        return cls({key: value.shape for key, value in tree.items()}, some.dtype, some.device)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries under each key."""
        return [shape.numel() for shape in self.shapes.values()]

    @cached_property
    def size(self) -> int:
        """Number of entries in all."""
        return sum(self.sizes)

    def flatten(self, tree: Mapping[str, Tensor]) -> Tensor:
        """Return a new flat vector with the tree's entries, each tensor in row-major order."""
        return torch.cat([dense(tree[key]).reshape(-1) for key in self.shapes])

    def views(self, vector: Tensor) -> Tree:
        """Return the tree whose tensors are views of the flat ``vector``."""
        if len(self.shapes) == 1:
            return {key: vector.view(shape) for key, shape in self.shapes.items()}
        pieces = vector.split(self.sizes)
        return {key: piece.view(shape) for (key, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def zeros(self) -> Tensor:
        """Return a flat vector of zeros."""
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def name_at(self, position: int) -> str:
        """Return the key of the tensor that holds entry ``position`` of the flat vector."""
        for key, size in zip(self.shapes, self.sizes, strict=True):
            if position < size:
                return key
            position -= size
        raise IndexError(position)


def pack(state: Any) -> Any:
    """Return a state as nested dicts, lists, tensors and numbers, ready for ``torch.save``.

    Tensors are copied, so that the packed state is a snapshot.
    """
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {field.name: pack(getattr(state, field.name)) for field in dataclasses.fields(state)}
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: pack(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [pack(value) for value in state]
    return state


def unpack(like: S, packed: Any) -> S:
    """Return ``packed`` as a state of the same dataclass as ``like``, with fresh tensors."""
    plain = pack(packed)
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        names = [field.name for field in dataclasses.fields(like)]
        if set(names) != set(plain):
            raise TreeError(
                passed=f"a saved state with the fields {sorted(plain)}",
                expected=f"the fields of {type(like).__name__}: {sorted(names)}",
                do="resume with the same algorithm that wrote the checkpoint",
            )
        return type(like)(**plain)
    return plain  # type: ignore[no-any-return]


def moved(state: Any, device: torch.device) -> Any:
    """Return a packed or unpacked state with its tensors on ``device``."""
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return type(state)(**{f.name: moved(getattr(state, f.name), device) for f in dataclasses.fields(state)})
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: moved(value, device) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(moved(value, device) for value in state)
    return state
