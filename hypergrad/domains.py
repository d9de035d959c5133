"""Domains: closed convex sets that hyperparameters are projected onto after every outer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.settings import check_numbers


@runtime_checkable
class Domain(Protocol):
    """A closed convex set with a Euclidean projection."""

    def project(self, value: Tensor) -> Tensor:
        """Return the nearest point of the set."""
        ...


@final
@dataclass(frozen=True)
class Box:
    """Entries between ``low`` and ``high``; infinite ends are allowed.

    Raises:
        InputError: ``low`` is not below ``high``.

    >>> Box(0, 1).project(torch.tensor([-1.0, 0.5, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    low: float = -float("inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        if not self.low < self.high:
            raise InputError(
                passed=f"Box(low={self.low}, high={self.high})",
                expected="low < high",
                do="swap the two ends, or leave the hyperparameter out to hold it fixed",
            )

    def project(self, value: Tensor) -> Tensor:
        """Clamp every entry."""
        return value.clamp(self.low, self.high)


@final
@dataclass(frozen=True)
class Positive:
    """Entries at or above ``floor``, a number of at least 0.

    >>> Positive().project(torch.tensor([-1.0, 0.5]))
    tensor([0.0000, 0.5000])
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative floor."""
        check_numbers(self, "floor", least=0)

    def project(self, value: Tensor) -> Tensor:
        """Raise every entry to the floor."""
        return value.clamp(min=self.floor)


@final
@dataclass(frozen=True)
class UnitInterval:
    """Entries between 0 and 1.

    >>> UnitInterval().project(torch.tensor([-1.0, 0.5]))
    tensor([0.0000, 0.5000])
    """

    def project(self, value: Tensor) -> Tensor:
        """Clamp every entry."""
        return value.clamp(0.0, 1.0)


@final
@dataclass(frozen=True)
class Simplex:
    """Nonnegative entries that sum to ``total``, along the last dimension.

    >>> Simplex().project(torch.tensor([2.0, 0.0]))
    tensor([1., 0.])
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty simplex."""
        check_numbers(self, "total", above=0)

    def project(self, value: Tensor) -> Tensor:
        """Subtract the one threshold after which the positive parts sum to ``total`` (by sorting, O(n log n))."""
        ordered = value.sort(dim=-1, descending=True).values
        counts = torch.arange(1, value.shape[-1] + 1, device=value.device, dtype=value.dtype)
        thresholds = (ordered.cumsum(-1) - self.total) / counts
        last = (ordered > thresholds).sum(-1, keepdim=True) - 1
        return (value - thresholds.gather(-1, last)).clamp(min=0)


@final
@dataclass(frozen=True)
class Ball:
    """Tensors whose Euclidean norm is at most ``radius``.

    >>> Ball(5.0).project(torch.tensor([6.0, 8.0]))
    tensor([3., 4.])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty ball."""
        check_numbers(self, "radius", above=0)

    def project(self, value: Tensor) -> Tensor:
        """Shrink the tensor towards 0 when it lies outside."""
        length = torch.linalg.vector_norm(value)
        return torch.where(length > self.radius, value * (self.radius / length), value)
