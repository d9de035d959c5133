"""Callbacks of the trainer: progress bar, history, early stopping, checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO, final

import torch

from hypergrad import saved, tree
from hypergrad.bridges.bars import bar
from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.files import end_torn_line, write_whole
from hypergrad.held_out import HeldOut
from hypergrad.run import Progress, Run
from hypergrad.settings import check_choice, check_counts, check_numbers
from hypergrad.tree import Tree


class Callback:
    """Hooks of a :class:`~hypergrad.Trainer`; override those that are needed."""

    def start(self, run: Run, steps: int) -> None:
        """Begin: ``run`` stands before its next step and will make ``steps`` in all."""

    def step(self, run: Run, progress: Progress) -> str | None:
        """Look at a step; return a reason to stop, or ``None``."""

    def end(self, run: Run) -> None:
        """Finish, also after an error or an interrupt; ``run.whole`` tells whether the run can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run shall go on with, as tensors, numbers and strings; it is saved with the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on from what :meth:`state_dict` returned; called after :meth:`start`, if the checkpoint has something."""


@final
class ProgressBar(Callback):
    """Where a run is: step, outer loss, hypergradient norm, steps a second and time to go.

    Args:
        stream: where to write, standard error by default.
        interval: seconds between two lines where the stream is no terminal, above 0.
        style: ``"auto"`` is a bar on a terminal where tqdm is installed (extra ``cli``), a line that is rewritten where
            it is not, and a line now and then where the stream is no terminal. ``"bar"`` and ``"line"`` are these
            without looking; ``"json"`` is one JSON object a line, now and then, for machines: step, steps, outer_loss,
            norm, rate in steps a second, and seconds_left; ``"none"`` is silence.

    Raises:
        MissingDependencyError: ``style="bar"`` without tqdm, when a run starts.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        interval: float = 10.0,
        style: Literal["auto", "bar", "line", "json", "none"] = "auto",
    ) -> None:
        """Keep the settings."""
        self.stream, self.interval, self.style = stream or sys.stderr, interval, style
        check_numbers(self, "interval", above=0)
        check_choice(self, "style", ("auto", "bar", "line", "json", "none"))
        self._steps = self._first = 0
        self._began = self._shown = 0.0
        self._pending = ""
        self._bar: Any = None

    def start(self, run: Run, steps: int) -> None:
        """Note the time."""
        self._steps, self._first, self._began, self._shown = steps, run.step_number, time.monotonic(), 0.0
        self._bar = self._drawn(run.step_number)

    def step(self, run: Run, progress: Progress) -> None:
        """Rewrite the line on a terminal; elsewhere write one now and then, and at the end."""
        if self._bar is not None:
            self._bar.set_postfix_str(_losses(progress, ", "), refresh=False)
            self._bar.update(1)
        elif self.style != "none":
            self._line(progress, time.monotonic())

    def end(self, run: Run) -> None:
        """End the line, or write the last one."""
        if self._bar is not None:
            self._bar.close()
        elif self.style != "none":
            self._write("\n" if self._rewrites else self._pending)
        self._pending, self._bar = "", None

    @property
    def _rewrites(self) -> bool:
        return self.style in ("auto", "line") and self.stream.isatty()

    def _drawn(self, first: int) -> Any:
        if self.style != "bar" and not (self.style == "auto" and self.stream.isatty()):
            return None
        try:
            return bar(self.stream, self._steps, first)
        except MissingDependencyError:
            if self.style == "bar":
                raise
            return None

    def _line(self, progress: Progress, now: float) -> None:
        made = progress.step - self._first
        seconds = (now - self._began) / made
        left = seconds * (self._steps - progress.step)
        rate = 1 / max(seconds, 1e-9)
        if self.style == "json":
            known = {"step": progress.step, "steps": self._steps, "outer_loss": progress.outer_loss}
            line = json.dumps(_without_nan({**known, "norm": progress.norm, "rate": rate, "seconds_left": left}))
        else:
            line = (
                f"step {progress.step}/{self._steps}  {_losses(progress, '  ')}  {rate:.3g} steps/s  {left:.0f} s to go"
            )
        if self._rewrites:
            columns = shutil.get_terminal_size().columns - 1  # a line that fills the last one cannot be rewritten
            self._write(f"\r{line[:columns]:<{columns}}")
        elif now - self._shown >= self.interval:
            self._write(f"{line}\n")
            self._shown, self._pending = now, ""
        else:
            self._pending = f"{line}\n"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _losses(progress: Progress, between: str) -> str:
    return f"outer loss {progress.outer_loss:.5g}{between}hypergradient {progress.norm:.3g}"


