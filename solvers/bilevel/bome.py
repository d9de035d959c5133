"""BOME: first order, by a barrier that keeps the inner value gap falling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import Oracles, whole
from hypergrad.solvers.bilevel.single_loop import ParamsState, SingleLoop
from hypergrad.tree import Tree, dot


@final
@dataclass(frozen=True, kw_only=True)
class BOME(SingleLoop[ParamsState]):
    """θ and λ go down f together while the value gap q = g(θ, λ) − g(θ_T, λ) is made to fall; no second derivative.

    1. θ_T: T gradient steps on g from θ.
    2. q̂ = g(θ, λ) − g(θ_T, λ) with θ_T held fixed; ∇q̂ in (θ, λ).
    3. γ = max(0, η − ⟨∇f, ∇q̂⟩ / ‖∇q̂‖²).
    4. θ ← θ − ξ (∇f + γ ∇q̂)_θ; the direction for λ is (∇f + γ ∇q̂)_λ.

    The direction is that of a constrained problem, not an estimate of dF/dλ: γ ties it to θ's own move. The paper moves
    λ by the same ξ. On the whole data.

    Args:
        step_size: ξ, above 0: a number or a function of the iteration.
        inner_step_size: step of the T gradient steps, likewise; ξ by default.
        inner_steps: T, at least 1.
        eta: η, likewise above 0.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: T + 2 inner gradients and 1 outer gradient an iteration; no product.

    Raises:
        UnsupportedError: a root or fixed point, which has no objective.
        NonFiniteError: steps so long that an iterate overflowed.

    Source: Ye, Liu, Wright, Stone, Liu, "BOME! Bilevel optimization made easy" (2022), algorithm 1 with φ = η ‖∇q̂‖².

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.BOME(step_size=0.2)
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=0.2)
        >>> start = {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
        >>> *_, last = hg.iterate(problem, algorithm, *start, outer=move, steps=300)
        >>> bool(last.moved["x"].abs() < 1e-3)
        True
    """

    step_size: Schedule
    inner_step_size: Schedule | None = None
    inner_steps: int = 10
    eta: Schedule = 0.5
    order = 1
    cost = "T + 2 inner gradients + 1 outer gradient an iteration"
    needs = "an inner objective; first derivatives only; the whole data"

    @property
    def exact(self) -> bool:
        """Whether its direction is dF/dλ: no, it is that of a constrained problem."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "inner_steps")
        check_schedules(self, "step_size", "eta")
        check_schedules(self, "inner_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        return Cost(inner_gradients=self.iterations * (self.inner_steps + 2), outer_gradients=self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> ParamsState:
        return ParamsState(params)

    def _iterate(self, oracles: Oracles, state: ParamsState) -> tuple[Tensor, Tree, ParamsState]:
        layout, step = oracles.layout, scheduled(self, "step_size", state.made)
        inner_step = step if self.inner_step_size is None else scheduled(self, "inner_step_size", state.made)
        inner, outer = whole(oracles.problem.inner_data), whole(oracles.problem.outer_data)
        z = layout.flatten(state.params)
        solved = z
        for _ in range(self.inner_steps):
            solved = torch.sub(solved, oracles.slope(solved, inner), alpha=inner_step)
        gap, gap_hparams = oracles.slopes(z, inner)
        _, below = oracles.slopes(solved, inner)
        gap_hparams = {key: value - below[key] for key, value in gap_hparams.items()}
        value, slope, direct = oracles.outer(z, outer)
        along = torch.dot(slope, gap) + dot(direct, gap_hparams)
        length = torch.dot(gap, gap) + dot(gap_hparams, gap_hparams)
        eta = scheduled(self, "eta", state.made)
        weight = torch.where(length > 0, (eta - along / length).clamp(min=0), 0.0)
        grads = {key: direct[key] + weight * slope_ for key, slope_ in gap_hparams.items()}
        z = torch.sub(z, slope + weight * gap, alpha=step)
        return value, grads, ParamsState(layout.views(z), state.steps, state.made + 1)
