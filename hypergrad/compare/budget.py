"""What a method may spend, and what it had in hand after how much."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from torch import Tensor

import hypergrad as hg
from hypergrad.compare.task import copied
from hypergrad.settings import check_choice, check_counts, check_numbers
from hypergrad.tree import Tree

Clock = Literal["cpu", "wall"]
CLOCKS = ("cpu", "wall")


def passes(cost: hg.Cost) -> int:
    """Return the work of a cost: every pass through an objective counts one, with its gradient or without.

    Args:
        cost: passes by kind.

    >>> passes(hg.Cost(inner_gradients=20, products=5, outer_gradients=1))
    26
    """
    return cost.inner_gradients + cost.products + cost.outer_gradients + cost.outer_values


@final
@dataclass(frozen=True)
class Budget:
    """What every method may spend in a run.

    Attributes:
        seconds: time of the run, above 0, counted by ``clock``; the sampler's own time counts.
        work: passes through the objectives, at least 1: gradients and values of both, and products.
        clock: ``"cpu"`` counts the process's CPU time, which does not depend on what else the machine does;
            ``"wall"`` the time that passes.
        patience: a run goes on until both ``seconds`` and ``work`` are spent, but for at most so many times
            ``seconds``, at least 1.
    """

    seconds: float
    work: int
    clock: Clock = "cpu"
    patience: float = 1.5

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        check_numbers(self, "seconds", above=0)
        check_counts(self, "work")
        check_numbers(self, "patience", least=1)
        check_choice(self, "clock", CLOCKS)

    def spent(self, seconds: float, work: int) -> bool:
        """Return whether a run has to end."""
        both = seconds >= self.seconds and work >= self.work
        return both or seconds >= self.patience * self.seconds


class BudgetSpent(Exception):  # noqa: N818 - no error: it ends a run
    """Both budgets are spent."""


@final
@dataclass
class Track:
    """What one run of one method had in hand after how much.

    Attributes:
        budget: what may be spent.
        points: [work, CPU seconds, wall seconds, best validation loss so far], one entry for each new best and one for
            the end.
        work: passes made.
        evaluations: validation losses seen.
        best: the lowest validation loss, over the whole run.
        selected: the hyperparameters of the lowest validation loss within ``budget.seconds``; of the first one where
            none came in time.
    """

    budget: Budget
    points: list[list[float]] = field(default_factory=list)
    work: int = 0
    evaluations: int = 0
    best: float = math.inf
    selected: Tree = field(default_factory=dict)
    _cpu: float = field(default_factory=time.process_time)
    _wall: float = field(default_factory=time.perf_counter)

    def now(self) -> tuple[float, float]:
        """Return CPU and wall seconds since the start."""
        return time.process_time() - self._cpu, time.perf_counter() - self._wall

    @property
    def over(self) -> bool:
        """Whether the run has to end."""
        return self.budget.spent(self.now()[self._column], self.work)

    def spend(self, cost: hg.Cost) -> None:
        """Count passes."""
        self.work += passes(cost)

    def note(self, value: float, hparams: Mapping[str, Tensor]) -> None:
        """Count an evaluation, and keep it if it is the best so far."""
        self.evaluations += 1
        times = self.now()
        if not self.selected:
            self.selected = copied(hparams)
        if value < self.best:
            self.best = value
            self.points.append([self.work, *times, value])
            if times[self._column] <= self.budget.seconds:
                self.selected = copied(hparams)

    def finish(self) -> dict[str, Any]:
        """Return the curve, with an entry for the end, and the counts."""
        cpu, wall = self.now()
        if self.points:
            self.points.append([self.work, cpu, wall, self.best])
        return {
            "points": self.points,
            "work": self.work,
            "evaluations": self.evaluations,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
        }

    @property
    def _column(self) -> int:
        return CLOCKS.index(self.budget.clock)


def best_within(points: list[list[float]], column: int, cost: float) -> float | None:
    """Return the best value that a run had in hand after some cost, ``None`` before its first.

    Args:
        points: as a :class:`Track` keeps them.
        column: of the cost: 0 work, 1 CPU seconds, 2 wall seconds.
        cost: how much.
    """
    found = [point[3] for point in points if point[column] <= cost]
    return found[-1] if found else None


def cost_to(points: list[list[float]], column: int, value: float) -> float | None:
    """Return the cost after which a run first had a value at least as good, ``None`` if it never had.

    Args:
        points: as a :class:`Track` keeps them.
        column: of the cost: 0 work, 1 CPU seconds, 2 wall seconds.
        value: the value to reach.
    """
    return next((point[column] for point in points if point[3] <= value), None)
