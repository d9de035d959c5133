"""SOBA: one stochastic step of all three variables at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import AdjointState, SingleLoop
from hypergrad.tree import Layout, Tree

CHUNK = 4
"""Iterations in one compiled graph."""


@final
@dataclass(frozen=True, kw_only=True)
class SOBA(SingleLoop[AdjointState]):
    """θ, q ≈ H⁻¹ ∂f/∂θ and λ move at once, each along a stochastic direction taken at the same point.

    With one inner batch i and one outer batch j:

    - θ ← θ − α_t ∇_θ g_i,
    - q ← q − β_t (H_i q − ∂f_j/∂θ),
    - the direction for λ is ∂f_j/∂λ − (∂²g_i/∂θ∂λ)ᵀ q.

    Both products with q come from one reverse pass. At a fixed λ and without noise the three settle at the exact
    hypergradient; with λ on the move the direction lags behind, less the smaller the steps are.

    Args:
        step_size: α_t, above 0: a number or a function of the iteration. The paper lets it fall as t^(−1/2), as the
            outer optimizer's.
        linear_step_size: β_t, likewise; α_t by default.
        iterations: iterations in each step, at least 1; 1 in the paper.
        compile: whether the derivatives of an iteration are one graph of :func:`torch.compile`, checked against the
            eager ones at its first use, and of four iterations where there are as many (see
            :ref:`compiled-iterations`).
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 1 inner gradient, 1 product and 1 outer gradient an iteration.

    Raises:
        NonFiniteError: steps so long that an iterate overflowed.

    Source: Dagréou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms" (2022), algorithm 1 with the directions of SOBA. Our q is −v there.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.SOBA(step_size=0.5, iterations=40)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    order = 2
    compiles = True
    cost = "1 inner gradient + 1 product + 1 outer gradient an iteration"
    needs = "a strongly convex inner problem"

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ, at a fixed λ and without noise."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        return Cost(self.iterations, self.iterations, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> AdjointState:
        return AdjointState(params, Layout.of(params).zeros())

    def _iterate(self, oracles: Oracles, state: AdjointState) -> tuple[Tensor, Tree, AdjointState]:
        problem, layout = oracles.problem, oracles.layout
        z = layout.flatten(state.params)
        found = oracles.directions(z, state.solution, problem.draw_inner(), problem.draw_outer())
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        z = torch.sub(z, found.params, alpha=step)
        solution = torch.sub(state.solution, found.linear, alpha=linear)
        following = AdjointState(layout.views(z), solution, state.steps, state.made + 1)
        return found.value, found.hparams, following

    def _repeat(self, oracles: Oracles, state: AdjointState) -> tuple[Tensor, Tree, AdjointState]:
        if oracles.compiled is None or self.iterations < CHUNK:
            return super()._repeat(oracles, state)
        chunks, rest = divmod(self.iterations, CHUNK)
        for _ in range(rest):
            _, _, state = self._iterate(oracles, state)
        z, q, made = oracles.layout.flatten(state.params), state.solution, state.made
        value, direction = torch.zeros_like(q[0]), dict[str, Tensor]()  # of the last chunk; there is one at least
        for _ in range(chunks):
            steps = [
                (scheduled(self, "step_size", k), scheduled_like(self, "linear_step_size", "step_size", k))
                for k in range(made, made + CHUNK)
            ]
            z, q, direction, value = oracles.moves(z, q, steps)
            made += CHUNK
        return value, direction, AdjointState(oracles.layout.views(z), q, state.steps, made)
