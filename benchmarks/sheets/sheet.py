"""A sheet under way: cases, rows measured in turn, claims, and a JSON file that an interrupt does not empty."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch

from benchmarks.harness import write_json
from benchmarks.peers.environments import PEERS, PeerError
from benchmarks.peers.process import Process, Row, take_turns

COLUMNS = {
    "time": ("time", ".2f"),
    "spread": ("spread", ".0%"),
    "memory": ("memory", ".2f"),
    "error": ("difference", ".1e"),
    "products": ("products", "d"),
}
"""What is shown of a row: key, title and format."""
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
        device: ``cpu`` or ``cuda``.
        timeout: seconds that one call of a row may take.
    """

    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 7
    smoke: bool = False
    build: bool = True
    out: Path = Path("benchmarks/results")
    device: str = "cpu"
    timeout: float = 600.0


@final
@dataclass(frozen=True)
class Method:
    """One row that a case asks for.

    Attributes:
        peer: whose environment it runs in.
        row: its name in the module's ``ROWS``.
        settings: handed to it.
        label: what stands in the table, by default ``peer/row``.
        module: of ``benchmarks.rows``, by default the peer's name.
    """

    peer: str
    row: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    module: str = ""

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
        columns: key of a row's number to its title and its format on the page of results.
        about: what is measured and how, for the page of results.
    """

    def __init__(
        self,
        name: str,
        title: str,
        options: Options,
        *,
        columns: Mapping[str, tuple[str, str]] = COLUMNS,
        about: str = "",
    ) -> None:
        self.name, self.title, self.options, self.columns, self.about = name, title, options, columns, about
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
        """State a number that has to be reached; a smoke run says nothing about it."""
        self.claims.append(Claim(text, None if self.options.smoke else value, limit, at_most, noisy))

    def save(self, *, finished: bool) -> dict[str, Any]:
        """Write the JSON file whole, and return what it holds."""
        result = {
            "sheet": self.name,
            "title": self.title,
            "finished": finished,
            "smoke": self.options.smoke,
            "machine": machine(),
            "about": self.about,
            "columns": self.columns,
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


@final
class Processes:
    """One process for each peer, started when its first row is asked for, and again after it ended."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._running: dict[str, Process] = {}
        self._reasons: dict[str, str] = {}

    def of(self, peer: str) -> Process:
        """Return the peer's process.

        Raises:
            PeerError: the peer does not install; said at once the second time.
        """
        if peer in self._reasons:
            raise PeerError(self._reasons[peer])
        running = self._running.get(peer)
        if running is not None and not running.alive:
            running.close()
            running = None
        if running is None:
            try:
                options = self.options
                running = Process(peer, build=options.build, timeout=options.timeout, device=options.device)
            except PeerError as error:
                self._reasons[peer] = str(error)
                raise
            self._running[peer] = running
        return running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self._running.values():
            process.close()


@contextmanager
def started(
    methods: Sequence[Method], problem: str, data: Path, processes: Processes
) -> Iterator[tuple[dict[str, Row], dict[str, str]]]:
    """Yield all rows that can be prepared, and the reasons of the others; free them afterwards."""
    rows: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    for method in methods:
        if method.peer not in processes.options.peers:
            continue
        try:
            process = processes.of(method.peer)
            module = method.module or method.peer
            rows[method.name] = Row(process, method.name, module, method.row, problem, data, method.settings)
        except PeerError as error:
            reasons[method.name] = str(error)
    try:
        yield rows, reasons
    finally:
        for row in rows.values():
            with suppress(PeerError):
                row.forget()


def measure(
    methods: Sequence[Method],
    problem: str,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    processes: Processes,
    *,
    base: str,
    compare: bool = True,
    memory: bool = True,
    repeats: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Return time, spread, memory and error of all rows, relative to one of them.

    Args:
        methods: the rows.
        problem: the problem's name.
        arrays: its arrays.
        processes: of the peers.
        base: name of the row that ratios are taken to.
        compare: whether to measure how far answers are from that row's.
        memory: whether to measure peaks.
        repeats: rounds that are measured, by default the options'.
    """
    with saved(arrays) as data, started(methods, problem, data, processes) as (rows, reasons):
        runs, failed = take_turns(list(rows.values()), repeats or processes.options.repeats)
        found: dict[str, dict[str, Any]] = {name: {"reason": reason} for name, reason in {**reasons, **failed}.items()}
        if base not in runs:
            return found
        clock = "cpu" if processes.options.device == "cpu" else "wall"
        answers = {name: rows[name].answer() for name in runs} if compare else {}
        peaks = {name: rows[name].peak() for name in runs} if memory else {}
        for name, times in runs.items():
            ratios = [run[clock] / unit[clock] for run, unit in zip(times, runs[base], strict=True)]
            entry = {
                "time": statistics.median(ratios),
                "spread": spread(ratios),
                "seconds": statistics.median(run[clock] for run in times),
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
