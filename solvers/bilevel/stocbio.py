"""StocBiO: stochastic steps of θ and a stochastic Neumann series from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches, Oracles
from hypergrad.solvers.bilevel.single_loop import ParamsState, SingleLoop
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class StocBiO(SingleLoop[ParamsState]):
    """T stochastic steps of θ, then q = β Σ_{j ≤ Q} Π_{k ≤ j} (I − β H_k) ∂f/∂θ, each factor on a batch of its own.

    Biased by design: without noise and at the optimum q is the Neumann series after Q terms, whose relative error along
    an eigenvector of curvature μ is (1 − βμ)^(Q+1).

    Args:
        step_size: step of θ, above 0: a number or a function of the iteration.
        linear_step_size: β, likewise, below 2/λ_max; the step of θ by default.
        inner_steps: T, at least 1.
        terms: Q, at least 0.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: T + Q + 1 inner gradients, Q + 1 products and 1 outer gradient an iteration.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Ji, Yang, Liang, "Bilevel optimization: convergence analysis and enhanced design" (2021), algorithm 2.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.StocBiO(step_size=0.5, inner_steps=40, terms=30)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    inner_steps: int = 10
    terms: int = 10
    order = 2
    cost = "T + Q + 1 inner gradients + Q + 1 products + 1 outer gradient an iteration"
    needs = "a strongly convex inner problem"

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
        check_counts(self, "inner_steps")
        check_counts(self, "terms", least=0)
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        products = self.terms + 1
        return Cost(self.iterations * (self.inner_steps + products), self.iterations * products, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> ParamsState:
        return ParamsState(params)

    def _iterate(self, oracles: Oracles, state: ParamsState) -> tuple[Tensor, Tree, ParamsState]:
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        z = oracles.descend(oracles.layout.flatten(state.params), step, self.inner_steps)
        value, grads = oracles.neumann(z, NeumannBatches.draw(oracles.problem, self.terms), linear)
        return value, grads, ParamsState(oracles.layout.views(z), state.steps, state.made + 1)
