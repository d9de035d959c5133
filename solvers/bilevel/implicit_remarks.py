"""What the report of an implicit hypergradient remarks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from hypergrad import tree
from hypergrad.linear import LinearResult, Status
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Scales:
    """What the distance from the inner optimum is judged by.

    Attributes:
        loss: f.
        error: how far f would move if training went on.
        gap: ‖∇_θ g‖.
        steepness: ‖∂f/∂θ‖.
        params: θ.
    """

    loss: float
    error: float
    gap: float
    steepness: float
    params: Tree

    def far(self, share: float) -> bool:
        """Return whether the error is above a share of max(|f|, ‖∂f/∂θ‖ ‖θ‖ / 10)."""
        if not self.error > share * abs(self.loss):
            return False
        reach = self.steepness * tree.norm(self.params).item()  # a loss near zero is no scale to measure by
        return self.error > share * 0.1 * reach


def remarks(
    scales: Scales, solution: LinearResult, kinks: Sequence[int], *, share: float, definite: bool
) -> dict[str, str]:
    """Return the notes of the report.

    Args:
        scales: losses and lengths.
        solution: of the linear solve.
        kinks: places of inequalities that are active with a multiplier of zero.
        share: of the outer loss that training on may move it by.
        definite: whether the linear solver needs a positive definite Hessian.
    """
    notes = {}
    if scales.far(share):
        notes["stationarity"] = (
            f"the inner problem is not at its optimum: its gradient norm is {scales.gap:.3g}, and training on would "
            f"move the outer loss by about {scales.error:.3g} from {scales.loss:.3g}, so this hypergradient is biased; "
            "train longer, or use hypergrad.Unrolled for short training"
        )
    if solution.negative_curvature and definite:
        notes["curvature"] = (
            "the inner Hessian is not positive definite here, so this point is no strict minimum (or the step of a "
            "Neumann series is too long); train longer, add damping=, or use hypergrad.MINRES, which does not need "
            "definiteness"
        )
    if solution.status is Status.MAX_STEPS:
        notes["convergence"] = (
            f"the linear solve stopped at a relative residual of {solution.residual:.3g} after "
            f"{solution.products} products; raise max_steps, give the penalty apart or use a preconditioner"
        )
    if solution.status is Status.STALLED:
        notes["convergence"] = (
            f"iterative refinement stalled at a relative residual of {solution.residual:.3g}: products of low "
            "precision are too coarse for this Hessian, or it is not positive definite; raise product_dtype, "
            "tighten its solver, or use the linear solver without hypergrad.Refined"
        )
    if kinks:
        notes["active_set"] = (
            f"the inequalities at places {kinks} are active with a multiplier of zero: the inner solution has a "
            "kink there, and this hypergradient counts them as inactive"
        )
    return notes
