"""Preconditioned conjugate gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import (
    LinearResult,
    LinearSolver,
    Memory,
    Operator,
    Status,
    check_period,
)
from hypergrad.preconditioner import Preconditioner
from hypergrad.settings import check_counts, check_kind, check_numbers
from hypergrad.solvers.linear.lockstep import lockstep
from hypergrad.solvers.linear.preconditioners import PenaltyDiagonal
from hypergrad.solvers.linear.seen import Seen


@final
@dataclass(frozen=True)
class CG(LinearSolver):
    """Preconditioned conjugate gradients for a symmetric positive definite A.

    1. r = b − A x₀;  z = M⁻¹ r;  p = z
    2. α = rᵀz / pᵀAp;  x ← x + α p;  r ← r − α A p
    3. z ← M⁻¹ r;  β = new rᵀz / old rᵀz;  p ← z + β p; from 2 until ‖r‖ ≤ max(rtol ‖b‖, atol)

    Exact after n products in exact arithmetic, and after as many as A has distinct eigenvalues.

    Args:
        rtol: relative tolerance on the residual, at least 0.
        atol: absolute tolerance on the residual, at least 0, in units of b.
        max_steps: largest number of iterations, at least 1.
        preconditioner: M⁻¹. By default the penalty's diagonal where the problem gives its penalty apart, and none
            otherwise.
        check_every: iterations between two looks at the residual. By default 1 on the CPU and 10 elsewhere, where
            a look waits for the device; iterations past the tolerance change nothing but their products count.

    pᵀAp ≤ 0 ends the solve with the status ``negative_curvature`` and the iterate of the smallest residual seen. A
    solve that runs out of steps returns its last iterate: in the norm of A its error only falls, the residual may not.
    The residual reported is that of the recurrence; in float32 the true one levels off near 1e-7 times the
    condition number.

    Cost: 1 product an iteration, 1 more with a starting point, and the preconditioner's.

    Source: Hestenes and Stiefel (1952); truncated at negative curvature as in Steihaug (1983).

    Example:
        >>> import torch
        >>> result = CG().solve(lambda v: 2 * v, torch.ones(3))
        >>> result.value, result.products
        (tensor([0.5000, 0.5000, 0.5000]), 1)
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 100
    preconditioner: Preconditioner | None = field(default_factory=PenaltyDiagonal)
    check_every: int | None = None
    needs_symmetric = True
    needs_definite = True
    uses_start = True
    exact = True
    cost = "1 an iteration, at most max_steps (1 more from a warm start)"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "max_steps", "check_every")
        check_numbers(self, "rtol", "atol", least=0)
        check_kind(
            self, "preconditioner", Preconditioner, "pass one of hypergrad's, such as hypergrad.Jacobi()", optional=True
        )

    def budget(self, size: int) -> int:
        """Return the iterations and the preconditioner's products."""
        return self.max_steps + (0 if self.preconditioner is None else self.preconditioner.budget(size))

    def solve_rows(self, operator: Operator, rows: Tensor) -> list[LinearResult]:
        """Solve for all rows in step, with one preconditioner and the products of an iteration in one block."""
        if len(rows) < 2 or not operator.symmetric:
            return super().solve_rows(operator, rows)
        made, precondition = operator.products, None
        if self.preconditioner is not None:
            precondition, _ = self.preconditioner.build(operator, {})
        built = operator.products - made
        found = lockstep(operator, rows, precondition, rtol=self.rtol, atol=self.atol, most=self.max_steps)
        found[0] = dataclasses.replace(found[0], products=found[0].products + built)
        return found

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        whole, made, built = operator, operator.products, 0
        precondition, seen = None, Seen(0, b)
        if self.preconditioner is not None:
            precondition, memory = self.preconditioner.build(operator, memory)
            built = operator.products - made
            seen = Seen(self.preconditioner.room(memory), b)
            operator = seen.through(operator)
        size = float(torch.linalg.vector_norm(b))
        target = max(self.rtol * size, self.atol)
        every = check_period(self.check_every, b)
        if every == 1:
            found = _watched(operator, precondition, b, x0, target, self.max_steps)
            products = whole.products - made
            if self.preconditioner is not None:
                memory = self.preconditioner.learn(memory, *seen.rows(), products - built)
            return dataclasses.replace(found, residual=found.residual / size, products=products, memory=memory)
        state = _Iteration(operator, precondition, b, x0, target)
        least = float(state.length)
        best, status = state.x.clone(), _reached(least, target)
        for step in range(1, self.max_steps + 1):
            if status is not None:
                break
            state.advance()
            if step % every and step < self.max_steps:
                continue
            residual = float(state.length)
            if residual < least:
                least = residual
                best.copy_(state.x)
            status = _reached(residual, target)
            if status is None and bool(state.bent):
                status = Status.NEGATIVE_CURVATURE
        if status is None:
            best, least = state.x, float(state.length)
        products = whole.products - made
        if self.preconditioner is not None:
            memory = self.preconditioner.learn(memory, *seen.rows(), products - built)
        return LinearResult(
            value=best,
            status=status or Status.MAX_STEPS,
            residual=least / size,
            products=products,
            negative_curvature=bool(state.bent),
            memory=memory,
        )


