"""Conjugate gradients on the normal equations."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
from hypergrad.settings import check_counts, check_numbers


@final
@dataclass(frozen=True)
class NormalCG(LinearSolver):
    """Conjugate gradients on AᵀA x = Aᵀb, in the form that keeps the residual (CGLS).

    1. r = b − A x₀;  s = Aᵀ r;  p = s
    2. q = A p;  α = ‖s‖²/‖q‖²;  x ← x + α p;  r ← r − α q
    3. s ← Aᵀ r;  β = new ‖s‖² / old ‖s‖²;  p ← s + β p

    It works for every A: indefinite, not symmetric, singular (the solution of least squares and least norm). Its
    condition number is that of A squared, so it is the last resort, not the default.

    Args:
        rtol: relative tolerance on the residual, at least 0; for a singular A also on ‖Aᵀr‖ / ‖Aᵀb‖.
        atol: absolute tolerance on the residual, at least 0, in units of b.
        max_steps: largest number of iterations, at least 1.
        check_every: iterations between two looks at the residual; 1 on the CPU and 10 elsewhere by default.

    Cost: 2 products an iteration (one with A, one with Aᵀ) and 1 before the first, 2 with a starting point.

    Source: Hestenes and Stiefel (1952), section 10; Björck, "Numerical methods for least squares problems" (1996).

    Example:
        >>> import torch
        >>> NormalCG().solve(lambda v: v * torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])).value
        tensor([0.5000, 0.0000])
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 200
    check_every: int | None = None
    needs_symmetric = False
    needs_definite = False
    uses_start = True
    exact = True
    cost = "2 an iteration, at most max_steps, and 1 (2 from a warm start)"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "max_steps", "check_every")
        check_numbers(self, "rtol", "atol", least=0)

    def budget(self, size: int) -> int:
        """Return two an iteration and one."""
        return 2 * self.max_steps + 1

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        transposed = operator if operator.symmetric else operator.transposed()
        made = operator.products
        x, r = torch.zeros_like(b), b.clone()
        if x0 is not None:
            x = x0
            operator.add(r, x, -1.0)
        size, every = float(torch.linalg.vector_norm(b)), check_period(self.check_every, b)
        target = max(self.rtol * size, self.atol)
        residual, status = float(torch.linalg.vector_norm(r)), None
        s = transposed(r)
        p, gamma = s.clone(), torch.dot(s, s)
        slope = float(gamma) ** 0.5
        for step in range(1, self.max_steps + 1):
            if residual <= target or status is not None:
                break
            q = operator(p)
            length = torch.dot(q, q)
            alpha = torch.where((gamma > 0) & (length > 0), gamma / length, 0.0)
            x.addcmul_(p, alpha)
            r.addcmul_(q, alpha, value=-1)
            s = transposed(r)
            previous, gamma = gamma, torch.dot(s, s)
            p.mul_(torch.where(previous > 0, gamma / previous, 0.0)).add_(s)
            if step % every and step < self.max_steps:
                continue
            residual = float(torch.linalg.vector_norm(r))
            if not math.isfinite(residual):
                status = Status.NON_FINITE
            elif float(gamma) ** 0.5 <= self.rtol * slope:
                status = Status.CONVERGED  # least squares: no x makes the residual smaller
        if status is None:
            status = Status.CONVERGED if residual <= target else Status.MAX_STEPS
        extra = 0 if transposed is operator else transposed.products
        return LinearResult(x, status, residual / size, operator.products - made + extra, memory=memory)
