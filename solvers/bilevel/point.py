"""The inner problem linearised where training ended, with solves that name what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hypergrad import guards, shortage, tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.data import Fixed
from hypergrad.errors import DivergenceError, InputError, NonFiniteError, NumericalError, UnsupportedError
from hypergrad.lagrangian import Lagrangian
from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.problem import OuterGradients, Problem
from hypergrad.solvers.bilevel.implicit_remarks import Scales
from hypergrad.solvers.linear.refined import Refined, converted
from hypergrad.solvers.linear.spectrum import top_curvature
from hypergrad.tree import Tree


class Point:
    """The inner problem linearised where training ended, and solves with its Hessian."""

    def __init__(self, linear: LinearSolver, damping: float, problem: Problem, params: Tree, hparams: Tree) -> None:
        """Draw an inner batch and build the graph of the inner gradient."""
        self.linear, self.damping, self.problem = linear, damping, problem
        self.batch = problem.draw_inner()
        self._draws = guards.Draws.capture(tree.device_of(params)) if isinstance(linear, Refined) else None
        self.stationarity = problem.linearise(params, hparams, self.batch)
        self.linearised = 1

    def solve(self, b: Tensor, start: Tensor | None, memory: Memory) -> LinearResult:
        """Solve H q = b.

        Raises:
            DivergenceError: the solve diverged.
        """
        operator = self._operator()
        result = self.linear.solve_flat(operator, b, start, memory)
        if result.status is Status.DIVERGED:
            raise self._diverged(operator, b)
        return result

    def solve_rows(self, rows: Tensor) -> list[LinearResult]:
        """Solve H q = b for each row b.

        Raises:
            DivergenceError: a solve diverged.
        """
        operator = self._operator()
        results = self.linear.solve_rows(operator, rows)
        for result, b in zip(results, rows, strict=True):
            if result.status is Status.DIVERGED:
                raise self._diverged(operator, b)
        return results

    def _operator(self) -> Operator:
        return Operator.of(self.stationarity, self.damping, redraw=self._redraw(), lower=self._lower)

    def check(self, outer: OuterGradients) -> tuple[float, float, float]:
        """Return f, ‖∇_θ g‖ and ‖∂f/∂θ‖ after checking that both objectives are finite here; one look at the device."""
        loss, gap, steepness = tree.numbers(outer.value, self.stationarity.length(), tree.norm(outer.params))
        when = "where training ended"
        if not (math.isfinite(loss) and math.isfinite(gap) and math.isfinite(steepness)):
            check_finite("the outer loss", {"f": outer.value}, when=when)
            views = self.stationarity.layout.views(self.stationarity.residual())
            check_finite("the inner gradient of params", views, when=when)
            check_finite("the outer gradient of params", outer.params, when=when)
        check_finite("the outer gradient of hparams", outer.hparams, when=when)
        return loss, gap, steepness

    def check_solution(self, result: LinearResult, b: Tensor, *, finite: bool) -> None:
        """Raise where a solve of a finite system met NaN or infinity; ``finite`` says that its value has none."""
        if finite and result.status is not Status.NON_FINITE:
            return
        raise _non_finite_product(self._broken(b))

    def mixed(
        self,
        outer: OuterGradients,
        b: Tensor,
        numbers: tuple[float, float, float],
        result: LinearResult,
        *,
        last: bool,
    ) -> tuple[Tree, Scales]:
        """Return ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q, and what the distance from the inner optimum is judged by.

        Args:
            outer: the outer gradients; those of θ are not looked at.
            b: ∂f/∂θ, flat.
            numbers: what :meth:`check` returned.
            result: of the solve, with q.
            last: whether the graph may be freed.
        """
        loss, gap, steepness = numbers
        slope = self.stationarity.slope(result.value).item()
        self.check_solution(result, b, finite=math.isfinite(slope))
        grads = outer.minus(self.stationarity.cross(result.value, last=last))
        return grads, Scales(loss, abs(slope), gap, steepness, self.stationarity.params)

    def spent(self, result: LinearResult) -> Cost:
        """Return the passes of a solve and its mixed product, which autograd leaves out where nothing is reached."""
        mixed = int(bool(self.stationarity.reached))
        return Cost(products=result.products + mixed, outer_gradients=1)

    def kinks(self) -> list[int]:
        """Return the flat places of inequalities that are active with a multiplier of zero."""
        inner = self.problem.inner
        if not isinstance(inner, Lagrangian):
            return []
        return inner.weakly_active(self.stationarity.params, self.stationarity.hparams, self.batch)

    def _broken(self, b: Tensor) -> str | None:
        return tree.first_non_finite(self.stationarity.layout.views(self.stationarity.hvp(b)))

    def _diverged(self, operator: Operator, b: Tensor) -> NumericalError:
        name = self._broken(b)
        if name is not None:
            return _non_finite_product(name)
        top, _ = top_curvature(operator, None, steps=20)
        longest = 2 / top if top else float("inf")
        estimated = getattr(self.linear, "step", None) is None
        remedy = "" if estimated else "leave step out to have it estimated; if it diverges even then "
        return DivergenceError(
            passed=f"{self.linear!r} on a Hessian with curvature up to {top:.3g}; its terms grew",
            expected=f"a positive definite Hessian and a step below 2 / {top:.3g} = {longest:.3g}",
            do=f"{remedy}the Hessian is indefinite: train longer, add damping=, or use hypergrad.CG, which stops at "
            "negative curvature, hypergrad.MINRES, or hypergrad.Identity with the learning rate, which cannot diverge",
        )

    def _lower(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return products with the Hessian of the data part, on a second graph in a lower precision.

        Raises:
            UnsupportedError: the inner problem does not work, or computes in a higher precision all the same.
        """
        high = self.stationarity
        assert self._draws is not None
        self.linearised += 1
        params, hparams = (converted(tree.detached(part), dtype) for part in (high.params, high.hparams))
        try:
            with guards.again(self._draws):  # the same masks of dropout
                low = self.problem.linearise(params, hparams, converted(self.batch, dtype))
        except (RuntimeError, InputError) as error:
            if shortage.is_shortage(error):
                raise
            raise _not_lower(dtype, f"which fails there: {error}") from error
        outputs = [low.loss] if low.loss is not None else list(low.ends().values())
        if any(output.dtype != dtype for output in outputs):
            raise _not_lower(dtype, f"which computes in {outputs[0].dtype} all the same, so that nothing is gained")

        def product(v: Tensor) -> Tensor:
            y = torch.zeros_like(v)
            low.update(y, v, 1.0)
            return y

        return product

    def _redraw(self) -> Any:
        if self.problem.inner_data is None or isinstance(self.problem.inner_data, Fixed):
            return None

        def redraw() -> Operator:
            self.linearised += 1
            fresh = self.problem.linearise(
                self.stationarity.params, self.stationarity.hparams, self.problem.draw_inner()
            )
            return Operator.of(fresh, self.damping)

        return redraw


def _not_lower(dtype: torch.dtype, problem: str) -> UnsupportedError:
    return UnsupportedError(
        passed=f"Refined(product_dtype={dtype}) for an inner problem {problem}",
        expected="an inner objective that computes in the precision of its parameters",
        do='convert what it captures where it is used, x.to(params["weight"].dtype) and a module\'s buffers likewise, '
        "pass data through a sampler, or use the linear solver without hypergrad.Refined",
    )


def _non_finite_product(name: str | None) -> NonFiniteError:
    where = f"product 1 of the linear solve, in params {name!r}" if name else "a later product of the linear solve"
    return NonFiniteError(
        passed=f"NaN or infinity in {where}",
        expected="finite second derivatives of the inner objective",
        do="look for sqrt, norm, log or division at points where their second derivative is infinite, such as "
        "torch.linalg.vector_norm at 0; add a small epsilon inside",
    )
