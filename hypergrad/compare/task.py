"""What is compared on: a problem, where it starts, what the searches may try, and how the outcome is tested."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError
from hypergrad.inner import InnerResult
from hypergrad.settings import check_kind
from hypergrad.tree import Tree, check_like, check_names, check_tree

Test = Callable[[Tree, Tree], Any]
GROUPS = 10
"""Values that a grouped search has to choose where the task does not say."""


@final
@dataclass(frozen=True)
class FromStart(hg.InnerSolver):
    """Training that begins at the same parameters every time, whatever was trained before.

    Then F(λ) is one function of λ for all methods, also where training is cut short of its optimum.

    Args:
        solver: how to train.
        start: where.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(lambda params, hparams: (params["w"] - hparams["x"]).square().sum(), max)
        >>> solver = FromStart(hg.GradientDescent(lr=0.25, steps=1), {"w": torch.zeros(1)})
        >>> solver.run(problem, {"w": torch.full((1,), 9.0)}, {"x": torch.ones(1)}).params["w"]
        tensor([0.5000])
    """

    solver: hg.InnerSolver
    start: Mapping[str, Tensor]

    def budget(self) -> hg.Cost:
        """Return the passes of one run."""
        return self.solver.budget()

    def run(self, problem: hg.Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Train from the start."""
        return self.solver.run(problem, check_like("params", dict(self.start), params), hparams)


@final
@dataclass(frozen=True)
class Ours:
    """One of our ways to tune.

    Attributes:
        algorithm: how hypergradients are found, with the task's training in it; ``"auto"`` is
            :class:`~hypergrad.Auto` with the task's training.
        outer: what moves the hyperparameters.
    """

    algorithm: Any
    outer: hg.outer.OuterMove

    def __post_init__(self) -> None:
        """Refuse other kinds."""
        check_kind(self, "outer", hg.outer.OuterMove, "pass hypergrad.outer.Torch(torch.optim.Adam, lr=0.1)")
        if self.algorithm != "auto":
            check_kind(self, "algorithm", hg.Algorithm, "pass hypergrad.Implicit(...), or 'auto'")