@final
class History(Callback):
    """One JSON object a step, appended to a file: loss, norm, seconds and passes of the step, and the report's fields.

    A line is written whole and flushed, so an interrupted run leaves complete lines; a torn last line of a machine
    that crashed is ended before new lines follow. NaN is written as ``null``.

    Args:
        path: the file, made with its folder where it does not exist.
        extra: ``progress -> dict`` of more JSON-ready values for each line.
    """

    def __init__(self, path: str | os.PathLike[str], extra: Callable[[Progress], dict[str, Any]] | None = None) -> None:
        """Keep the path."""
        self.path, self.extra = Path(path), extra

    def start(self, run: Run, steps: int) -> None:
        """Make the folder and mend a torn last line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end_torn_line(self.path)

    def step(self, run: Run, progress: Progress) -> None:
        """Append a line."""
        report = progress.report.as_dict()
        line = {
            "step": progress.step,
            "outer_loss": progress.outer_loss,
            "norm": progress.norm,
            "step_seconds": progress.seconds,
            "step_cost": dataclasses.asdict(progress.cost),
            **{key: report[key] for key in report if key not in ("outer_loss", "algorithm")},
            **(self.extra(progress) if self.extra else {}),
        }
        try:
            text = json.dumps(_without_nan(line), allow_nan=False)
        except TypeError as error:
            raise InputError(
                passed=f"History(extra={self.extra!r}), which returned something else ({error})",
                expected="a dict of numbers, strings, lists and dicts",
                do="convert tensors and arrays: float(x), x.tolist()",
            ) from error
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of a history by step; of a step written twice the last, and no torn lines.

    Args:
        path: a file that :class:`History` wrote.
    """
    return list({line["step"]: line for line in _lines(Path(path))}.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            yield line


@final
class EarlyStopping(Callback):
    """Stop when a value has not fallen for some steps, and keep the state where it was lowest.

    NaN counts as infinitely high. A resumed run goes on with the lowest value of the run before it.

    Args:
        patience: steps without a new lowest value before stopping, at least 1.
        min_delta: how much lower a new lowest value has to be, at least 0.
        monitor: ``progress -> number`` to watch; the outer loss by default.
        held_out: instead of ``monitor``: examples that neither objective sees, so that the run stops where it begins to
            overfit the validation set. A batch for the problem's ``outer``, a sampler, whose full batch counts, or a
            function ``(params, hparams)`` that returns a scalar. See :func:`~hypergrad.split`.

    Raises:
        InputError: both ``monitor`` and ``held_out``, or, when a run starts, a batch for an ``outer`` that takes none.

    Attributes:
        best: the lowest value so far, with its step, hyperparameters and parameters; the trainer returns them.
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.0,
        monitor: Callable[[Progress], float] | None = None,
        *,
        held_out: Any = None,
    ) -> None:
        """Keep the settings."""
        self.patience, self.min_delta, self.monitor = patience, min_delta, monitor
        self.held_out = None if held_out is None else HeldOut("EarlyStopping", held_out)
        if monitor is not None and held_out is not None:
            raise InputError(
                passed="EarlyStopping with monitor and held_out",
                expected="one value to watch",
                do="leave monitor out, or compute what it watches from the held-out examples yourself",
            )
        check_counts(self, "patience")
        check_numbers(self, "min_delta", least=0)
        self.best: tuple[float, int, Tree, Tree] | None = None

    def start(self, run: Run, steps: int) -> None:
        """Forget an earlier run."""
        if self.held_out is not None:
            self.held_out.check(run.problem)
        self.best = None

    def _value(self, run: Run, progress: Progress) -> float:
        if self.held_out is not None:
            return self.held_out.loss(run.problem, progress.params, progress.hparams)
        return progress.outer_loss if self.monitor is None else float(self.monitor(progress))

    @property
    def guards(self) -> bool:
        """Whether something else than the outer loss is watched."""
        return self.monitor is not None or self.held_out is not None

    def step(self, run: Run, progress: Progress) -> str | None:
        """Compare with the lowest value."""
        value = self._value(run, progress)
        value = math.inf if math.isnan(value) else value
        if self.best is None or value < self.best[0] - self.min_delta:
            self.best = (value, progress.step, tree.cloned(progress.hparams), tree.cloned(progress.params))
        if progress.step - self.best[1] < self.patience:
            return None
        return f"no value below {self.best[0]:.6g} (step {self.best[1]}) for {self.patience} steps"

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest value so far with what belongs to it."""
        return {} if self.best is None else dict(zip(("value", "step", "hparams", "params"), self.best, strict=True))

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on from a lowest value."""
        if not (isinstance(state.get("value"), float) and isinstance(state.get("step"), int)):
            raise saved.unfit(f"whose EarlyStopping has {sorted(state)}", "value, step, hparams and params")
        hparams = saved.tree_like("the saved best hparams", state.get("hparams"), run.hparams)
        params = saved.tree_like("the saved best params", state.get("params"), run.params)
        self.best = (state["value"], state["step"], hparams, params)


@final
class Checkpoint(Callback):
    """Save the run to ``directory/checkpoint.pt``, so that :meth:`hypergrad.Trainer.fit` can go on from it.

    The file is written under a temporary name and renamed: there is always one whole checkpoint. It holds tensors,
    numbers and strings, and is read with ``torch.load(weights_only=True)``.

    Args:
        directory: where; made if it does not exist.
        every: steps between two saves, at least 1; the last step is saved in any case, as is the step before an
            interrupt.
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 1) -> None:
        """Keep the settings."""
        self.path, self.every = Path(directory) / "checkpoint.pt", every
        check_counts(self, "every")
        self._saved = -1

    def start(self, run: Run, steps: int) -> None:
        """Make the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._saved = -1

    def step(self, run: Run, progress: Progress) -> None:
        """Save every so many steps."""
        if progress.step % self.every == 0:
            self._save(run)

    def end(self, run: Run) -> None:
        """Save the last whole step."""
        if run.whole and run.step_number not in (0, self._saved):
            self._save(run)

    def _save(self, run: Run) -> None:
        state = run.state_dict()
        write_whole(self.path, lambda path: torch.save(state, path))
        self._saved = run.step_number


def load_checkpoint(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what :class:`Checkpoint` saved in a directory.

    Args:
        directory: the directory.

    Raises:
        InputError: no checkpoint there, or a file that is none.
    """
    path = Path(directory) / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            passed=f"{directory}, which holds no checkpoint.pt",
            expected="a directory that hypergrad.Checkpoint wrote to",
            do="check the path, or start without resume",
        ) from None
    except Exception as error:
        raise InputError(
            passed=f"{path}, which cannot be read ({type(error).__name__})",
            expected="a file that hypergrad.Checkpoint wrote",
            do="use an intact copy, or start without resume",
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path}, which holds a {type(state).__name__}", "a saved run", "check the path")
    return state
