"""What trackers of experiments have in common: which numbers, and that the run outlives their failures."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hypergrad import saved
from hypergrad.callbacks import Callback
from hypergrad.errors import MissingDependencyError, TrackerWarning
from hypergrad.run import Progress, Run
from hypergrad.settings import check_count
from hypergrad.tree import Tree
from hypergrad.version import __version__

PATIENCE = 3
"""Failures in a row after which a tracker is left alone for the rest of the run."""
LONGEST = 500
"""Characters of a setting that are kept."""


class Tracker(Callback):
    """A callback that hands each step to a tracker of experiments.

    Args:
        every: steps between two looks at the hyperparameters themselves, at least 1.
    """

    package = ""
    extra = ""

    def __init__(self, every: int) -> None:
        """Keep the settings."""
        check_count(type(self).__name__, "every", every)
        self.every = every
        self._began = False
        self._failures = 0
        self._told = False

    @abstractmethod
    def _open(self, run: Run) -> None:
        """Begin or go on with the tracker's record of a run that stands before its next step."""

    @abstractmethod
    def _log(self, step: int, values: Mapping[str, float], hparams: Tree | None) -> None:
        """Record the numbers of a step, and now and then the hyperparameters after it."""

    @abstractmethod
    def _close(self, run: Run, error: BaseException | None) -> None:
        """End the record; ``error`` is what ended the run, if anything did."""

    def _flush(self) -> None:
        """Have what was recorded so far on the disk."""

    def start(self, run: Run, steps: int) -> None:
        """Look for the tracker's package.

        Raises:
            MissingDependencyError: it is not installed.
        """
        self._before_import()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(self.package)
            except ImportError as error:
                raise MissingDependencyError(
                    passed=f"{type(self).__name__} without the package {self.package.partition('.')[0]} ({error})",
                    expected=self.package.partition(".")[0],
                    do=f'pip install "hypergrad-engine[{self.extra}]"',
                ) from error
        self._began, self._failures, self._told = False, 0, False

    def step(self, run: Run, progress: Progress) -> None:
        """Record a step."""
        looked = progress.step % self.every == 0 or not self._began
        self._attempt(lambda: self._record(run, progress, looked=looked))

    def end(self, run: Run) -> None:
        """End the record."""
        error = sys.exc_info()[1]  # of the run that ends
        if self._began:
            self._attempt(lambda: self._close(run, error))
        self._began = False

    def state_dict(self) -> dict[str, Any]:
        """Write down what was recorded, since a resumed run goes on behind it."""
        if self._began:
            self._attempt(self._flush)
        return {}

    def _before_import(self) -> None:
        """Set what has to be set before the package is imported."""

    def _record(self, run: Run, progress: Progress, *, looked: bool) -> None:
        if not self._began:
            self._open(run)
            self._began = True
        self._log(progress.step, scalars(progress), progress.moved if looked else None)

    def _attempt(self, do: Callable[[], None]) -> None:
        """Do it; where that fails, warn once and go on."""
        if self._failures >= PATIENCE:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a tracker says about itself is not about this run
                do()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            if not self._told:
                self._told = True
                text = (
                    f"{type(self).__name__} failed and the run goes on without it: {type(error).__name__}: {error}. "
                    f"It is tried again at the next steps, and left alone after {PATIENCE} failures in a row"
                )
                warnings.warn(TrackerWarning(text), stacklevel=4)


class Identified(Tracker):
    """A tracker whose record has a name, which is saved with the run."""

    def __init__(self, every: int) -> None:
        """Keep the settings."""
        super().__init__(every)
        self.run_id: str | None = None

    def start(self, run: Run, steps: int) -> None:
        """Forget an earlier run."""
        super().start(run, steps)
        self.run_id = None

    def state_dict(self) -> dict[str, Any]:
        """Return the record's name."""
        super().state_dict()
        return {} if self.run_id is None else {"run_id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on with a record."""
        if not isinstance(state.get("run_id"), str):
            raise saved.unfit(f"whose {type(self).__name__} has {sorted(state)}", "the run_id of its record")
        self.run_id = state["run_id"]


def scalars(progress: Progress) -> dict[str, float]:
    """Return the numbers of a step; those that are not known are left out.

    Args:
        progress: the step.
    """
    report, cost = progress.report, progress.cost
    known = {
        "residual": report.residual,
        "inner_gradient_norm": report.inner_gradient_norm,
        "implied_error": report.implied_error,
    }
    return {
        "outer_loss": progress.outer_loss,
        "norm": progress.norm,
        **{name: value for name, value in known.items() if math.isfinite(value)},
        "inner_gradients": float(cost.inner_gradients),
        "products": float(cost.products),
        "outer_gradients": float(cost.outer_gradients),
        "seconds": progress.seconds,
    }


def settings(run: Run, more: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run was made of, as short texts.

    Args:
        run: the run.
        more: the user's own.
    """
    entries = {name: sum(value.numel() for value in part.values()) for name, part in _parts(run)}
    found = {"algorithm": run.algorithm, "outer": run.outer, "seed": run.seed, "hypergrad": __version__}
    return {name: str(value)[:LONGEST] for name, value in {**found, **entries, **more}.items()}


def _parts(run: Run) -> list[tuple[str, Tree]]:
    return [("params_entries", run.params), ("hparams_entries", run.hparams)]


def finite(value: Tensor) -> Tensor:
    """Return the finite entries of a tensor on the CPU, in one row.

    Args:
        value: the tensor.
    """
    flat = value.detach().flatten().double().cpu()
    return flat[flat.isfinite()]
