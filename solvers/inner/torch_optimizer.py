"""Any torch optimizer as inner solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.inner import InnerResult, InnerSolver
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_function
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class TorchOptimizer(InnerSolver):
    """Training with any class of :mod:`torch.optim`, and any torch scheduler, on copies of the parameters.

    Nothing is differentiated through it: it serves implicit and zeroth-order algorithms.

    Args:
        optimizer: ``tensors -> torch.optim.Optimizer``, such as ``lambda p: torch.optim.AdamW(p, lr=1e-3)``.
        steps: number of steps, at least 1.
        scheduler: ``optimizer -> scheduler`` with a ``step()`` that is called after every step.

    Raises:
        NonFiniteError: training that ended in NaN or infinity, with the step where it began.

    Cost: 1 gradient a step, and what an optimizer that calls its closure again asks for.

    Example:
        >>> import torch
        >>> TorchOptimizer(lambda p: torch.optim.SGD(p, lr=0.1), steps=50).steps
        50
    """

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    steps: int
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty budget."""
        check_counts(self, "steps")
        check_function(
            self, "optimizer", "tensors -> torch.optim.Optimizer", "pass lambda p: torch.optim.AdamW(p, lr=1e-3)"
        )
        check_function(self, "scheduler", "optimizer -> scheduler", "leave scheduler out for none")

    def budget(self) -> Cost:
        """Return one gradient a step."""
        return Cost(inner_gradients=self.steps)

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Run ``steps`` steps."""
        draws = problem.draws(tree.device_of(params))
        result = self._train(problem, params, tree.detached(hparams))
        if tree.first_non_finite(result.params) is not None:
            draws.restore()
            self._train(problem, params, tree.detached(hparams), look=True)
        return result

    def _train(self, problem: Problem, params: Tree, hparams: Tree, *, look: bool = False) -> InnerResult:
        """Train; ``look`` after every step for NaN and infinity, and raise there."""
        point = {key: value.requires_grad_() for key, value in tree.cloned(params).items()}
        optimizer: Any = self.optimizer(list(point.values()))
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        evaluations = 0
        for step in range(1, self.steps + 1):
            batch = problem.draw_inner()

            def closure(batch: Any = batch) -> Tensor:
                nonlocal evaluations
                evaluations += 1
                value, gradient = problem.inner_gradient(point, hparams, batch)
                for key, tensor in point.items():
                    tensor.grad = gradient[key]
                return value

            optimizer.step(closure)
            if scheduler is not None:
                scheduler.step()
            if look:
                check_finite("params", tree.detached(point), when=f"after step {step} of {type(optimizer).__name__}")
        return InnerResult(tree.detached(point), Status.COMPLETED, Cost(inner_gradients=evaluations))
