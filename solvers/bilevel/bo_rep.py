"""BO-REP: a refined start, seldom inner steps, a tracked adjoint, and an outer step of fixed length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost, Hypergradient, check_finite
from hypergrad.problem import Problem
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts, check_kind, check_number, check_numbers
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True, kw_only=True)
class EpochSGD:
    """Stochastic gradient descent in epochs inside a shrinking ball, to refine where training starts.

    Epoch s = 1 … S makes T_s steps θ ← P(θ − a_s ∇_θ g), where P projects onto the ball of radius R_s around the
    epoch's start; the average of the epoch's iterates is where the next epoch starts. Then a_{s+1} = a_s / 2,
    R²_{s+1} = R²_s / 2 and T_{s+1} = 2 T_s.

    Args:
        epochs: S, at least 1.
        steps: T_1, at least 1; all epochs together make T_1 (2^S − 1) steps.
        step_size: a_1, above 0; by default the inner step of the algorithm at its first iteration.
        radius: R_1, above 0, in the parameters' units: a bound on the distance to the optimum. Without one there is no
            ball.

    Source: Ghadimi and Lan (2013) and Hazan and Kale (2014) for the epochs; Hao, Gong and Liu (2024) for their use.
    """

    epochs: int = 4
    steps: int = 10
    step_size: float | None = None
    radius: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "epochs", "steps")
        check_numbers(self, "step_size", "radius", above=0)

    @property
    def total(self) -> int:
        """Steps of all epochs."""
        return self.steps * ((1 << self.epochs) - 1)

    def run(self, slope: Callable[[Tensor], Tensor], y: Tensor, step_size: float) -> Tensor:
        """Return the average of the last epoch, from ``y`` and with ``step_size`` where none is set."""
        step = step_size if self.step_size is None else self.step_size
        for epoch in range(self.epochs):
            radius = None if self.radius is None else self.radius * 2 ** (-epoch / 2)
            y = descend(slope, y, self.steps << epoch, step / 2**epoch, radius, average=True)
        return y


def descend(
    slope: Callable[[Tensor], Tensor], start: Tensor, steps: int, step_size: float, radius: float | None, average: bool
) -> Tensor:
    """Return the last iterate, or the average, of gradient steps that stay in a ball around their start."""
    y, total = start, torch.zeros_like(start)
    for _ in range(steps):
        y = torch.sub(y, slope(y), alpha=step_size)
        if radius is not None:
            shift = y - start
            length = torch.linalg.vector_norm(shift)
            y = torch.where(length > radius, start + shift * (radius / length), y)
        if average:
            total += y
    return total / steps if average else y


@final
@dataclass(frozen=True)
class BOREPState:
    """What :class:`BOREP` tracks.

    Attributes:
        params: θ.
        solution: z, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        stretch: ν ‖H z‖ / ‖z‖ at the last iteration.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    stretch: Tensor
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class BOREP(SingleLoop[BOREPState]):
    """θ refined once and then moved only every I-th iteration; z ≈ H⁻¹ ∂f/∂θ tracked by Hessian-vector products.

    For outer objectives whose curvature grows with their gradient (recurrent networks, exponentials). Iteration k, with
    a new batch for every gradient:

    - k = 0: θ ← ``refinement`` of θ, epochs of SGD inside a shrinking ball. If k mod I = 0 otherwise: N steps
      θ ← P(θ − γ_k ∇_θ g), where P projects onto the ball of radius R around θ at entry,
    - z ← z − ν_k (H z − ∂f/∂θ),
    - the direction for λ is d = ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ z, at the new θ and z.

    The outer half, m ← β m + (1 − β) d and λ ← λ − η m / ‖m‖, is :class:`NormalizedMomentum`:
    ``hg.outer.Torch(NormalizedMomentum, lr=eta)``. At a fixed λ and without noise z settles at H⁻¹ ∂f/∂θ.

    Args:
        step_size: γ_k, above 0: a number or a function of the iteration.
        linear_step_size: ν_k, likewise; from 2 / L on, with L the largest curvature of g, z diverges.
        interval: I, at least 1.
        inner_steps: N, at least 1.
        radius: R, above 0, in the parameters' units; without one there is no ball.
        average: whether the N steps end at the average of their iterates instead of the last.
        refinement: epochs at the first iteration; ``None`` for N steps there as well. ``None`` and no ``radius`` is the
            authors' released code.
        independent: whether the mixed product has an inner batch of its own, at the price of one more inner gradient.
            On one batch z and the product are correlated, which biases d by O(ν).
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 1 inner gradient (2 if ``independent``), 2 products and 1 outer gradient an iteration, and N inner gradients
    every I-th; the first one those of ``refinement``.

    Raises:
        InputError: settings out of range, or a schedule that returns no number above 0.
        NonFiniteError: steps so long, or noise so large, that an iterate overflowed.

    Warns:
        CurvatureWarning: ν ‖H z‖ > 2 ‖z‖, so ν lies beyond 2 / L.

    Source: Hao, Gong, Liu, "Bilevel optimization under unbounded smoothness: a new algorithm and convergence analysis"
    (ICLR 2024), the main algorithm with its subroutine of epochs. Ours: z starts at 0 (their code: random), and the
    epochs' steps and lengths are those of Hazan and Kale, given as settings instead of the theory's constants.

    Example:
        >>> import torch, hypergrad as hg
        >>> from hypergrad.solvers.bilevel.bo_rep import BOREP, NormalizedMomentum
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: params["w"].cosh().sum(),
        ... )
        >>> algorithm = BOREP(step_size=0.5, linear_step_size=0.5)
        >>> move = hg.outer.Torch(NormalizedMomentum, lr=0.5)
        >>> run = hg.Run(problem, algorithm, {"w": torch.zeros(1)}, {"x": torch.full((1,), 20.0)}, move)
        >>> for _ in range(40):
        ...     progress = run.step()
        >>> progress.moved["x"]
        tensor([0.])
    """

    step_size: Schedule
    linear_step_size: Schedule
    interval: int = 2
    inner_steps: int = 3
    radius: float | None = None
    average: bool = False
    refinement: EpochSGD | None = EpochSGD()
    independent: bool = False
    order = 2
    cost = "1 inner gradient + 2 products + 1 outer gradient an iteration, N inner gradients every I-th"
    needs = "a strongly convex inner problem; an outer step of fixed length where smoothness is unbounded"

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
        check_schedules(self, "step_size", "linear_step_size")
        check_counts(self, "interval", "inner_steps")
        check_numbers(self, "radius", above=0)
        check_kind(self, "refinement", EpochSGD, "pass EpochSGD(epochs=..., steps=...) or None", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        updates = -(-self.iterations // self.interval)
        first = self.inner_steps if self.refinement is None else self.refinement.total
        graphs = (2 if self.independent else 1) * self.iterations
        return Cost(first + (updates - 1) * self.inner_steps + graphs, 2 * self.iterations, self.iterations)

    def step(self, problem: Problem, state: BOREPState, hparams: Tree) -> tuple[Hypergradient, BOREPState]:
        """Make the iterations of one step and return the last direction for λ."""
        found, following = super().step(problem, state, hparams)
        check_finite("the adjoint", {"z": following.solution}, when=f"after iteration {following.made}")
        stretch = float(following.stretch)
        if stretch <= 2:
            return found, following
        note = (
            f"the step of z is too long: linear_step_size times the curvature along z is {stretch:.3g}, above 2, where "
            "z diverges (with noisy products the mean may still be stable); lower linear_step_size or take larger "
            "inner batches"
        )
        report = dataclasses.replace(found.report, notes={**found.report.notes, "curvature": note})
        return dataclasses.replace(found, report=report), following

    def _start(self, params: Tree, hparams: Tree) -> BOREPState:
        zeros = Layout.of(params).zeros()
        return BOREPState(params, zeros, zeros.sum())

    def _iterate(self, oracles: Oracles, state: BOREPState) -> tuple[Tensor, Tree, BOREPState]:
        problem, layout, z = oracles.problem, oracles.layout, state.solution
        y = self._moved(oracles, layout.flatten(state.params), state.made)
        point = self._linearised(oracles, y)
        value, slope, direct = oracles.outer(y, problem.draw_outer())
        product, nu = point.hvp(z), scheduled(self, "linear_step_size", state.made)
        oracles.look_at(z, product)
        stretch = nu * torch.linalg.vector_norm(product) / torch.linalg.vector_norm(z).clamp(min=1e-30)
        z = z - nu * (product - slope)
        mixed = (self._linearised(oracles, y) if self.independent else point).cross(z)
        oracles.cost += Cost(products=2)
        grads = {key: direct[key] - value_ for key, value_ in mixed.items()}
        return value, grads, BOREPState(layout.views(y), z, stretch, state.steps, state.made + 1)

    def _linearised(self, oracles: Oracles, y: Tensor) -> Any:
        point = oracles.problem.linearise(oracles.layout.views(y), oracles.hparams, oracles.problem.draw_inner())
        oracles.cost += Cost(inner_gradients=1)
        oracles.reached |= point.reached
        return point

    def _moved(self, oracles: Oracles, y: Tensor, made: int) -> Tensor:
        """Return θ at an iteration: refined at the first, N steps on at every I-th, unchanged otherwise."""

        def slope(place: Tensor) -> Tensor:
            return oracles.slope(place, oracles.problem.draw_inner())

        if made % self.interval:
            return y
        gamma = scheduled(self, "step_size", made)
        if made == 0 and self.refinement is not None:
            return self.refinement.run(slope, y, gamma)
        return descend(slope, y, self.inner_steps, gamma, self.radius, self.average)


@final
class NormalizedMomentum(torch.optim.Optimizer):
    """Steps of fixed length along averaged gradients: m ← β m + (1 − β) d, x ← x − η m / ‖m‖.

    The norm is that of all tensors together, so the step has the length η exactly, whatever the gradient's size: a
    gradient of 1e300 does not overflow. Let η decay (a torch scheduler) to converge closer than η. Where m = 0 nothing
    moves. The first m is the first gradient.

    Args:
        params: tensors, or groups of tensors.
        lr: η, above 0, in the tensors' units.
        momentum: β, at least 0 and below 1.

    Raises:
        InputError: settings out of range.

    Source: Hao, Gong, Liu (2024), the outer update of BO-REP; Cutkosky and Mehta (2020). Ours: m starts at the first
    gradient instead of 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([6.0, 8.0], requires_grad=True)
        >>> optimizer = NormalizedMomentum([x], lr=5.0)
        >>> (x.square().sum() * 1e20).backward()
        >>> optimizer.step()
        >>> x
        tensor([3., 4.], requires_grad=True)
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9) -> None:
        """Check the settings."""
        check_number("NormalizedMomentum", "lr", lr, above=0)
        check_number("NormalizedMomentum", "momentum", momentum, least=0, below=1)
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; with a closure, call it first and return its value."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        moves: list[tuple[Tensor, Tensor, float]] = []
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    moves.append((tensor, self._averaged(tensor, group["momentum"]), group["lr"]))
        if not moves:
            return value
        largest = torch.stack([m.abs().amax() for _, m, _ in moves if m.numel()]).amax()
        largest = torch.where(largest > 0, largest, 1.0)  # squares of m / largest neither overflow nor vanish
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(m / largest) for _, m, _ in moves]))
        length = torch.where(length > 0, length, 1.0)
        for tensor, m, lr in moves:
            tensor.sub_(lr * (m / largest / length))
        return value

    def _averaged(self, tensor: Tensor, beta: float) -> Tensor:
        state, grad = self.state[tensor], tensor.grad
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = grad.detach().clone()
        else:
            state["momentum_buffer"].mul_(beta).add_(grad, alpha=1 - beta)
        m: Tensor = state["momentum_buffer"]
        return m
