"""SRBA: SOBA with SARAH's recursive variance reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import Directions, Oracles, whole
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree, cloned, detached, zeros_like


@final
@dataclass(frozen=True)
class SRBAState:
    """What :class:`SRBA` tracks: the present and the previous point, and the three directions.

    Attributes:
        params: θ.
        solution: q, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        before: θ, q before the last iteration, as one tensor 2 × p.
        hparams: λ at the last iteration.
        direction: the directions of θ and q at the last iteration, 2 × p.
        direction_hparams: that of λ.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    before: Tensor
    hparams: Tree
    direction: Tensor
    direction_hparams: Tree
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class SRBA(SingleLoop[SRBAState]):
    """:class:`~hypergrad.SOBA` whose directions are carried on by differences between two successive points.

    Every ``period`` iterations the three directions D are those of the whole data; else
    D ← D + D_ij(now) − D_ij(previous point) on one pair of batches, the same at both points. No tables are kept, and
    constant steps reach any accuracy; on strongly convex finite sums at a linear rate.

    Args:
        step_size: α, above 0: a number or a function of the iteration; constant in the paper.
        linear_step_size: step of q, likewise; α by default.
        period: iterations from one pass over the whole data to the next, at least 1: about the number of batches.
        iterations: iterations in each step, at least 1; 1 in the paper.
        compile: whether the derivatives of an iteration are one graph of :func:`torch.compile`, checked against the
            eager ones at its first use (see :ref:`compiled-iterations`).
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 2 inner gradients, 2 products and 2 outer gradients an iteration, 1 of each on the whole data every
    ``period`` iterations.

    Raises:
        NonFiniteError: steps so long that an iterate overflowed.

    Source: Dagréou, Moreau, Vaiter, Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical risk
    minimization" (2024), algorithm 1. Our q is −v there.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams, batch: 0.5 * (params["w"] - hparams["x"] * batch[0]).square().mean(),
        ...     outer=lambda params, hparams, batch: 0.5 * params["w"].square().sum(),
        ...     inner_data=hg.TensorSampler(torch.tensor([0.5, 1.5]), batch_size=1),
        ... )
        >>> algorithm = hg.SRBA(step_size=0.2, period=4, iterations=300)
        >>> start = {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
        >>> hg.hypergradient(problem, *start, algorithm).grads["x"].round(decimals=4)
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    period: int = 10
    order = 2
    compiles = True
    cost = "2 inner gradients + 2 products + 2 outer gradients an iteration (1 of each on all data every period)"
    needs = "a strongly convex inner problem"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ, at a fixed λ."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "period")
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        full = -(-self.iterations // self.period)
        passes = full + 2 * (self.iterations - full)
        return Cost(passes, passes, passes)

    def _start(self, params: Tree, hparams: Tree) -> SRBAState:
        layout = Layout.of(params)
        zeros = torch.stack([layout.zeros(), layout.zeros()])
        return SRBAState(params, layout.zeros(), zeros, hparams, zeros, zeros_like(hparams))

    def _iterate(self, oracles: Oracles, state: SRBAState) -> tuple[Tensor, Tree, SRBAState]:
        layout, problem = oracles.layout, oracles.problem
        z = layout.flatten(state.params)
        if state.made % self.period == 0:
            data = whole(problem.inner_data), whole(problem.outer_data)
            found = oracles.directions(z, state.solution, *data, rare=problem.inner_data is not None)
        else:
            inner, outer = problem.draw_inner(), problem.draw_outer()
            masks = oracles.masks()
            now = oracles.directions(z, state.solution, inner, outer)
            with masks:
                before = oracles.directions(state.before[0], state.before[1], inner, outer, state.hparams)
            kept = Directions(state.direction[0], state.direction[1], state.direction_hparams, now.value)
            found = kept.plus(now).plus(before, -1.0)
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        following = SRBAState(
            params=layout.views(torch.sub(z, found.params, alpha=step)),
            solution=torch.sub(state.solution, found.linear, alpha=linear),
            before=torch.stack([z, state.solution]),
            hparams=cloned(oracles.hparams),
            direction=torch.stack([found.params, found.linear]),
            direction_hparams=detached(found.hparams),
            steps=state.steps,
            made=state.made + 1,
        )
        return found.value, found.hparams, following
