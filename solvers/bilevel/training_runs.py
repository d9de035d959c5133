"""Values of whole training runs from one start, with common random numbers and batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.inner import InnerSolver
from hypergrad.problem import Problem
from hypergrad.tree import Layout, Tree


class TrainingRuns:
    """F(λ) = f(θ(λ), λ) at any number of points, all runs seeing what the first one would.

    Attributes:
        cost: passes of all runs.
    """

    def __init__(self, inner: InnerSolver, problem: Problem, params: Tree, layout: Layout) -> None:
        """Draw the outer batch, and note where the inner batches and the random numbers stand."""
        self.inner, self.problem, self.params, self.layout = inner, problem, params, layout
        self.draws = problem.draws(layout.device)
        self.outer_batch = problem.draw_outer()
        self.cost = Cost()

    def inside(self, place: Tensor) -> Tensor:
        """Return the nearest flat point inside the hyperparameters' domains."""
        return self.layout.flatten(self.problem.project(self.layout.views(place)))

    def at(self, place: Tensor) -> tuple[Tensor, Tree]:
        """Return F and θ at a flat point.

        Raises:
            NonFiniteError: an outer loss of NaN or infinity.
        """
        hparams = self.layout.views(place)
        self.draws.restore()
        trained = self.inner.run(self.problem, start(self.problem, self.params, hparams), hparams)
        with torch.no_grad():
            value = self.problem.outer_value(trained.params, hparams, self.outer_batch).detach()
        check_finite("the outer loss", {"f": value}, when="at the end of a training run")
        self.cost += trained.cost + Cost(outer_values=1)
        return value, trained.params


def start(problem: Problem, params: Tree, hparams: Tree) -> Tree:
    """Return where training at ``hparams`` starts: ``params``, unless the problem says otherwise."""
    return params if problem.initial is None else tree.detached(problem.start(hparams, params))


def still(grads: Tree, remedy: str) -> dict[str, str]:
    """Return a note on hyperparameters that did not change the outer loss at all."""
    names: Iterable[str] = [name for name, grad in grads.items() if not bool(grad.any())]
    if not names:
        return {}
    return {
        "reach": f"the outer loss did not change at all when hparams {names} were moved; check that training and outer "
        f"use them, or {remedy}"
    }
