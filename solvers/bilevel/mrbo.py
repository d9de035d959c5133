"""MRBO: recursive momentum on both levels, with a stochastic Neumann series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from hypergrad.algorithm import Cost
from hypergrad.problem import Problem
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import NeumannBatches
from hypergrad.solvers.bilevel.recursive_momentum import RecursiveMomentum


@final
@dataclass(frozen=True, kw_only=True)
class MRBO(RecursiveMomentum):
    """Recursive momentum (STORM) on the directions of θ and of λ, both on the same batches at two successive points.

    - d_θ ← ∇_θ g_i(now) + (1 − η_t) (d_θ − ∇_θ g_i(previous point)),
    - d_λ ← G(now) + (1 − η_t) (d_λ − G(previous point)) with G the hypergradient by a stochastic Neumann series of Q
      terms, each factor on a batch of its own (see :class:`~hypergrad.StocBiO`).

    Biased by the terms that the series leaves out.

    Args:
        step_size: step of θ, above 0: a number or a function of the iteration; it falls as t^(−1/3) in the paper, as
            the outer optimizer's.
        linear_step_size: β, likewise, at most 1/λ_max; the first step of θ by default.
        momentum: η_t, above 0 and at most 1: the share of the newest direction; it falls as t^(−2/3) in the paper.
        terms: Q, at least 0.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 2 (Q + 2) inner gradients, 2 (Q + 1) products and 2 outer gradients an iteration; half in the first.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Yang, Ji, Liang, "Provably faster algorithms for bilevel optimization" (2021), algorithm 1.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.MRBO(step_size=0.5, terms=30, iterations=40)
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        tensor([2.])
    """

    order = 2
    cost = "twice a Neumann hypergradient and a gradient of θ an iteration (once in the first)"
    needs = "a strongly convex inner problem"
    elsewhere = True

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "terms", least=0)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        points, products = 2 * self.iterations - 1, self.terms + 1
        return Cost(points * (products + 1), points * products, points)

    def _batches(self, problem: Problem, made: int) -> NeumannBatches:
        return NeumannBatches.draw(problem, self.terms)
