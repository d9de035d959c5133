"""Runs of stochastic methods against the clock, on problems whose F and ∇F are known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import hypergrad as hg
from benchmarks import finite_sums
from benchmarks.finite_sums import BATCH, Arrays, LogisticTruth, QuadraticTruth, Tree
from hypergrad.schedules import power

STEPS, RATIOS = (0.02, 0.1, 0.5), (0.1, 1.0, 10.0, 100.0)
"""The one grid: the step of θ at the beginning, and that of λ over it."""


@final
@dataclass(frozen=True)
class Recipe:
    """A method of the comparison.

    Attributes:
        make: the algorithm for a first step of θ; steps fall as in the method's paper.
        decay: exponent with which the step of λ falls.
        truncated: whether its linear solve is a truncated Neumann series.
    """

    make: Callable[[float], Any]
    decay: float = 0.0
    truncated: bool = False


def recipes(batches: int) -> dict[str, Recipe]:
    """Return the methods; those with a period or a coin see the whole data once in ``batches`` iterations."""

    def half(a: float) -> Callable[[int], float]:
        return power(a, 1 / 2)

    def third(a: float) -> Callable[[int], float]:
        return power(a, 1 / 3)

    return {
        "SOBA": Recipe(lambda a: hg.SOBA(step_size=half(a)), 1 / 2),
        "SABA": Recipe(lambda a: hg.SABA(step_size=a)),
        "SRBA": Recipe(lambda a: hg.SRBA(step_size=a, period=batches)),
        "SPABA": Recipe(lambda a: hg.SPABA(step_size=a, probability=1 / batches)),
        "FSLA": Recipe(lambda a: hg.FSLA(step_size=half(a), momentum=half(1.0)), 1 / 2),
        "AmIGO": Recipe(lambda a: hg.AmIGO(step_size=a)),
        "StocBiO": Recipe(lambda a: hg.StocBiO(step_size=a), truncated=True),
        "BSA": Recipe(lambda a: hg.BSA(step_size=half(a), inner_steps=10), 1 / 2, truncated=True),
        "TTSA": Recipe(lambda a: hg.TTSA(step_size=power(a, 2 / 5)), 3 / 5, truncated=True),
        "MRBO": Recipe(
            lambda a: hg.MRBO(step_size=third(a), linear_step_size=a, momentum=power(1.0, 2 / 3)), 1 / 3, truncated=True
        ),
        "SUSTAIN": Recipe(
            lambda a: hg.SUSTAIN(step_size=third(a), linear_step_size=a, momentum=power(1.0, 2 / 3)),
            1 / 3,
            truncated=True,
        ),
        "VRBO": Recipe(lambda a: hg.VRBO(step_size=a, period=batches), truncated=True),
        "F2SA": Recipe(lambda a: hg.F2SA(step_size=a, penalty=_growing), 1 / 2),
        "PZOBO": Recipe(lambda a: hg.PZOBO(step_size=a, directions=10), 0.0),
    }


def _growing(iteration: int) -> float:
    return float((1 + iteration) ** 0.25)


class Counted:
    """An objective that counts the examples it is evaluated on."""

    def __init__(self, function: Callable[[Tree, Tree, Any], Tensor]) -> None:
        self.function, self.examples = function, 0

    def __call__(self, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        """Return its value."""
        self.examples += len(batch[0])
        return self.function(params, hparams, batch)


@final
class Task:
    """A problem with its truth.

    Args:
        kind: ``quadratic`` or ``logistic``.
        arrays: its arrays.
        limit: largest value of any entry of |λ|, or ``None``.
    """

    def __init__(self, kind: str, arrays: Arrays, limit: float | None = None) -> None:
        self.truth = QuadraticTruth(arrays) if kind == "quadratic" else LogisticTruth(arrays)
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        self.functions, self.data = finite_sums.parts(kind, tensors)
        self.params, self.hparams = {"w": tensors["params"]}, {"x": tensors["hparams"]}
        self.batches = len(self.data[0][0]) // BATCH
        self.domain = {} if limit is None else {"x": hg.Box(-limit, limit)}

    def problem(self, seed: int = 0) -> tuple[hg.Problem, tuple[Counted, Counted]]:
        """Return the problem with fresh samplers, and its two objectives, which count."""
        inner, outer = (Counted(function) for function in self.functions)
        below, above = (
            hg.Partition(*tensors, batch_size=BATCH, seed=2 * seed + place) for place, tensors in enumerate(self.data)
        )
        problem = hg.Problem(inner, outer, inner_data=below, outer_data=above, hparams_domain=self.domain)
        return problem, (inner, outer)

    def whole(self) -> tuple[hg.Problem, tuple[Counted, Counted]]:
        """Return the problem on all data at once."""
        inner, outer = (Counted(function) for function in self.functions)
        below, above = (hg.Fixed(part) for part in self.data)
        problem = hg.Problem(inner, outer, inner_data=below, outer_data=above, hparams_domain=self.domain)
        return problem, (inner, outer)


@final
@dataclass
class Curve:
    """What a run had reached when.

    Attributes:
        cpu: CPU seconds, those of the measurement itself not counted.
        wall: wall seconds, likewise.
        calls: evaluations of an objective with its gradient, in batches of 64 examples.
        gradient: ‖∇F‖².
        gap: F − F*.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)

    def add(self, cpu: float, wall: float, counters: Sequence[Counted], truth: tuple[float, float]) -> None:
        """Add a point."""
        calls = sum(counter.examples for counter in counters) / BATCH
        for values, value in zip(vars(self).values(), (cpu, wall, calls, *truth), strict=True):
            values.append(value)

    def reached(self, key: str) -> float:
        """Return the smallest ``gradient`` or ``gap`` of the last quarter of the time; infinity without one."""
        points = zip(self.cpu, getattr(self, key), strict=True)
        return min((g for t, g in points if t >= 0.75 * self.cpu[-1] and math.isfinite(g)), default=math.inf)

    def first(self, key: str, limit: float) -> float | None:
        """Return the CPU seconds after which ``gradient`` or ``gap`` was first at most ``limit``."""
        return next((t for t, g in zip(self.cpu, getattr(self, key), strict=True) if g <= limit), None)

    def row(self) -> dict[str, Any]:
        """Return what is written."""
        row: dict[str, Any] = {
            key: [round(v, 9) if key in ("cpu", "wall") else v for v in values] for key, values in vars(self).items()
        }
        return {
            **row,
            "reached": self.reached("gradient"),
            "seconds": self.cpu[-1],
            "total_calls": round(self.calls[-1]),
        }


