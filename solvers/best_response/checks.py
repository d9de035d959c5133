"""Checks of what a self-tuning run is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypergrad.data import Sampler
from hypergrad.errors import InputError, ObjectiveError
from hypergrad.objective import count_arguments


def check_optimizer(name: str, optimizer: Any, allowed: Sequence[Tensor], expected: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless it is a torch optimizer of some of the allowed tensors."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"SelfTuning({name}={optimizer!r})", "a torch optimizer", f"pass one that holds {expected}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            passed=f"SelfTuning({name}={type(optimizer).__name__}(...))",
            expected="an optimizer that steps from one gradient, without a closure",
            do="take torch.optim.SGD, RMSprop or Adam",
        )
    known = {id(tensor) for tensor in allowed}
    foreign = [tuple(t.shape) for group in optimizer.param_groups for t in group["params"] if id(t) not in known]
    if foreign:
        raise InputError(
            passed=f"SelfTuning({name}=...), an optimizer that holds other tensors, of the shapes {foreign[:4]}",
            expected=f"an optimizer that holds {expected}",
            do="give model.parameters() to weights, [hparams.location] to hyperparameters, [hparams.raw_scale] to "
            "scales, after the conversion and after every .to(device)",
        )


def closure_of(name: str, function: Any) -> Callable[[Any], Tensor]:
    """Return a loss as a function of the batch that checks its value.

    Raises:
        InputError: no function of the batch or of nothing.
    """
    count = count_arguments(function, (1, 0)) if callable(function) else None
    if count is None:
        raise InputError(
            passed=f"{name}={function!r}",
            expected=f"a function {name}(batch) or {name}() that returns a scalar",
            do="close over the converted model and the hyperparameters, and take the batch as the only argument",
        )

    def call(batch: Any) -> Tensor:
        value = function(batch) if count else function()
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ObjectiveError(
                passed=f"{name}, which returned {kind}",
                expected="a floating-point scalar tensor",
                do="average over the examples: .mean()",
            )
        return value

    return call


def check_sampler(name: str, data: Any) -> Sampler:
    """Return a sampler, or raise :class:`~hypergrad.errors.InputError`."""
    if isinstance(data, type) or not isinstance(data, Sampler):
        raise InputError(
            passed=f"{name}={data!r}",
            expected="a sampler, whose position can be saved",
            do="pass hypergrad.TensorSampler(tensors, batch_size), or hypergrad.Fixed(batch)",
        )
    return data
