"""Newton's method with the dense Hessian, for small problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.errors import InputError, NumericalError
from hypergrad.inner import InnerResult, InnerSolver
from hypergrad.linear import Operator, Status
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_numbers
from hypergrad.solvers.linear.dense import materialise
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Newton(InnerSolver):
    """θ ← θ − t |H|⁻¹ ∇_θ g, with t halved until g falls enough; for a root θ ← θ − (∂R/∂θ)⁻¹ R.

    Negative eigenvalues of H are taken by their modulus, so that every step goes down. A problem with constraints has a
    saddle: its multipliers and parameters take the whole step −H⁻¹∇L together, which is the primal-dual active-set
    method (Hintermüller, Ito, Kunisch 2002); for a quadratic program it ends after finitely many steps or cycles.

    Args:
        tolerance: it stops once the norm of the gradient or residual is at most this.
        steps: largest number of iterations, at least 1.
        max_size: largest number of parameters accepted, at least 1.

    Cost: 1 gradient and n products an iteration, and the line search's evaluations.

    Raises:
        InputError: more parameters than ``max_size``.
        NonFiniteError: NaN or infinity in a gradient or in the Hessian.
        NumericalError: a singular Jacobian of a root or of a problem with constraints.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(lambda params, hparams: (params["w"].exp() - hparams["x"] * params["w"]).sum(), max)
        >>> start = {"w": torch.zeros(1, dtype=torch.float64)}, {"x": torch.ones(1, dtype=torch.float64).exp()}
        >>> Newton().run(problem, *start).params["w"]
        tensor([1.], dtype=torch.float64)
    """

    tolerance: float = 1e-10
    steps: int = 50
    max_size: int = 1000

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "steps", "max_size")
        check_numbers(self, "tolerance", above=0)

    def budget(self) -> Cost:
        """Return the gradients; products depend on the number of parameters."""
        return Cost(inner_gradients=self.steps + 1, products=(self.steps + 1) * self.max_size)

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Iterate to ``tolerance`` on one batch."""
        hparams, batch, point = tree.detached(hparams), problem.draw_inner(), tree.detached(params)
        size = tree.Layout.of(params).size
        if size > self.max_size:
            raise InputError(
                passed=f"{size} parameters",
                expected=f"at most max_size={self.max_size} for Newton's method with a dense Hessian",
                do="use hypergrad.LBFGS",
            )
        cost, gap, status = Cost(), float("inf"), Status.MAX_STEPS
        for step in range(self.steps + 1):
            stationarity = problem.linearise(point, hparams, batch)
            views = stationarity.layout.views(stationarity.residual())
            check_finite("the inner gradient of params", views, when=f"at step {step} of Newton's method")
            before, gap = gap, float(torch.linalg.vector_norm(stationarity.residual()))
            if gap <= self.tolerance:
                status = Status.CONVERGED
            if gap <= self.tolerance or step == self.steps or (gap >= before and gap < 1e3 * self.tolerance):
                cost += Cost(inner_gradients=1)
                break
            direction = _direction(stationarity, step, whole=problem.root or problem.saddle)
            cost += Cost(inner_gradients=1, products=stationarity.products)
            point = self._search(problem, stationarity, direction, hparams, batch)
        return InnerResult(point, status, cost)

    def _search(
        self, problem: Problem, stationarity: Stationarity, direction: Tensor, hparams: Tree, batch: Any
    ) -> Tree:
        layout = stationarity.layout
        origin = layout.flatten(tree.detached(stationarity.params))
        full = layout.views(origin + direction)
        if stationarity.loss is None or problem.saddle:
            return full
        value, slope = float(stationarity.loss.detach()), float(torch.dot(stationarity.residual(), direction))
        slack, scale = 10 * torch.finfo(origin.dtype).eps * max(abs(value), 1e-30), 1.0
        while scale > 1e-6:
            trial = layout.views(origin + scale * direction)
            with torch.no_grad():
                if float(problem.inner_value(trial, hparams, batch)) <= value + 1e-4 * scale * slope + slack:
                    return trial
            scale /= 2
        return full


def _direction(stationarity: Stationarity, step: int, *, whole: bool) -> Tensor:
    matrix = materialise(Operator.of(stationarity))
    rows = stationarity.layout.views(matrix.sum(dim=1))
    check_finite("the inner Hessian's rows of params", rows, when=f"at step {step} of Newton's method")
    if whole:
        return _solved(matrix.mT, stationarity.residual(), step)
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    floor = values.abs().max() * torch.finfo(matrix.dtype).eps * len(values)
    return -vectors @ ((vectors.mT @ stationarity.residual()) / values.abs().clamp(min=floor))


def _solved(jacobian: Tensor, residual: Tensor, step: int) -> Tensor:
    try:
        solution: Tensor = torch.linalg.solve(jacobian, residual)
    except RuntimeError as error:
        raise NumericalError(
            passed=f"a singular Jacobian of the residual at step {step} of Newton's method",
            expected="a root that is isolated: for constraints, gradients of the active ones that are independent, and "
            "curvature along them",
            do="start elsewhere, drop constraints that say the same, or solve the inner problem yourself, in "
            "hypergrad.Training",
        ) from error
    return -solution
