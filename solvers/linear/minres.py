"""MINRES: symmetric, possibly indefinite."""

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
class MINRES(LinearSolver):
    """Minimal residuals over the Krylov space of a symmetric A, definite or not.

    Lanczos' three-term recurrence builds an orthonormal basis v_k with the tridiagonal matrix (α_k, β_k); one
    rotation (c_k, s_k) a step keeps its QR factor, and x ← x + τ_k d_k with ‖b − A x‖ = |φ_k|, which never grows.

    Args:
        rtol: relative tolerance on the residual, at least 0.
        atol: absolute tolerance on the residual, at least 0, in units of b.
        max_steps: largest number of iterations, at least 1.
        check_every: iterations between two looks at the residual; 1 on the CPU and 10 elsewhere by default.

    On an indefinite matrix it costs the same and the result's ``negative_curvature`` is set. On a singular A it
    converges when b lies in A's range.

    Cost: 1 product an iteration, 1 more with a starting point.

    Source: Paige and Saunders, "Solution of sparse indefinite systems of linear equations" (1975).

    Example:
        >>> import torch
        >>> MINRES().solve(lambda v: v * torch.tensor([2.0, -4.0]), torch.ones(2)).value
        tensor([ 0.5000, -0.2500])
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 200
    check_every: int | None = None
    needs_symmetric = True
    needs_definite = False
    uses_start = True
    exact = True
    cost = "1 an iteration, at most max_steps (1 more from a warm start)"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "max_steps", "check_every")
        check_numbers(self, "rtol", "atol", least=0)

    def budget(self, size: int) -> int:
        """Return the iterations."""
        return self.max_steps

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        size = float(torch.linalg.vector_norm(b))
        target = max(self.rtol * size, self.atol)
        every = check_period(self.check_every, b)
        state = _Iteration(operator, b, x0, target)
        residual, status = float(state.phi), None
        for step in range(1, self.max_steps + 1):
            if residual <= target or status is not None:
                break
            state.advance()
            if step % every and step < self.max_steps:
                continue
            residual = abs(float(state.phi))
            if not math.isfinite(residual):
                status = Status.NON_FINITE
            elif residual > target and bool(state.exhausted):
                status = Status.MAX_STEPS
        if status is None:
            status = Status.CONVERGED if residual <= target else Status.MAX_STEPS
        return LinearResult(
            value=state.x,
            status=status,
            residual=residual / size,
            products=operator.products - made,
            negative_curvature=bool(state.bent),
            memory=memory,
        )


class _Iteration:
    """Lanczos vectors v, search directions d and the rotations of the last two steps, all on the device."""

    def __init__(self, operator: Operator, b: Tensor, x0: Tensor | None, target: float) -> None:
        self.operator, self.target = operator, target
        self.x, r = torch.zeros_like(b), b.clone()
        if x0 is not None:
            self.x = x0
            operator.add(r, x0, -1.0)
        zero, one = torch.zeros((), dtype=b.dtype, device=b.device), torch.ones((), dtype=b.dtype, device=b.device)
        self.phi = torch.linalg.vector_norm(r)
        self.tiny = torch.finfo(b.dtype).tiny
        self.v, self.v_old = r / self.phi.clamp(min=self.tiny), torch.zeros_like(b)
        self.d, self.d_old = torch.zeros_like(b), torch.zeros_like(b)
        self.beta, self.scale = zero, zero
        self.c, self.s, self.c_old, self.s_old = one, zero, one, zero
        self.bent, self.pivot = zero > 0, one
        self.exhausted = zero > 0

    def advance(self) -> None:
        """Take one step, or none once the target is reached or the Krylov space is exhausted."""
        p = self.operator(self.v)
        alpha = torch.dot(self.v, p)
        p.addcmul_(self.v, alpha, value=-1).addcmul_(self.v_old, self.beta, value=-1)
        beta_next = torch.linalg.vector_norm(p)
        epsilon, partial = self.s_old * self.beta, self.c_old * self.beta
        delta = self.c * partial + self.s * alpha
        gamma_bar = self.c * alpha - self.s * partial
        gamma = torch.hypot(gamma_bar, beta_next)
        self.scale = torch.maximum(self.scale, alpha.abs() + beta_next)
        floor = self.scale * torch.finfo(p.dtype).eps
        still = self.exhausted | (self.phi.abs() <= self.target) | (gamma <= floor)
        # pivots of the tridiagonal matrix: one below 0 says indefinite, after one near 0 nothing more is known (NaN)
        pivot = alpha - self.beta.square() / self.pivot
        self.pivot = torch.where(pivot.abs() > floor, pivot, torch.nan)
        self.bent = self.bent | (((alpha < 0) | (self.pivot < 0)) & ~still)
        safe = torch.where(gamma > floor, gamma, 1.0)
        d = (self.v - delta * self.d - epsilon * self.d_old) / safe
        c, s = gamma_bar / safe, beta_next / safe
        self.x.addcmul_(d, torch.where(still, 0.0, c * self.phi))
        self.phi = torch.where(still, self.phi, -s * self.phi)
        self.exhausted = self.exhausted | (gamma <= floor) | (beta_next <= floor)
        self.v_old, self.v = self.v, p / beta_next.clamp(min=self.tiny)
        self.d_old, self.d = self.d, d
        self.beta, self.c_old, self.s_old, self.c, self.s = beta_next, self.c, self.s, c, s
