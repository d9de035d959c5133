"""What the algorithms that differentiate training itself share: its start, its length, its failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import check_finite
from hypergrad.errors import DivergenceError, InputError
from hypergrad.inner import Iterate, Slots, UpdateRule
from hypergrad.problem import Problem
from hypergrad.tree import Tree

UNREACHED = (
    "use them in inner, penalty or outer with torch operations (.item(), .detach() and torch.no_grad() cut the path), "
    "or read them in the update rule with hypergrad.Tuned"
)


@final
@dataclass(frozen=True)
class TrajectoryState:
    """Where the next training starts.

    Attributes:
        params: θ₀.
        steps: hypergradients taken.
        slots: the update rule's memory there; empty before the first step of training.
        trained: training steps behind ``params``.
    """

    params: Tree
    steps: int = 0
    slots: Slots = field(default_factory=dict)
    trained: int = 0

    def following(self, last: Iterate | None) -> TrajectoryState:
        """Return the state after a hypergradient: at ``last`` for a warm start, at the same start for ``None``."""
        if last is None:
            return TrajectoryState(self.params, self.steps + 1, self.slots, self.trained)
        return TrajectoryState(last.params, self.steps + 1, last.slots, last.step)


def check_rule(owner: str, rule: object) -> None:
    """Refuse what is no update rule, and a rule with a length of its own."""
    if not isinstance(rule, UpdateRule):
        raise InputError(
            passed=f"{owner}(inner={rule!r})",
            expected="an update rule that can be differentiated: hypergrad.GradientDescent, Adam or TorchRule",
            do="wrap a torch optimizer in hypergrad.TorchRule; for other training use hypergrad.Implicit, or "
            "hypergrad.ZerothOrder, which only runs it",
        )
    if rule.steps is not None or rule.tolerance:
        raise InputError(
            passed=f"{owner}(steps=..., inner={rule!r})",
            expected="one number of steps, the algorithm's own",
            do=f"leave steps and tolerance out of {type(rule).__name__}",
        )


def first_state(
    problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], *, warm_start: bool
) -> TrajectoryState:
    """Check the inputs and return the state that starts at ``params``."""
    problem.check_descent()
    params, _ = problem.check_inputs(params, hparams)
    if warm_start and problem.initial is not None:
        raise InputError(
            passed="warm_start=True for a problem with initial",
            expected="one place where training starts",
            do="drop warm_start: training starts at initial(hparams) every time",
        )
    return TrajectoryState(tree.detached(params))


def begin(rule: UpdateRule, problem: Problem, state: TrajectoryState, hparams: Tree) -> Iterate:
    """Return the iterate where training starts, without a graph."""
    if problem.initial is not None:
        return rule.begin(problem.start(hparams, state.params))
    return Iterate(state.params, state.slots or rule.start(state.params), state.trained)


def check_overflow(value: Tensor, grads: Tree, algorithm: str) -> None:
    """Raise where the outer loss or its derivatives are not finite."""
    check_finite("the outer loss", {"f": value}, when="at the end of training")
    name = tree.first_non_finite(grads)
    if name is not None:
        raise DivergenceError(
            passed=f"a hypergradient of hparams[{name!r}] that overflowed along training, with {algorithm}",
            expected="a training run whose derivatives stay finite: a step below 2 / (largest curvature)",
            do="lower the learning rate, unroll fewer steps (truncate=), or use hypergrad.Implicit at the end of "
            "training",
        )
