"""Restarted GMRES for matrices that are not symmetric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
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
class GMRES(LinearSolver):
    """Generalised minimal residuals with restarts, for any regular A.

    Arnoldi's method (classical Gram-Schmidt, done twice) builds an orthonormal basis V of the Krylov space with
    A V_k = V_{k+1} H_k; x ← x + V_k argmin_y ‖β e₁ − H_k y‖. After ``restart`` vectors it begins again from x.

    Args:
        rtol: relative tolerance on the residual, at least 0.
        atol: absolute tolerance on the residual, at least 0, in units of b.
        max_steps: largest number of Arnoldi steps in all, at least 1.
        restart: vectors kept, at least 1: memory is (restart + 1) times the number of parameters.
        check_every: steps between two looks at the residual; 1 on the CPU and 10 elsewhere by default.

    Cost: 1 product a step and 1 at the end of each cycle.

    Source: Saad and Schultz (1986).

    Example:
        >>> import torch
        >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> GMRES().solve(lambda v: rotation @ v, torch.tensor([1.0, 2.0])).value.round(decimals=4)
        tensor([-2.,  1.])
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 100
    restart: int = 30
    check_every: int | None = None
    needs_symmetric = False
    needs_definite = False
    uses_start = True
    exact = True
    cost = "1 a step, at most max_steps, and 1 at the end of each cycle"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "max_steps", "restart", "check_every")
        check_numbers(self, "rtol", "atol", least=0)

    def budget(self, size: int) -> int:
        """Return the steps and one for every cycle."""
        return self.max_steps + -(-self.max_steps // min(self.restart, self.max_steps, size))

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        x, r = torch.zeros_like(b), b.clone()
        if x0 is not None:
            x = x0
            operator.add(r, x, -1.0)
        size = float(torch.linalg.vector_norm(b))
        target = max(self.rtol * size, self.atol)
        residual = float(torch.linalg.vector_norm(r))
        steps = 0
        while residual > target and steps < self.max_steps and math.isfinite(residual):
            length = min(self.restart, self.max_steps - steps, operator.size)
            update, taken = self._cycle(operator, r, residual, target, length)
            steps += taken
            x += update
            r = torch.sub(b, operator(x))
            previous, residual = residual, float(torch.linalg.vector_norm(r))
            if residual >= previous:  # stagnation: a further cycle would repeat this one
                break
        if not math.isfinite(residual):
            status = Status.NON_FINITE
        else:
            status = Status.CONVERGED if residual <= target else Status.MAX_STEPS
        return LinearResult(x, status, residual / size, operator.products - made, memory=memory)

    def _cycle(self, operator: Operator, r: Tensor, residual: float, target: float, length: int) -> tuple[Tensor, int]:
        """Return the update of one cycle and the steps it took."""
        every = check_period(self.check_every, r)
        basis = torch.empty(length + 1, r.numel(), dtype=r.dtype, device=r.device)
        hessenberg = torch.zeros(length + 1, length, dtype=r.dtype, device=r.device)
        basis[0] = r / residual
        y, k = np.zeros(0), 0
        for k in range(1, length + 1):
            w = operator(basis[k - 1])
            for _ in range(2):
                weights = basis[:k] @ w
                hessenberg[:k, k - 1] += weights
                w -= weights @ basis[:k]
            hessenberg[k, k - 1] = torch.linalg.vector_norm(w)
            basis[k] = w / hessenberg[k, k - 1].clamp(min=torch.finfo(w.dtype).tiny)
            if k % every == 0 or k == length:
                y, left = _least_squares(hessenberg[: k + 1, :k], residual)
                if left <= 0.5 * target or not math.isfinite(left):
                    break
        return torch.as_tensor(y, dtype=r.dtype, device=r.device) @ basis[: len(y)], k


def _least_squares(hessenberg: Tensor, residual: float) -> tuple[np.ndarray, float]:
    """Return the minimiser of ‖residual · e₁ − H y‖ and the minimum, in float64 on the host."""
    matrix = hessenberg.cpu().double().numpy()
    right = np.zeros(matrix.shape[0])
    right[0] = residual
    if not np.isfinite(matrix).all():
        return np.full(matrix.shape[1], np.nan), math.nan
    y = np.linalg.lstsq(matrix, right, rcond=None)[0]
    return y, float(np.linalg.norm(right - matrix @ y))
