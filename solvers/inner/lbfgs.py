"""L-BFGS with a strong Wolfe line search, from torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.inner import InnerResult, InnerSolver
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_numbers
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True)
class LBFGS(InnerSolver):
    """Limited-memory BFGS (:class:`torch.optim.LBFGS`, strong Wolfe) on one batch, for smooth deterministic losses.

    Args:
        tolerance: it stops once ‖∇_θ g‖ is at most this.
        steps: largest number of iterations, at least 1.
        memory: pairs kept, at least 1.

    The batch is drawn once: a line search compares values of one function.

    Cost: at most 3 · ``steps`` + 20 gradients; about 1.2 an iteration as a rule.

    Raises:
        UnsupportedError: a root or fixed point, which has no objective to search along.

    Source: Liu and Nocedal (1989).

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(lambda params, hparams: (params["w"] - hparams["x"]).square().sum(), max)
        >>> trained = LBFGS().run(problem, {"w": torch.zeros(2)}, {"x": torch.tensor([1.0, 2.0])})
        >>> trained.params["w"], str(trained.status)
        (tensor([1., 2.]), 'converged')
    """

    tolerance: float = 1e-8
    steps: int = 200
    memory: int = 20

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "steps", "memory")
        check_numbers(self, "tolerance", above=0)

    def budget(self) -> Cost:
        """Return the most gradients that line searches and whole steps may take."""
        return Cost(inner_gradients=3 * self.steps + 20)

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Minimise to ``tolerance``: by line searches, then, where rounding of g stops those, by whole steps."""
        objective = _Objective(problem, params, tree.detached(hparams), self.budget().inner_gradients)
        optimizer: Any = torch.optim.LBFGS(
            [objective.vector],
            max_iter=self.steps,
            max_eval=2 * self.steps,
            history_size=self.memory,
            tolerance_grad=self.tolerance / objective.vector.numel() ** 0.5,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        size = objective.minimise(optimizer)
        best = objective.vector.detach().clone()
        optimizer.param_groups[0].update(line_search_fn=None, max_iter=5)
        while size > self.tolerance and not objective.exhausted:
            before, size = size, objective.minimise(optimizer)
            if not size < before:
                size = before
                break
            best.copy_(objective.vector.detach())
        status = Status.CONVERGED if size <= self.tolerance else Status.MAX_STEPS
        check_finite(
            "params", objective.layout.views(best), when=f"after {objective.evaluations} evaluations of L-BFGS"
        )
        return InnerResult(objective.layout.views(best), status, Cost(inner_gradients=objective.evaluations))


class _Objective:
    """The inner objective of one flat vector, on one batch."""

    def __init__(self, problem: Problem, params: Tree, hparams: Tree, budget: int) -> None:
        self.problem, self.hparams, self.batch = problem, hparams, problem.draw_inner()
        self.layout = Layout.of(params)
        self.vector = self.layout.flatten(tree.detached(params)).requires_grad_()
        self.evaluations, self.budget = 0, budget

    @property
    def exhausted(self) -> bool:
        """Whether no evaluation is left for another phase."""
        return self.evaluations + 12 > self.budget

    def __call__(self) -> float:
        """Return g and fill the vector's gradient."""
        self.evaluations += 1
        point = tree.leaves(self.layout.views(self.vector.detach()))
        value, gradient = self.problem.inner_gradient(point, self.hparams, self.batch)
        self.vector.grad = self.layout.flatten(gradient)
        return float(value)

    def minimise(self, optimizer: torch.optim.Optimizer) -> float:
        """Run the optimizer and return the gradient's norm where it ended."""
        optimizer.step(self)
        self()
        assert self.vector.grad is not None
        return float(torch.linalg.vector_norm(self.vector.grad))
