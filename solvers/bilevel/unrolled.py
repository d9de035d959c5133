"""Back-propagation through training, full or truncated, with or without recomputation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, check_reached, replayed
from hypergrad.errors import InputError
from hypergrad.inner import UpdateRule
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_choice, check_counts
from hypergrad.solvers.bilevel.reverse import AdjointWindow, GraphWindow, Keep, Window, replays
from hypergrad.solvers.bilevel.trajectory import (
    UNREACHED,
    TrajectoryState,
    begin,
    check_overflow,
    check_rule,
    first_state,
)
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Unrolled(Algorithm[TrajectoryState]):
    """dF_T/dλ for F_T(λ) = f(θ_T(λ), λ), where θ_T is what T steps of training make of θ_0: reverse mode.

    With A_t = ∂Ξ_t/∂θ_{t−1} and B_t = ∂Ξ_t/∂λ for the step θ_t = Ξ_t(θ_{t−1}, λ), momentum and second moments being
    part of θ:

    1. a = ∂f/∂θ, h = ∂f/∂λ at θ_T
    2. for t = T, …, T − K + 1: h ← h + B_tᵀ a; a ← A_tᵀ a
    3. if K = T and θ_0 depends on λ: h ← h + (dθ_0/dλ)ᵀ a

    With ``truncate`` = K < T it is K-RMD, whose error on a μ-strongly convex g and gradient steps γ is at most
    (1 − γμ)^K / (γμ) · ‖∂f/∂θ‖ · max ‖B_t‖; the stationary point it leads to is biased where f depends on λ directly.

    Args:
        steps: T, at least 1.
        inner: the update rule; its own ``steps`` and ``tolerance`` stay unset.
        truncate: K, from 1 to T; all steps by default.
        keep: what is kept of the K steps until the backward pass. ``"graph"``: everything, fastest.
            ``"iterates"``: the iterates, O(K) in the parameters but the activations of one step at a time.
            ``"sqrt"``: O(√K) iterates, each step done twice. ``"log"``: O(log K) iterates, O(K log K) steps.
        warm_start: whether the next training starts where this one ended, with its momentum. By default each starts
            at the first parameters, so that F_T is one function of λ.

    Cost: T inner gradients, K products, 1 outer gradient; K more inner gradients unless the graph is kept, and the
    recomputed steps.

    Raises:
        UnreachedError: a hyperparameter that enters neither an objective nor the update rule.
        DivergenceError: derivatives that overflowed although training did not.
        NonFiniteError: training that ran into NaN, with the step and the tensor.

    Source: Maclaurin et al. (2015) and Franceschi et al. (2017) for the full form; Shaban, Cheng, Hatch, Boots (2019)
    for K-RMD. Deviation: recomputation by snapshots instead of reversed arithmetic.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]) ** 2,
        ...     outer=lambda params, hparams: 0.5 * params["w"] ** 2,
        ... )
        >>> algorithm = hg.Unrolled(steps=1, inner=hg.GradientDescent(lr=0.5))
        >>> hg.hypergradient(problem, {"w": torch.tensor(0.0)}, {"x": torch.tensor(2.0)}, algorithm).grads["x"]
        tensor(0.5000)
    """

    steps: int
    inner: UpdateRule
    truncate: int | None = None
    keep: Keep = "graph"
    warm_start: bool = False
    order = 2
    lighter = "use smaller batches; or use hypergrad.ForwardMode, whose memory does not grow with the number of steps"
    cost = "T inner gradients + K products + 1 outer gradient (+ K and the recomputed inner gradients)"
    needs = "an update rule that can be differentiated"

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    @property
    def exact(self) -> bool:
        """Whether all steps are differentiated."""
        return self.truncate is None or self.truncate == self.steps

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "steps", "truncate")
        check_rule("Unrolled", self.inner)
        if self.truncate is not None and self.truncate > self.steps:
            raise InputError(
                passed=f"Unrolled(steps={self.steps}, truncate={self.truncate})",
                expected="truncate <= steps",
                do="leave truncate out to differentiate all steps",
            )
        check_choice(self, "keep", ("graph", "iterates", "sqrt", "log"))

    @property
    def window(self) -> int:
        """Number of steps that are differentiated, K."""
        return self.truncate or self.steps

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step, which are always the same."""
        gradients = self.steps
        if self.keep != "graph":
            gradients += self.window + replays(self.window, self.keep)
        return Cost(inner_gradients=gradients, products=self.window, outer_gradients=1)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> TrajectoryState:
        """Check the inputs and start at ``params``."""
        return first_state(problem, params, hparams, warm_start=self.warm_start)

    def response(self, problem: Problem, state: TrajectoryState, hparams: Tree) -> Tree:
        """Return θ_T."""
        first = begin(self.inner, problem, state, tree.detached(hparams))
        return self.inner.advance_by(problem, first, hparams, self.steps).params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ_T with a backward pass through its steps."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: TrajectoryState, hparams: Tree) -> tuple[Hypergradient, TrajectoryState]:
        """Train T steps and differentiate the last K of them."""
        device = tree.device_of(state.params)
        watch, hparams = Stopwatch(device), tree.attached(hparams)
        with guards.pinned_rng(device):
            first = begin(self.inner, problem, state, tree.detached(hparams))
            entry = self.inner.advance_by(problem, first, hparams, self.steps - self.window)
            settings = Window(self.inner, self.window, self.keep, initial=self.exact)
            window = (GraphWindow if self.keep == "graph" else AdjointWindow)(settings, problem, entry, hparams)
            outer = problem.outer_gradients(window.last.params, hparams, problem.draw_outer())
            mixed = window.pullback(outer.params)
        reached = {name for name, value in mixed.items() if value is not None}
        if state.steps == 0:
            check_reached(hparams, reached | set(outer.hparams), advice=UNREACHED)
        grads = {key: _add(outer.hparams.get(key), mixed[key], hparams[key]) for key in hparams}
        check_overflow(outer.value, grads, repr(self))
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED if self.exact else Status.TRUNCATED),
            outer_loss=float(outer.value),
            cost=Cost(self.steps - self.window + window.gradients, self.window, 1),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
        )
        following = state.following(window.last if self.warm_start else None)
        return Hypergradient(grads, window.last.params, outer.value, report), following


def _add(direct: Tensor | None, mixed: Tensor | None, like: Tensor) -> Tensor:
    if direct is None or mixed is None:
        only = mixed if direct is None else direct
        return torch.zeros_like(like, requires_grad=False) if only is None else only
    return direct + mixed
