"""Forward mode through training: exact, along random directions, or along a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, check_reached, replayed
from hypergrad.errors import InputError
from hypergrad.inner import Iterate, UpdateRule
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_choice, check_counts
from hypergrad.solvers.bilevel.trajectory import (
    UNREACHED,
    TrajectoryState,
    begin,
    check_overflow,
    check_rule,
    first_state,
)
from hypergrad.solvers.bilevel.unrolled import Unrolled
from hypergrad.stationarity import pushforward
from hypergrad.tree import Layout, Tree

Mode = Literal["exact", "random", "guided"]
Distribution = Literal["rademacher", "gaussian", "orthonormal"]


@final
@dataclass(frozen=True)
class ForwardMode(Algorithm[TrajectoryState]):
    """dF_T/dλ from directional derivatives s(v) = dF_T · v, which are carried forwards along training.

    With the tangents θ̇_t = A_t θ̇_{t−1} + B_t v of the steps θ_t = Ξ_t(θ_{t−1}, λ), s(v) = ∂f/∂θ · θ̇_T + ∂f/∂λ · v.

    - ``"exact"``: v = e_1, …, e_n, one for each hyperparameter entry.
    - ``"random"``: the mean of s(v) v over random v. Unbiased; with one direction E‖s v‖² is n ‖dF‖² (Rademacher),
      (n + 2) ‖dF‖² (Gaussian), and n/k times ‖dF‖² for k orthonormal directions scaled by n/k.
    - ``"guided"``: (s(u)/‖u‖²) u for a guess u, the truncated hypergradient of the last ``guide`` steps: the
      projection of dF on u, never an ascent direction and exact where u is parallel to dF. With ``directions`` = k it
      adds (n − 1)/k Σ s(v_i) v_i over orthonormal v_i orthogonal to u, which makes the whole unbiased.

    Memory does not grow with the number of steps: one tangent of θ and of the rule's slots for each direction.

    Args:
        steps: T, at least 1.
        inner: the update rule; its own ``steps`` and ``tolerance`` stay unset.
        mode: which directions.
        directions: number of random directions k, at least 1 (0 or more for ``"guided"``, at most n − 1).
        distribution: of the random directions; ``"guided"`` always takes orthonormal ones.
        guide: K of the guess, at least 1.
        max_exact: largest number of hyperparameter entries accepted by ``"exact"``, at least 1.
        warm_start: whether the next training starts where this one ended, with its momentum.
        seed: seed of the directions, which are new at every step.

    Cost: T inner gradients, T products for each direction, 1 outer gradient; ``"guided"`` T inner gradients, K products
    and 1 outer gradient more for the guess.

    Raises:
        InputError: more entries than ``max_exact``.
        DivergenceError: derivatives that overflowed although training did not.
        NonFiniteError: training that ran into NaN.

    Source: Franceschi et al. (2017) for ``"exact"``; Baydin et al. (2022) for ``"random"``; Fournier et al. (2023) for
    the projection, here with a truncated hypergradient as guess. Deviation: each step's tangent is one reverse pass
    through the graph of ∇g (the Hessian is symmetric), since forward over reverse mode is refused by several kernels.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]) ** 2,
        ...     outer=lambda params, hparams: 0.5 * params["w"] ** 2,
        ... )
        >>> algorithm = hg.ForwardMode(steps=1, inner=hg.GradientDescent(lr=0.5))
        >>> hg.hypergradient(problem, {"w": torch.tensor(0.0)}, {"x": torch.tensor(2.0)}, algorithm).grads["x"]
        tensor(0.5000)
    """

    steps: int
    inner: UpdateRule
    mode: Mode = "exact"
    directions: int | None = None
    distribution: Distribution = "rademacher"
    guide: int = 3
    max_exact: int = 100
    warm_start: bool = False
    seed: int = 0
    order = 2
    cost = "T inner gradients + T products a direction + 1 outer gradient (guided: + T + K + 1)"
    needs = "an update rule that can be differentiated; few hyperparameters, or a guess"

    @property
    def exact(self) -> bool:
        """Whether every entry has its own direction."""
        return self.mode == "exact"

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn."""
        return self.mode == "random" or (self.mode == "guided" and bool(self.directions))

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "steps", "guide", "max_exact")
        check_rule("ForwardMode", self.inner)
        check_choice(self, "mode", ("exact", "random", "guided"))
        check_choice(self, "distribution", ("rademacher", "gaussian", "orthonormal"))
        check_counts(self, "directions", least=1 if self.mode == "random" else 0)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step, which are always the same."""
        random = self.directions or (1 if self.mode == "random" else 0)
        count = {"exact": hparams_size, "random": random, "guided": random + 1}[self.mode]
        cost = Cost(inner_gradients=self.steps, products=self.steps * count, outer_gradients=1)
        return cost + self._guess().budget(params_size, hparams_size) if self.mode == "guided" else cost

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> TrajectoryState:
        """Check the inputs and start at ``params``."""
        state = first_state(problem, params, hparams, warm_start=self.warm_start)
        size = Layout.of(hparams).size
        if self.mode == "exact" and size > self.max_exact:
            raise InputError(
                passed=f"{size} hyperparameter entries for ForwardMode(mode='exact')",
                expected=f"at most max_exact={self.max_exact}: every entry costs {self.steps} products",
                do='use mode="guided", or hypergrad.Unrolled, whose cost does not grow with the number of entries',
            )
        return state

    def response(self, problem: Problem, state: TrajectoryState, hparams: Tree) -> Tree:
        """Return θ_T."""
        first = begin(self.inner, problem, state, tree.detached(hparams))
        return self.inner.advance_by(problem, first, hparams, self.steps).params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ_T with a backward pass that runs training again with tangents."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: TrajectoryState, hparams: Tree) -> tuple[Hypergradient, TrajectoryState]:
        """Train with tangents and put the directional derivatives together."""
        device = tree.device_of(state.params)
        watch, hparams = Stopwatch(device), tree.attached(hparams)
        layout, cost = Layout.of(hparams), Cost(outer_gradients=1)
        with guards.pinned_rng(device):
            start, guess = problem.draws(device), None
            if self.mode == "guided":
                found, _ = self._guess().step(problem, state, hparams)
                guess, cost = layout.flatten(found.grads), cost + found.report.cost
                start.restore()
            vectors = self.directions_at(state.steps, layout, guess)
            tangents = _Tangents(self.inner, problem, state, hparams, [layout.views(v) for v in vectors])
            tangents.advance_by(self.steps)
            outer = problem.outer_gradients(tangents.iterate.params, hparams, problem.draw_outer())
        if state.steps == 0:
            check_reached(hparams, tangents.reached | set(outer.hparams), advice=UNREACHED)
        slopes = [
            tree.dot(outer.params, t) + tree.dot(outer.hparams, layout.views(v)) for t, v in tangents.ends(vectors)
        ]
        estimate = self._combine(torch.stack(slopes), torch.stack(vectors), guess)
        grads = tree.cloned(layout.views(estimate))
        check_overflow(outer.value, grads, repr(self))
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED),
            outer_loss=float(outer.value),
            cost=cost + Cost(inner_gradients=self.steps, products=tangents.products),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
        )
        last = tangents.iterate
        following = state.following(last if self.warm_start else None)
        return Hypergradient(grads, last.params, outer.value, report), following

    def _guess(self) -> Unrolled:
        return Unrolled(self.steps, self.inner, truncate=min(self.guide, self.steps), warm_start=self.warm_start)

    def directions_at(self, step: int, layout: Layout, guess: Tensor | None = None) -> list[Tensor]:
        """Return the flat directions that step ``step`` (from 0) uses, the guess first where there is one."""
        if self.mode == "exact":
            return list(torch.eye(layout.size, dtype=layout.dtype, device=layout.device))
        count = self.directions or (1 if self.mode == "random" else 0)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        drawn = torch.randn(layout.size, count, dtype=torch.float64, generator=generator)
        if guess is not None or self.distribution == "orthonormal":
            limit = layout.size - (guess is not None)
            if count > limit:
                raise InputError(
                    passed=f"directions={count} for {layout.size} hyperparameter entries",
                    expected=f"at most {limit} orthonormal directions",
                    do="lower directions",
                )
            drawn = _orthonormal(drawn, guess)
        elif self.distribution == "rademacher":
            drawn = torch.where(drawn >= 0, 1.0, -1.0)
        random = list(drawn.mT.to(layout.device, layout.dtype))
        return random if guess is None else [guess, *random]

    def _combine(self, slopes: Tensor, vectors: Tensor, guess: Tensor | None) -> Tensor:
        if self.mode == "exact":
            return slopes
        size = vectors.shape[1]
        if guess is None:
            scale = size if self.distribution == "orthonormal" else 1
            return scale * (slopes @ vectors) / len(vectors)
        length = torch.dot(guess, guess)
        projected = guess * torch.where(length > 0, slopes[0] / length, 0.0)
        if len(vectors) == 1:
            return projected
        return projected + (size - 1) / (len(vectors) - 1) * (slopes[1:] @ vectors[1:])


def _orthonormal(drawn: Tensor, guess: Tensor | None) -> Tensor:
    """Return orthonormal columns with the span of ``drawn``, orthogonal to ``guess`` if there is one."""
    known = drawn[:, :0] if guess is None else guess.detach().cpu().double()[:, None]
    basis: Tensor = torch.linalg.qr(torch.cat([known, drawn], dim=1)).Q
    return basis[:, known.shape[1] :]


class _Tangents:
    """An iterate of training and the tangents of its parameters and slots along every direction."""

    def __init__(
        self, rule: UpdateRule, problem: Problem, state: TrajectoryState, hparams: Tree, directions: list[Tree]
    ) -> None:
        self.rule, self.problem, self.hparams, self.directions = rule, problem, hparams, directions
        self.iterate = begin(rule, problem, state, tree.detached(hparams))
        self.products, self.reached = 0, set[str]()
        if problem.initial is None:
            self.params = [tree.zeros_like(self.iterate.params) for _ in directions]
        else:
            start = problem.start(hparams, state.params)
            self._reach(start, hparams)
            self.params = [pushforward(start, hparams, direction) for direction in directions]
        slots = self.iterate.slots
        self.slots = [{name: tree.zeros_like(slot) for name, slot in slots.items()} for _ in directions]

    def ends(self, vectors: list[Tensor]) -> list[tuple[Tree, Tensor]]:
        """Return each parameter tangent with its direction."""
        return list(zip(self.params, vectors, strict=True))

    def advance_by(self, steps: int) -> None:
        """Take steps of training and of all tangents.

        Raises:
            NonFiniteError: NaN or infinity at the end, with the step and the tensor where it began.
        """
        draws, first = self.problem.draws(tree.device_of(self.iterate.params)), self.iterate
        for _ in range(steps):
            self._advance(first=self.iterate is first)
        self.rule.check_end(self.problem, draws, first, self.iterate, tree.detached(self.hparams))

    def _reach(self, outputs: Tree, hparams: Tree) -> None:
        """Note the hyperparameters that the graph of ``outputs`` depends on."""
        facts = guards.inspect_graph(outputs.values(), [], name="training")
        self.reached |= {name for name, value in hparams.items() if facts.reaches(value)}

    def _advance(self, *, first: bool) -> None:
        batch = self.problem.draw_inner()
        point = self.problem.linearise(self.iterate.params, self.hparams, batch, tangents=True)
        layout = point.layout
        gradient = layout.views(point.residual())
        inputs = _Inputs.of(self.iterate, gradient, self.hparams)
        with torch.enable_grad():
            params, slots = self.rule.update(
                inputs.params, inputs.gradient, inputs.slots, inputs.hparams, self.iterate.step
            )
        outputs = _flat(params, slots)
        if first:
            self.reached |= point.reached
        if len(self.reached) < len(self.hparams):  # a setting such as momentum enters at the second step
            self._reach(outputs, inputs.hparams)
        for place, direction in enumerate(self.directions):
            slope = layout.views(point.jvp(layout.flatten(self.params[place]), direction))
            tangent = inputs.tangents(self.params[place], slope, self.slots[place], direction)
            pushed = pushforward(outputs, inputs.flat, tangent)
            self.params[place] = {key: pushed[f"params/{key}"] for key in params}
            self.slots[place] = {name: {k: pushed[f"{name}/{k}"] for k in slot} for name, slot in slots.items()}
        self.products += point.products
        detached = {name: tree.detached(slot) for name, slot in slots.items()}
        self.iterate = Iterate(tree.detached(params), detached, self.iterate.step + 1)


@dataclass(frozen=True)
class _Inputs:
    """Leaf tensors of everything an update rule reads, whose map is differentiated apart from the gradient's own."""

    params: Tree
    gradient: Tree
    slots: dict[str, Tree]
    hparams: Tree

    @classmethod
    def of(cls, iterate: Iterate, gradient: Tree, hparams: Tree) -> _Inputs:
        slots = {name: tree.leaves(slot) for name, slot in iterate.slots.items()}
        return cls(tree.leaves(iterate.params), tree.leaves(gradient), slots, tree.leaves(hparams))

    @property
    def flat(self) -> Tree:
        return self.tangents(self.params, self.gradient, self.slots, self.hparams)

    def tangents(self, params: Tree, gradient: Tree, slots: dict[str, Tree], hparams: Tree) -> Tree:
        """Return the parts as one tree."""
        gradients = {f"gradient/{key}": value for key, value in gradient.items()}
        settings = {f"hparams/{key}": value for key, value in hparams.items()}
        return _flat(params, slots) | gradients | settings


def _flat(params: Tree, slots: dict[str, Tree]) -> Tree:
    flat = {f"params/{key}": value for key, value in params.items()}
    return flat | {f"{name}/{key}": value for name, slot in slots.items() for key, value in slot.items()}
