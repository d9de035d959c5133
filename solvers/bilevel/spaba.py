"""SPABA: SOBA with PAGE's variance reduction, renewed on the whole data at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.settings import check_numbers
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.solvers.bilevel.srba import SRBA, SRBAState
from hypergrad.tree import Layout, Tree, zeros_like


@final
@dataclass(frozen=True, kw_only=True)
class SPABA(SingleLoop[SRBAState]):
    """:class:`~hypergrad.SRBA` whose passes over the whole data come at random instead of periodically.

    In every iteration a coin is tossed. With the given probability the three directions D are those of the whole data;
    else D ← D + D_ij(now) − D_ij(previous point) on one pair of batches, the same at both points. Then θ ← θ − α D_θ,
    q ← q − β D_q, and D_λ is the direction for λ. Constant steps reach any accuracy on finite sums, on strongly convex
    ones at a linear rate. On endless data the sampler's ``full()`` may return a large batch, whose noise remains.

    Args:
        step_size: α, above 0: a number or a function of the iteration; constant in the paper.
        linear_step_size: β, likewise; α by default.
        probability: of a pass over the whole data, above 0 and below 1: about one over the number of batches. The
            first iteration is one in any case.
        seed: seed of the coin.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 2 inner gradients, 2 products and 2 outer gradients an iteration, or 1 of each on the whole data.

    Raises:
        InputError: settings out of range.
        NonFiniteError: steps so long that an iterate overflowed.

    Source: Chu, Xu, Yao, Zhang, "SPABA: A single-loop and probabilistic stochastic bilevel algorithm achieving optimal
    sample complexity" (2024); the estimator is PAGE of Li, Bao, Zhang, Richtárik (2021). Ours: both points share
    dropout masks, and q is not projected onto a ball.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams, batch: 0.5 * (params["w"] - hparams["x"] * batch[0]).square().mean(),
        ...     outer=lambda params, hparams, batch: 0.5 * params["w"].square().sum(),
        ...     inner_data=hg.TensorSampler(torch.tensor([0.5, 1.5]), batch_size=1),
        ... )
        >>> algorithm = hg.SPABA(step_size=0.2, probability=0.25, iterations=300)
        >>> start = {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
        >>> hg.hypergradient(problem, *start, algorithm).grads["x"].round(decimals=4)
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    probability: float = 0.1
    seed: int = 0
    order = 2
    cost = "2 inner gradients + 2 products + 2 outer gradients an iteration (1 of each on all data now and then)"
    needs = "a strongly convex inner problem"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ, at a fixed λ."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether passes over the whole data come at random."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_numbers(self, "probability", above=0, below=1)
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def renews(self, made: int) -> bool:
        """Return whether iteration ``made`` (from 0) is a pass over the whole data."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + made) % 2**63)
        return made == 0 or float(torch.rand((), dtype=torch.float64, generator=generator)) < self.probability

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        passes = sum(1 if self.renews(made) else 2 for made in range(self.iterations))
        return Cost(passes, passes, passes)

    def _start(self, params: Tree, hparams: Tree) -> SRBAState:
        layout = Layout.of(params)
        zeros = torch.stack([layout.zeros(), layout.zeros()])
        return SRBAState(params, layout.zeros(), zeros, hparams, zeros, zeros_like(hparams))

    def _iterate(self, oracles: Oracles, state: SRBAState) -> tuple[Tensor, Tree, SRBAState]:
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        period = 1 if self.renews(state.made) else state.made + 1  # SRBA renews where the period divides
        return SRBA(step_size=step, linear_step_size=linear, period=period)._iterate(oracles, state)
