"""Recursive momentum on both levels: what MRBO and SUSTAIN share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.problem import Problem
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.solvers.bilevel.oracles import NeumannBatches, Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree, cloned, detached, zeros_like


@final
@dataclass(frozen=True)
class RecursiveState:
    """The present and the previous point, and the directions there.

    Attributes:
        params: θ.
        before: θ at the last iteration, before its step, as a flat vector.
        hparams: λ at the last iteration.
        direction: the direction of θ that is carried on.
        direction_hparams: that of λ.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    before: Tensor
    hparams: Tree
    direction: Tensor
    direction_hparams: Tree
    steps: int = 0
    made: int = 0


@dataclass(frozen=True, kw_only=True)
class RecursiveMomentum(SingleLoop[RecursiveState]):
    """STORM on the directions of θ and of λ, with Neumann hypergradients that subclasses draw the batches of."""

    step_size: Schedule
    linear_step_size: Schedule | None = None
    momentum: Schedule = 0.5
    terms: int = 10

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ: never, for want of the series' remaining terms."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_schedules(self, "step_size", "momentum")
        check_schedules(self, "linear_step_size", optional=True)

    @abstractmethod
    def _batches(self, problem: Problem, made: int) -> NeumannBatches:
        """Draw what the Neumann series of an iteration sees."""

    def _start(self, params: Tree, hparams: Tree) -> RecursiveState:
        zero = Layout.of(params).zeros()
        return RecursiveState(params, zero, hparams, zero, zeros_like(hparams))

    def _iterate(self, oracles: Oracles, state: RecursiveState) -> tuple[Tensor, Tree, RecursiveState]:
        layout, problem = oracles.layout, oracles.problem
        step = scheduled(self, "step_size", state.made)
        fixed = "step_size" if self.linear_step_size is None else "linear_step_size"
        linear = scheduled(self, fixed, 0 if self.linear_step_size is None else state.made)
        z = layout.flatten(state.params)
        inner, batches = problem.draw_inner(), self._batches(problem, state.made)
        masks = oracles.masks()
        direction, (value, grads) = oracles.slope(z, inner), oracles.neumann(z, batches, linear)
        if state.made:
            with masks:
                slope = oracles.slope(state.before, inner, state.hparams)
                _, before = oracles.neumann(state.before, batches, linear, state.hparams)
            keep = 1 - min(scheduled(self, "momentum", state.made), 1.0)
            direction = direction + keep * (state.direction - slope)
            grads = {k: now + keep * (state.direction_hparams[k] - before[k]) for k, now in grads.items()}
        following = RecursiveState(
            params=layout.views(torch.sub(z, direction, alpha=step)),
            before=z,
            hparams=cloned(oracles.hparams),
            direction=direction,
            direction_hparams=detached(grads),
            steps=state.steps,
            made=state.made + 1,
        )
        return value, grads, following
