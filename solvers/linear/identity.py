"""The identity in place of the inverse Hessian (T1-T2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_numbers


@final
@dataclass(frozen=True)
class Identity(LinearSolver):
    """x = scale · b: the inverse Hessian is taken to be a multiple of the identity.

    Biased by design. With ``scale`` equal to the inner learning rate it is T1-T2, the zero-term Neumann series,
    and one step of truncated back-propagation.

    Args:
        scale: the multiple, above 0: the inner learning rate, in units of 1/curvature.

    Cost: no product; the residual is not known and reported as NaN.

    Source: Luketina, Berglund, Greff, Raiko, "Scalable gradient-based tuning of continuous regularization
    hyperparameters" (2016), T1-T2. Texts that drop the factor have scale = 1.

    Example:
        >>> import torch
        >>> Identity(scale=0.5).solve(lambda v: 2 * v, torch.ones(2)).value
        tensor([0.5000, 0.5000])
    """

    scale: float = 1.0
    needs_symmetric = False
    needs_definite = False
    uses_start = False
    exact = False
    cost = "0"

    def __post_init__(self) -> None:
        """Refuse a scale that is not positive."""
        check_numbers(self, "scale", above=0)

    def budget(self, size: int) -> int:
        """Return no product."""
        return 0

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        finite = bool(torch.isfinite(b).all())
        status = Status.TRUNCATED if finite else Status.NON_FINITE
        return LinearResult(self.scale * b, status, float("nan"), 0, memory=memory)
