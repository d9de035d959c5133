"""BSA: an inner loop of decreasing steps, and a random product in the place of the Neumann series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches, Oracles, random_terms
from hypergrad.solvers.bilevel.single_loop import ParamsState, SingleLoop
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class BSA(SingleLoop[ParamsState]):
    """T_k stochastic steps of θ that shorten from step to step, then a hypergradient with a random product.

    1. For t = 0 … T_k − 1: θ ← θ − α_t ∇_θ g_i; α_t starts anew in every iteration k, θ does not.
    2. q = Q β Π_{j ≤ p} (I − β H_j) ∂f/∂θ with p uniform on 0, …, Q − 1 and each factor on a batch of its own.
    3. The direction for λ is ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q.

    The mean of q is the Neumann series after Q − 1 terms, H⁻¹ (I − (I − βH)^Q) ∂f/∂θ, so the estimate is biased by the
    terms left out.

    Args:
        step_size: α_t, above 0: a number or a function of t, the step within the inner loop; of order 1/t in the paper.
        linear_step_size: β, above 0 and at most 1/λ_max: a number or a function of the iteration; α_0 by default.
        inner_steps: T_k, at least 1: a number or a function of the iteration, rounded up; of order √k in the paper.
        terms: Q, at least 1.
        seed: seed of p.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: T + p + 1 inner gradients, p + 1 products and 1 outer gradient an iteration, with p at most Q − 1.

    Raises:
        InputError: settings out of range.
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Ghadimi, Wang, "Approximation methods for bilevel programming" (2018), the stochastic algorithm BSA. The
    outer optimizer moves λ, in the paper with steps of order k^(−1/2).

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.BSA(step_size=lambda t: 1 / (1 + t), terms=1)  # one term is all where H = I
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    inner_steps: Schedule = 10
    terms: int = 10
    seed: int = 0
    order = 2
    cost = "T + p + 1 inner gradients + p + 1 products + 1 outer gradient an iteration, p < Q at random"
    needs = "a strongly convex inner problem"

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ: never, for want of the series' remaining terms."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether the number of factors is drawn at random."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "terms")
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)
        if not callable(self.inner_steps):
            check_counts(self, "inner_steps")

    def _rounds(self, made: int) -> int:
        return math.ceil(scheduled(self, "inner_steps", made))

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        products = sum(random_terms(self.terms, self.seed, made) + 1 for made in range(self.iterations))
        inner = sum(self._rounds(made) for made in range(self.iterations))
        return Cost(inner + products, products, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> ParamsState:
        return ParamsState(params)

    def _iterate(self, oracles: Oracles, state: ParamsState) -> tuple[Tensor, Tree, ParamsState]:
        fixed = "step_size" if self.linear_step_size is None else "linear_step_size"
        linear = scheduled(self, fixed, 0 if self.linear_step_size is None else state.made)
        z = oracles.layout.flatten(state.params)
        for place in range(self._rounds(state.made)):
            slope = oracles.slope(z, oracles.problem.draw_inner())
            z = torch.sub(z, slope, alpha=scheduled(self, "step_size", place))
        count = random_terms(self.terms, self.seed, state.made)
        batches = NeumannBatches.draw(oracles.problem, count, weight=float(self.terms))
        value, grads = oracles.neumann(z, batches, linear)
        return value, grads, ParamsState(oracles.layout.views(z), state.steps, state.made + 1)
