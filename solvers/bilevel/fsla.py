"""FSLA: a fully single loop without a Hessian inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree, cloned, detached, zeros_like


@final
@dataclass(frozen=True)
class FSLAState:
    """What :class:`FSLA` tracks.

    Attributes:
        params: θ.
        solution: q, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        before: θ, q where the direction was last taken, as one tensor 2 × p.
        hparams: λ there.
        direction: the direction of λ that is carried on.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    before: Tensor
    hparams: Tree
    direction: Tree
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class FSLA(SingleLoop[FSLAState]):
    """One step of θ, one of q, and a recursive momentum (STORM) on the direction of λ alone.

    - θ ← θ − α_t ∇_θ g_i(θ, λ),
    - q ← q − β_t (H_i' q − ∂f_j/∂θ) at the new θ,
    - d ← G(now) + (1 − η_t) (d − G(previous point)) with G = ∂f_j/∂λ − (∂²g_i/∂θ∂λ)ᵀ q on the same batches at both.

    Args:
        step_size: α_t, above 0: a number or a function of the iteration; it falls as t^(−1/2) in the paper.
        linear_step_size: β_t, likewise; α_t by default.
        momentum: η_t, above 0 and at most 1: the share of the newest direction; it falls as t^(−1/2) in the paper.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 4 inner gradients, 3 products and 3 outer gradients an iteration; 3, 2 and 2 in the first.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Li, Gu, Huang, "A fully single loop algorithm for bilevel optimization without Hessian inverse" (2022),
    algorithm 1.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.FSLA(step_size=0.5, iterations=60)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    momentum: Schedule = 0.5
    order = 2
    cost = "4 inner gradients + 3 products + 3 outer gradients an iteration (3, 2, 2 in the first)"
    needs = "a strongly convex inner problem"
    elsewhere = True

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
        check_schedules(self, "step_size", "momentum")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        return Cost(4 * self.iterations - 1, 3 * self.iterations - 1, 3 * self.iterations - 1)

    def _start(self, params: Tree, hparams: Tree) -> FSLAState:
        layout = Layout.of(params)
        zeros = torch.stack([layout.zeros(), layout.zeros()])
        return FSLAState(params, layout.zeros(), zeros, hparams, zeros_like(hparams))

    def _iterate(self, oracles: Oracles, state: FSLAState) -> tuple[Tensor, Tree, FSLAState]:
        layout, problem, step = oracles.layout, oracles.problem, scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        z = layout.flatten(state.params)
        z = torch.sub(z, oracles.slope(z, problem.draw_inner()), alpha=step)
        _, slope, _ = oracles.outer(z, problem.draw_outer())
        q = state.solution
        q = torch.sub(q, oracles.product(z, q, problem.draw_inner()) - slope, alpha=linear)
        inner, outer = problem.draw_inner(), problem.draw_outer()
        masks = oracles.masks()
        value, direction = oracles.direction(z, q, inner, outer)
        if state.made:
            with masks:
                _, before = oracles.direction(state.before[0], state.before[1], inner, outer, state.hparams)
            keep = 1 - min(scheduled(self, "momentum", state.made), 1.0)
            direction = {k: now + keep * (state.direction[k] - before[k]) for k, now in direction.items()}
        following = FSLAState(
            params=layout.views(z),
            solution=q,
            before=torch.stack([z, q]),
            hparams=cloned(oracles.hparams),
            direction=detached(direction),
            steps=state.steps,
            made=state.made + 1,
        )
        return value, direction, following
