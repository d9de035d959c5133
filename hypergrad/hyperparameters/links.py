"""Links: maps from the unconstrained tensor that an optimizer moves to the value that a hyperparameter has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor
from torch.nn import functional

from hypergrad.domains import Box, Domain, Positive, Simplex, UnitInterval
from hypergrad.errors import InputError, did_you_mean
from hypergrad.solvers.best_response.domains import Choice, Integer, Log, Logit, Real

Entrywise = Real | Log | Logit | Integer | Choice
Discrete = Integer | Choice


class Link(Protocol):
    """A map from an unconstrained tensor to a value."""

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return the value."""
        ...

    def inverse(self, value: Tensor) -> Tensor:
        """Return an unconstrained tensor that is mapped to ``value``.

        Raises:
            InputError: a value outside the link's range.
        """
        ...


@final
@dataclass(frozen=True)
class Softplus:
    """Numbers above 0, on a scale that is linear far from 0: r(λ) = log(1 + exp λ)."""

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return the softplus."""
        return functional.softplus(unconstrained)

    def inverse(self, value: float) -> float:
        """Return log(exp(value) − 1)."""
        if not value > 0:
            raise outside(value, "a number above 0")
        return value + math.log(-math.expm1(-value))


@final
@dataclass(frozen=True)
class Each:
    """A map of one entry, on every entry, shifted by ``floor``.

    Args:
        entry: the map, with ``value`` of tensors and ``inverse`` of one number.
        floor: what is added to its values.
    """

    entry: Entrywise | Softplus
    floor: float = 0.0

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return floor + r(λ)."""
        found = self.entry.value(unconstrained)
        return found + self.floor if self.floor else found

    def inverse(self, value: Tensor) -> Tensor:
        """Invert every different entry once."""
        if isinstance(self.entry, Real):
            return value - self.floor
        numbers, places = value.double().unique(return_inverse=True)
        inverted = [self._inverse(number) for number in numbers.tolist()]
        return torch.tensor(inverted, dtype=torch.float64, device=value.device)[places]

    def _inverse(self, number: float) -> float:
        if self.floor and not number > self.floor:
            raise outside(number, f"a number above {self.floor:g}")
        return self.entry.inverse(number - self.floor)


@final
@dataclass(frozen=True)
class Softmax:
    """Positive entries that sum to ``total`` along the last dimension: r(λ) = total · softmax(λ)."""

    total: float = 1.0

    def value(self, unconstrained: Tensor) -> Tensor:
        """Return total · softmax(λ)."""
        return self.total * unconstrained.softmax(-1)

    def inverse(self, value: Tensor) -> Tensor:
        """Return the logarithms, which sum to 0."""
        sums = value.sum(-1) if value.dim() else value
        if value.dim() == 0 or not bool((value > 0).all()) or not bool(((sums - self.total).abs() < 1e-4).all()):
            raise outside(value.tolist(), f"a vector of numbers above 0 that sum to {self.total:g}")
        logarithms = value.log()
        return logarithms - logarithms.mean(-1, keepdim=True)


FREE = Each(Real())
PROJECTED = "projection"


def choose_link(domain: Domain | Discrete | None, by: str | None) -> tuple[Link, str]:
    """Return the link of a domain under a reparametrisation's name, and that name; by default the domain's own.

    Raises:
        InputError: what is no domain, or a reparametrisation that the domain does not have.
    """
    if isinstance(domain, type) or not (domain is None or isinstance(domain, Domain | Integer | Choice)):
        raise InputError(
            passed=f"Hyperparameter(domain={domain!r})",
            expected="a domain, an object that says which values are allowed",
            do="pass hypergrad.Positive(), UnitInterval(), Box(low, high), Simplex(), another one with "
            "project(value), best_response.Integer(low, high) or Choice(options), or None for any number",
        )
    links = _links(domain)
    name = next(iter(links)) if by is None else by
    if name not in links:
        raise InputError(
            passed=f"Hyperparameter(by={by!r}) for {domain!r}",
            expected=f"one of {list(links)}{did_you_mean(str(by), links)}",
            do="leave by out for the first of these",
        )
    return links[name], name


def _links(domain: Domain | Discrete | None) -> dict[str, Link]:
    if isinstance(domain, Integer | Choice):
        return {"relaxation": Each(domain)}
    if domain is None:
        return {"identity": FREE}
    links: dict[str, Link] = {}
    if isinstance(domain, Positive):
        links = {"log": Each(Log(), domain.floor), "softplus": Each(Softplus(), domain.floor)}
    elif isinstance(domain, UnitInterval):
        links = {"sigmoid": Each(Logit())}
    elif isinstance(domain, Box) and math.isfinite(domain.low) and math.isfinite(domain.high):
        links = {"sigmoid": Each(Logit(domain.low, domain.high))}
    elif isinstance(domain, Simplex):
        links = {"softmax": Softmax(domain.total)}
    return {**links, PROJECTED: FREE}


def outside(value: object, expected: str) -> InputError:
    """Return the error for a value outside its domain."""
    return InputError(passed=f"the value {value}", expected=expected, do="start inside the domain, or widen it")
