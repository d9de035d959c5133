"""A sheet under way: cases, rows measured in turn, claims, and a JSON file that an interrupt does not empty."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from benchmarks.harness import write_json
from benchmarks.peers.environments import PEERS, PeerError
from benchmarks.peers.process import Row, take_turns

NOISY = 0.15
"""Interquartile range of a ratio, over the ratio, above which no verdict is given."""


@final
@dataclass(frozen=True)
class Options:
    """How a sheet is run.

    Attributes:
        peers: names of the libraries that take part.
        repeats: rounds that are measured.
        smoke: whether everything is tiny: shows that it runs, and nothing else.
        build: whether missing environments are built.
        out: folder for the JSON file and the picture.
    """

    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 7
    smoke: bool = False
    build: bool = True
    out: Path = Path("benchmarks/results")


@final
@dataclass(frozen=True)
class Method:
    """One row that a case asks for."""

    peer: str
    row: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """Return what stands in the table."""
        return self.label or f"{self.peer}/{self.row}"


@final
@dataclass(frozen=True)
class Claim:
    """A number that has to be reached.

    Attributes:
        text: in words.
        value: what was measured; ``None`` where it could not be.
        limit: the bound.
        at_most: whether the bound is an upper one.
        noisy: whether the machine was too noisy for a verdict.
    """

    text: str
    value: float | None
    limit: float
    at_most: bool = True
    noisy: bool = False

    @property
    def verdict(self) -> str:
        """Return ``met``, ``not met``, ``too noisy`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        if self.noisy:
            return "too noisy"
        return "met" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "not met"


@final
class Sheet:
    """Measurements by case and row; whatever is added is on disk at once.

    Args:
        name: of the sheet and its files.
        title: a line for the page of results.
        options: how it is run.
    """

    def __init__(self, name: str, title: str, options: Options) -> None:
        self.name, self.title, self.options = name, title, options
        self.cases: dict[str, dict[str, Any]] = {}
        self.claims: list[Claim] = []
        options.out.mkdir(parents=True, exist_ok=True)

    def add(self, case: str, rows: Mapping[str, Any], **about: Any) -> None:
        """Add the rows of a case, and write everything so far."""
        entry = self.cases.setdefault(case, {"rows": {}})
        entry["rows"].update(rows)
        entry.update(about)
        self.save(finished=False)

    def claim(self, text: str, value: float | None, limit: float, *, at_most: bool = True, noisy: bool = False) -> None:
        """State a number that has to be reached."""
        self.claims.append(Claim(text, value, limit, at_most, noisy))

    def save(self, *, finished: bool) -> dict[str, Any]:
        """Write the JSON file whole, and return what it holds."""
        result = {
            "sheet": self.name,
            "title": self.title,
            "finished": finished,
            "smoke": self.options.smoke,
            "machine": machine(),
            "cases": self.cases,
            "claims": [{**asdict(claim), "verdict": claim.verdict} for claim in self.claims],
        }
        write_json(self.options.out / f"{self.name}.json", result)
        return result

    def value(self, case: str, row: str, key: str) -> float | None:
        """Return a measured number, or ``None`` where the row has none."""
        found = self.cases.get(case, {}).get("rows", {}).get(row, {}).get(key)
        return None if found is None else float(found)

    def noisy(self, case: str, row: str) -> bool:
        """Return whether a ratio spreads too far for a verdict."""
        return (self.value(case, row, "spread") or 0.0) > NOISY


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def saved(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Path]:
    """Keep arrays in a file for the rows' processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, allow_pickle=False, **arrays)
        yield path


@contextmanager
def started(
    methods: Sequence[Method], problem: str, data: Path, options: Options
) -> Iterator[tuple[dict[str, Row], dict[str, str]]]:
    """Yield the processes of all rows that can be prepared, and the reasons of the others."""
    with ExitStack() as stack:
        rows: dict[str, Row] = {}
        reasons: dict[str, str] = {}
        for method in methods:
            if method.peer not in options.peers:
                continue
            try:
                row = Row(method.peer, method.row, problem, data, dict(method.settings), build=options.build)
            except PeerError as error:
                reasons[method.name] = str(error)
                continue
            rows[method.name] = stack.enter_context(row)
            row.name = method.name
        yield rows, reasons


def measure(
    methods: Sequence[Method],
    problem: str,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    options: Options,
    *,
    base: str,
    compare: bool = True,
    memory: bool = True,
) -> dict[str, dict[str, Any]]:
    """Return time, spread, memory and error of all rows, relative to one of them.

    Args:
        methods: the rows.
        problem: the problem's name.
        arrays: its arrays.
        options: how it is run.
        base: name of the row that ratios are taken to.
        compare: whether to measure how far answers are from that row's.
        memory: whether to measure peaks.
    """
    with saved(arrays) as data, started(methods, problem, data, options) as (rows, reasons):
        runs, failed = take_turns(list(rows.values()), options.repeats)
        found: dict[str, dict[str, Any]] = {name: {"reason": reason} for name, reason in {**reasons, **failed}.items()}
        if base not in runs:
            return found
        answers = {name: rows[name].answer() for name in runs} if compare else {}
        peaks = {name: rows[name].peak() for name in runs} if memory else {}
        for name, times in runs.items():
            ratios = [run["cpu"] / unit["cpu"] for run, unit in zip(times, runs[base], strict=True)]
            entry = {
                "time": statistics.median(ratios),
                "spread": spread(ratios),
                "cpu_seconds": statistics.median(run["cpu"] for run in times),
                "products": times[0].get("products"),
                "setup_seconds": rows[name].setup,
                "version": rows[name].version,
            }
            peak, least = peaks.get(name), peaks.get(base)
            if peak is not None and least:
                entry["memory"] = peak / least
            if compare and answers[name].shape == answers[base].shape:
                entry["error"] = float(np.linalg.norm(answers[name] - answers[base]) / np.linalg.norm(answers[base]))
            found[name] = entry
    return found


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
