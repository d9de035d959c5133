"""Domains of hyperparameters that are tuned as unconstrained numbers: continuous, whole and discrete ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from hypergrad.errors import InputError


@runtime_checkable
class Domain(Protocol):
    """A map r from an unconstrained number to the values that a hyperparameter can take."""

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return r of every entry."""
        ...

    def inverse(self, value: float) -> float:
        """Return an unconstrained number that r maps to ``value``.

        Raises:
            InputError: a value outside the domain.
        """
        ...


@final
@dataclass(frozen=True)
class Real:
    """Any number: r(λ) = λ."""

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return the numbers as they are."""
        return unconstrained

    def inverse(self, value: float) -> float:
        """Return the number as it is."""
        return value


@final
@dataclass(frozen=True)
class Log:
    """Numbers above 0, on a log scale: r(λ) = exp(λ).

    >>> Log().inverse(1.0)
    0.0
    """

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return the exponential."""
        return unconstrained.exp()

    def inverse(self, value: float) -> float:
        """Return the logarithm."""
        if not value > 0:
            raise _outside(value, self, "a number above 0")
        return math.log(value)


@final
@dataclass(frozen=True)
class Logit:
    """Numbers between ``low`` and ``high``: r(λ) = low + (high − low) sigmoid(λ).

    Raises:
        InputError: ``low`` is not below ``high``, or one of them is infinite.

    >>> Logit(0, 0.9).inverse(0.45)
    0.0
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty or unbounded range."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"{self!r}", "two numbers, low < high", "swap the two ends, or use Log or Real")

    def value(self, unconstrained: Tensor) -> Tensor:
        """Stretch the sigmoid."""
        return self.low + (self.high - self.low) * unconstrained.sigmoid()

    def inverse(self, value: float) -> float:
        """Return the logit of the place between the ends."""
        if not self.low < value < self.high:
            raise _outside(value, self, f"a number strictly between {self.low:g} and {self.high:g}")
        return _logit((value - self.low) / (self.high - self.low))


@final
@dataclass(frozen=True)
class Integer:
    """Whole numbers from ``low`` to ``high``, both included.

    r(λ) = low + ⌊(high − low + 1) sigmoid(λ)⌋. Layers see λ itself, which is continuous: only what is used is floored.

    Raises:
        InputError: ends that are no whole numbers, or ``low`` not below ``high``.

    >>> Integer(0, 24).value(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([ 0., 12., 24.])
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"Integer({name}={value!r})", "a whole number", "use Logit for a continuous range")
        if not self.low < self.high:
            raise InputError(f"{self!r}", "low < high", "swap the two ends")

    def value(self, unconstrained: Tensor) -> Tensor:
        """Floor the stretched sigmoid."""
        places = self.high - self.low + 1
        return self.low + (places * unconstrained.sigmoid()).floor().clamp(max=places - 1)

    def inverse(self, value: float) -> float:
        """Return the middle of the numbers that are floored to ``value``, before the floor and the sigmoid."""
        if not (self.low <= value <= self.high and value == int(value)):
            raise _outside(value, self, f"a whole number from {self.low} to {self.high}")
        return _logit((value - self.low + 0.5) / (self.high - self.low + 1))


@final
@dataclass(frozen=True)
class Choice:
    """One of several numbers in a meaningful order: r(λ) = options[⌊len(options) · sigmoid(λ)⌋].

    Raises:
        InputError: fewer than two options, or one twice.

    >>> Choice((8, 16, 32, 64)).value(torch.tensor(-0.1))
    tensor(16.)
    """

    options: Sequence[float]

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        if len(self.options) < 2 or len(set(self.options)) != len(self.options):
            raise InputError(f"{self!r}", "two or more different numbers, in order", "leave a fixed setting out")

    def value(self, unconstrained: Tensor) -> Tensor:
        """Pick by the floored place."""
        places = Integer(0, len(self.options) - 1).value(unconstrained).long()
        return torch.as_tensor(self.options, dtype=unconstrained.dtype, device=unconstrained.device)[places]

    def inverse(self, value: float) -> float:
        """Return the middle of an option's place."""
        if value not in self.options:
            raise _outside(value, self, f"one of {list(self.options)}")
        return Integer(0, len(self.options) - 1).inverse(list(self.options).index(value))


def _outside(value: float, domain: object, expected: str) -> InputError:
    return InputError(
        passed=f"an initial value of {value:g} for {domain!r}",
        expected=expected,
        do="start inside the domain, or widen it",
    )


def _logit(place: float) -> float:
    return math.log(place) - math.log1p(-place)
