"""The inner-solver interface: how training gets from one θ to the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.errors import InputError
from hypergrad.linear import Status
from hypergrad.objective import count_arguments
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_number, check_numbers
from hypergrad.tree import Tree

Slots = dict[str, Tree]
"""An update rule's own memory (momentum, second moments), one tree under each name."""


@final
@dataclass(frozen=True)
class Tuned:
    """A setting of an update rule that is read from the hyperparameters, so that it can be tuned.

    Args:
        read: the name of a 0-d hyperparameter, or a function of ``hparams`` or of ``(hparams, step)`` that returns
            a 0-d tensor, for schedules and for other scales than the plain one.

    Only algorithms that differentiate through training (:class:`~hypergrad.Unrolled`,
    :class:`~hypergrad.ForwardMode`) or re-run it (:class:`~hypergrad.ZerothOrder`) can see such a hyperparameter;
    an optimum does not depend on the step size that led to it.

    Example:
        >>> import torch
        >>> Tuned(lambda hparams: hparams["log_lr"].exp())({"log_lr": torch.tensor(0.0)}, step=0)
        tensor(1.)
    """

    read: str | Callable[..., Tensor]

    def __post_init__(self) -> None:
        """Read the function's signature once."""
        count = 0 if isinstance(self.read, str) else count_arguments(self.read, (1, 2))
        if count is None:
            raise InputError(
                passed=f"Tuned({self.read!r})",
                expected="a name, or a function of (hparams) or (hparams, step)",
                do='pass Tuned("lr") or Tuned(lambda hparams: hparams["log_lr"].exp())',
            )
        object.__setattr__(self, "_arguments", count)

    def __call__(self, hparams: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the setting at a step."""
        named = tree.NamedTree("hparams", hparams)
        if isinstance(self.read, str):
            return named[self.read]
        return self.read(named) if self._arguments == 1 else self.read(named, step)  # type: ignore[attr-defined]


class Schedule(Protocol):
    """A number for every step."""

    def __call__(self, step: int, /) -> float:
        """Return the number at a step, counted from 0."""
        ...


Setting = float | Tuned | Schedule


def check_settings(
    rule: UpdateRule, *names: str, above: float | None = None, least: float | None = None, below: float | None = None
) -> None:
    """Check the settings of a rule under construction that are numbers; what is read at each step is not known yet."""
    do = "pass a number in range, a function of the step, or hypergrad.Tuned to read it from the hyperparameters"
    for name in names:
        value = getattr(rule, name)
        if not callable(value):
            check_number(type(rule).__name__, name, value, above=above, least=least, below=below, do=do)


def resolve(setting: Setting, hparams: Tree, step: int) -> float | Tensor:
    """Return a setting's value at a step of training."""
    if isinstance(setting, Tuned):
        return setting(hparams, step)
    return setting(step) if callable(setting) else setting


def axpy(alpha: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return alpha · x + y, rounded as torch's optimizers round it where ``alpha`` is a number."""
    return alpha * x + y if isinstance(alpha, Tensor) else torch.add(y, x, alpha=alpha)


@final
@dataclass(frozen=True)
class InnerResult:
    """Where training ended.

    Attributes:
        params: θ.
        status: ``converged`` at the tolerance, ``max_steps`` short of it, ``truncated`` without one.
        cost: passes made.
    """

    params: Tree
    status: Status
    cost: Cost


@final
@dataclass(frozen=True)
class Iterate:
    """A point of training.

    Attributes:
        params: θ.
        slots: the update rule's memory.
        step: number of steps made.
    """

    params: Tree
    slots: Slots
    step: int = 0

    def replace(self, params: Tree) -> Iterate:
        """Return the same iterate with other parameters."""
        return Iterate(params, self.slots, self.step)


class InnerSolver(ABC):
    """A way to train. Subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Train from ``params``, which stay as they are, and return where it ended."""

    @abstractmethod
    def budget(self) -> Cost:
        """Return the passes of one run, or the most where a tolerance can end it."""


@dataclass(frozen=True, kw_only=True)
class UpdateRule(InnerSolver):
    """Training by steps that can be differentiated: a map from parameters, slots and gradient to the next ones.

    Args:
        steps: number of steps of :meth:`run`, at least 1. Algorithms that unroll have their own number and want
            none here.
        tolerance: :meth:`run` stops once ‖∇_θ g‖ is at most this; 0 to run all steps.
    """

    steps: int | None = None
    tolerance: float = 0.0
    tuned: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that may be :class:`Tuned`."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "steps")
        check_numbers(self, "tolerance", least=0)

    @abstractmethod
    def start(self, params: Tree) -> Slots:
        """Return the slots before the first step."""

    @abstractmethod
    def update(self, params: Tree, gradient: Tree, slots: Slots, hparams: Tree, step: int) -> tuple[Tree, Slots]:
        """Return the next parameters and slots, out of place, so that autograd can differentiate the step."""

    @final
    def budget(self) -> Cost:
        """Return one gradient a step, and one more where a tolerance is checked."""
        return Cost(inner_gradients=(self.steps or 0) + (1 if self.tolerance else 0))

    @final
    def begin(self, params: Tree) -> Iterate:
        """Return the iterate before the first step."""
        return Iterate(tree.detached(params), self.start(params))

    @final
    def advance(
        self, problem: Problem, iterate: Iterate, hparams: Tree, *, create_graph: bool = False, inspect: bool = True
    ) -> Iterate:
        """Return the next iterate, with its graph if asked; its parameters must require grad then.

        Cost: 1 gradient, on the next inner batch.
        """
        if not create_graph:
            iterate = iterate.replace(tree.leaves(iterate.params))
        gradient = problem.residual(
            iterate.params, hparams, problem.draw_inner(), create_graph=create_graph, inspect=inspect
        )
        with torch.set_grad_enabled(create_graph):
            params, slots = self.update(iterate.params, gradient, iterate.slots, hparams, iterate.step)
        return Iterate(params, slots, iterate.step + 1)

    @final
    def advance_by(self, problem: Problem, iterate: Iterate, hparams: Tree, steps: int) -> Iterate:
        """Return the iterate ``steps`` steps on, without a graph.

        Raises:
            NonFiniteError: NaN or infinity at the end; the run is repeated to find the step and the tensor.
        """
        draws, first, hparams = problem.draws(tree.device_of(iterate.params)), iterate, tree.detached(hparams)
        for _ in range(steps):
            iterate = self.advance(problem, iterate, hparams)
        self.check_end(problem, draws, first, iterate, hparams)
        return iterate

    @final
    def check_end(self, problem: Problem, draws: guards.Draws, first: Iterate, last: Iterate, hparams: Tree) -> None:
        """Raise if training ended in NaN or infinity, after repeating it to find the step and the tensor.

        Args:
            problem: the problem.
            draws: where the random numbers and batches stood at ``first``.
            first: where training started.
            last: where it ended.
            hparams: λ, detached.

        Raises:
            NonFiniteError: what went wrong where.
        """
        if tree.first_non_finite(last.params) is None:
            return
        draws.restore()
        while first.step < last.step:
            first = self.advance(problem, first, hparams)
            check_finite("params", first.params, when=f"after step {first.step} of training")

    @final
    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Run up to ``steps`` steps, to ‖∇_θ g‖ ≤ ``tolerance`` if that comes first.

        Raises:
            InputError: no number of steps.
            UnsupportedError: a problem with constraints, whose Lagrangian has a saddle, or without an objective.
        """
        if self.steps is None:
            name = type(self).__name__
            raise InputError(
                passed=f"{name} without a number of steps",
                expected="how long training runs",
                do=f"pass {name}(..., steps=100), with tolerance=1e-6 to stop early",
            )
        problem.check_descent()
        if self.tolerance:
            return self._run_to_tolerance(problem, self.begin(params), hparams, self.steps)
        iterate = self.advance_by(problem, self.begin(params), hparams, self.steps)
        return InnerResult(iterate.params, Status.COMPLETED, Cost(inner_gradients=self.steps))

    def _run_to_tolerance(self, problem: Problem, iterate: Iterate, hparams: Tree, steps: int) -> InnerResult:
        hparams = tree.detached(hparams)
        every = 1 if tree.device_of(iterate.params).type == "cpu" else 10
        for step in range(steps + 1):
            point = tree.leaves(iterate.params)
            gradient = problem.residual(point, hparams, problem.draw_inner())
            if step % every == 0 or step == steps:
                size = float(tree.norm(gradient))
                if not math.isfinite(size):
                    check_finite("params", point, when=f"after step {step} of training")
                    check_finite("the inner gradient of params", gradient, when=f"at step {step} of training")
                if size <= self.tolerance:
                    return InnerResult(iterate.params, Status.CONVERGED, Cost(inner_gradients=step + 1))
            if step < steps:
                with torch.no_grad():
                    params, slots = self.update(point, gradient, iterate.slots, hparams, step)
                iterate = Iterate(params, slots, step + 1)
        return InnerResult(iterate.params, Status.MAX_STEPS, Cost(inner_gradients=steps + 1))
