"""VRBO: SPIDER's recursive variance reduction on both levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches, Oracles, whole
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree, cloned, detached, zeros_like


@final
@dataclass(frozen=True)
class VRBOState:
    """What :class:`VRBO` tracks.

    Attributes:
        params: θ.
        before: θ where the directions were taken last, as a flat vector.
        hparams: λ there.
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


@final
@dataclass(frozen=True, kw_only=True)
class VRBO(SingleLoop[VRBOState]):
    """Directions of θ and λ that are carried on by differences between successive points of an inner loop.

    1. T times, at λ and from the point and directions before: on one draw of batches
       d ← d + oracle(now) − oracle(previous point) for both directions, then θ ← θ − α d_θ. The oracle of λ is the
       hypergradient by a stochastic Neumann series of Q terms (see :class:`~hypergrad.StocBiO`).
    2. Every ``period`` iterations both directions are renewed on the whole data.

    Biased by the terms that the series leaves out.

    Args:
        step_size: α, above 0: a number or a function of the iteration.
        linear_step_size: β of the series, likewise, at most 1/λ_max; the first α by default.
        inner_steps: T, at least 1.
        terms: Q, at least 0.
        period: iterations from one pass over the whole data to the next, at least 1.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: T times 2 (Q + 2) inner gradients, 2 (Q + 1) products and 2 outer gradients an iteration, and half of these
    once on the whole data every ``period`` iterations; the first iteration is that alone.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Yang, Ji, Liang, "Provably faster algorithms for bilevel optimization" (2021), algorithm 2. Deviation: the
    inner loop that follows a move of λ runs at the beginning of the next step, since the move is the outer optimizer's.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.VRBO(step_size=0.5, terms=30, period=1, iterations=20)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    inner_steps: int = 3
    terms: int = 10
    period: int = 10
    order = 2
    cost = "T times twice a Neumann hypergradient and a gradient of θ an iteration (once on all data in the first)"
    needs = "a strongly convex inner problem"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ: never, for want of the series' remaining terms."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "inner_steps", "period")
        check_counts(self, "terms", least=0)
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        points = 2 * self.inner_steps * (self.iterations - 1) + -(-self.iterations // self.period)
        return Cost(points * (self.terms + 2), points * (self.terms + 1), points)

    def _start(self, params: Tree, hparams: Tree) -> VRBOState:
        zero = Layout.of(params).zeros()
        return VRBOState(params, zero, hparams, zero, zeros_like(hparams))

    def _iterate(self, oracles: Oracles, state: VRBOState) -> tuple[Tensor, Tree, VRBOState]:
        problem, layout = oracles.problem, oracles.layout
        step = scheduled(self, "step_size", state.made)
        fixed = "step_size" if self.linear_step_size is None else "linear_step_size"
        linear = scheduled(self, fixed, 0 if self.linear_step_size is None else state.made)
        z, direction, grads = layout.flatten(state.params), state.direction, state.direction_hparams
        value = torch.zeros((), dtype=z.dtype, device=z.device)
        before, hparams = state.before, state.hparams
        for _ in range(self.inner_steps if state.made else 0):
            inner, batches = problem.draw_inner(), NeumannBatches.draw(problem, self.terms)
            masks = oracles.masks()
            slope, (value, mixed) = oracles.slope(z, inner), oracles.neumann(z, batches, linear)
            with masks:
                old_slope = oracles.slope(before, inner, hparams)
                _, old_mixed = oracles.neumann(before, batches, linear, hparams)
            direction = direction + slope - old_slope
            grads = {key: grads[key] + mixed[key] - old_mixed[key] for key in grads}
            before, hparams = z, detached(oracles.hparams)
            z = torch.sub(z, direction, alpha=step)
        if state.made % self.period == 0:
            inner = whole(problem.inner_data)
            batches = NeumannBatches(whole(problem.outer_data), [inner] * self.terms, inner)
            direction, before = oracles.slope(z, inner), z
            value, grads = oracles.neumann(z, batches, linear)
        following = VRBOState(
            params=layout.views(z),
            before=before,
            hparams=cloned(oracles.hparams),
            direction=direction,
            direction_hparams=detached(grads),
            steps=state.steps,
            made=state.made + 1,
        )
        return value, grads, following
