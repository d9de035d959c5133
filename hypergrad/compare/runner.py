"""The comparison: every method and seed once, kept as soon as it is measured, summed up in one file."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import hypergrad as hg
from hypergrad.compare.budget import Budget, Track
from hypergrad.compare.figure import draw
from hypergrad.compare.methods import Method, methods, outcome
from hypergrad.compare.samplers import SAMPLERS, missing, quiet, require, version, warm_up
from hypergrad.compare.spaces import SPACES
from hypergrad.compare.summary import summed_up
from hypergrad.compare.task import settings_of
from hypergrad.compare.tasks import BUDGETS, OWN, Factory, find
from hypergrad.errors import InputError, MissingDependencyError, did_you_mean
from hypergrad.files import write_whole
from hypergrad.settings import check_count

SEEDS = 5
QUICK = Budget(seconds=0.2, work=60)
QUICK_SEEDS = 2
RUNS = "runs.jsonl"
FINAL = "final_validation"
COUNTS = ("seed", "evaluations", "work", "cpu_seconds", "wall_seconds")
Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class _Plan:
    """What is compared."""

    task: str
    make: Factory
    samplers: tuple[str, ...]
    spaces: tuple[str, ...]
    seeds: int
    budget: Budget

    def key(self, method: str, seed: int) -> dict[str, Any]:
        """Return what a run must agree in to be the same run."""
        return {"task": self.task, "method": method, "seed": seed, "budget": asdict(self.budget), **_versions()}


def compare(
    task: str,
    *,
    out: Path,
    samplers: Sequence[str] = (),
    spaces: Sequence[str] = (),
    seeds: int | None = None,
    seconds: float | None = None,
    work: int | None = None,
    clock: str = "cpu",
    quick: bool = False,
    say: Say = lambda _: None,
    began: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare our algorithms with Optuna's samplers on a task, and write what was found.

    ``out`` gets ``runs.jsonl``, one line for each run as soon as it is over, ``compare.json`` and ``compare.png``.
    Called again with the same ``out``, runs that are there already are not made again.

    Args:
        task: a name of :data:`hypergrad.compare.tasks.TASKS`, or ``module:factory`` (see
            :func:`hypergrad.compare.tasks.as_task`).
        out: folder for the files, made where it does not exist.
        samplers: names of :data:`hypergrad.compare.samplers.SAMPLERS`; all by default.
        spaces: names of :data:`hypergrad.compare.spaces.SPACES`; all by default, and always ``"shared"``.
        seeds: runs of each method, at least 1, with the seeds 0, 1, ...; 5 by default.
        seconds: budget of time of a run, above 0; the task's by default.
        work: budget of work of a run in passes, at least 1; the task's by default.
        clock: ``"cpu"`` or ``"wall"``: what seconds are counted by.
        quick: two seeds and a budget of a fifth of a second, to see that it works.
        say: called with one line of text after each run.
        began: called once everything passed is known to be right and ``out`` is there, before the first run.

    Returns:
        What ``compare.json`` holds.

    Raises:
        InputError: an unknown task, sampler or space, a number out of range, or a task that does not fit.
        MissingDependencyError: optuna, or a data set of the task, is not installed.
        KeyboardInterrupt: after Ctrl-C; runs that were over are kept.
    """
    plan = _planned(task, samplers, spaces, seeds, seconds, work, clock, quick=quick)
    require()
    _make(out)
    began()
    kept = _read(out / RUNS)
    found: dict[str, list[dict[str, Any]]] = {}
    order: dict[str, Method] = {}
    ready = False
    with quiet():
        for seed in range(plan.seeds):
            made = plan.make(seed)
            for method in methods(made, plan.samplers, plan.spaces):
                order.setdefault(method.name, method)
                if method.infeasible:
                    continue
                key = plan.key(method.name, seed)
                run = kept.get(json.dumps(key, sort_keys=True))
                if run is None:
                    if not ready:
                        warm_up([name for name in plan.samplers if missing(name) is None])
                        _warm_up(made)
                        ready = True
                    run = measured(method, plan.budget, seed)
                    _append(out / RUNS, {"key": key, **run})
                    reached = f"{run['final_validation']:.5g} after {run['evaluations']} evaluations"
                    say(f"seed {seed}, {method.name}: {reached}")
                found.setdefault(method.name, []).append(run)
    result = _result(plan, order, found)
    _write(out, result, say)
    return result


