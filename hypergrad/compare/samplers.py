"""Optuna's samplers with their own defaults, and a pruner where the method has one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypergrad.errors import MissingDependencyError

SAMPLERS = {"tpe": "TPE", "cma-es": "CMA-ES", "gp": "GP", "random": "random", "hyperband": "Hyperband"}
"""Names on the command line, and in tables."""
SEPARABLE = 100
"""Numbers above which CMA-ES keeps a diagonal covariance: a full one of 1,000 takes seconds a generation."""
RUNGS = (1, 3, 9)
"""Shares of a training, in ninths, after which Hyperband is told the validation loss and may end it."""
INSTALL = 'pip install "hypergrad-engine[optuna-all]" matplotlib'


def require() -> Any:
    """Return optuna.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"hypergrad compare without the package optuna ({error})",
            expected="optuna, whose samplers are what our algorithms are compared with",
            do=INSTALL,
        ) from error


def missing(sampler: str) -> str | None:
    """Return what a sampler needs beside optuna and is not installed, with the remedy, or ``None``.

    Args:
        sampler: one of :data:`SAMPLERS`.
    """
    if sampler != "cma-es":
        return None
    try:
        importlib.import_module("cmaes")
    except ImportError:
        return f"the package cmaes is not installed: {INSTALL}"
    return None


def version(package: str) -> str | None:
    """Return the version of an installed package, or ``None``.

    Args:
        package: its name.
    """
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log and its remarks on experimental arguments; what was set before is put back."""
    optuna = require()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class Study:
    """A study of places from 0 to 1, asked and told one trial at a time.

    Args:
        sampler: one of :data:`SAMPLERS`.
        start: the places of the first trial.
        seed: the sampler's.
    """

    def __init__(self, sampler: str, start: Sequence[float], seed: int) -> None:
        """Make it, in memory."""
        optuna = require()
        self._states = optuna.trial.TrialState
        float_of = optuna.distributions.FloatDistribution
        self._distributions = {f"place {number}": float_of(0.0, 1.0) for number in range(len(start))}
        pruner = optuna.pruners.NopPruner()
        if sampler == "hyperband":
            pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS[-1], reduction_factor=3)
        self._study = optuna.create_study(
            study_name=f"compare {sampler} {seed}",  # Hyperband draws a trial's bracket from the name
            sampler=_sampler(optuna.samplers, sampler, len(start), seed),
            pruner=pruner,
        )
        self._study.enqueue_trial(dict(zip(self._distributions, start, strict=True)))

    def ask(self) -> tuple[Any, list[float]]:
        """Return the next trial and its places."""
        trial = self._study.ask(self._distributions)
        return trial, [trial.params[name] for name in self._distributions]

    def tell(self, trial: Any, value: float) -> None:
        """Tell a trial's validation loss."""
        self._study.tell(trial, value)

    def drop(self, trial: Any, *, pruned: bool) -> None:
        """Tell that a trial was pruned, or that its training failed."""
        self._study.tell(trial, state=self._states.PRUNED if pruned else self._states.FAIL)


def _sampler(samplers: Any, name: str, size: int, seed: int) -> Any:
    if name == "cma-es":
        return samplers.CmaEsSampler(seed=seed, use_separable_cma=size > SEPARABLE)
    if name == "gp":
        return samplers.GPSampler(seed=seed, deterministic_objective=True)
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def warm_up(names: Sequence[str]) -> None:
    """Load what samplers load at their first trials, so that no run is charged for it.

    Args:
        names: samplers.
    """
    for name in names:
        study = Study(name, [0.5, 0.5], 0)
        for number in range(13):
            trial, places = study.ask()
            trial.report(places[0], 1)
            trial.should_prune()
            study.tell(trial, places[0] + number)
