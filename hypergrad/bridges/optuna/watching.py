"""The callback inside a trial: it reports, asks the pruner, keeps the best step and saves checkpoints."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from hypergrad import guards, saved, tree
from hypergrad.bridges.optuna.artifacts import put
from hypergrad.bridges.optuna.trials import Link, StorageLostError
from hypergrad.bridges.optuna.tuning import Tuning
from hypergrad.callbacks import Callback
from hypergrad.data import Fixed
from hypergrad.errors import InputError, NonFiniteError
from hypergrad.files import write_whole
from hypergrad.held_out import HeldOut
from hypergrad.run import Progress, Run
from hypergrad.tree import Tree

CHECKPOINT = "checkpoint.pt"
FIELDS: dict[str, type] = {"passes": int, "seconds": float, "at": list, "values": list, "last": dict, "best": dict}
AGAIN = (
    "once it is back, queue the trial again from there: hypergrad.bridges.optuna.retry(study, {number}, "
    "checkpoint={folder!r}), and call study.optimize"
)


@final
@dataclass(frozen=True)
class Kept:
    """A step that is kept.

    Attributes:
        value: what it is worth.
        step: its number; the number of steps made for the point after the last one.
        hparams: λ.
        params: θ(λ).
    """

    value: float
    step: int
    hparams: Tree
    params: Tree


@final
@dataclass(frozen=True)
class Watching:
    """How a trial is watched.

    Attributes:
        unit: what reports count, passes or seconds.
        report_every: outer steps from one report to the next.
        checkpoint_every: outer steps from one checkpoint to the next.
        keep: which step is kept.
        maximize: whether higher values are better.
        rescue: where a checkpoint goes when the storage is lost; ``None`` for a new folder for temporary files.
    """

    unit: Literal["passes", "seconds"]
    report_every: int
    checkpoint_every: int
    keep: Literal["best", "last"]
    maximize: bool
    rescue: Path | None


@final
class Watch(Callback):
    """Reports and checkpoints of one trial.

    Args:
        link: the way to the trial.
        store: an artifact store, or ``None``.
        tuning: what is tuned.
        settings: how.
    """

    def __init__(self, link: Link, store: Any, tuning: Tuning, settings: Watching) -> None:
        """Begin with nothing seen."""
        self.link, self.store, self.tuning, self.settings = link, store, tuning, settings
        data = tuning.problem.outer_data
        whole = data is None or isinstance(data, Fixed)
        self._held_out = None if whole else HeldOut("HybridObjective", data)
        self.run: Run | None = None
        self.passes, self.seconds = 0, 0.0
        self.at: list[int] = []
        self.values: list[float] = []
        self.last: dict[str, Any] = {}
        self.best: Kept | None = None
        self.pruned = self._lost = self._behind = False
        self._saved, self._artifacts, self._places = -1, ["", ""], 0

    def start(self, run: Run, steps: int) -> None:
        """Remember the run."""
        self.run = run

    def step(self, run: Run, progress: Progress) -> str | None:
        """Count, report, ask the pruner, save."""
        self._count(run, progress)
        try:
            self._catch_up()
            if progress.step % self.settings.report_every == 0:
                self._report(run, progress)
            if progress.step % self.settings.checkpoint_every == 0:
                self._save(run)
        except StorageLostError as error:
            raise self._rescued(run, error) from error
        return "pruned" if self.pruned else None

    def end(self, run: Run) -> None:
        """Save the last whole step."""
        if run.whole and run.step_number not in (0, self._saved) and not self._lost:
            try:
                self._save(run)
            except StorageLostError as error:
                raise self._rescued(run, error) from error

    def finish(self) -> Kept:
        """Return what is kept, after a look at where the last move went."""
        assert self.run is not None
        run = self.run
        self._catch_up()
        if not self.pruned:
            params = run.response(run.hparams)
            self._keep(self._value(run, params, run.hparams, None), run.step_number, run.hparams, params)
        assert self.best is not None
        return self.best

    def lost(self, error: StorageLostError) -> StorageLostError:
        """Return the error with the place of a local checkpoint."""
        return error if self.run is None or error.checkpoint else self._rescued(self.run, error)

    def _catch_up(self) -> None:
        """Report what a trial before this one reported and this one has not inherited."""
        if not self._behind:
            return
        known = self.link.reported()
        for position, value in zip(self.at, self.values, strict=True):
            if position not in known:
                self.link.report(value, position)
        self._behind = False

    def _count(self, run: Run, progress: Progress) -> None:
        costs = [progress.cost] if self.last else [run.probe_cost, progress.cost]
        self.passes += sum(round(cost.inner_gradients + cost.products + cost.outer_gradients) for cost in costs)
        self.seconds += progress.seconds
        report = progress.report
        self.last = {
            "algorithm": report.algorithm,
            "status": report.status,
            "norm": progress.norm,
            "residual": report.residual,
            "inner_gradient_norm": report.inner_gradient_norm,
        }

    def _report(self, run: Run, progress: Progress) -> None:
        value = self._value(run, progress.params, progress.hparams, progress.outer_loss)
        self._keep(value, progress.step, progress.hparams, progress.params)
        position = self.passes if self.settings.unit == "passes" else math.floor(self.seconds)
        if not self.at or position > self.at[-1]:
            self.at.append(position)
            self.values.append(value)
            self.link.report(value, position)
            self.pruned = self.link.should_prune()

    def _value(self, run: Run, params: Tree, hparams: Tree, known: float | None) -> float:
        """Return what a point is worth; ``known`` is its outer loss on the batch that a step has seen."""
        problem, score = run.problem, self.tuning.score
        if score is not None:
            with torch.no_grad(), guards.pinned_rng(tree.device_of(params), seed=0):
                value = float(score(tree.detached(params), tree.detached(hparams)))
        elif self._held_out is not None:
            value = self._held_out.loss(problem, params, hparams)
        elif known is not None:
            value = known
        else:
            with torch.no_grad(), guards.pinned_rng(tree.device_of(params), seed=0):
                value = float(problem.outer_value(tree.detached(params), tree.detached(hparams), problem.draw_outer()))
        if math.isnan(value):
            raise NonFiniteError(
                passed=f"a value of NaN at step {run.step_number} of trial {self.link.trial.number}",
                expected="a number that says what the trial is worth",
                do="look at score, or at the outer objective, at the hyperparameters in the trial's checkpoint",
            )
        return value

    def _keep(self, value: float, step: int, hparams: Tree, params: Tree) -> None:
        sign = -1.0 if self.settings.maximize else 1.0
        if self.settings.keep == "last" or self.best is None or sign * value < sign * self.best.value:
            self.best = Kept(value, step, tree.cloned(hparams), tree.cloned(params))

    def _save(self, run: Run) -> None:
        """Store a checkpoint over the one before the last, so that there is always a whole one."""
        if self.store is None:
            return
        place, state = self._places % 2, run.state_dict()
        entry = self.link.call(
            "a checkpoint", lambda: put(self.store, self.link.trial, state, CHECKPOINT, self._artifacts[place])
        )
        self._artifacts[place], self._places = entry["artifact"], self._places + 1
        self.link.note(checkpoint={**entry, "step": run.step_number})
        self._saved = run.step_number

    def _rescued(self, run: Run, error: StorageLostError) -> StorageLostError:
        """Save the run on this machine and return the error that says where."""
        self._lost = True
        name = f"hypergrad-trial-{self.link.trial.number}-"
        with suppress(OSError):
            if self.settings.rescue is not None:
                self.settings.rescue.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=name, dir=self.settings.rescue))
            write_whole(folder / CHECKPOINT, lambda path: torch.save(run.state_dict(), path))
            again = AGAIN.format(number=self.link.trial.number, folder=str(folder))
            return StorageLostError(
                f"{error.passed}; step {run.step_number} is saved in {folder}", error.expected, again, str(folder)
            )
        return error

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the reports and the best step."""
        best = self.best
        return {
            "passes": self.passes,
            "seconds": self.seconds,
            "at": list(self.at),
            "values": list(self.values),
            "last": dict(self.last),
            "best": {}
            if best is None
            else {"value": best.value, "step": best.step, "hparams": best.hparams, "params": best.params},
        }

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on; what the trial before this one reported is reported with the next step."""
        saved.check_entries(state, {}, FIELDS)
        self.passes, self.seconds = state["passes"], state["seconds"]
        self.at, self.values, self.last = list(state["at"]), list(state["values"]), dict(state["last"])
        best = state["best"]
        if best:
            if not (isinstance(best.get("value"), float) and isinstance(best.get("step"), int)):
                raise saved.unfit(f"whose best step has {sorted(best)}", "value, step, hparams and params")
            hparams = saved.tree_like("the saved best hparams", best.get("hparams"), run.hparams)
            params = saved.tree_like("the saved best params", best.get("params"), run.params)
            self.best = Kept(best["value"], best["step"], hparams, params)
        self._saved, self._behind = run.step_number, True


def numbers_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Return constraints as plain numbers.

    Raises:
        InputError: anything else, or NaN.
    """
    try:
        numbers = {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            passed=f"constraints that returned {found!r}",
            expected="a mapping of names to numbers, at most 0 where the trial is feasible",
            do='return {"memory": used - allowed}',
        ) from error
    return {name: math.inf if math.isnan(value) else value for name, value in numbers.items()}
