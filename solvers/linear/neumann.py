"""The truncated Neumann series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_counts, check_numbers
from hypergrad.solvers.linear.spectrum import top_curvature
from hypergrad.tree import numbers


@final
@dataclass(frozen=True)
class Neumann(LinearSolver):
    """x = α Σ_{j=0..k} (I − αA)ʲ b, the Neumann series of A⁻¹ after k terms.

    1. x = b
    2. k times: x ← b + x − α A x, which adds the next term c_j = (I − αA)ʲ b
    3. x ← α x

    It converges if and only if 0 < α < 2/λ_max and A is positive definite, and then its relative error along an
    eigenvector of eigenvalue μ is (1 − αμ)^{k+1}. The k counts extra terms: k terms equal k + 1 steps of truncated
    back-propagation through gradient descent with step α at a fixed point.

    Args:
        terms: k, at least 0.
        step: α, above 0. By default 1/λ with λ an estimate of the largest eigenvalue from power iteration,
            renewed at every solve from where the last one ended.
        power_steps: products of the first estimate of λ, at least 1; later solves of one run use one product.

    Where ‖c_j‖ grows, α is too long or A is indefinite: the result's ``negative_curvature`` is set, and beyond ten
    times ‖b‖ the status is ``diverged``. The residual reported is ‖c_k‖/‖b‖, that of the series with one term less
    and an upper bound of the true one.

    Cost: k products; without ``step``, ``power_steps`` more at the first solve and 1 more at each later one.

    Source: Lorraine, Vicol, Duvenaud, "Optimizing millions of hyperparameters by implicit differentiation"
    (2020), algorithm 3; the factor α of step 3, which its listing leaves out, is part of the series.

    Example:
        >>> import torch
        >>> Neumann(terms=30, step=0.25).solve(lambda v: 2 * v, torch.ones(2)).value
        tensor([0.5000, 0.5000])
    """

    terms: int = 10
    step: float | None = None
    power_steps: int = 10
    needs_symmetric = False
    needs_definite = True
    uses_start = False
    exact = False
    cost = "k (and for the step: 10 at the first solve, 1 later)"

    def __post_init__(self) -> None:
        """Refuse a negative number of terms and a step that is not positive."""
        check_counts(self, "terms", least=0)
        check_counts(self, "power_steps")
        check_numbers(self, "step", above=0)

    def budget(self, size: int) -> int:
        """Return the terms, and the power iteration's products where the step is not given."""
        return self.terms + (self.power_steps if self.step is None else 0)

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        step, memory = self._step(operator, memory)
        shrink = None if operator.diagonal is None else torch.mul(operator.diagonal, -step).add_(1)
        x = b.clone()
        lengths = [torch.linalg.vector_norm(b)]
        last = None
        for term in range(self.terms):
            if term >= self.terms - 2:  # the lengths of the last two terms tell divergence
                last = x.clone() if last is None else last.copy_(x)  # fresh memory costs more than a pass over it
            operator.update(x, x, -step, shrink, b)
            if last is not None:
                lengths.append(torch.linalg.vector_norm(last.sub_(x)))
        total, *lengths_seen = numbers(torch.linalg.vector_norm(x), *lengths)
        noise = 100 * torch.finfo(x.dtype).eps * total
        return LinearResult(
            value=x.mul_(step),
            status=status_of(lengths_seen),
            residual=lengths_seen[-1] / lengths_seen[0],
            negative_curvature=grows(lengths_seen, noise, operator.symmetric),
            products=operator.products - made,
            memory=memory,
        )

    def _step(self, operator: Operator, memory: Memory) -> tuple[float, Memory]:
        if self.step is not None:
            return self.step, memory
        vector = memory.get("top_vector")
        steps = self.power_steps if vector is None else 1
        curvature, vector = top_curvature(operator, vector, steps)
        return 1 / curvature if curvature > 0 else 1.0, {"top_vector": vector}


def status_of(lengths: list[float]) -> Status:
    """Judge by the lengths of the first and the last two terms."""
    start, last = lengths[0], lengths[-1]
    if not math.isfinite(start):
        return Status.NON_FINITE
    return Status.TRUNCATED if last <= 10 * start else Status.DIVERGED


def grows(lengths: list[float], noise: float, symmetric: bool) -> bool:
    """Return whether the terms grow; those below ``noise`` are rounding errors."""
    # on a symmetric matrix every term of a convergent series is shorter than the one before
    limit = min(lengths[:-1]) if symmetric and len(lengths) > 1 else lengths[0]
    return not lengths[-1] <= max(limit * (1 + 1e-6), noise)
