"""SUSTAIN: recursive momentum on both levels, with a random product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from hypergrad.algorithm import Cost
from hypergrad.problem import Problem
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches, random_terms
from hypergrad.solvers.bilevel.recursive_momentum import RecursiveMomentum


@final
@dataclass(frozen=True, kw_only=True)
class SUSTAIN(RecursiveMomentum):
    """Recursive momentum (STORM) on the directions of θ and of λ, with batches of constant size.

    - d_θ ← ∇_θ g_i(now) + (1 − η_t) (d_θ − ∇_θ g_i(previous point)),
    - d_λ ← G(now) + (1 − η_t) (d_λ − G(previous point)) with G the hypergradient by a random product of p < Q factors
      (see :class:`~hypergrad.TTSA`), the same factors at both points.

    Biased by the terms that the mean of the product leaves out.

    Args:
        step_size: step of θ, above 0: a number or a function of the iteration; it falls as t^(−1/3) in the paper, as
            the outer optimizer's.
        linear_step_size: β, likewise, at most 1/λ_max; the first step of θ by default.
        momentum: η_t, above 0 and at most 1: the share of the newest direction; it falls as t^(−2/3) in the paper.
        terms: Q, at least 1.
        seed: seed of p.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 2 (p + 2) inner gradients, 2 (p + 1) products and 2 outer gradients an iteration; half in the first.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Khanduri et al., "A near-optimal algorithm for stochastic bilevel optimization via double-momentum" (2021),
    algorithm 1.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.SUSTAIN(step_size=1.0, terms=1, iterations=3)  # one term is all where H = I
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    seed: int = 0
    order = 2
    cost = "twice a Neumann hypergradient and a gradient of θ an iteration (once in the first)"
    needs = "a strongly convex inner problem"
    elsewhere = True

    @property
    def stochastic(self) -> bool:
        """Whether the number of factors is drawn at random."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "terms")

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        factors = [random_terms(self.terms, self.seed, made) for made in range(self.iterations)]
        products = 2 * (sum(factors) + len(factors)) - factors[0] - 1
        points = 2 * self.iterations - 1
        return Cost(products + points, products, points)

    def _batches(self, problem: Problem, made: int) -> NeumannBatches:
        count = random_terms(self.terms, self.seed, made)
        return NeumannBatches.draw(problem, count, weight=float(self.terms))
