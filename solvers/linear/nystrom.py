"""Nyström's low-rank approximation, as a direct solve and as a preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.linear import (
    LinearResult,
    LinearSolver,
    Memory,
    Operator,
    Status,
)
from hypergrad.preconditioner import Preconditioner
from hypergrad.settings import check_counts, check_numbers

Sketch = tuple[Tensor, Tensor]


@final
@dataclass(frozen=True)
class NystromPreconditioner(Preconditioner):
    """M = U Λ Uᵀ + diag(max(d, τ/100)): a rank-r sketch of the data's curvature with the penalty's exact diagonal.

    U Λ Uᵀ is the randomised Nyström approximation of B, τ its smallest eigenvalue, and d the penalty's diagonal,
    which is always the present one. Without a penalty M = U (Λ − τ) Uᵀ + τ I, where τ stands for what the sketch
    missed. M⁻¹ is applied by Woodbury's identity. The sketch is kept over outer steps.

    Args:
        rank: r, at least 1; memory is r times the number of parameters.
        oversample: products beyond r that sharpen the sketch, at least 0.
        refresh: number of solves that use one sketch, at least 1; ``None`` keeps the first one.
        seed: seed of the random test matrix.

    Cost: r + ``oversample`` products for a sketch; two products with an n × r matrix a step.

    Example:
        >>> import torch, hypergrad as hg
        >>> curvature = torch.logspace(-3, 0, 30, dtype=torch.float64).square()
        >>> b = torch.ones(30, dtype=torch.float64)
        >>> result = hg.CG(preconditioner=NystromPreconditioner(rank=20)).solve(lambda v: curvature * v, b)
        >>> result.products < hg.CG().solve(lambda v: curvature * v, b).products
        True

    Source: Frangella, Tropp, Udell, "Randomized Nyström preconditioning" (2023), with the shift μ of their
    equation (1.3) made a diagonal.
    """

    rank: int = 20
    oversample: int = 10
    refresh: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse empty settings."""
        check_counts(self, "rank", "refresh")
        check_counts(self, "oversample", least=0)

    def budget(self, size: int) -> int:
        """Return the sketch's products."""
        return min(self.rank + self.oversample, size)

    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor] | None, Memory]:
        """Return r ↦ M⁻¹ r."""
        age = memory.get("solves", 0)
        if "vectors" not in memory or (self.refresh is not None and age % self.refresh == 0):
            drawn = sketch(operator, self.budget(operator.size), seed=self.seed + age)
            if drawn is None:
                return None, memory  # the solver's own products will say so
            vectors, values = drawn[0][:, : self.rank], drawn[1][: self.rank]
        else:
            vectors, values = memory["vectors"], memory["values"]
        tail = torch.maximum(values[-1], torch.finfo(values.dtype).eps * values[0])
        if operator.diagonal is None:
            apply = woodbury((vectors, (values - tail).clamp(min=0)), tail.expand(operator.size))
        else:
            apply = woodbury((vectors, values), torch.maximum(operator.diagonal, 0.01 * tail))
        return apply, {"solves": age + 1, "vectors": vectors, "values": values}


