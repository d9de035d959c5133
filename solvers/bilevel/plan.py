"""A plan for hypergradients as plain data, the algorithm that it stands for, and what it will cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, final

from hypergrad.algorithm import Algorithm, Cost
from hypergrad.inner import InnerSolver, UpdateRule
from hypergrad.kinds import Entry
from hypergrad.linear import LinearSolver
from hypergrad.solvers.bilevel.direct import Direct
from hypergrad.solvers.bilevel.forward import ForwardMode
from hypergrad.solvers.bilevel.implicit import Implicit
from hypergrad.solvers.bilevel.routed import Routed
from hypergrad.solvers.bilevel.unrolled import Unrolled
from hypergrad.solvers.bilevel.zeroth_order import ZerothOrder
from hypergrad.solvers.linear.cg import CG
from hypergrad.solvers.linear.dense import Dense
from hypergrad.solvers.linear.gmres import GMRES
from hypergrad.solvers.linear.minres import MINRES
from hypergrad.solvers.linear.neumann import Neumann


@final
@dataclass(frozen=True)
class Plan:
    """Which estimator, which linear solver, how many terms: numbers and words only, so that a run can save it.

    Attributes:
        estimator: ``"implicit"``, ``"unrolled"``, ``"forward"``, ``"forward+implicit"``, ``"direct"`` or
            ``"zeroth-order"``.
        linear: ``"CG"``, ``"MINRES"``, ``"GMRES"``, ``"Dense"`` or ``"Neumann"``.
        terms: most products of a linear solve.
        accuracy: relative residual at which it ends.
        damping: added to the Hessian.
        keep: what back-propagation keeps (see :class:`~hypergrad.Unrolled`).
        path: for ``"forward+implicit"`` the hyperparameters that the update rule or the start reads.
        rest: the others.
    """

    estimator: str
    linear: str = "CG"
    terms: int = 100
    accuracy: float = 1e-4
    damping: float = 0.0
    keep: str = "graph"
    path: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    def build(self, inner: InnerSolver | None, *, trained: bool = False) -> Algorithm[Any]:
        """Return the algorithm; with ``trained`` an implicit one that takes the parameters as trained already."""
        if self.estimator == "implicit":
            return Implicit(self._solver(), inner=None if trained else inner, damping=self.damping)
        if self.estimator == "direct":
            return Direct(None if trained else inner)
        if self.estimator == "zeroth-order":
            assert inner is not None
            return ZerothOrder(inner)
        steps, rule = length(inner), freed(inner)
        if self.estimator == "unrolled":
            keep: Any = self.keep
            return Unrolled(steps, rule, keep=keep)
        forward = ForwardMode(steps, rule)
        if self.estimator == "forward":
            return forward
        implicit = Implicit(self._solver(), damping=self.damping)
        return Routed({tuple(self.path): forward, tuple(self.rest): implicit})

    def _solver(self) -> LinearSolver:
        if self.linear == "Dense":
            return Dense()
        if self.linear == "Neumann":
            return Neumann(self.terms)
        kind: Any = {"CG": CG, "MINRES": MINRES, "GMRES": GMRES}[self.linear]
        solver: LinearSolver = kind(rtol=self.accuracy, max_steps=self.terms)
        return solver

    def after(self, residual: float, products: int, *, bent: bool, most: int, top: float) -> Plan:
        """Return the plan for the next step, from the residual, the products and the curvature of this one.

        A solve that stopped short of the accuracy gets half as many products more, up to ``most``; one that took less
        than a quarter of what it was given gives half of it back, down to 10. Negative curvature in CG doubles the
        damping, which starts at a thousandth of the top curvature. No clock decides anything here.
        """
        if self.estimator not in ("implicit", "forward+implicit") or self.linear == "Dense":
            return self
        if bent and self.linear == "CG":
            return dataclasses.replace(self, damping=max(2 * self.damping, 1e-3 * top))
        if residual > self.accuracy:
            return dataclasses.replace(self, terms=max(self.terms, min(most, self.terms + (self.terms + 1) // 2)))
        if self.linear != "Neumann" and 4 * products < self.terms:
            return dataclasses.replace(self, terms=max(10, self.terms // 2))
        return self


def length(inner: InnerSolver | None) -> int:
    """Return the number of training steps of an update rule."""
    assert isinstance(inner, UpdateRule)
    assert inner.steps is not None
    return inner.steps


def freed(inner: InnerSolver | None) -> UpdateRule:
    """Return an update rule without a length of its own, as algorithms that unroll want it."""
    assert isinstance(inner, UpdateRule)
    return dataclasses.replace(inner, steps=None, tolerance=0.0)


@final
@dataclass(frozen=True)
class Forecast:
    """What one outer step will take.

    Attributes:
        cost: passes.
        seconds: wall time, from the measured time of a pass of each kind on this machine; NaN where not measured.
        mebibytes: peak memory above what is held before the step, in MiB.
    """

    cost: Cost
    seconds: float
    mebibytes: float

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.seconds:.3g} s and {self.mebibytes:.3g} MiB an outer step ({passes(self.cost)})"


def passes(cost: Cost) -> str:
    """Return a cost in words, without what it has none of."""
    named = (
        (cost.inner_gradients, "inner gradients"),
        (cost.products, "products"),
        (cost.outer_gradients, "outer gradients"),
        (cost.outer_values, "outer values"),
    )
    return ", ".join(f"{count} {name}" for count, name in named if count) or "no passes"


@final
@dataclass(frozen=True)
class Choice:
    """What :func:`~hypergrad.choose` found.

    Attributes:
        algorithm: ready for every face.
        plan: the same as plain data.
        reason: why, in a few lines of plain text with the numbers; ``print(choice)`` shows it.
        entries: how each hyperparameter enters.
        forecast: what an outer step will take.
        cost: passes of the probe itself, training included.
        params: θ where it looked: trained where an inner solver was given and had to run, otherwise as passed.
        trained: whether it trained.
        top: largest curvature seen, NaN where it was not looked at.
    """

    algorithm: Algorithm[Any]
    plan: Plan
    reason: str
    entries: dict[str, Entry]
    forecast: Forecast
    cost: Cost
    params: dict[str, Any] = field(repr=False)
    trained: bool
    top: float

    def __str__(self) -> str:
        """Return the reason with the forecast."""
        return f"{self.reason}\nforecast: {self.forecast}"
