"""AmIGO: amortised implicit differentiation, with warm-started inner loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import AdjointState, SingleLoop
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True, kw_only=True)
class AmIGO(SingleLoop[AdjointState]):
    """T stochastic steps of θ and N of q, both from where the last outer step left them.

    1. T times: θ ← θ − α ∇_θ g_i.
    2. On one outer batch j, N times: q ← q − β (H_i q − ∂f_j/∂θ).
    3. The direction for λ is ∂f_j/∂λ − (∂²g_i/∂θ∂λ)ᵀ q.

    Warm starts let small T and N track the exact hypergradient as λ slows down.

    Args:
        step_size: α, above 0: a number or a function of the iteration.
        linear_step_size: β, likewise; α by default.
        inner_steps: T, at least 1.
        linear_steps: N, at least 1.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: T + N + 1 inner gradients, N + 1 products and 1 outer gradient an iteration.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Arbel, Mairal, "Amortized implicit differentiation for stochastic bilevel optimization" (2022), algorithm 1.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.AmIGO(step_size=0.5, inner_steps=40, linear_steps=40)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    inner_steps: int = 10
    linear_steps: int = 10
    order = 2
    cost = "T + N + 1 inner gradients + N + 1 products + 1 outer gradient an iteration"
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
        check_counts(self, "inner_steps", "linear_steps")
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        products = self.linear_steps + 1
        return Cost(self.iterations * (self.inner_steps + products), self.iterations * products, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> AdjointState:
        return AdjointState(params, Layout.of(params).zeros())

    def _iterate(self, oracles: Oracles, state: AdjointState) -> tuple[Tensor, Tree, AdjointState]:
        problem, step = oracles.problem, scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        z = oracles.descend(oracles.layout.flatten(state.params), step, self.inner_steps)
        value, slope, direct = oracles.outer(z, problem.draw_outer())
        q = state.solution
        for _ in range(self.linear_steps):
            q = torch.sub(q, oracles.product(z, q, problem.draw_inner()) - slope, alpha=linear)
        mixed = oracles.mixed(z, q, problem.draw_inner())
        following = AdjointState(oracles.layout.views(z), q, state.steps, state.made + 1)
        return value, {key: direct[key] - m for key, m in mixed.items()}, following
