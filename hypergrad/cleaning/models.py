"""Models that are trained: three ready-made ones, or the user's; and the scaling of what goes into them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergrad.errors import InputError
from hypergrad.guards import pinned_rng

WIDTH = 128
CHANNELS = (16, 32)
LENGTH = 50.0
"""Mean squared norm of an example's inputs after scaling by one factor: about that of centred images of digits."""
STEEP = 20.0
"""Largest variance along a direction after scaling, which bounds the curvature of linear models."""
ENOUGH = 10_000
"""Examples that a scaling is computed from."""

Loss = Callable[[Tensor, Tensor], Tensor]
Factory = Callable[[tuple[int, ...], int], nn.Module]


def each_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each example, for labels or distributions over the classes."""
    return cross_entropy(scores, targets, reduction="none")


class Builder(Protocol):
    """Makes the model that every training starts from."""

    def __call__(self, seed: int) -> nn.Module:
        """Return a fresh model."""
        ...


def builder(model: nn.Module | Factory | None, name: str, shape: tuple[int, ...], classes: int) -> Builder:
    """Return what makes the models of one cleaning.

    Args:
        model: the user's module or factory, or ``None``.
        name: the ready-made model, where there is no user's one.
        shape: of one example's inputs.
        classes: number of classes.

    Raises:
        InputError: something else than a module or a function of (shape, classes), or a function that returns
            something else.
    """
    if isinstance(model, nn.Module):
        module = model
        return lambda seed: copy.deepcopy(module)
    if model is None:
        return lambda seed: seeded(seed, lambda: ready_made(name, shape, classes))
    make: Any = model
    _check_factory(make)
    return lambda seed: _checked(seeded(seed, lambda: make(shape, classes)), make)


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Return what ``make`` returns with the random numbers of a seed; the global ones stay."""
    with pinned_rng(torch.device("cpu"), seed):
        return make()


def ready_made(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return one of the ready-made models.

    Raises:
        InputError: an unknown name, or inputs that are no images where the model needs them.
    """
    entries = int(torch.Size(shape).numel())
    if name == "linear":
        linear = nn.Linear(entries, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(entries, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
    if len(shape) not in (2, 3) or min(shape[-2:]) < 4:
        raise InputError(
            passed=f'model="convnet" for inputs of shape {shape}',
            expected="images of shape (channels, height, width) or (height, width), of at least 4 by 4 pixels",
            do='reshape the inputs, or use model="linear" or "mlp"',
        )
    return Convolutions(shape, classes)


@final
class Convolutions(nn.Module):
    """Two convolutions with max pooling, and a linear layer."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.shape = (1, *shape) if len(shape) == 2 else shape
        first, second = CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(self.shape[0], first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.scores = nn.Linear(second * (self.shape[1] // 4) * (self.shape[2] // 4), classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of all classes."""
        scores: Tensor = self.scores(self.features(inputs.view(-1, *self.shape)))
        return scores


def _check_factory(make: Any) -> None:
    try:
        inspect.signature(make).bind((1,), 2)
    except (TypeError, ValueError) as error:
        raise InputError(
            passed=f"model={make!r}",
            expected="a torch.nn.Module, or a function (shape of one example, number of classes) that returns one",
            do="pass lambda shape, classes: torch.nn.Sequential(...)",
        ) from error


def _checked(module: object, make: object) -> nn.Module:
    if isinstance(module, nn.Module):
        return module
    raise InputError(
        passed=f"model={make!r}, which returned {type(module).__name__}",
        expected="a torch.nn.Module",
        do="return the module from the function",
    )


def check_scores(module: nn.Module, inputs: Tensor, classes: int) -> None:
    """Try the model on a few examples.

    Raises:
        InputError: it fails, or gives something else than one finite score for each class.
    """
    try:
        with torch.no_grad(), pinned_rng(torch.device("cpu"), 0):
            scores = copy.deepcopy(module)(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            passed=f"a model that fails on inputs of shape {tuple(inputs.shape)} and {inputs.dtype}: "
            f"{str(error).splitlines()[0]}",
            expected="a model of a batch of the examples' inputs",
            do="reshape or convert the inputs, or change the model",
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (len(inputs), classes):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            passed=f"a model that gives {found} for {len(inputs)} examples of {classes} classes",
            expected=f"scores of shape {(len(inputs), classes)}",
            do="give the last layer one output for each class",
        )


@final
@dataclass(frozen=True)
class Scale:
    """inputs ↦ (inputs − shift) · factor.

    Attributes:
        shift: of the shape of one example.
        factor: of that shape, or a single number.
    """

    shift: Tensor
    factor: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return scaled inputs."""
        return (inputs.to(self.shift.dtype) - self.shift) * self.factor

    def before(self, module: nn.Module) -> nn.Module:
        """Return the module with the scaling in front of it, for raw inputs."""
        return nn.Sequential(ScaleLayer(self), module)


@final
class ScaleLayer(nn.Module):
    """The scaling as a layer, without parameters."""

    shift: Tensor
    factor: Tensor

    def __init__(self, scale: Scale) -> None:
        """Keep both tensors as buffers."""
        super().__init__()
        self.register_buffer("shift", scale.shift)
        self.register_buffer("factor", scale.factor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scaled inputs."""
        return Scale(self.shift, self.factor)(inputs)


def scale_of(inputs: Tensor, how: str) -> Scale:
    """Return the scaling that some inputs ask for, so that the same step sizes suit all data.

    By one factor the mean squared norm becomes 50 and the largest variance along a direction at most 20, whichever
    makes the inputs smaller.

    Args:
        inputs: of shape (n, …).
        how: ``"columns"`` for unit variances first, or ``"whole"``.
    """
    values = inputs[:ENOUGH].to(torch.get_default_dtype())
    shift = values.mean(dim=0)
    factor = torch.ones_like(shift)
    if how == "columns":
        spread = (values - shift).square().mean(dim=0).sqrt()
        factor = torch.where(spread > 0, 1 / spread.clamp_min(1e-12), factor)
    rows = ((values - shift) * factor).flatten(1)
    squared, top = float(rows.square().sum(dim=1).mean()), _top_variance(rows)
    if squared > 0:
        factor = factor * min((LENGTH / squared) ** 0.5, (STEEP / max(top, 1e-12)) ** 0.5)
    return Scale(shift, factor)


def _top_variance(rows: Tensor) -> float:
    """Return the largest variance along a direction, by power iteration."""
    vector, top = rows.square().sum(dim=0), 0.0
    for _ in range(20):
        length = float(vector.norm())
        if length == 0:
            return 0.0
        vector = rows.T @ (rows @ (vector / length)) / len(rows)
        top = float(vector.norm())
    return top
