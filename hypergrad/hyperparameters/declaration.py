"""The declaration of one hyperparameter: where it starts, which values it can take, and how it is moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from hypergrad.domains import Box, Domain
from hypergrad.errors import InputError
from hypergrad.hyperparameters.links import FREE, PROJECTED, Discrete, Each, Link, choose_link
from hypergrad.solvers.best_response.domains import Choice, Integer

Value = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


@final
@dataclass(frozen=True, eq=False)
class Hyperparameter:
    """A hyperparameter: an initial value, a domain, and the reparametrisation under which optimizers move it.

    ============================  ==================================================================
    domain                        ``by``, the first one is the default
    ============================  ==================================================================
    ``None``                      ``"identity"``
    ``Positive(floor)``           ``"log"`` (floor + exp λ), ``"softplus"``, ``"projection"``
    ``UnitInterval()``            ``"sigmoid"``, ``"projection"``
    ``Box(low, high)``            ``"sigmoid"`` between two finite ends, ``"projection"``
    ``Simplex(total)``            ``"softmax"``, ``"projection"``
    another one that projects     ``"projection"``
    ``best_response.Integer``     ``"relaxation"``: no gradient, for best response and for search
    ``best_response.Choice``      ``"relaxation"``
    ============================  ==================================================================

    With ``"projection"`` the raw tensor is the value, and an outer move projects it.

    Args:
        initial: where it starts, in its own units: a number, several, or a tensor.
        domain: the values that it can take; ``None`` for any number.
        by: the reparametrisation.
        bounds: (low, high), a smaller range in its own units that :meth:`Hyperparameters.project_` and
            :meth:`Hyperparameters.domains` keep to; ``None`` for an open end. For reparametrisations of single entries.
        shape: shape that ``initial`` is expanded to.

    Raises:
        InputError: an initial value that is NaN, outside of the domain or of the bounds, or cannot be expanded to the
            shape; a domain or reparametrisation that does not exist; bounds in the wrong order or outside the domain.

    Example:
        >>> import hypergrad as hg
        >>> hg.Hyperparameter(1e-3, hg.Positive(), bounds=(1e-6, 1.0))
        Hyperparameter(0.001, Positive(floor=0.0) by log, bounds (1e-06, 1.0))
    """

    initial: Value
    domain: Domain | Discrete | None = None
    by: str | None = None
    bounds: tuple[float | None, float | None] | None = None
    shape: Sequence[int] | None = None
    link: Link = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        link, by = choose_link(self.domain, self.by)
        object.__setattr__(self, "link", link)
        object.__setattr__(self, "by", by)
        if self.bounds is not None:
            self._check_bounds()
        self.raw(self.initial)

    def __repr__(self) -> str:
        """Return the settings that were given."""
        start = f"tensor of shape {tuple(self.initial.shape)}" if isinstance(self.initial, Tensor) else self.initial
        return f"Hyperparameter({start}, {self.describe()})"

    def describe(self) -> str:
        """Return domain, reparametrisation and bounds in words."""
        where = "any number" if self.domain is None else f"{self.domain!r} by {self.by}"
        return where if self.bounds is None else f"{where}, bounds {self.bounds}"

    @property
    def differentiable(self) -> bool:
        """Whether a gradient can reach it: not where it is a whole number or one of several options."""
        return not isinstance(self.domain, Integer | Choice)

    def value(self, raw: Tensor) -> Tensor:
        """Return the value of a raw tensor, differentiably."""
        return self.link.value(raw)

    def raw(self, value: Value) -> Tensor:
        """Return the raw tensor of a value, in float64.

        Raises:
            InputError: no numbers, NaN, or a value outside the domain or the bounds.
        """
        given = self._numbers(value)
        if not bool(torch.isfinite(given).all()):
            raise InputError(f"the value {_shown(given)}", "finite numbers", "look at where the value comes from")
        self._check_inside(given)
        return self.link.inverse(given).to(torch.float64)

    def raw_domain(self) -> Domain | None:
        """Return the set that the raw tensor is projected onto after an outer step, or ``None``."""
        if self.bounds is not None:
            low, high = self.bounds
            return Box(
                -math.inf if low is None else self._raw_end(low), math.inf if high is None else self._raw_end(high)
            )
        return self.domain if self.by == PROJECTED and isinstance(self.domain, Domain) else None

    def _raw_end(self, end: float) -> float:
        return float(self.link.inverse(torch.tensor(end, dtype=torch.float64)))

    def _numbers(self, value: Value) -> Tensor:
        try:
            given = torch.as_tensor(value, dtype=torch.float64).detach()
            if self.shape is not None:
                given = given.expand(*self.shape).contiguous()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                passed=f"the value {value!r} with shape={self.shape}",
                expected="a number, a sequence of numbers or a tensor that can be expanded to the shape",
                do="pass numbers, and a shape that the value broadcasts to",
            ) from error
        if isinstance(value, bool) or given.numel() == 0:
            raise InputError(f"the value {value!r}", "at least one number", "pass where the hyperparameter starts")
        return given

    def _check_inside(self, given: Tensor) -> None:
        if self.by == PROJECTED and isinstance(self.domain, Domain):
            gap = (self.domain.project(given) - given).abs().max()
            if bool(gap > 1e-6 * (1 + given.abs().max())):
                raise InputError(
                    passed=f"the value {_shown(given)}, outside {self.domain!r}",
                    expected=f"a point of {self.domain!r}",
                    do="start inside the domain, or widen it",
                )
        low, high = self.bounds or (None, None)
        if (low is not None and bool((given < low).any())) or (high is not None and bool((given > high).any())):
            raise InputError(
                passed=f"the value {_shown(given)} with bounds {self.bounds}",
                expected="a value within its bounds",
                do="start inside, or widen the bounds",
            )

    def _check_bounds(self) -> None:
        bounds = self.bounds
        whole = isinstance(bounds, Sequence) and len(bounds) == 2
        numbers = [] if bounds is None or not whole else [end for end in bounds if end is not None]
        if not whole or not all(isinstance(end, int | float) for end in numbers) or numbers != sorted(set(numbers)):
            raise InputError(f"Hyperparameter(bounds={bounds!r})", "(low, high), low < high", "swap the two ends")
        if not isinstance(self.link, Each) or not self.differentiable or (self.link is FREE and self.domain):
            raise InputError(
                passed=f"Hyperparameter(bounds={bounds!r}) for {self.domain!r} by {self.by}",
                expected="bounds where a reparametrisation acts on single entries",
                do="put the ends into the domain: Box(low, high), Integer(low, high)",
            )
        for end in numbers:
            try:
                self._raw_end(end)
            except InputError as error:
                raise InputError(
                    passed=f"Hyperparameter(bounds={bounds!r}) for {self.domain!r}",
                    expected=f"bounds inside the domain: {error.expected}",
                    do="narrow the bounds, or leave an end open with None",
                ) from error


def _shown(given: Tensor) -> object:
    return (
        given.tolist() if given.numel() <= 8 else f"of {given.numel()} entries from {given.min():g} to {given.max():g}"
    )
