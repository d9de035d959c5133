"""A worker of the tests: ``python -m tests.optuna.workers.program STORAGE STUDY LOG [VICTIM]``.

It works off the queue of a study, and notes each trial that it begins and ends in a log that all workers share. With
VICTIM it stops in the middle of its fifth trial, says so in the log, and waits to be killed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from hypergrad.bridges.optuna import HypergradientSampler, report_hypergradient, shared_storage, work


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


def main(storage: str, name: str, log: str, victim: str = "") -> None:
    """Work until nothing is left."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = HypergradientSampler(seed=1 if victim else 2)
    study = optuna.load_study(study_name=name, storage=open_storage(storage), sampler=sampler)
    ended = work(study, Objective(Path(log), bool(victim)), poll=0.2, patience=60)
    print(ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
