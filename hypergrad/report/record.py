"""The callback that writes what a run is, and how its hyperparameters move."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hypergrad import saved
from hypergrad.algorithm import Algorithm
from hypergrad.callbacks import Callback
from hypergrad.errors import HypergradError, InputError
from hypergrad.files import end_torn_line, write_whole
from hypergrad.run import Progress, Run
from hypergrad.settings import check_choice, check_counts, check_kind
from hypergrad.solvers.bilevel.plan import Choice, Forecast
from hypergrad.tree import Tree
from hypergrad.version import __version__

FORMAT = 1
LINES = 200
"""About as many lines of ``hparams.jsonl`` are written where ``every`` is left out."""
MOVED = 10
KINDS = ("trainer", "cleaning", "compare")


@final
class Record(Callback):
    """Write what a run is and how its hyperparameters move, for :func:`hypergrad.report.write_report`.

    ``directory/run.json`` says what ran, why that method, the environment, the seed and the forecast; it is written
    when the run starts and again when it ends. ``directory/hparams.jsonl`` gets a line every so many steps with the
    distribution of each tensor of hyperparameters and its entries that have moved most. Give the same directory to
    :class:`~hypergrad.Checkpoint`, and ``directory/history.jsonl`` to :class:`~hypergrad.History`.

    Args:
        directory: where; made if it does not exist.
        title: the report's headline; the algorithm's name by default.
        kind: what the run is part of: ``"trainer"``, ``"cleaning"`` or ``"compare"``.
        every: steps between two lines, at least 1; by default so that a run has about 200. The start and the last step
            are written in any case.
        sample: of a larger tensor only so many entries, evenly spaced, are looked at for quantiles and moves, at
            least 1. Smallest, largest and mean are those of all entries.
        names: names for the entries of some hyperparameters, in row-major order.
        choice: what :func:`~hypergrad.choose` returned, if that chose the algorithm: its reason and forecast.
        forecast: a forecast of one outer step, in the place of the choice's.
        settings: more settings of the run, JSON-ready, such as the data and the model.

    Cost: at every such step three reductions over the hyperparameters, and a sort of at most ``sample`` entries of
    each tensor; in memory ``sample`` entries of each.

    Raises:
        InputError: a setting out of range, names that do not fit the hyperparameters, settings that JSON does not hold.

    Example:
        >>> import tempfile, torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> trainer = hg.Trainer(
        ...     problem,
        ...     hg.Implicit(hg.CG(), inner=hg.Newton()),
        ...     outer=hg.outer.Torch(torch.optim.SGD, lr=0.5),
        ...     callbacks=[hg.report.Record(folder), hg.History(f"{folder}/history.jsonl")],
        ... )
        >>> fitted = trainer.fit({"w": torch.zeros(1)}, {"x": torch.zeros(1)}, steps=5)
        >>> print(hg.report.text_report(folder).splitlines()[0])
        Implicit: finished after 5 of 5 steps
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        title: str | None = None,
        kind: str = "trainer",
        every: int | None = None,
        sample: int = 100_000,
        names: Mapping[str, Sequence[str]] | None = None,
        choice: Choice | None = None,
        forecast: Forecast | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the settings."""
        self.directory, self.title, self.every, self.sample = Path(directory), title, every, sample
        self.kind = kind
        self.names = {name: list(entries) for name, entries in (names or {}).items()}
        self.choice, self.forecast, self.settings = choice, forecast, dict(settings or {})
        check_counts(self, "every", "sample")
        check_choice(self, "kind", KINDS)
        check_kind(self, "choice", Choice, "pass what hypergrad.choose returned", optional=True)
        check_kind(self, "forecast", Forecast, "pass hypergrad.choose(...).forecast", optional=True)
        _check_json(self.settings)
        self._run: dict[str, Any] = {}
        self._start: Tree = {}
        self._steps = self._written = 0
        self._outside: BaseException | None = None

    def start(self, run: Run, steps: int) -> None:
        """Write ``run.json``, and where the hyperparameters are."""
        self._check_names(run.hparams)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._steps, self._outside = steps, sys.exc_info()[1]
        self._start = {name: self._looked_at(value).clone() for name, value in run.hparams.items()}
        self._run = self._described(run, steps)
        self._write_run()
        path = self.directory / "hparams.jsonl"
        if run.step_number == 0:
            path.unlink(missing_ok=True)
            self._append(0, run.hparams)
        end_torn_line(path)

    def step(self, run: Run, progress: Progress) -> None:
        """Append a line now and then."""
        if progress.step == 1 and run.reason is not None:
            self._run["algorithm"]["reason"] = run.reason
            self._write_run()
        every = self.every or max(1, math.ceil(self._steps / LINES))
        if progress.step % every == 0:
            self._append(progress.step, progress.moved)

    def end(self, run: Run) -> None:
        """Append the last line, and write how the run ended."""
        if run.step_number != self._written and run.whole:
            self._append(run.step_number, run.hparams)
        error = sys.exc_info()[1]
        ended = None if error is self._outside else error
        reason = run.stopped or "unknown"
        if isinstance(ended, KeyboardInterrupt):
            reason = "interrupted"
        elif ended is not None:
            reason = f"failed: {type(ended).__name__}: {ended}"
        self._run |= {"ended": _now(), "steps": run.step_number, "stopped": reason}
        self._run["algorithm"]["reason"] = run.reason or self._run["algorithm"]["reason"]
        self._write_run()

    def state_dict(self) -> dict[str, Any]:
        """Return where the hyperparameters started, and when."""
        return {"start": dict(self._start), "began": self._run["began"], "sample": self.sample}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on with the start of the run before."""
        if not isinstance(state.get("began"), str) or state.get("sample") != self.sample:
            raise saved.unfit(f"whose Record has sample={state.get('sample')!r}", f"sample={self.sample}")
        self._start = saved.tree_like("the saved start of the hparams", state.get("start"), self._start)
        self._run["began"] = state["began"]
        self._write_run()

    def _check_names(self, hparams: Tree) -> None:
        for name, entries in self.names.items():
            expected = hparams[name].numel() if name in hparams else None
            if expected != len(entries):
                raise InputError(
                    passed=f"Record(names=...) with {len(entries)} names for {name!r}",
                    expected=f"one name for each entry of {sorted(hparams)}"
                    + ("" if expected is None else f", {expected} for {name!r}"),
                    do="pass {hyperparameter: names of its entries in row-major order}",
                )

    def _described(self, run: Run, steps: int) -> dict[str, Any]:
        algorithm = run.algorithm
        chosen = self.choice.reason if self.choice is not None else None
        return {
            "format": FORMAT,
            "kind": self.kind,
            "title": self.title or type(algorithm).__name__,
            "began": _now(),
            "ended": None,
            "steps": run.step_number,
            "planned_steps": steps,
            "stopped": None,
            "algorithm": {
                "name": type(algorithm).__name__,
                "repr": repr(algorithm),
                "reason": run.reason or chosen,
                "exact": algorithm.exact,
                "stochastic": algorithm.stochastic,
                "order": algorithm.order,
                "cost": algorithm.cost,
                "needs": algorithm.needs,
            },
            "outer": repr(run.outer),
            "params": _tensors(run.params),
            "hparams": _tensors(run.hparams),
            "seed": run.seed,
            "settings": self.settings,
            "versions": versions(),
            "machine": machine(run.params),
            "forecast": self._forecast(algorithm, run),
        }

    def _forecast(self, algorithm: Algorithm[Any], run: Run) -> dict[str, Any] | None:
        """Return what a step is expected to take, or at most claims to."""
        forecast = self.forecast or (self.choice.forecast if self.choice is not None else None)
        if forecast is not None:
            seconds, mebibytes = forecast.seconds, forecast.mebibytes
            return {
                "cost": dataclasses.asdict(forecast.cost),
                "seconds": seconds if math.isfinite(seconds) else None,
                "bytes": round(mebibytes * 2**20) if math.isfinite(mebibytes) else None,
                "bound": False,
            }
        sizes = (sum(value.numel() for value in tree.values()) for tree in (run.params, run.hparams))
        try:
            cost = algorithm.at_step(run.step_number).budget(*sizes)
        except HypergradError:
            return None
        return {"cost": dataclasses.asdict(cost), "seconds": None, "bytes": None, "bound": True}

    def _looked_at(self, value: Tensor) -> Tensor:
        """Return the entries that quantiles and moves are taken of, flat."""
        flat = value.detach().reshape(-1)
        if flat.numel() <= self.sample:
            return flat
        return flat[_rows(flat.numel(), self.sample).to(flat.device)]

    def _append(self, step: int, hparams: Tree) -> None:
        tensors = {name: self._distribution(name, value.detach()) for name, value in hparams.items() if value.numel()}
        with (self.directory / "hparams.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "tensors": tensors}, allow_nan=False) + "\n")
        self._written = step

    def _distribution(self, name: str, value: Tensor) -> dict[str, Any]:
        looked, start = self._looked_at(value), self._start[name]
        ordered = looked.sort().values
        places = torch.linspace(0, 1, 11, dtype=torch.float64).mul(len(ordered) - 1).round().long()
        low, high, mean = value.min(), value.max(), value.mean(dtype=torch.float64)
        quantiles = ordered[places.to(ordered.device)].tolist()
        far = (looked - start).abs().topk(min(MOVED, len(looked)))
        rows = [row for row, distance in zip(far.indices.tolist(), far.values.tolist(), strict=True) if distance > 0]
        return {
            "entries": value.numel(),
            "looked_at": len(looked),
            "min": _number(low),
            "max": _number(high),
            "mean": _number(mean),
            "quantiles": [_number(low), *(_finite(entry) for entry in quantiles[1:-1]), _number(high)],
            "moved": [self._moved(name, value, looked, start, row) for row in rows],
        }

    def _moved(self, name: str, value: Tensor, looked: Tensor, start: Tensor, row: int) -> list[Any]:
        place = row if len(looked) == value.numel() else int(_rows(value.numel(), self.sample)[row])
        index = [int(number) for number in np.unravel_index(place, tuple(value.shape))] if value.dim() else []
        found = [index, _number(start[row]), _number(looked[row])]
        return [*found, self.names[name][place]] if name in self.names else found

    def _write_run(self) -> None:
        write_json(self.directory / "run.json", self._run)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; the file is whole wherever it exists."""
    text = json.dumps(value, allow_nan=False, indent=2, ensure_ascii=False)
    write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def versions() -> dict[str, str]:
    """Return the versions of what numbers depend on."""
    return {
        "hypergrad": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": metadata.version("scipy"),
    }


def machine(params: Tree | None = None) -> dict[str, Any]:
    """Return what the seconds depend on: the platform, its processors, threads and, with ``params``, the device."""
    device = next((value.device for value in (params or {}).values()), torch.device("cpu"))
    kind = next((str(value.dtype).removeprefix("torch.") for value in (params or {}).values()), None)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
        "dtype": kind,
    }


def _tensors(tree: Tree) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(value.shape), "entries": value.numel()} for name, value in tree.items()]


def _rows(entries: int, sample: int) -> Tensor:
    """Return ``sample`` evenly spaced places."""
    return torch.arange(sample) * entries // sample


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _number(value: Tensor) -> float | None:
    return _finite(float(value))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_json(settings: Mapping[str, Any]) -> None:
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            passed=f"Record(settings=...), which JSON does not hold ({error})",
            expected="numbers, strings, lists and dicts, without NaN",
            do="convert tensors and paths: x.tolist(), str(path)",
        ) from error
