"""A preconditioner that learns from the products of earlier solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import Memory, Operator
from hypergrad.preconditioner import Preconditioner
from hypergrad.settings import check_counts, check_kind
from hypergrad.solvers.linear.preconditioners import PenaltyDiagonal


@final
@dataclass(frozen=True)
class Recycled(Preconditioner):
    """M⁻¹ of another preconditioner, made exact on the directions that earlier solves went through.

    A solve forms the products B p of its directions p anyway. With the rows of S the directions of one solve and
    Q = S B + S ⊙ d for the present penalty d, scaled so that S Qᵀ = I, each solve in turn refines what came before:

        M⁻¹ ← SᵀS + (I − SᵀQ) M⁻¹ (I − QᵀS)

    The result is positive definite whatever the matrix has moved since, and M⁻¹A on the same matrix has as many
    eigenvalues 1 as S has rows while the others stay between those that it had. It costs no products, so that the
    solves of a run take fewer and fewer: it pays where hyperparameters move in small steps and a solve takes tens of
    products.

    Args:
        preconditioner: what stands for the rest, such as ``NystromPreconditioner(rank=20)``, which also shortens the
            first solve.
        keep: number of directions kept, at least 1. Memory is 3 ``keep`` times the number of parameters during a
            solve, and 2 between solves. What comes once they are there is not kept, since the first solves, the long
            ones, teach most.

    All is forgotten and learnt anew once the products beyond the fewest of any solve add up to those of the first one,
    so that a point that wanders off costs at most about twice what the best moments to start anew would have cost.

    Cost: the other preconditioner's products; four products with a keep × n matrix a step, and keep² · n
    multiplications a solve.

    Source: the limited-memory preconditioners of Gratton, Sartenaer, Tshimanga (2011), after Morales and Nocedal's
    automatic preconditioning (2000). Deviation: the penalty's part of every product is brought up to date.

    Example:
        >>> import torch, hypergrad as hg
        >>> curvature, b = torch.logspace(-3, 0, 30, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
        >>> solver = hg.CG(preconditioner=Recycled())
        >>> first = solver.solve(lambda v: curvature * v, b)
        >>> second = solver.solve(lambda v: 1.001 * curvature * v, b, memory=first.memory)
        >>> first.products > 5 * second.products
        True
    """

    preconditioner: Preconditioner = field(default_factory=PenaltyDiagonal)
    keep: int = 100

    def __post_init__(self) -> None:
        """Refuse an empty store and parts of another kind."""
        check_counts(self, "keep")
        advice = "pass one of hypergrad's, such as hypergrad.NystromPreconditioner(rank=20)"
        check_kind(self, "preconditioner", Preconditioner, advice)

    def budget(self, size: int) -> int:
        """Return the other preconditioner's products."""
        return self.preconditioner.budget(size)

    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor] | None, Memory]:
        """Return r ↦ M⁻¹ r."""
        rest, kept = self.preconditioner.build(operator, memory.get("rest", {}))
        following = {**memory, "rest": kept}
        if "directions" not in memory:
            return rest, following
        directions, images, sizes = (memory[part] for part in ("directions", "images", "sizes"))
        if operator.diagonal is not None:
            images = torch.addcmul(images, directions, operator.diagonal)
        return _refined(rest, directions, images, sizes), following

    def room(self, memory: Memory) -> int:
        """Return how many directions still find a place."""
        return self.keep - sum(memory.get("sizes", []))

    def learn(self, memory: Memory, directions: Tensor, images: Tensor, products: int) -> Memory:
        """Return the memory with the products of a solve, or an empty one where it is time to start anew."""
        first = memory.get("first", products)
        fewest = min(products, memory.get("fewest", products))
        excess = memory.get("excess", 0) + products - fewest if "first" in memory else 0
        if excess > first or not bool(torch.isfinite(images).all()):
            return {}
        following = {**memory, "first": first, "fewest": fewest, "excess": excess}
        if not len(directions):
            return following
        lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
        for part, new in (("directions", directions / lengths), ("images", images / lengths)):
            following[part] = torch.cat([memory[part], new]) if part in memory else new
        return {**following, "sizes": [*memory.get("sizes", []), len(directions)]}


def _refined(
    rest: Callable[[Tensor], Tensor] | None, s: Tensor, q: Tensor, sizes: list[int]
) -> Callable[[Tensor], Tensor]:
    """Return M⁻¹ with one refinement for each solve, in the compact form of all together.

    With W_j such that W_jᵀ(S_j Q_jᵀ)W_j = I, and U the unit upper triangular matrix with the blocks W_iᵀ S_i Q_jᵀ W_j,
    i < j, the two recursions through the solves are the solves with U and Uᵀ.
    """
    gram = s @ q.mT
    whitening = torch.block_diag(*(_whitening(block) for block in _blocks(gram, sizes)))
    later = torch.block_diag(*(torch.ones_like(block) for block in _blocks(gram, sizes))) == 0
    upper = (whitening.mT @ gram @ whitening).triu_().mul_(later)
    upper.diagonal().fill_(1)
    half = torch.linalg.solve_triangular(upper, whitening.mT, upper=True)  # U⁻¹Wᵀ
    inward, outward = whitening @ half, half.mT @ half

    def apply(r: Tensor) -> Tensor:
        along = s @ r
        z = r - q.mT @ (inward @ along)
        if rest is not None:
            z = rest(z)
        return torch.addmv(z, s.mT, outward @ along - inward.mT @ (q @ z))

    return apply


def _blocks(gram: Tensor, sizes: list[int]) -> list[Tensor]:
    return [row.split(sizes, dim=1)[place] for place, row in enumerate(gram.split(sizes))]


def _whitening(block: Tensor) -> Tensor:
    """Return W with WᵀXW = I for a positive definite X; columns are zero within rounding of singular."""
    values, vectors = torch.linalg.eigh((block + block.mT) / 2)
    floor = torch.finfo(block.dtype).eps ** 0.5 * values[-1]
    whitening: Tensor = vectors * torch.where(values > floor, values, torch.inf).rsqrt()
    return whitening