def follow(
    task: Task,
    recipe: Recipe,
    alpha: float,
    ratio: float,
    budget: float,
    *,
    points: int = 12,
    from_second: bool = False,
) -> Curve:
    """Run a method for some CPU seconds, each move of λ a plain step along its direction.

    Args:
        task: the problem.
        recipe: the method.
        alpha: first step of θ.
        ratio: first step of λ over it.
        budget: CPU seconds.
        points: of the curve, evenly spread in the logarithm over two decades.
        from_second: whether the clock starts after the first step, which may visit every batch.
    """
    problem, counters = task.problem()
    algorithm, rate = recipe.make(alpha), power(alpha * ratio, recipe.decay)
    hparams, curve, number = dict(task.hparams), Curve(), 0
    state = algorithm.init(problem, task.params, hparams)
    cpu = wall = 0.0
    if from_second:
        _, state = algorithm.step(problem, state, hparams)
    for mark in np.geomspace(budget / 100, budget, points):
        start, wall_start = time.process_time(), time.perf_counter()
        try:
            while cpu + time.process_time() - start < mark:
                found, state = algorithm.step(problem, state, hparams)
                moved = {"x": torch.sub(hparams["x"], found.grads["x"], alpha=rate(number))}
                hparams, number = problem.project(moved), number + 1
        except hg.errors.NonFiniteError:
            break
        cpu, wall = cpu + time.process_time() - start, wall + time.perf_counter() - wall_start
        if not float(hparams["x"].abs().max()) < 1e6:
            break
        curve.add(cpu, wall, counters, task.truth(hparams["x"].numpy()))
        if curve.gradient[-1] < 1e-20:
            return curve
    else:
        return curve
    curve.add(budget, wall, counters, (math.inf, math.inf))
    return curve


def tune(task: Task, recipe: Recipe, budget: float, key: str) -> tuple[float, float]:
    """Return the step and ratio of the grid that reach the least within some CPU seconds after the first step.

    Args:
        task: the problem.
        recipe: the method.
        budget: CPU seconds of each pair.
        key: ``gradient`` or ``gap``: what is to become small.
    """
    reached = {
        (alpha, ratio): follow(task, recipe, alpha, ratio, budget, points=4, from_second=True).reached(key)
        for alpha in STEPS
        for ratio in RATIOS
    }
    return min(reached, key=reached.__getitem__)


class Watched(hg.outer.OuterMove):
    """An outer move, with what was known after each hypergradient.

    Args:
        move: the move.
        note: called with λ after each hypergradient.
    """

    def __init__(self, move: hg.outer.OuterMove, note: Callable[[Tree], None]) -> None:
        self.move, self.note = move, note

    def init(self, hparams: Tree, problem: hg.Problem) -> Any:
        """Return the move's first state."""
        return self.move.init(hparams, problem)

    def update(self, oracle: hg.outer.Oracle, hparams: Tree, state: Any) -> Tree:
        """Return new hyperparameters."""
        watched: Any = _WatchedOracle(oracle, self.note)
        return self.move.update(watched, hparams, state)


class _WatchedOracle:
    def __init__(self, oracle: hg.outer.Oracle, note: Callable[[Tree], None]) -> None:
        self.oracle, self.note, self.problem = oracle, note, oracle.problem

    def __call__(self, hparams: Mapping[str, Tensor]) -> Any:
        result = self.oracle(hparams)
        self.note(dict(hparams))
        return result


def exact(task: Task, algorithm: Any, iterations: int) -> Curve:
    """Run L-BFGS-B on an accurate hypergradient, from the same start, with a point at each hypergradient."""
    problem, counters = task.whole()
    curve, clocks = Curve(), [0.0, 0.0, time.process_time(), time.perf_counter()]

    def note(hparams: Tree) -> None:
        clocks[0] += time.process_time() - clocks[2]
        clocks[1] += time.perf_counter() - clocks[3]
        curve.add(clocks[0], clocks[1], counters, task.truth(hparams["x"].detach().numpy()))
        clocks[2:] = time.process_time(), time.perf_counter()

    move = Watched(hg.outer.LBFGSB(iterations=iterations, gtol=1e-10, ftol=1e-15), note)
    for _ in hg.iterate(problem, algorithm, task.params, task.hparams, outer=move, steps=1, probe=False):
        pass
    return curve


def best_known(task: Task, limit: float) -> float:
    """Return F*, found by L-BFGS-B on the truth, and let gaps be taken to it."""
    from scipy.optimize import minimize

    truth = task.truth
    assert isinstance(truth, LogisticTruth)
    bounds = [(-limit, limit)] * len(task.hparams["x"])
    options = {"maxiter": 500, "maxcor": 30, "gtol": 1e-13, "ftol": 1e-16}
    found = minimize(
        truth.solve, task.hparams["x"].numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    truth.best = float(found.fun)
    return truth.best
