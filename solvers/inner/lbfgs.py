"""L-BFGS with a strong Wolfe line search, from torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.inner import InnerResult, InnerSolver
from hypergrad.linear import Status, check_positive
from hypergrad.problem import Problem
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class LBFGS(InnerSolver):
    """Limited-memory BFGS (:class:`torch.optim.LBFGS`, strong Wolfe) on one batch, for smooth deterministic losses.

    Args:
        tolerance: it stops once ‖∇_θ g‖ is at most this.
        steps: largest number of iterations, at least 1.
        memory: pairs kept, at least 1.

    The batch is drawn once: a line search compares values of one function.

    Cost: at most 2 · ``steps`` + 1 gradients.

    Raises:
        UnsupportedError: a root or fixed point, which has no objective to search along.

    Source: Liu and Nocedal (1989).
    """

    tolerance: float = 1e-8
    steps: int = 200
    memory: int = 20

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_positive("LBFGS", tolerance=self.tolerance, steps=self.steps, memory=self.memory)

    def budget(self) -> Cost:
        """Return two gradients an iteration and one at the end."""
        return Cost(inner_gradients=2 * self.steps + 1)

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Minimise to ``tolerance``, restarting the memory when a line search fails."""
        hparams, batch = tree.detached(hparams), problem.draw_inner()
        point = {key: value.requires_grad_() for key, value in tree.cloned(params).items()}
        evaluations = 0

        def closure() -> float:
            nonlocal evaluations
            evaluations += 1
            value, gradient = problem.inner_gradient(point, hparams, batch)
            for key, tensor in point.items():
                tensor.grad = gradient[key]
            return float(value)

        budget, size = self.budget().inner_gradients, float("inf")
        while evaluations < budget:
            start = evaluations
            optimizer = self._optimizer(list(point.values()), budget - evaluations)
            optimizer.step(closure)
            check_finite("params", tree.detached(point), when=f"after {evaluations} evaluations of L-BFGS")
            closure()
            before, size = (
                size,
                float(torch.nn.utils.get_total_norm([t.grad for t in point.values() if t.grad is not None])),
            )
            if size <= self.tolerance or size >= before or evaluations - start <= 2:
                break
        status = Status.CONVERGED if size <= self.tolerance else Status.MAX_STEPS
        return InnerResult(tree.detached(point), status, Cost(inner_gradients=evaluations))

    def _optimizer(self, tensors: list[Tensor], evaluations: int) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            tensors,
            max_iter=self.steps,
            max_eval=max(evaluations - 1, 1),
            history_size=self.memory,
            tolerance_grad=self.tolerance / sum(tensor.numel() for tensor in tensors) ** 0.5,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
