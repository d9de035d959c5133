"""The linear system as a quadratic, minimised by a torch optimizer over fresh batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_counts, check_function


@final
@dataclass(frozen=True)
class Stochastic(LinearSolver):
    """Minimise ½ xᵀA x − bᵀx with a torch optimizer whose gradient A_i x − b uses a fresh batch i at every step.

    Args:
        optimizer: ``tensors -> torch.optim.Optimizer``, such as ``lambda p: torch.optim.SGD(p, lr=0.1)``.
        steps: number of steps, at least 1.
        average: whether to return the mean of the last half of the iterates, which takes off the noise that a
            constant step leaves.

    With one fixed batch it is plain gradient descent on the quadratic. The residual is the last one measured, on
    its own batch; a growth beyond a hundred times the start is ``diverged``.

    Cost: ``steps`` products, each with one evaluation and gradient to linearise at the fresh batch; 1 product more
    for the residual.

    Source: the stochastic linear solvers of Grazzi, Pontil, Salzo (2021).

    Example:
        >>> import torch
        >>> solver = Stochastic(lambda p: torch.optim.SGD(p, lr=0.4), steps=40)
        >>> solver.solve(lambda v: 2 * v, torch.ones(2)).value
        tensor([0.5000, 0.5000])
    """

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    steps: int = 100
    average: bool = False
    needs_symmetric = True
    needs_definite = True
    uses_start = True
    exact = False
    cost = "steps + 1, each on a fresh batch"

    def __post_init__(self) -> None:
        """Refuse an empty budget."""
        check_counts(self, "steps")
        check_function(
            self, "optimizer", "tensors -> torch.optim.Optimizer", "pass lambda p: torch.optim.SGD(p, lr=0.1)"
        )

    def budget(self, size: int) -> int:
        """Return one a step and one for the residual."""
        return self.steps + 1

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        x = torch.zeros_like(b) if x0 is None else x0
        optimizer: Any = self.optimizer([x])
        total, products = torch.zeros_like(b), 0
        for step in range(self.steps):
            now = operator.fresh()
            made = now.products
            x.grad = now(x).sub_(b)
            products += now.products - made
            optimizer.step()
            if self.average and step >= self.steps // 2:
                total += x
        x.grad = None
        value = total / (self.steps - self.steps // 2) if self.average else x
        last = operator.fresh()
        residual = float(torch.linalg.vector_norm(b - last(value)) / torch.linalg.vector_norm(b))
        status = Status.COMPLETED if residual < 100 else Status.DIVERGED  # or NaN, which the caller tells apart
        return LinearResult(value, status, residual, products + 1, memory=memory)