def measured(method: Method, budget: Budget, seed: int) -> dict[str, Any]:
    """Return one run of a method: its curve, its counts, and the outcome of what it selected.

    Args:
        method: the method.
        budget: what it may spend.
        seed: of its random numbers; the data have the task's.
    """
    track = Track(budget)
    method.run(track, seed)
    run = track.finish()
    validation, test = outcome(method.task, track.selected) if track.selected else (math.nan, {})
    return {"seed": seed, **run, "final_validation": validation, "test": test}


def _planned(
    task: str,
    samplers: Sequence[str],
    spaces: Sequence[str],
    seeds: int | None,
    seconds: float | None,
    work: int | None,
    clock: str,
    *,
    quick: bool,
) -> _Plan:
    make = find(task)
    _check_names("samplers", samplers, SAMPLERS)
    _check_names("spaces", spaces, SPACES)
    count = (QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds
    check_count("compare", "seeds", count, do="leave seeds out for five")
    usual = QUICK if quick else BUDGETS.get(task, OWN)
    budget = Budget(
        seconds=usual.seconds if seconds is None else seconds,
        work=usual.work if work is None else work,
        clock=clock,  # type: ignore[arg-type]
        patience=usual.patience,
    )
    chosen = tuple(name for name in SPACES if not spaces or name in spaces or name == "shared")
    return _Plan(
        task, make, tuple(name for name in SAMPLERS if not samplers or name in samplers), chosen, count, budget
    )


def _check_names(what: str, names: Sequence[str], known: Sequence[str] | dict[str, str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                passed=f"{what}={name!r}{did_you_mean(name, known)}",
                expected=f"names of {', '.join(known)}",
                do=f"pick some of these, or leave {what} out for all",
            )


def _warm_up(task: Any) -> None:
    """Take one training and one step of each of ours, uncharged: the first ones load and compile things."""
    tiny = Budget(seconds=1e-9, work=1, patience=1.0)
    for method in methods(task, (), ()):
        method.run(Track(tiny), 0)


def _versions() -> dict[str, Any]:
    names = {"optuna": version("optuna"), "cmaes": version("cmaes"), "hypergrad": hg.__version__}
    plain = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return {"versions": {**names, **plain}}


def _result(plan: _Plan, order: dict[str, Method], found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    first = next(iter(order.values())).task
    return {
        "format": 1,
        "kind": "compare",
        "task": plan.task,
        **settings_of(first),
        **_versions(),
        "machine": {**machine, "threads": torch.get_num_threads()},
        "budget": asdict(plan.budget),
        "seeds": list(range(plan.seeds)),
        "methods": summed_up(list(order.values()), found, plan.budget),
    }


def _make(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}, which is a file", "a folder, or a name that is free", "choose another out")
    out.mkdir(parents=True, exist_ok=True)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a file by what they must agree in; lines that are torn or something else are left out."""
    found = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            key = json.dumps(line.pop("key"), sort_keys=True)
            points = [[float(value) for value in point] for point in line["points"]]
            tested = {str(name): _number(value) for name, value in line["test"].items()}
            counts = {name: float(line[name]) for name in COUNTS}
            final = _number(line["final_validation"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if all(len(point) == 4 for point in points):
            found[key] = {**counts, "seed": int(counts["seed"]), "points": points, "test": tested, FINAL: final}
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _append(path: Path, line: dict[str, Any]) -> None:
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(strict(line), allow_nan=False) + "\n")


def strict(value: Any) -> Any:
    """Return a value without NaN and infinity, which strict JSON does not know: they become ``None``.

    Args:
        value: numbers and strings, nested in dicts and lists.
    """
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(out: Path, result: dict[str, Any], say: Say) -> None:
    text = json.dumps(strict(result), indent=1, allow_nan=False) + "\n"
    write_whole(out / "compare.json", lambda path: path.write_text(text, encoding="utf-8"))
    try:
        write_whole(out / "compare.png", lambda path: draw(path, result))
    except MissingDependencyError as error:
        say(f"no compare.png: {error}")