def _watched(
    operator: Operator,
    precondition: Callable[[Tensor], Tensor] | None,
    b: Tensor,
    x0: Tensor | None,
    target: float,
    max_steps: int,
) -> LinearResult:
    """Iterate with a look at every residual, so that scalars are numbers and an iterate is copied only when needed.

    The residual in the result is an absolute one.
    """
    x, r, limit = torch.zeros_like(b) if x0 is None else x0, b.clone(), torch.finfo(b.dtype).max
    if x0 is not None:
        operator.add(r, x0, -1.0)
    z = r if precondition is None else precondition(r)
    p, q, rz = z.clone(), torch.empty_like(b), float(torch.dot(r, z))
    least = residual = math.sqrt(rz) if precondition is None else float(torch.linalg.vector_norm(r))
    best, status = x, _reached(least, target)
    for _ in range(max_steps):
        if status is not None:
            break
        operator.multiply(q, p)
        curvature = float(torch.dot(p, q))
        if curvature <= 0:
            status = Status.NEGATIVE_CURVATURE
            break
        alpha = _ratio(rz, curvature, limit)
        r.add_(q, alpha=-alpha)
        z = r if precondition is None else precondition(r)
        previous, rz = rz, float(torch.dot(r, z))
        residual = math.sqrt(rz) if precondition is None else float(torch.linalg.vector_norm(r))
        if residual < least:
            least, best = residual, x
        elif best is x:
            best = x.clone()
        x.add_(p, alpha=alpha)
        torch.add(z, p, alpha=_ratio(rz, previous, limit), out=p)
        status = _reached(residual, target)
    if status is None:
        best, least = x, residual
    return LinearResult(
        value=best,
        status=status or Status.MAX_STEPS,
        residual=least,
        products=0,
        negative_curvature=status is Status.NEGATIVE_CURVATURE,
    )


def _ratio(top: float, bottom: float, limit: float) -> float:
    """Return a quotient that torch takes as a factor: infinite beyond the dtype's range, and 0 of nothing."""
    found = top / bottom if bottom else 0.0
    return math.copysign(math.inf, found) if abs(found) > limit else found


class _Iteration:
    """The iterate and its recurrences, with scalars that stay on the device."""

    def __init__(
        self,
        operator: Operator,
        precondition: Callable[[Tensor], Tensor] | None,
        b: Tensor,
        x0: Tensor | None,
        target: float,
    ) -> None:
        self.operator, self.target = operator, target
        self.precondition = precondition or (lambda r: r)
        self.x, self.r = torch.zeros_like(b), b.clone()
        if x0 is not None:
            self.x = x0
            operator.add(self.r, x0, -1.0)
        z = self.precondition(self.r)
        self.p, self.q, self.rz = z.clone(), torch.empty_like(b), torch.dot(self.r, z)
        self.length = torch.linalg.vector_norm(self.r)
        self.bent = torch.zeros((), dtype=torch.bool, device=b.device)

    def advance(self) -> None:
        """Take one step, or none once the target is reached or negative curvature was met."""
        self.operator.multiply(self.q, self.p)
        curvature = torch.dot(self.p, self.q)
        done = self.length <= self.target
        self.bent = self.bent | ((curvature <= 0) & ~done)
        still = self.bent | done
        alpha = torch.where(still, 0.0, self.rz / curvature)
        self.x.addcmul_(self.p, alpha)
        self.r.addcmul_(self.q, alpha, value=-1)
        self.length = torch.linalg.vector_norm(self.r)
        z = self.precondition(self.r)
        previous, self.rz = self.rz, torch.dot(self.r, z)
        self.p.mul_(torch.where(still, 0.0, self.rz / previous)).add_(z)


def _reached(residual: float, target: float) -> Status | None:
    if not math.isfinite(residual):
        return Status.NON_FINITE
    return Status.CONVERGED if residual <= target else None
