"""The methods: ours, and searches that see the validation loss only."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.compare.budget import BudgetSpent, Track
from hypergrad.compare.samplers import RUNGS, SAMPLERS, Study, missing
from hypergrad.compare.spaces import Space, space
from hypergrad.compare.task import FromStart, Task, with_inner
from hypergrad.errors import HypergradWarning, NumericalError
from hypergrad.tree import Tree

LOOSEST = 16.0
"""Factor on the tolerance of training at Hyperband's first rung; its square root at the second, 1 at the last."""


@final
@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    Attributes:
        name: as tables show it.
        kind: ``"ours"`` or ``"search"``.
        task: the task.
        label: name in ``task.ours``, or the sampler.
        space: the search space, ``None`` for ours.
    """

    name: str
    kind: str
    task: Task
    label: str
    space: Space | None = None

    @property
    def infeasible(self) -> str | None:
        """Why it is not run, or ``None``."""
        if self.space is None:
            return None
        reason = missing(self.label) or self.space.infeasible
        if reason is None and self.label == "hyperband" and not _stages(self.task.inner):
            return f"{type(self.task.inner).__name__} has neither steps nor a tolerance to stop at early"
        return reason

    @property
    def dimensions(self) -> int:
        """Numbers that the method chooses."""
        return self.task.size if self.space is None else self.space.size

    def run(self, track: Track, seed: int) -> None:
        """Spend the budget.

        Args:
            track: where everything is counted.
            seed: of the method's own random numbers.
        """
        if self.space is None:
            descend(self.task, self.label, track, seed)
        else:
            search(self.space, self.label, track, seed)


def methods(task: Task, samplers: tuple[str, ...], spaces: tuple[str, ...]) -> Iterator[Method]:
    """Yield the rows of a comparison.

    Args:
        task: the task.
        samplers: names of samplers.
        spaces: names of search spaces.
    """
    for label in task.ours:
        yield Method(f"ours: {label}", "ours", task, label)
    for name in spaces:
        for sampler in samplers:
            yield Method(f"{SAMPLERS[sampler]}, {name}", "search", task, sampler, space(name, task))


@final
@dataclass
class _Watched:
    """An oracle whose answers are counted, and which ends the run when the budget is spent."""

    oracle: Any
    track: Track
    spent: hg.Cost = field(default_factory=hg.Cost)

    def __call__(self, hparams: Mapping[str, Tensor], *options: Any) -> hg.Hypergradient:
        """Answer, count, and go on only with budget left."""
        result: hg.Hypergradient = self.oracle(hparams, *options)
        self.count()
        self.track.note(float(result.outer_loss), hparams)
        if self.track.over:
            raise BudgetSpent
        return result

    def count(self) -> None:
        """Count what the oracle spent since the last look; outer moves may train without asking for an answer."""
        new, old = dataclasses.astuple(self.oracle.cost), dataclasses.astuple(self.spent)
        self.track.spend(hg.Cost(*(now - before for now, before in zip(new, old, strict=True))))
        self.spent = self.oracle.cost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.oracle, name)


@final
class _Counted(hg.outer.OuterMove):
    """An outer move whose oracle is watched."""

    def __init__(self, move: hg.outer.OuterMove, track: Track) -> None:
        self.move, self.track = move, track

    def init(self, hparams: Tree, problem: hg.Problem) -> Any:
        return self.move.init(hparams, problem)

    def update(self, oracle: Any, hparams: Tree, state: Any) -> Tree:
        watched: Any = _Watched(oracle, self.track)
        moved = self.move.update(watched, hparams, state)
        watched.count()
        return moved


def descend(task: Task, label: str, track: Track, seed: int) -> None:
    """Follow hypergradients until the budget is spent, or the outer move stays where it is.

    Args:
        task: the task.
        label: name in ``task.ours``.
        track: where everything is counted.
        seed: of the run.
    """
    ours = task.ours[label]
    domains = {**task.problem.hparams_domain}
    for key, ends in task.ranges.items():
        domains.setdefault(key, hg.Box(*ends))  # ours stay within the ranges that searches have
    problem = dataclasses.replace(task.problem, hparams_domain=domains)
    move = _Counted(ours.outer, track)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypergradWarning)  # the reports are not what is compared
        run = hg.Run(problem, with_inner(ours, task), task.params, task.hparams, move, seed=seed, probe=False)
        try:
            while not track.over:
                progress = run.step()
                if all(torch.equal(progress.moved[key], value) for key, value in progress.hparams.items()):
                    return
        except BudgetSpent:
            return
        except NumericalError:
            if not track.evaluations:
                raise  # nothing was measured: the task or the setting is wrong


def search(chosen: Space, sampler: str, track: Track, seed: int) -> None:
    """Let a sampler choose until the budget is spent.

    Args:
        chosen: the search space.
        sampler: one of :data:`hypergrad.compare.samplers.SAMPLERS`.
        track: where everything is counted.
        seed: of the sampler.
    """
    study, trainer = Study(sampler, chosen.start(), seed), Trainer(chosen.task, track)
    while not track.over:
        trial, places = study.ask()
        hparams = chosen.expand(places)
        try:
            value = trainer.pruned(trial, hparams) if sampler == "hyperband" else trainer.value(hparams)
        except NumericalError:
            study.drop(trial, pruned=False)
            track.spend(trainer.most)
            continue
        if value is None:
            study.drop(trial, pruned=True)
        elif math.isfinite(value):
            track.note(value, hparams)
            study.tell(trial, value)
        else:
            study.drop(trial, pruned=False)


@final
class Trainer:
    """Validation losses of hyperparameters, by the task's training.

    Args:
        task: the task.
        track: where passes are counted.
    """

    def __init__(self, task: Task, track: Track) -> None:
        """Stand at the task's start."""
        self.task, self.track, self.params = task, track, dict(task.params)
        self.inner, self.most = task.training, task.inner.budget()

    def value(self, hparams: Tree) -> float:
        """Return the validation loss after training."""
        self._train(self.inner, hparams, dict(self.params))
        return self._judge(hparams)

    def pruned(self, trial: Any, hparams: Tree) -> float | None:
        """Return the same, with a report at each rung, or ``None`` for a trial that was ended early."""
        first, stages, value = True, _stages(self.task.inner), math.nan
        for rung, stage in zip(RUNGS, stages, strict=True):
            begin = dict(self.task.params) if first and not self.task.warm else self.params
            first = False
            self._train(stage, hparams, begin)
            value = self._judge(hparams)
            if not math.isfinite(value):
                return value
            trial.report(value, rung)
            if stage is not stages[-1] and trial.should_prune():
                return None
        return value

    def _train(self, solver: hg.InnerSolver, hparams: Tree, start: Tree) -> None:
        result = solver.run(self.task.problem, start, hparams)
        self.track.spend(result.cost)
        self.params = result.params

    def _judge(self, hparams: Tree) -> float:
        self.track.spend(hg.Cost(outer_values=1))
        with torch.no_grad():
            problem = self.task.problem
            return float(problem.outer_value(self.params, hparams, problem.draw_outer()))


def _stages(inner: hg.InnerSolver) -> list[hg.InnerSolver]:
    """Return training in parts, one for each rung: ever tighter tolerances, or shares of the steps.

    Each part begins where the last one ended, with a new memory (momentum, curvature pairs).
    """
    solver: Any = inner
    tolerance, steps = getattr(solver, "tolerance", 0.0), getattr(solver, "steps", None)
    if tolerance:
        factors = (LOOSEST, math.sqrt(LOOSEST), 1.0)
        return [dataclasses.replace(solver, tolerance=factor * tolerance) for factor in factors]
    if isinstance(steps, int) and steps >= RUNGS[-1]:
        ends = [steps * rung // RUNGS[-1] for rung in RUNGS]
        return [
            dataclasses.replace(solver, steps=end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
    return []


def outcome(task: Task, hparams: Tree) -> tuple[float, dict[str, float]]:
    """Return validation loss and test values after one more training from the start; nobody is charged for it.

    Args:
        task: the task.
        hparams: what was selected.
    """
    params = FromStart(task.inner, task.params).run(task.problem, dict(task.params), hparams).params
    with torch.no_grad():
        validation = float(task.problem.outer_value(params, hparams, task.problem.draw_outer()))
    return validation, task.tested(params, hparams)
