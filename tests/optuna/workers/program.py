"""A worker of the tests: ``python -m tests.optuna.workers.program STORAGE STUDY LOG [VICTIM]``.

It works off the queue of a study, and notes each trial that it begins and ends in a log that all workers share. With
VICTIM it stops in the middle of its fifth trial, or of its first in a study called hybrid, notes it and waits
to be killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

import hypergrad as hg
from hypergrad.bridges.optuna import (
    HybridObjective,
    HypergradientSampler,
    Tuning,
    report_hypergradient,
    shared_storage,
    work,
)
from tests.optuna.hybrid.common import ADAM, fixed


def open_storage(place: str) -> BaseStorage:
    """Open a storage whose workers are taken for dead after six seconds of silence."""
    return shared_storage(place, heartbeat_interval=1, grace_period=6)


class Objective:
    """A bowl in five dimensions, and a log."""

    def __init__(self, log: Path, victim: bool) -> None:
        self.log, self.victim, self.count = log, victim, 0

    def note(self, word: str, trial: optuna.Trial) -> None:
        with self.log.open("a") as file:
            file.write(f"{word} {trial.number} {os.getpid()}\n")

    def __call__(self, trial: optuna.Trial) -> float:
        self.count += 1
        self.note("begin", trial)
        x = [trial.suggest_float(f"x{i}", -5, 5) for i in range(5)]
        report_hypergradient(trial, {f"x{i}": 2 * (x[i] - i) for i in range(5)})
        if self.victim and self.count == 5:
            self.note("here", trial)
            time.sleep(600)
        time.sleep(0.1)
        self.note("end", trial)
        return sum((x[i] - i) ** 2 for i in range(5))


class Noting(hg.Callback):
    """Calls a function after each step."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self.function(progress.step)


def hybrid(store: Path, function: Callable[[int], None]) -> HybridObjective:
    """Four steps of a small ridge regression, a checkpoint for each, and a function that is called after each."""

    def build(trial: Any) -> Tuning:
        problem, params, hparams, algorithm = fixed(trial)
        return Tuning(problem, params, hparams, algorithm, callbacks=[Noting(function)])

    return HybridObjective(build, 4, store=store, outer=ADAM, checkpoint_every=1, warm_start=False)


def stopping(log: Path, victim: bool) -> Callable[[int], None]:
    """Return a function that stops a victim in the third step of its first trial."""

    def function(step: int) -> None:
        if victim and step == 3:
            with log.open("a") as file:
                file.write("here\n")
            time.sleep(600)

    return function


def main(storage: str, name: str, log: str, victim: str = "") -> None:
    """Work until nothing is left."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = HypergradientSampler(seed=1 if victim else 2)
    study = optuna.load_study(study_name=name, storage=open_storage(storage), sampler=sampler)
    path = Path(log)
    objective = Objective(path, bool(victim)) if name != "hybrid" else hybrid(path.parent, stopping(path, bool(victim)))
    ended = work(study, objective, poll=0.2, patience=60)
    with path.open("a") as file:
        file.write(f"total {ended}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
