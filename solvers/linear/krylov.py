"""What a short run of conjugate gradients tells of a symmetric matrix: its curvature, and how long a solve will be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import Operator


@final
@dataclass(frozen=True)
class Curvature:
    """The extreme Ritz values of M⁻¹A on the Krylov space of b, and the residuals of the solves that got there.

    Attributes:
        top: largest Ritz value, at most the largest eigenvalue.
        bottom: smallest Ritz value, at least the smallest eigenvalue; below zero only if A is indefinite.
        residuals: ‖b − A x_j‖ / ‖b‖ after j = 1, 2, … products.
        solution: x after the last product, as a flat vector.
        products: products made.
    """

    top: float
    bottom: float
    residuals: tuple[float, ...]
    solution: Tensor
    products: int

    @property
    def condition(self) -> float:
        """Return top / bottom, infinite where the bottom is not positive."""
        return self.top / self.bottom if self.bottom > 0 else math.inf

    def terms(self, accuracy: float, size: int, damping: float = 0.0) -> int:
        """Return how many products a solve to a relative residual will take: seen, or else extrapolated.

        Beyond what was seen the residual is taken to fall by (√κ − 1)/(√κ + 1) a product, κ being the condition seen.
        With ``damping``, which was not seen, it is taken to do so from the start on.
        """
        if damping:
            root = math.sqrt((self.top + damping) / max(self.bottom + damping, 1e-12 * self.top))
            return min(size, max(1, math.ceil(math.log(2 / accuracy) * root / 2)))
        for place, residual in enumerate(self.residuals):
            if residual <= accuracy:
                return place + 1
        last = self.residuals[-1]
        root = math.sqrt(self.condition)
        if not math.isfinite(root) or root <= 1:
            return size
        rate = -math.log((root - 1) / (root + 1))
        return min(size, len(self.residuals) + math.ceil(math.log(last / accuracy) / rate))


def curvature(
    operator: Operator, b: Tensor, steps: int, inverse: Callable[[Tensor], Tensor] | None = None
) -> Curvature:
    """Run conjugate gradients from zero, through negative curvature if need be, and read off its tridiagonal matrix.

    With step lengths α_j and ratios β_j it is T_jj = 1/α_j + β_{j−1}/α_{j−1}, T_{j,j+1} = √β_j / |α_j|, whose
    eigenvalues are the Ritz values (Lanczos). The device is looked at once, at the end.

    Args:
        operator: A, symmetric.
        b: a vector that is not zero.
        steps: number of products, at least 1; no more than the size of A are made.
        inverse: r ↦ M⁻¹ r for a preconditioner.

    Cost: ``steps`` products.

    Source: Saad, "Iterative methods for sparse linear systems" (2003), section 6.7.3.
    """
    x, r = torch.zeros_like(b), b.clone()
    tiny = torch.finfo(b.dtype).tiny
    z = r if inverse is None else inverse(r)
    p, old, rows = z.clone(), torch.dot(r, z), []
    for _ in range(min(steps, operator.size)):
        image = operator(p)
        bent = torch.dot(p, image)
        alpha = old / torch.where(bent.abs() > tiny, bent, tiny)
        x, r = x + alpha * p, r - alpha * image
        z = r if inverse is None else inverse(r)
        new = torch.dot(r, z)
        beta = new / old.clamp(min=tiny)
        rows.append(torch.stack([alpha, beta, torch.linalg.vector_norm(r)]))
        p, old = z + beta * p, new
    alphas, betas, lengths = torch.stack(rows).double().mT.tolist()
    start = float(torch.linalg.vector_norm(b))
    residuals = [length / start for length in lengths]
    noise = 10 * torch.finfo(b.dtype).eps
    used = next((place + 1 for place, residual in enumerate(residuals) if not residual > noise), len(residuals))
    values = _ritz(alphas[:used], betas[:used])
    return Curvature(max(values), min(values), tuple(residuals[:used]), x, len(rows))


def _ritz(alphas: list[float], betas: list[float]) -> list[float]:
    size = len(alphas)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for place, alpha in enumerate(alphas):
        before = betas[place - 1] / alphas[place - 1] if place else 0.0
        matrix[place, place] = 1 / alpha + before
        if place + 1 < size:
            matrix[place, place + 1] = matrix[place + 1, place] = math.sqrt(abs(betas[place])) / abs(alpha)
    if not bool(torch.isfinite(matrix).all()):
        return [math.nan]
    found: list[float] = torch.linalg.eigvalsh(matrix).tolist()
    return found
