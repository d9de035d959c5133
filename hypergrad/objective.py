"""User functions of (params, hparams[, batch]), called with checks on what goes in and comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import evaluation
from hypergrad.errors import HypergradError, InputError, ObjectiveError
from hypergrad.shortage import is_shortage
from hypergrad.tree import NamedTree, Tree, check_like, check_names, detached

UNFIT_BATCH = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a function raises on a batch of another form than it unpacks."""


@final
@dataclass(frozen=True)
class UserFunction:
    """A user's function under the name it has in messages, called with or without a batch as its signature asks.

    Attributes:
        name: what it is called.
        function: the function.
        loss: whether it is to be differentiated, so that modules in it are held still (:mod:`hypergrad.evaluation`).

    Raises:
        InputError: a signature that takes neither two nor three positional arguments.
    """

    name: str
    function: Callable[..., Any]
    loss: bool = True

    def __post_init__(self) -> None:
        """Read the signature once."""
        if not callable(self.function):
            raise InputError(
                passed=f"{self.name}={self.function!r}",
                expected="a function of (params, hparams) or (params, hparams, batch)",
                do=f"pass {self.name}=lambda params, hparams: ...",
            )
        object.__setattr__(self, "_takes_batch", _takes_batch(self.name, self.function))

    def __call__(self, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], batch: Any) -> Any:
        """Return whatever the function returns; a wrong key raises with the nearest name.

        Raises:
            ObjectiveError: the function failed on its batch; the error says what the batch was.
        """
        trees = NamedTree("params", params), NamedTree("hparams", hparams)
        if not self.takes_batch:
            with self._held_still():
                return self.function(*trees)
        try:
            with self._held_still():
                return self.function(*trees, batch)
        except HypergradError:
            raise
        except UNFIT_BATCH as error:
            unrelated = batch is None and "NoneType" not in str(error)
            if unrelated or is_shortage(error):
                raise
            raise _failed(self.name, error, batch) from error

    def _held_still(self) -> AbstractContextManager[None]:
        return evaluation.still() if self.loss else nullcontext()

    @property
    def takes_batch(self) -> bool:
        """Whether the function has an argument for the batch."""
        found: bool = self._takes_batch  # type: ignore[attr-defined]
        return found

    def scalar(self, params: Tree, hparams: Tree, batch: Any, *, differentiable: bool) -> Tensor:
        """Return the function's value as a 0-d tensor.

        Raises:
            ObjectiveError: not one floating-point number, or (if it has to be) not differentiable.
        """
        value = self(params, hparams, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            is_tensor = isinstance(value, Tensor)
            found = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if is_tensor else type(value).__name__
            raise ObjectiveError(
                passed=f"{self.name}, which returned {found}",
                expected="one floating-point number as a tensor",
                do=f"reduce it in {self.name}: take .mean() or .sum() of the per-example losses",
            )
        if differentiable and torch.is_grad_enabled() and not value.requires_grad:
            raise ObjectiveError(
                passed=f"{self.name}, which returned a number that depends on no parameter and no hyperparameter",
                expected="a loss computed from the params and hparams arguments with torch operations",
                do="look for .item(), .detach(), .numpy(), torch.no_grad() or a metric such as accuracy in "
                f"{self.name}; a module must be called with torch.func.functional_call(module, params, inputs)",
            )
        return value.reshape(()) if value.dim() else value

    def tree(self, params: Tree, hparams: Tree, batch: Any) -> Tree:
        """Return the function's value as a tree with the keys, shapes, dtype and device of ``params``.

        Raises:
            InputError: not a mapping.
            TreeError: other keys, shapes, dtypes or devices, or a value that is no tensor.
        """
        return check_like(self.name, self(params, hparams, batch), params)


@final
@dataclass(frozen=True)
class ResponseVJP:
    """A user's function (params, hparams, cotangent[, batch]) that returns (∂θ*/∂λ)ᵀ cotangent.

    Raises:
        InputError: what is no function of three or four positional arguments.
    """

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        """Read the signature once."""
        count = count_arguments(self.function, (4, 3)) if callable(self.function) else None
        if count is None:
            raise InputError(
                passed=f"response_vjp={self.function!r}",
                expected="a function of (params, hparams, cotangent) or (params, hparams, cotangent, batch)",
                do="take these positional arguments; bind everything else with functools.partial or a closure",
            )
        object.__setattr__(self, "_takes_batch", count == 4)

    def __call__(self, params: Tree, hparams: Tree, cotangent: Tree, batch: Any) -> Tree:
        """Return the product for the hyperparameters that move the inner solution, detached.

        Raises:
            InputError: not a mapping.
            TreeError: keys that are no hyperparameters, or other shapes, dtypes or devices than theirs.
        """
        trees = NamedTree("params", params), NamedTree("hparams", hparams), NamedTree("cotangent", cotangent)
        takes_batch: bool = self._takes_batch  # type: ignore[attr-defined]
        with torch.no_grad():
            value = self.function(*trees, batch) if takes_batch else self.function(*trees)
        if isinstance(value, Mapping):
            check_names("the value of response_vjp", value, hparams)
            hparams = {key: hparams[key] for key in value}
        return detached(check_like("response_vjp", value, hparams, what="hparams"))


def described(batch: Any, depth: int = 2) -> str:
    """Return what a batch is made of: types, and of tensors dtypes and shapes.

    >>> described((torch.zeros(4, 2), {"label": torch.zeros(4).long()}, "name"))
    "(float32 of shape (4, 2), {'label': int64 of shape (4,)}, str)"
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} of shape {tuple(batch.shape)}"
    if not depth or not isinstance(batch, Mapping | list | tuple):
        return "None" if batch is None else type(batch).__name__
    items = list(batch.items() if isinstance(batch, Mapping) else enumerate(batch))
    parts = [
        f"{key!r}: {described(value, depth - 1)}" if isinstance(batch, Mapping) else described(value, depth - 1)
        for key, value in items[:8]
    ]
    inside = ", ".join(parts + ([f"and {len(items) - 8} more"] if len(items) > 8 else []))
    if isinstance(batch, Mapping):
        return f"{{{inside}}}"
    return f"[{inside}]" if isinstance(batch, list) else f"({inside}{',' if len(items) == 1 else ''})"


def _failed(name: str, error: Exception, batch: Any) -> ObjectiveError:
    text = next(iter(str(error).splitlines()), "")
    found = "no batch (None)" if batch is None else f"the batch {described(batch)}"
    remedy = (
        f"pass data for {name}: a sampler as {name}_data of the problem, or the batch where the call takes one"
        if batch is None
        else f"unpack in {name} what the sampler or the call gives it (are the labels missing?), or pass the data that "
        f"{name} unpacks"
    )
    return ObjectiveError(
        passed=f"{name}, which raised {type(error).__name__}: {text}, and got {found}",
        expected=f"an objective that can be computed from batches of this form: {name} unpacks what it is given",
        do=f"{remedy}; if the batch is right, the traceback above says what failed in {name}",
    )


def count_arguments(function: Callable[..., Any], choices: tuple[int, ...]) -> int | None:
    """Return the first of ``choices`` that is a number of positional arguments the function takes, else ``None``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return choices[0]
    for count in choices:
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    return None


def check_initial(function: Callable[..., Any]) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what is no function of the hyperparameters."""
    if not callable(function) or count_arguments(function, (1,)) is None:
        found = f" with the signature {inspect.signature(function)}" if callable(function) else f"={function!r}"
        raise InputError(
            passed=f"initial{found}",
            expected="a function of (hparams) that returns the parameters that training starts at",
            do="pass initial=lambda hparams: ...; bind everything else with functools.partial or a closure",
        )


def _takes_batch(name: str, function: Callable[..., Any]) -> bool:
    count = count_arguments(function, (3, 2))
    if count is None:
        raise InputError(
            passed=f"{name} with the signature {inspect.signature(function)}",
            expected="(params, hparams) or (params, hparams, batch)",
            do="take these positional arguments; bind everything else with functools.partial or a closure",
        )
    return count == 3