@final
@dataclass(frozen=True)
class Nystrom(LinearSolver):
    """x = (U Λ Uᵀ + diag(d) + ρ I)⁻¹ b with a rank-r sketch of the data's curvature: a direct, biased solve.

    The bias vanishes with ρ and with the eigenvalues that the sketch misses; at full rank and ρ = 0 it is exact.
    As a preconditioner of :class:`~hypergrad.CG` the same sketch gives exact answers.

    Args:
        rank: r, at least 1; memory is r times the number of parameters.
        damping: ρ, at least 0, in units of curvature. It has to be positive where the matrix without the sketch,
            diag(d), has zeros.
        seed: seed of the random test matrix.

    Cost: r products, and 1 for the residual.

    Raises:
        InputError: a singular approximation, for want of damping.

    Source: Hataya and Yamada, "Nyström method for accurate and scalable implicit differentiation" (2023), with the
    sketch of Frangella, Tropp, Udell (2023) in place of sampled columns, and the penalty's diagonal kept exact.

    Example:
        >>> import torch
        >>> curvature = torch.tensor([4.0, 2.0])
        >>> solver = Nystrom(rank=2, damping=0.0)
        >>> solver.solve(lambda v: curvature * v, torch.ones(2)).value
        tensor([0.2500, 0.5000])
    """

    rank: int = 20
    damping: float = 1e-3
    seed: int = 0
    needs_symmetric = True
    needs_definite = True
    uses_start = False
    exact = False
    cost = "r + 1"

    def __post_init__(self) -> None:
        """Refuse an empty rank and negative damping."""
        check_counts(self, "rank")
        check_numbers(self, "damping", least=0)

    def budget(self, size: int) -> int:
        """Return the sketch's products and one for the residual."""
        return min(self.rank, size) + 1

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        drawn = sketch(operator, min(self.rank, operator.size), seed=self.seed)
        if drawn is None:
            return LinearResult(b, Status.NON_FINITE, float("nan"), operator.products - made, memory=memory)
        vectors, values = drawn
        diagonal = torch.full_like(b, self.damping)
        if operator.diagonal is not None:
            diagonal += operator.diagonal
        if not bool((diagonal > 0).all()):
            if len(values) < operator.size:
                raise InputError(
                    passed=f"Nystrom(rank={self.rank}, damping={self.damping}) for {operator.size} parameters",
                    expected="a regular approximation: a penalty with positive curvature, or positive damping",
                    do="pass damping=1e-3 times the largest curvature, or give the penalty apart",
                )
            x = vectors @ ((vectors.mT @ b) / values)
        else:
            x = woodbury((vectors, values), diagonal)(b)
        residual = float(torch.linalg.vector_norm(b - operator(x)) / torch.linalg.vector_norm(b))
        status = Status.TRUNCATED if residual < float("inf") else Status.NON_FINITE
        return LinearResult(x, status, residual, operator.products - made, memory=memory)


def sketch(operator: Operator, rank: int, seed: int) -> Sketch | None:
    """Return U (n × r) with orthonormal columns and eigenvalues Λ, falling, with U Λ Uᵀ ≈ B, in ``rank`` products.

    It is ``None`` where a product has NaN or infinity, which torch's factorisations would not survive.

    With Y = B Ω for an orthonormal Gaussian Ω, the approximation is Y (ΩᵀY)⁻¹ Yᵀ, computed with a small shift for
    stability that is taken off at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(operator.size, rank, generator=generator, dtype=torch.float64)
    omega = torch.linalg.qr(gaussian).Q.to(operator.device, operator.dtype)
    image = operator.images(omega.mT)
    if not bool(torch.isfinite(image).all()):
        return None
    image = image.mT
    shift = torch.finfo(image.dtype).eps * torch.linalg.matrix_norm(image) * operator.size**0.5
    image = image + shift * omega
    core = omega.mT @ image
    core = (core + core.mT) / 2
    values, vectors = torch.linalg.eigh(core)
    root = vectors * values.clamp(min=shift).rsqrt()
    left, singular, _ = torch.linalg.svd(image @ root, full_matrices=False)
    return left, (singular.square() - shift).clamp(min=0)


def woodbury(part: Sketch, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x ↦ (U S Uᵀ + diag(d))⁻¹ x for d > 0 and S ≥ 0, after one Cholesky factorisation of size r."""
    vectors, values = part
    half = vectors * values.sqrt()
    scaled = half / diagonal[:, None]
    core = half.mT @ scaled
    core.diagonal().add_(1)
    factor = torch.linalg.cholesky(core)
    rest = torch.linalg.solve_triangular(factor, scaled.mT, upper=False)

    def apply(x: Tensor) -> Tensor:
        return torch.addmv(x / diagonal, rest.mT, rest @ x, alpha=-1)

    return apply