@final
@dataclass(frozen=True)
class Task:
    """A comparison's problem.

    Every method tunes the same hyperparameters by the same outer objective on the same validation data, and trains
    by ``inner``. Searches choose places between the two ends of ``ranges``.

    Attributes:
        problem: the objectives; ``outer`` is the validation loss.
        params: where training starts.
        hparams: where every method starts; searches get it as their first trial.
        ranges: (low, high) of each hyperparameter's entries, both finite, with the start between them.
        test: ``(params, hparams)`` to the test loss, or to a dict of test values, the first of which is a loss. It is
            called once a run, after tuning, at the hyperparameters that were selected.
        inner: how training goes, the same for all methods.
        warm: whether training may begin where the last evaluation ended: harmless where ``inner`` trains a convex
            problem to a tolerance. Otherwise every training begins at ``params``.
        groups: for each hyperparameter whole numbers from 0 of its shape: which of the values of the grouped search
            each entry gets. By default ten runs of consecutive entries.
        ours: our ways to tune by name, the first of which is the one that others are measured against; by default
            conjugate gradients with Adam.
        title: one line for people.
        note: what a reader must know about the data and the setting.

    Raises:
        InputError: ranges, groups or a start that do not fit each other.
    """

    problem: hg.Problem
    params: Mapping[str, Tensor]
    hparams: Mapping[str, Tensor]
    ranges: Mapping[str, tuple[float, float]]
    test: Test
    inner: hg.InnerSolver = field(default_factory=lambda: hg.LBFGS(tolerance=1e-3))
    warm: bool = True
    groups: Mapping[str, Tensor] | None = None
    ours: Mapping[str, Ours] = field(default_factory=dict)
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Check that the parts fit, and fill in what was left out."""
        check_kind(self, "problem", hg.Problem, "pass hypergrad.Problem(inner, outer)")
        check_kind(self, "inner", hg.InnerSolver, "pass hypergrad.LBFGS(tolerance=1e-3)")
        if not callable(self.test):
            raise InputError(f"Task(test={self.test!r})", "(params, hparams) -> test loss", "pass a function")
        self._set("params", check_tree("params", self.params))
        self._set("hparams", check_tree("hparams", self.hparams))
        self._check_ranges()
        self._set("groups", self._consecutive() if self.groups is None else self._checked_groups(self.groups))
        self._set("ours", dict(self.ours) or {"Implicit(CG), Adam": self._default()})

    @property
    def size(self) -> int:
        """The number of hyperparameters."""
        return sum(value.numel() for value in self.hparams.values())

    @property
    def training(self) -> hg.InnerSolver:
        """Training as all methods do it: from the start every time unless a warm start is harmless."""
        return self.inner if self.warm else FromStart(self.inner, self.params)

    def tested(self, params: Tree, hparams: Tree) -> dict[str, float]:
        """Return what ``test`` says, as finite or not finite numbers by name.

        Raises:
            InputError: something else than a number or a dict of numbers.
        """
        with torch.no_grad():
            found = self.test(params, hparams)
        try:
            named = dict(found) if isinstance(found, Mapping) else {"loss": found}
            return {str(key): float(value) for key, value in named.items()}
        except (TypeError, ValueError) as error:
            raise InputError(
                passed=f"test, which returned {type(found).__name__} ({error})",
                expected="a number, or a dict of numbers",
                do="return the test loss, or {'loss': loss, 'accuracy': accuracy}",
            ) from error

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _default(self) -> Ours:
        widths = [high - low for low, high in self.ranges.values()]
        move = hg.outer.Torch(torch.optim.Adam, lr=max(widths) / 40)
        return Ours(hg.Implicit(hg.CG(rtol=1e-2), inner=self.training, stationarity=math.inf), move)

    def _check_ranges(self) -> None:
        check_names("ranges", self.ranges, self.hparams)
        for key, value in self.hparams.items():
            low, high = self.ranges.get(key, (math.nan, math.nan))
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(
                    passed=f"Task with the range {self.ranges.get(key)} for {key!r}",
                    expected="(low, high), finite, low < high, for every hyperparameter",
                    do="say between which values the searches may choose",
                )
            if not bool(((value >= low) & (value <= high)).all()):
                raise InputError(
                    passed=f"Task whose start of {key!r} lies outside of its range ({low:g}, {high:g})",
                    expected="a start that the searches can try, too",
                    do="move the start or widen the range",
                )

    def _checked_groups(self, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_names("groups", groups, self.hparams)
        for key, value in self.hparams.items():
            given = groups.get(key)
            whole = isinstance(given, Tensor) and not given.is_floating_point() and given.shape == value.shape
            if given is None or not whole or int(given.min()) < 0:
                raise InputError(
                    passed=f"Task with groups[{key!r}] of another kind or shape",
                    expected=f"whole numbers from 0, of the shape {tuple(value.shape)}, for every hyperparameter",
                    do="number the groups: torch.arange(size) * 10 // size",
                )
        used = torch.cat([groups[key].flatten() for key in self.hparams]).unique(return_inverse=True)[1]
        parts = used.split([value.numel() for value in self.hparams.values()])
        return {key: part.view_as(groups[key]) for key, part in zip(self.hparams, parts, strict=True)}

    def _consecutive(self) -> dict[str, Tensor]:
        count = min(GROUPS, self.size)
        numbers = (torch.arange(self.size) * count // self.size).split([v.numel() for v in self.hparams.values()])
        return {key: part.view_as(self.hparams[key]) for key, part in zip(self.hparams, numbers, strict=True)}


def with_inner(ours: Ours, task: Task) -> hg.Algorithm[Any]:
    """Return the algorithm of one of our ways, with the task's training where it is chosen by itself.

    Args:
        ours: the way.
        task: the task.
    """
    if ours.algorithm == "auto":
        return hg.Auto(inner=task.training)
    algorithm: hg.Algorithm[Any] = ours.algorithm
    return algorithm


def copied(hparams: Mapping[str, Tensor]) -> Tree:
    """Return copies that nothing else holds.

    Args:
        hparams: tensors.
    """
    return {key: value.detach().clone() for key, value in hparams.items()}


def settings_of(task: Task) -> dict[str, Any]:
    """Return what a reader of the results wants to know about a task, as JSON-ready values.

    Args:
        task: the task.
    """
    return {
        "title": task.title,
        "note": task.note,
        "hyperparameters": task.size,
        "parameters": sum(value.numel() for value in task.params.values()),
        "inner": repr(task.inner),
        "warm": task.warm,
        "ranges": {key: list(ends) for key, ends in task.ranges.items()},
        "ours": {
            name: {"algorithm": _short(ours.algorithm), "outer": repr(ours.outer)} for name, ours in task.ours.items()
        },
    }


def _short(algorithm: Any) -> str:
    """Return an algorithm's settings without the tensors that a training from the start holds."""
    inner = getattr(algorithm, "inner", None)
    if isinstance(inner, FromStart):
        algorithm = dataclasses.replace(algorithm, inner=inner.solver)
    return repr(algorithm)
