"""Conjugate gradients for several right-hand sides, in step with each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hypergrad.linear import LinearResult, Operator, Status

Precondition = Callable[[Tensor], Tensor]


def lockstep(
    operator: Operator, rows: Tensor, precondition: Precondition | None, *, rtol: float, atol: float, most: int
) -> list[LinearResult]:
    """Solve A x = b for each row b, every iteration's products in one block; a row that is done leaves the block.

    Each row has the iterates that it would have alone.

    Args:
        operator: A, symmetric positive definite.
        rows: one right-hand side a row, (k, n).
        precondition: r ↦ M⁻¹ r for a vector, or ``None``.
        rtol: relative tolerance on each row's residual.
        atol: absolute tolerance on it.
        most: largest number of iterations.

    Cost: 1 product a row and iteration, and five matrices of the shape of ``rows``.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1)
    state = _Rows(operator, rows, precondition, (rtol * lengths).clamp(min=atol))
    for _ in range(most):
        if not state.live:
            break
        state.advance()
    return state.results(lengths)


class _Rows:
    """The iterates, and which rows still go on."""

    def __init__(self, operator: Operator, rows: Tensor, precondition: Precondition | None, targets: Tensor) -> None:
        self.operator, self.precondition, self.targets = operator, precondition, targets.tolist()
        self.x, self.r = torch.zeros_like(rows), rows.clone()
        self.best, self.z = torch.zeros_like(rows), self._preconditioned(self.r)
        self.p, self.rz = self.z.clone(), (self.r * self.z).sum(dim=1)
        self.least: list[float] = torch.linalg.vector_norm(rows, dim=1).tolist()
        self.products = [0] * len(rows)
        self.status = [_reached(length, target) for length, target in zip(self.least, self.targets, strict=True)]
        self.live = [row for row, status in enumerate(self.status) if status is None]

    def _preconditioned(self, r: Tensor) -> Tensor:
        return r if self.precondition is None else torch.stack([self.precondition(row) for row in r])

    def advance(self) -> None:
        """Take one step of every row that goes on."""
        p = self.p[self.live]
        q = self.operator.images(p)
        if self.operator.diagonal is not None:
            q = torch.addcmul(q, p, self.operator.diagonal)
        curvature = (p * q).sum(dim=1)
        definite = [not value <= 0 for value in curvature.tolist()]
        for row, fine in zip(self.live, definite, strict=True):
            self.products[row] += 1
            if not fine:
                self.status[row] = Status.NEGATIVE_CURVATURE
        kept = [place for place, fine in enumerate(definite) if fine]
        self.live = [self.live[place] for place in kept]
        if self.live:
            self._move(p[kept], q[kept], curvature[kept])

    def _move(self, p: Tensor, q: Tensor, curvature: Tensor) -> None:
        live = self.live
        alpha = (self.rz[live] / curvature).unsqueeze(1)
        self.x[live] = torch.addcmul(self.x[live], alpha, p)
        r = torch.addcmul(self.r[live], alpha, q, value=-1)
        z = self._preconditioned(r)
        rz = (r * z).sum(dim=1)
        self.p[live] = torch.addcmul(z, (rz / self.rz[live]).unsqueeze(1), p)
        self.r[live], self.rz[live] = r, rz
        for row, length in zip(live, torch.linalg.vector_norm(r, dim=1).tolist(), strict=True):
            if length < self.least[row]:
                self.least[row] = length
                self.best[row] = self.x[row]
            self.status[row] = _reached(length, self.targets[row])
        self.live = [row for row in live if self.status[row] is None]

    def results(self, lengths: Tensor) -> list[LinearResult]:
        """Return what each row has come to; one whose steps ran out has its last iterate."""
        ends = torch.linalg.vector_norm(self.r, dim=1).tolist()
        return [
            LinearResult(
                value=self.x[row] if status is None else self.best[row],
                status=status or Status.MAX_STEPS,
                residual=(ends[row] if status is None else self.least[row]) / length if length else 0.0,
                products=self.products[row],
                negative_curvature=status is Status.NEGATIVE_CURVATURE,
            )
            for row, (status, length) in enumerate(zip(self.status, lengths.tolist(), strict=True))
        ]


def _reached(residual: float, target: float) -> Status | None:
    if not math.isfinite(residual):
        return Status.NON_FINITE
    return Status.CONVERGED if residual <= target else None
