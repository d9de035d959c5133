"""Medians and bands over seeds, and how much sooner our first method has what another one ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from hypergrad.compare.budget import CLOCKS, Budget, best_within, cost_to
from hypergrad.compare.methods import Method

POINTS = 60
"""Costs at which a curve is given."""
WORK = 0
Runs = Sequence[dict[str, Any]]


def summed_up(order: Sequence[Method], found: dict[str, list[dict[str, Any]]], budget: Budget) -> list[dict[str, Any]]:
    """Return one JSON-ready entry for each method.

    Args:
        order: the methods, ours first.
        found: the runs of each, by name.
        budget: what each could spend.
    """
    column, ours = 1 + CLOCKS.index(budget.clock), found.get(order[0].name, [])
    entries = []
    for method in order:
        runs = found.get(method.name, [])
        entry: dict[str, Any] = {
            "name": method.name,
            "kind": method.kind,
            "space": "full" if method.space is None else method.space.name,
            "dimensions": method.dimensions,
            "status": "measured" if runs else "infeasible",
            "reason": method.infeasible,
            "seeds": [run["seed"] for run in runs],
        }
        entries.append({**entry, **_measured(runs, ours, column, budget)} if runs else {**entry, "curve": []})
    return entries


def _measured(runs: Runs, ours: Runs, column: int, budget: Budget) -> dict[str, Any]:
    names = list((ours or runs)[0]["test"])
    by_time = [best_within(run["points"], column, budget.seconds) for run in runs]
    by_work = [best_within(run["points"], WORK, budget.work) for run in runs]
    validation, test = spread([run["final_validation"] for run in runs]), _tests(runs, names)
    reached = [_seconds_to(ours, run["seed"], column, value) for run, value in zip(runs, by_time, strict=True)]
    needed = None if not ours else _middle(reached)
    return {
        "curve": curve([run["points"] for run in runs], column),
        "curve_work": curve([run["points"] for run in runs], WORK),
        "final_validation": validation[0],
        "final_validation_band": validation[1:],
        "test": {name: found[0] for name, found in test.items()},
        "test_band": {name: found[1:] for name, found in test.items()},
        "validation_at_time": spread(by_time),
        "validation_at_work": spread(by_work),
        "seconds_at_work": _middle([cost_at(run["points"], column, budget.work) for run in runs]),
        "evaluations": _middle([run["evaluations"] for run in runs]),
        "work": _middle([run["work"] for run in runs]),
        "cpu_seconds": _middle([run["cpu_seconds"] for run in runs]),
        "wall_seconds": _middle([run["wall_seconds"] for run in runs]),
        "ours_seconds_to_final": needed,
        "ours_times_faster": budget.seconds / needed if needed else None,
        "runs": [dict(run) for run in runs],
    }


def _tests(runs: Runs, names: Sequence[str]) -> dict[str, list[float | None]]:
    return {name: spread([run["test"].get(name) for run in runs]) for name in names}


def _seconds_to(ours: Runs, seed: int, column: int, value: float | None) -> float | None:
    run = next((run for run in ours if run["seed"] == seed), None)
    return None if run is None or value is None else cost_to(run["points"], column, value)


def cost_at(points: list[list[float]], column: int, work: float) -> float | None:
    """Return the cost of a run when it had done some work, between its points; ``None`` where it did less.

    Args:
        points: as a track keeps them.
        column: of the cost.
        work: passes.
    """
    if not points or points[-1][WORK] < work:
        return None
    before = [0.0, 0.0, 0.0, 0.0]
    for point in points:
        if point[WORK] >= work:
            share = (work - before[WORK]) / max(point[WORK] - before[WORK], 1)
            return before[column] + share * (point[column] - before[column])
        before = point
    return None


def spread(values: Sequence[float | None]) -> list[float | None]:
    """Return median, lowest and highest; ``None`` counts as worse than everything, and NaN as ``None``.

    Args:
        values: one for each seed.

    >>> spread([3.0, 1.0, None])
    [3.0, 1.0, None]
    """
    known = [math.inf if value is None or math.isnan(value) else value for value in values]
    return [_or_none(median(known)), _or_none(min(known)), _or_none(max(known))] if known else [None] * 3


def _middle(values: Sequence[float | None]) -> float | None:
    return spread(values)[0]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def curve(all_points: Sequence[list[list[float]]], column: int) -> list[list[float]]:
    """Return [cost, median, lowest, highest] of the best so far, from where every seed has a value.

    Args:
        all_points: the points of each run.
        column: of the cost.
    """
    if not all_points or not all(all_points):
        return []
    first = max(points[0][column] for points in all_points)
    last = max(first, *(points[-1][column] for points in all_points))
    ratio = (last / max(first, 1e-9)) ** (1 / (POINTS - 1))
    costs = sorted({*(first * ratio**number for number in range(POINTS - 1)), last})
    found = []
    for cost in costs:
        values = [value for points in all_points if (value := best_within(points, column, cost)) is not None]
        if len(values) == len(all_points):
            found.append([cost, median(values), min(values), max(values)])
    return found
