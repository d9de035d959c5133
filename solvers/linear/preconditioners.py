"""Diagonal preconditioners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import Memory, Operator
from hypergrad.preconditioner import Preconditioner
from hypergrad.settings import check_counts


def rademacher(operator: Operator, seed: int) -> Tensor:
    """Return a vector of random signs that depends on ``seed`` only, leaving the global random state alone."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return signs.to(operator.device, operator.dtype).mul_(2).sub_(1)


@final
@dataclass(frozen=True)
class PenaltyDiagonal(Preconditioner):
    """M = max(d, c/100): the penalty's exact Hessian diagonal, with a floor from the data's mean curvature c = tr(B)/n.

    d is known because the penalty is given apart; c is one Rademacher probe vᵀBv/n (Hutchinson), renewed every
    ``refresh`` solves, and keeps entries without a penalty in range. A data Hessian has few large eigenvalues, so that
    dividing by d gathers the others at 1; adding the whole of c would spread them again (twice the products on a
    logistic regression with penalties over four decades). On an operator without a known diagonal it is the identity
    and costs nothing.

    Args:
        refresh: number of solves that use one probe, at least 1.

    Cost: 1 product every ``refresh`` solves.

    Example:
        >>> import torch, hypergrad as hg
        >>> d, b = torch.tensor([1.0, 100.0]), torch.tensor([1.0, 100.0])
        >>> operator = hg.Operator(lambda y, v, alpha, scale, shift: y.add_(v, alpha=0.01 * alpha), b, diagonal=d)
        >>> apply, memory = PenaltyDiagonal().build(operator, {})
        >>> apply(b), operator.products
        (tensor([1., 1.]), 1)
    """

    refresh: int = 10

    def __post_init__(self) -> None:
        """Refuse an empty period."""
        check_counts(self, "refresh")

    def budget(self, size: int) -> int:
        """Return one probe."""
        return 1

    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor] | None, Memory]:
        """Return r ↦ r / max(d, c/100)."""
        if operator.diagonal is None:
            return None, memory
        age = memory.get("solves", 0)
        curvature = memory.get("mean_curvature")
        if curvature is None or age % self.refresh == 0:
            v = rademacher(operator, seed=age)
            image = torch.zeros_like(v)
            operator.add_rest(image, v)
            curvature = torch.dot(v, image) / operator.size
        diagonal = torch.maximum(operator.diagonal, 0.01 * curvature.abs())
        inverse = torch.where(diagonal > 0, diagonal, 1.0).reciprocal_()
        return inverse.mul, {"solves": age + 1, "mean_curvature": curvature}


@final
@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """M = diag of the mean of |v ⊙ A v| over Rademacher probes v: Hutchinson's diagonal, kept positive.

    One probe's entry i has the variance Σ_{j≠i} A_ij². It helps when A is diagonally dominant; on a data Hessian
    it can be worse than no preconditioner at all, so nothing uses it unasked.

    Args:
        probes: number of probes, at least 1.
        refresh: number of solves that use one diagonal, at least 1.

    Cost: ``probes`` products every ``refresh`` solves.

    Example:
        >>> import torch, hypergrad as hg
        >>> d = torch.tensor([1.0, 100.0])
        >>> hg.CG(preconditioner=Jacobi(probes=1)).solve(lambda v: d * v, torch.ones(2)).products  # a probe and a step
        2

    Source: the diagonal estimate of ADAHESSIAN (Yao et al. 2021), there an optimizer's scaling.
    """

    probes: int = 5
    refresh: int = 1

    def __post_init__(self) -> None:
        """Refuse empty settings."""
        check_counts(self, "probes", "refresh")

    def budget(self, size: int) -> int:
        """Return the probes."""
        return self.probes

    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor], Memory]:
        """Return r ↦ r / M."""
        age = memory.get("solves", 0)
        diagonal = memory.get("diagonal")
        if diagonal is None or age % self.refresh == 0:
            probes = torch.stack([rademacher(operator, seed=age * self.probes + k) for k in range(self.probes)])
            images = operator.images(probes)
            if operator.diagonal is not None:
                images.addcmul_(probes, operator.diagonal)
            diagonal = images.abs_().mean(dim=0)
        floor = torch.finfo(operator.dtype).eps * diagonal.max()
        inverse = diagonal.clamp(min=floor).reciprocal_()
        return inverse.mul, {"solves": age + 1, "diagonal": diagonal}
