"""PZOBO: the response Jacobian by differences of whole inner runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts, check_numbers
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import ParamsState, SingleLoop
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True, kw_only=True)
class PZOBO(SingleLoop[ParamsState]):
    """dF/dλ ≈ ∂f/∂λ + mean over k of ⟨(θ_T(λ + μu_k) − θ_T(λ)) / μ, ∂f/∂θ⟩ u_k, with u_k normal.

    θ_T(λ) is what T gradient steps from θ reach; every perturbed run starts at the same θ and sees the same batches.
    The inner Jacobian's action is measured, the outer gradient is exact; no second derivative. Biased by T (the
    response of a short horizon) and by μ; the u_k add a variance that grows with the number of hyperparameters.

    Args:
        step_size: of the inner gradient steps, above 0: a number or a function of the iteration.
        inner_steps: T, at least 1.
        directions: random directions, at least 1.
        radius: μ, above 0, in the hyperparameters' units.
        seed: seed of the directions, which are new at every iteration.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: (directions + 1) T inner gradients and 1 outer gradient an iteration; no product.

    Raises:
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Source: Sow, Ji, Liang, "On the convergence theory for Hessian-free bilevel algorithms" (2022), algorithm 1.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * params["w"].square().sum(),
        ... )
        >>> algorithm = hg.PZOBO(step_size=0.5, inner_steps=40, directions=1000)
        >>> found = hg.hypergradient(problem, {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}, algorithm).grads["x"]
        >>> bool((found - 2).abs() < 0.2)
        True
    """

    step_size: Schedule
    inner_steps: int = 10
    directions: int = 1
    radius: float = 1e-3
    seed: int = 0
    order = 1
    cost = "(k + 1) T inner gradients + 1 outer gradient an iteration"
    needs = "first derivatives only; few hyperparameters"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ: no, its directions are random."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_counts(self, "inner_steps", "directions")
        check_numbers(self, "radius", above=0)
        check_schedules(self, "step_size")

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        runs = self.iterations * (self.directions + 1)
        return Cost(inner_gradients=runs * self.inner_steps, outer_gradients=self.iterations)

    def directions_at(self, made: int, layout: Layout) -> list[Tensor]:
        """Return the flat directions that iteration ``made`` (from 0) uses."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + made) % 2**63)
        drawn = torch.randn(self.directions, layout.size, dtype=torch.float64, generator=generator)
        return list(drawn.to(layout.device, layout.dtype))

    def _start(self, params: Tree, hparams: Tree) -> ParamsState:
        return ParamsState(params)

    def _iterate(self, oracles: Oracles, state: ParamsState) -> tuple[Tensor, Tree, ParamsState]:
        layout, step = Layout.of(oracles.hparams), scheduled(self, "step_size", state.made)
        origin = layout.flatten(tree.detached(oracles.hparams))
        start, batches = oracles.layout.flatten(state.params), self._draw(oracles)
        draws = guards.Draws.capture(layout.device)
        plain = self._run(oracles, start, batches, step, layout.views(origin))
        value, slope, direct = oracles.outer(plain, oracles.problem.draw_outer())
        total = torch.zeros_like(origin)
        for direction in self.directions_at(state.made, layout):
            with guards.again(draws):
                moved = self._run(oracles, start, batches, step, layout.views(origin + self.radius * direction))
            total += torch.dot((moved - plain) / self.radius, slope) * direction
        measured = layout.views(total / self.directions)
        grads = {key: direct[key] + measured[key] for key in direct}
        return value, grads, ParamsState(oracles.layout.views(plain), state.steps, state.made + 1)

    def _draw(self, oracles: Oracles) -> list[object]:
        return [oracles.problem.draw_inner() for _ in range(self.inner_steps)]

    def _run(self, oracles: Oracles, z: Tensor, batches: list[object], step: float, hparams: Tree) -> Tensor:
        for place, batch in enumerate(batches):
            first = place == 0 and not oracles.reached and not oracles.problem.root
            slope = oracles.slopes(z, batch, hparams)[0] if first else oracles.slope(z, batch, hparams)
            z = torch.sub(z, slope, alpha=step)
        if oracles.problem.root:
            oracles.reached |= set(hparams)  # a root has no value whose graph could tell
        return z
