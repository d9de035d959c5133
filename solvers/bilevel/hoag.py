"""HOAG: outer gradient steps whose hypergradients become more accurate by a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

from hypergrad import tree
from hypergrad.algorithm import Hypergradient
from hypergrad.errors import InputError
from hypergrad.oracle import Oracle
from hypergrad.outer import OuterMove, PlainState
from hypergrad.problem import Problem
from hypergrad.settings import check_choice, check_counts, check_numbers
from hypergrad.tree import Tree

Decay = Literal["exponential", "quadratic", "cubic"] | Callable[[int], float]
"""The name of a schedule, or a function of the outer step, from 0, that returns the tolerance there."""
DECAYS: dict[str, Callable[[int], float]] = {
    "exponential": lambda step: 0.9**step,
    "quadratic": lambda step: float(step + 1) ** -2,
    "cubic": lambda step: float(step + 1) ** -3,
}


@final
@dataclass
class HOAGState(PlainState):
    """What :class:`HOAG` remembers.

    Attributes:
        steps: outer steps made, which the schedules are read at.
        factor: what rejections have multiplied the tolerances by.
        lipschitz: L, one over the step size; 0 before the first step.
        least: the smallest L allowed.
        previous: λ before the last step.
        loss: f there, infinite where no step was made.
        tolerance: ε there.
        rejections: steps that were taken back, one after the other.
        stopped: why λ does not move any more; empty while it does.
    """

    previous: Tree
    steps: int = 0
    factor: float = 1.0
    lipschitz: float = 0.0
    least: float = 0.0
    loss: float = math.inf
    tolerance: float = 0.0
    rejections: int = 0
    stopped: str = ""


@final
@dataclass(frozen=True)
class HOAG(OuterMove):
    """λ ← P(λ − p / L) with hypergradients p at tolerances ε_k that fall by a schedule, and a step size that adapts.

    Step k, at λ_k:

    1. Train until ‖∇_θ g‖ ≤ ε_k, from where the last training ended; f_k = f(θ, λ_k).
    2. Solve H q = ∂f/∂θ to a residual of at most the linear tolerance, from the last q; p = ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q.
    3. Judge the step that led here, with d = ‖λ_k − λ_{k−1}‖ and s = C ε_k + ε_{k−1} (C + M) d:
       f_k ≤ f_{k−1} + s − M L d²: L ← ``grow`` · L, for a longer step.
       f_k > f_{k−1} + s and f_k > f_{k−1} + ``rise`` · |f_{k−1}|: go back to λ_{k−1}, L ← 2 L, and halve all tolerances
       from now on.
       Otherwise: keep L.
    4. λ_{k+1} = P(λ_k − p / L), with P the projection onto the domain. At first L = ‖p‖/√n for n entries of λ.

    With tolerances of a finite sum and steps below 1/L it converges to a stationary point.

    Args:
        schedule: of ε_k: ``"exponential"`` start · 0.9ᵏ, ``"quadratic"`` start / (k + 1)², ``"cubic"``
            start / (k + 1)³, or any function of k that returns a number above 0. It is in units of the inner gradient:
            for ‖θ − θ*‖ ≤ ε multiply it by the least curvature of g.
        linear_schedule: likewise of the linear solve's residual, in units of ∂f/∂θ; as ``schedule`` by default.
        start: where a schedule given by name starts, above 0. 0.1 suits losses that are sums over examples; for means
            start at a tenth of the norms of ∇_θ g and ∂f/∂θ at the start.
        floor: the smallest tolerance that is asked for, above 0.
        slack: C, at least 0: how much inaccuracy of f one ε stands for.
        demand: M, above 0: the share of L d² by which f has to fall for a longer step.
        rise: relative rise of f that sends a step back, at least 0.
        grow: what a good step multiplies L by, above 0 and at most 1.
        reach: the longest step size, in multiples of the first, at least 1.
        lipschitz: the first L, above 0; from the first hypergradient by default.
        patience: rejections one after the other before the run stands still, at least 1.
        tolerance: the run stands still once the step of size 1, ‖λ − P(λ − p)‖, and both tolerances are at most this;
            at least 0, which stands for the floor of the tolerances.

    A run that stands still has the status ``"stationary"``, or ``"stalled"`` and a warning where no step is accepted
    any more. Later steps then change nothing: stop with :class:`~hypergrad.EarlyStopping`.

    Cost: one hypergradient, at the tolerances of the step.

    Raises:
        UnsupportedError: an algorithm or a part of one without tolerances.
        InputError: a schedule that returns something else than a number above 0.
        NonFiniteError: training that diverges, as it may after a first step that is far too long: give ``lipschitz``.

    Source: Pedregosa, "Hyperparameter optimization with approximate gradient" (ICML 2016), algorithm 1, with the step
    rule of his code. Deviations: one step of 1/L (the code subtracts it twice), projected last; a rejection takes back
    the step that raised f; a rise counts from ``slack`` on and not from 20 % (``rise=0.2``), which losses near 1 never
    reach; tolerances are absolute; step sizes have a limit.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> start = {"w": torch.zeros(1, dtype=torch.float64)}, {"x": torch.zeros(1, dtype=torch.float64)}
        >>> trainer = hg.Trainer(problem, hg.Implicit(hg.CG(), inner=hg.LBFGS()), outer=HOAG(start=1e-2))
        >>> trainer.fit(*start, steps=60).hparams["x"].round(decimals=3)
        tensor([3.], dtype=torch.float64)
    """

    schedule: Decay = "exponential"
    linear_schedule: Decay | None = None
    start: float = 0.1
    floor: float = 1e-12
    slack: float = 0.25
    demand: float = 1.0
    rise: float = 0.0
    grow: float = 0.95
    reach: float = 100.0
    lipschitz: float | None = None
    patience: int = 20
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name, optional in (("schedule", False), ("linear_schedule", True)):
            value = getattr(self, name)
            if not callable(value) and not (optional and value is None):
                check_choice(self, name, DECAYS)
        check_numbers(self, "start", "floor", "demand", "lipschitz", above=0)
        check_numbers(self, "slack", "rise", "tolerance", least=0)
        check_numbers(self, "grow", above=0)
        if self.grow > 1:
            raise InputError(f"HOAG(grow={self.grow})", "a number, 0 < grow <= 1", "pass 0.95, or 1 for a fixed L")
        check_numbers(self, "reach", least=1)
        check_counts(self, "patience")

    def init(self, hparams: Tree, problem: Problem) -> HOAGState:
        """Return the state before the first step."""
        return HOAGState(tree.cloned(hparams))

    def update(self, oracle: Oracle, hparams: Tree, state: HOAGState) -> Tree:
        """Judge the last step by the loss here, and take the next one or go back."""
        tolerances = self._tolerances(state)
        result = oracle(hparams, tolerances)
        if state.stopped:
            oracle.answer(result, status=state.stopped)
            return tree.cloned(hparams)
        state.steps += 1
        if self._rejected(result, hparams, state, tolerances[0]):
            return self._back(oracle, result, state)
        stride = float(tree.norm(_gaps(hparams, _moved(oracle, hparams, result, 1.0))))
        if stride <= self.tolerance and max(tolerances) <= max(self.tolerance, self.floor):
            state.stopped = "stationary"
            oracle.answer(result, status=state.stopped)
            return tree.cloned(hparams)
        if not state.lipschitz and not self._begin(result, state):
            return tree.cloned(hparams)
        state.previous, state.loss, state.tolerance = tree.cloned(hparams), float(result.outer_loss), tolerances[0]
        return _moved(oracle, hparams, result, 1 / state.lipschitz)

    def _tolerances(self, state: HOAGState) -> tuple[float, float]:
        inner = self._read("schedule", state)
        return inner, inner if self.linear_schedule is None else self._read("linear_schedule", state)

    def _read(self, name: str, state: HOAGState) -> float:
        schedule: Any = getattr(self, name)
        found: Any = self.start * DECAYS[schedule](state.steps) if isinstance(schedule, str) else schedule(state.steps)
        value = float(found)
        if not 0 < value < math.inf:
            raise InputError(
                passed=f"HOAG({name}=...), a function that returned {value} at step {state.steps}",
                expected="a finite tolerance above 0",
                do="let it fall towards 0 without reaching it, for instance lambda step: 0.1 * 0.9**step",
            )
        return max(value * state.factor, self.floor)

    def _begin(self, result: Hypergradient, state: HOAGState) -> bool:
        """Choose the first L; there is none while solves are so loose that p = 0."""
        entries = sum(value.numel() for value in result.grads.values())
        slope = float(tree.norm(result.grads)) / math.sqrt(entries)
        state.lipschitz = self.lipschitz or slope
        state.least = state.lipschitz / self.reach
        return slope > 0

    def _rejected(self, result: Hypergradient, hparams: Tree, state: HOAGState, tolerance: float) -> bool:
        """Judge the step that led here, if one did, and lengthen the next one after a good one."""
        if math.isinf(state.loss):
            return False
        distance = float(tree.norm(_gaps(hparams, state.previous)))
        change = float(result.outer_loss) - state.loss
        blur = self.slack * tolerance + state.tolerance * (self.slack + self.demand) * distance
        if change <= blur - self.demand * state.lipschitz * distance**2:
            state.lipschitz = max(self.grow * state.lipschitz, state.least)
        elif change > max(blur, self.rise * abs(state.loss)):
            return True
        state.rejections = 0
        return False

    def _back(self, oracle: Oracle, result: Hypergradient, state: HOAGState) -> Tree:
        """Take the last step back; the next one starts there again, shorter and with finer tolerances."""
        state.lipschitz, state.factor, state.loss = 2 * state.lipschitz, state.factor / 2, math.inf
        state.rejections += 1
        note = ""
        if state.rejections >= self.patience:
            state.stopped = "stalled"
            note = (
                f"no step is accepted any more: {state.rejections} steps were taken back one after the other, down to "
                f"a step size of {1 / state.lipschitz:.3g}. The hypergradient's norm is "
                f"{float(tree.norm(result.grads)):.3g}; if that is not small enough, start the tolerances lower, and "
                "compare the hypergradient with differences by hypergrad.check"
            )
        oracle.answer(result, status=state.stopped or "rejected", note=note)
        return tree.cloned(state.previous)


def _moved(oracle: Oracle, hparams: Tree, result: Hypergradient, size: float) -> Tree:
    """Return P(λ − size · p)."""
    step = {key: value - size * result.grads[key] for key, value in hparams.items()}
    return tree.cloned(oracle.problem.project(step))


def _gaps(left: Tree, right: Tree) -> Tree:
    return {key: value - right[key] for key, value in left.items()}
