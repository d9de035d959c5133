"""F2SA: fully first order, by the difference of a penalised and a plain inner solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True)
class F2SAState:
    """What :class:`F2SA` tracks.

    Attributes:
        params: θ, which follows the minimiser of g.
        penalised: y, which follows the minimiser of f + γ g, as a flat vector.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    penalised: Tensor
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class F2SA(SingleLoop[F2SAState]):
    """dF/dλ ≈ ∂f/∂λ(y) + γ (∂g/∂λ(y) − ∂g/∂λ(θ)) with y = argmin f + γ g and θ = argmin g; no second derivative.

    1. T times: y ← y − c_t (∂f/∂θ + γ ∂g/∂θ)(y), θ ← θ − α_t ∂g/∂θ(θ), each on a fresh batch.
    2. The direction for λ is ∂f/∂λ(y) + γ (∂g/∂λ(y) − ∂g/∂λ(θ)).

    Biased by design: with both minimisers exact the error is of order 1/γ, and on a quadratic g with Hessian H and a
    quadratic f with Hessian A the estimate is the hypergradient with (H + A/γ)⁻¹ in the place of H⁻¹. The paper lets γ
    grow; y then asks for c_t of order 1/γ.

    Args:
        step_size: α_t, above 0: a number or a function of the iteration.
        penalty: γ, likewise; a function that grows for the paper's schedule.
        penalised_step_size: c_t, likewise; α_t / (1 + γ) by default.
        inner_steps: T, at least 1.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 2 T + 2 inner gradients and T + 1 outer gradients an iteration; no product.

    Raises:
        UnsupportedError: a root or fixed point, which has no objective.
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Kwon, Kwon, Wright, Nowak, "A fully first-order method for stochastic bilevel optimization" (2023),
    algorithm 1; λ_k there is our γ.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.F2SA(step_size=0.5, penalty=999.0, inner_steps=200)
        >>> start = {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
        >>> hg.hypergradient(problem, *start, algorithm).grads["x"].round(decimals=2)
        tensor([2.])
    """

    step_size: Schedule
    penalty: Schedule = 10.0
    penalised_step_size: Schedule | None = None
    inner_steps: int = 10
    order = 1
    cost = "2 T + 2 inner gradients + T + 1 outer gradients an iteration"
    needs = "a strongly convex inner problem with an objective; first derivatives only"

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ: never, for a finite penalty."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "inner_steps")
        check_schedules(self, "step_size", "penalty")
        check_schedules(self, "penalised_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        rounds = self.iterations * (self.inner_steps + 1)
        return Cost(inner_gradients=2 * rounds, outer_gradients=rounds)

    def _start(self, params: Tree, hparams: Tree) -> F2SAState:
        return F2SAState(params, Layout.of(params).flatten(params))

    def _iterate(self, oracles: Oracles, state: F2SAState) -> tuple[Tensor, Tree, F2SAState]:
        problem, layout, y = oracles.problem, oracles.layout, state.penalised
        step, penalty = scheduled(self, "step_size", state.made), scheduled(self, "penalty", state.made)
        small = step / (1 + penalty)
        if self.penalised_step_size is not None:
            small = scheduled(self, "penalised_step_size", state.made)
        z = layout.flatten(state.params)
        for _ in range(self.inner_steps):
            _, slope, _ = oracles.outer(y, problem.draw_outer())
            y = torch.sub(y, slope + penalty * oracles.slope(y, problem.draw_inner()), alpha=small)
            z = torch.sub(z, oracles.slope(z, problem.draw_inner()), alpha=step)
        inner = problem.draw_inner()
        value, _, direct = oracles.outer(y, problem.draw_outer())
        masks = oracles.masks()
        _, above = oracles.slopes(y, inner)
        with masks:
            _, below = oracles.slopes(z, inner)
        grads = {key: direct[key] + penalty * (above[key] - below[key]) for key in direct}
        return value, grads, F2SAState(layout.views(z), y, state.steps, state.made + 1)
