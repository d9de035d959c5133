"""TTSA: two time scales, with a random product in the place of the Neumann series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches, Oracles, random_terms
from hypergrad.solvers.bilevel.single_loop import ParamsState, SingleLoop
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class TTSA(SingleLoop[ParamsState]):
    """One stochastic step of θ on a fast time scale; λ on a slow one, along a hypergradient with a random product.

    q = Q β Π_{k ≤ p} (I − β H_k) ∂f/∂θ with p uniform on 0, …, Q − 1 and each factor on a batch of its own. Its mean is
    the Neumann series after Q − 1 terms, so the estimate is biased by the terms left out, and its variance is that of
    one term times Q².

    Args:
        step_size: step of θ, above 0: a number or a function of the iteration; it falls as t^(−2/5) in the paper, the
            outer optimizer's as t^(−3/5).
        linear_step_size: β, likewise, at most 1/λ_max; the first step of θ by default.
        terms: Q, at least 1.
        seed: seed of p.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: p + 2 inner gradients, p + 1 products and 1 outer gradient an iteration, with p at most Q − 1.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Hong, Wai, Wang, Yang, "A two-timescale stochastic algorithm framework for bilevel optimization" (2023),
    algorithm 1 with equation 12's sampling, which is that of Ghadimi and Wang (2018).

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.TTSA(step_size=1.0, linear_step_size=1.0, terms=1)  # one term is all where H = I
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    terms: int = 10
    seed: int = 0
    order = 2
    cost = "p + 2 inner gradients + p + 1 products + 1 outer gradient an iteration, p < Q at random"
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

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        factors = sum(random_terms(self.terms, self.seed, made) for made in range(self.iterations))
        return Cost(factors + 2 * self.iterations, factors + self.iterations, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> ParamsState:
        return ParamsState(params)

    def _iterate(self, oracles: Oracles, state: ParamsState) -> tuple[Tensor, Tree, ParamsState]:
        step = scheduled(self, "step_size", state.made)
        fixed = "step_size" if self.linear_step_size is None else "linear_step_size"
        linear = scheduled(self, fixed, 0 if self.linear_step_size is None else state.made)
        z = oracles.descend(oracles.layout.flatten(state.params), step, 1)
        count = random_terms(self.terms, self.seed, state.made)
        batches = NeumannBatches.draw(oracles.problem, count, weight=float(self.terms))
        value, grads = oracles.neumann(z, batches, linear)
        return value, grads, ParamsState(oracles.layout.views(z), state.steps, state.made + 1)
