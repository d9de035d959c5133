"""How time and memory grow: with hyperparameters, inner steps, batch and parameters, and what an import costs."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from benchmarks import scaled
from benchmarks.peers.environments import PeerError
from benchmarks.peers.process import ROOT, Row, take_turns
from benchmarks.sheets.sheet import Options, Processes, Sheet, saved, spread

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

COLUMNS = {
    "exponent": ("exponent", "+.3f"),
    "exponent_spread": ("its spread", ".3f"),
    "least": ("at the least", ""),
    "most": ("at the most", ""),
    "time": ("time over `import torch`", ".3f"),
    "spread": ("spread", ".0%"),
    "seconds": ("seconds", ".2f"),
    "parameters": ("parameters", ",d"),
    "resident": ("resident memory, bytes", ",d"),
    "vectors": ("in vectors of parameters", ".1f"),
}
ABOUT = (
    "Each row is a line of measurements over one size that grows by half decades or decades. Its exponent is that "
    "of a least-squares fit in log–log over the upper half of its points, where fixed cost rules less: 0 is flat, "
    "1 is linear. For time it is fitted in each alternating round, and the median and interquartile range over "
    "rounds are given; memory is measured once, since it repeats: the peak of the allocator's live bytes above "
    "the level before. Time over batch and parameters takes at most three rounds, and over inner steps one "
    "without a warm-up. The largest number of parameters is measured apart, once and without a warm-up, with the "
    "resident memory that it adds. Imports are processes of their own, in turn, their modules compiled "
    "beforehand; time is theirs over that of `import torch`."
)
NOISY_EXPONENT = 0.05
"""Interquartile range of an exponent over rounds, above which no verdict is given."""
BYTES = 4
"""Of a parameter in float32."""
LONG = 3
"""Rounds for lines without a claim on time."""


@final
@dataclass(frozen=True)
class Line:
    """A row of the sheet: one method over a growing size.

    Attributes:
        label: what stands in the table.
        peer: whose environment it runs in.
        module: of ``benchmarks.rows``.
        row: the method.
        size: the setting that grows.
        values: what it grows through.
        settings: the others.
        divide: how many times a call does what is measured.
    """

    label: str
    peer: str
    module: str
    row: str
    size: str
    values: Sequence[int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    divide: int = 1


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    sheet = Sheet("scaling", "Scaling", options, columns=COLUMNS, about=ABOUT)
    with Processes(options) as processes:
        hyperparameters(sheet, processes)
        inner_steps(sheet, processes)
        batch(sheet, processes)
        parameters(sheet, processes)
    imports(sheet)
    return sheet.save(finished=True)


def hyperparameters(sheet: Sheet, processes: Processes) -> None:
    """Grow the number of hyperparameters: one weight an example, row-sparse and dense, and one penalty a weight."""
    smoke = sheet.options.smoke
    values = grid(100, 1_000 if smoke else 10_000_000)
    decades = values[:: 1 if smoke else 2]
    rows, dense = (
        Line(label, "engine", "scaling", "example weights", "n", sizes, {"sparse": sparse, "times": times}, times)
        for label, sizes, sparse, times in (
            ("engine/example weights, row-sparse, SparseAdam", values, True, 1 if smoke else 10),
            ("engine/example weights, dense, Adam", decades, False, 1),
        )
    )
    settings = {"batch": 4 if smoke else 8, "terms": 1 if smoke else 3}
    penalties = [
        Line(f"{peer}/penalty per weight, Adam", peer, module, "penalties", "n", decades, settings)
        for peer, module in (("engine", "scaling"), ("hand", "scaling_hand"))
    ]
    case = "time of an outer step, number of hyperparameters from 10² to 10⁷"
    sheet.add(case, timed([rows, dense, *penalties], processes), axis="hyperparameters", unit="s")
    for line, text, limit in ((rows, "row-sparse weights", 0.05), (penalties[0], "dense", 1.05)):
        claim(sheet, case, line.label, f"exponent of time in hyperparameters, {text}", limit)
    case = "memory of an outer step, number of hyperparameters from 10² to 10⁷"
    sheet.add(case, peaks([rows, dense, *penalties], processes), axis="hyperparameters", unit="B")


def inner_steps(sheet: Sheet, processes: Processes) -> None:
    """Grow the number of inner steps."""
    smoke = sheet.options.smoke
    values = grid(4, 16, each=4) if smoke else grid(10, 1000)
    settings = {"n": 200 if smoke else 10_000, "batch": 4 if smoke else 16}
    first = Line(
        "engine/implicit, Neumann 10", "engine", "scaling", "implicit", "steps", values, settings | {"terms": 10}
    )
    unrolled = [
        Line(f"engine/unrolled, {text}", "engine", "scaling", "unrolled", "steps", values, {**settings, **given})
        for text, given in (
            ("full", {"keep": "graph"}),
            ("recomputed from √K iterates", {"keep": "sqrt"}),
            ("recomputed from log K iterates", {"keep": "log"}),
            ("reverse through all iterates", {"keep": "iterates"}),
            ("truncated to 4", {"keep": "graph", "truncate": 4}),
        )
    ]
    others = [
        Line(f"{peer}/unrolled, full", peer, module, "unrolled", "steps", values, settings)
        for peer, module in (("hand", "scaling_hand"), ("higher", "scaling_higher"))
    ]
    lines = [first, *unrolled, *others]
    case = "memory of a hypergradient, inner steps from 10 to 1,000"
    sheet.add(case, peaks(lines, processes), axis="inner steps", unit="B")
    flat = sheet.value(case, first.label, "exponent")
    sheet.claim("exponent of memory in inner steps, implicit, absolute", None if flat is None else abs(flat), 0.02)
    claim(sheet, case, unrolled[1].label, "exponent of memory in inner steps, recomputed", 0.55)
    case = "time of a hypergradient, inner steps from 10 to 1,000"
    decades = [replace(line, values=values[:: 1 if smoke else 2]) for line in lines]
    sheet.add(case, timed(decades, processes, 1, warm=False), axis="inner steps", unit="s")


def batch(sheet: Sheet, processes: Processes) -> None:
    """Grow the batch."""
    smoke = sheet.options.smoke
    settings = {"n": 200 if smoke else 10_000, "terms": 1 if smoke else 10}
    values = grid(4, 16, each=4) if smoke else grid(10, 10_000)
    lines = [
        Line(f"{peer}/Neumann {settings['terms']}", peer, module, "penalties", "batch", values, settings)
        for peer, module in (("engine", "scaling"), ("hand", "scaling_hand"))
    ]
    case = "time of an outer step, batch from 10 to 10⁴"
    sheet.add(case, timed(lines, processes, LONG), axis="examples in a batch", unit="s")


def parameters(sheet: Sheet, processes: Processes) -> None:
    """Grow the number of parameters; the largest size is measured apart, for its time and the process's memory."""
    smoke = sheet.options.smoke
    values = grid(100, 1_000) if smoke else grid(10_000, 10_000_000)
    settings = {"batch": 8, "terms": 1 if smoke else 3}
    lines = [
        Line(f"{peer}/Neumann {settings['terms']}", peer, module, "hypergradient", "n", values, settings)
        for peer, module in (("engine", "scaling"), ("hand", "scaling_hand"))
    ]
    case = "time of a hypergradient, parameters from 10⁴ to 10⁷"
    sheet.add(case, timed(lines, processes, LONG), axis="parameters", unit="s")
    case = "memory of a hypergradient, parameters from 10⁴ to 10⁷"
    sheet.add(case, peaks(lines, processes), axis="parameters", unit="B")
    case = "a hypergradient with 10⁸ parameters, measured once"
    largest = 3_000 if smoke else 100_000_000
    sheet.add(case, once(lines, largest, processes))


def imports(sheet: Sheet) -> None:
    """Import this library and torch in turn."""
    rounds = 1 if sheet.options.smoke else max(15, 2 * sheet.options.repeats + 1)
    found: dict[str, list[dict[str, float]]] = {"torch": [], "hypergrad": []}
    for turn in range(-1, rounds):  # the first to have them compiled, and in the disk's cache
        for module in sorted(found, reverse=bool(turn % 2)):
            if turn >= 0 or not sheet.options.smoke:
                found[module].append(imported(module))
    rows: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        units, times = ([run[clock] for run in found[module][-rounds:]] for module in ("torch", "hypergrad"))
        ratios = [time / unit for time, unit in zip(times, units, strict=True)]
        rows[f"hand/import torch, {clock}"] = {"time": 1.0, "seconds": statistics.median(units)}
        rows[f"engine/import hypergrad, {clock}"] = {
            "time": statistics.median(ratios),
            "spread": spread(ratios),
            "seconds": statistics.median(times),
        }
    case = "import"
    sheet.add(case, rows)
    for clock in ("cpu", "wall"):
        row = f"engine/import hypergrad, {clock}"
        text = f"import of hypergrad over import of torch, {clock} time"
        sheet.claim(text, sheet.value(case, row, "time"), 1.2, noisy=sheet.noisy(case, row))


def imported(module: str) -> dict[str, float]:
    """Return CPU and wall seconds of a process that imports a module, with bytecode on disk as once installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, env=environment, check=True)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu": cpu, "wall": wall}


def grid(first: int, last: int, *, each: float = math.sqrt(10.0)) -> list[int]:
    """Return sizes from first to last that grow by a factor."""
    count = round(math.log(last / first, each))
    return [round(first * (last / first) ** (place / count)) for place in range(count + 1)]


def timed(
    lines: Sequence[Line], processes: Processes, most: int | None = None, *, warm: bool = True
) -> dict[str, dict[str, Any]]:
    """Return seconds at all sizes, measured in turn, with the exponent in each round."""
    rounds = min(processes.options.repeats, most or processes.options.repeats)
    with saved({}) as data:
        rows, found = prepared(lines, data, processes)
        runs, failed = take_turns([row for line in rows.values() for row in line.values()], rounds, warm=warm)
        clock = "cpu" if processes.options.device == "cpu" else "wall"
        for line in lines:
            if line.label not in rows:
                continue
            if reasons := [failed[row.name] for row in rows[line.label].values() if row.name in failed]:
                found[line.label] = {"reason": reasons[0]}
                continue
            seconds = [[run[clock] / line.divide for run in runs[row.name]] for row in rows[line.label].values()]
            exponents = [exponent(sizes(line), one) for one in zip(*seconds, strict=True)]
            found[line.label] = {
                **summary(sizes(line), [statistics.median(one) for one in seconds], "s"),
                "exponent": statistics.median(exponents),
                "exponent_spread": _range(exponents),
                "version": next(iter(rows[line.label].values())).version,
            }
        free(rows)
    return found


def peaks(lines: Sequence[Line], processes: Processes) -> dict[str, dict[str, Any]]:
    """Return peak bytes at all sizes."""
    found: dict[str, dict[str, Any]] = {}
    with saved({}) as data:
        for line in lines:
            rows, reasons = prepared([line], data, processes)
            found |= reasons
            if line.label not in rows:
                continue
            try:
                bytes_ = [row.peak() for row in rows[line.label].values()]
            except PeerError as error:
                found[line.label] = {"reason": str(error)}
                continue
            finally:
                free(rows)
            if all(bytes_):
                values = [float(one or 0) for one in bytes_]
                found[line.label] = {**summary(sizes(line), values, "B"), "exponent": exponent(sizes(line), values)}
    return found


def once(lines: Sequence[Line], n: int, processes: Processes) -> dict[str, dict[str, Any]]:
    """Return the seconds of one call at a size of its own, without a warm-up, and the peak of the process's memory."""
    found: dict[str, dict[str, Any]] = {}
    with saved({}) as data:
        for line in lines:
            alone = replace(line, values=[n], settings={**line.settings, "resident": True})
            rows, reasons = prepared([alone], data, processes)
            found |= reasons
            if line.label not in rows:
                continue
            try:
                run = next(iter(rows[line.label].values())).run()
            except PeerError as error:
                found[line.label] = {"reason": str(error)}
                continue
            finally:
                free(rows)
            count = sizes(alone)[0]
            found[line.label] = {"parameters": count, "seconds": run["cpu"], "resident": run["resident"]}
            if run["resident"] is not None:
                found[line.label]["vectors"] = run["resident"] / (BYTES * count)
    return found


def prepared(
    lines: Sequence[Line], data: Path, processes: Processes
) -> tuple[dict[str, dict[int, Row]], dict[str, dict[str, Any]]]:
    """Return the rows of all lines by size, and why the others cannot be prepared."""
    rows: dict[str, dict[int, Row]] = {}
    reasons: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.peer not in processes.options.peers:
            continue
        rows[line.label] = {}
        try:
            for value in line.values:
                settings = {**line.settings, line.size: value}
                name = f"{line.label}, {value}"
                row = Row(processes.of(line.peer), name, line.module, line.row, "", data, settings)
                rows[line.label][value] = row
        except PeerError as error:
            reasons[line.label] = {"reason": str(error)}
            free({line.label: rows.pop(line.label)})
    return rows, reasons


def free(rows: Mapping[str, Mapping[int, Row]]) -> None:
    """Let the processes free what rows hold."""
    for row in itertools.chain.from_iterable(line.values() for line in rows.values()):
        try:
            row.forget()
        except PeerError:
            continue


def sizes(line: Line) -> list[int]:
    """Return what a line grows through, as it is: a network has about as many weights as asked for."""
    exact = line.size != "n" or line.row == "example weights"
    return [value if exact else scaled.count(value) for value in line.values]


def upper(x: Sequence[float]) -> int:
    """Return where the upper half of the points begins, of three points at least."""
    return max(0, min(len(x) // 2, len(x) - 3))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of a least-squares fit in log–log over the upper half of the points."""
    start = upper(x)
    return statistics.linear_regression(
        [math.log(one) for one in x[start:]], [math.log(one) for one in y[start:]]
    ).slope


def summary(x: Sequence[int], y: Sequence[float], unit: str) -> dict[str, Any]:
    """Return a line's points, and its ends as text."""
    ends = {key: f"{_short(y[place], unit)} at {x[place]:,}" for key, place in (("least", 0), ("most", -1))}
    return {"x": list(x), "y": list(y), **ends}


def claim(sheet: Sheet, case: str, row: str, text: str, limit: float) -> None:
    """State an exponent that has to be kept."""
    noisy = (sheet.value(case, row, "exponent_spread") or 0.0) > NOISY_EXPONENT
    sheet.claim(text, sheet.value(case, row, "exponent"), limit, noisy=noisy)


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw the points of each case and the fitted lines, with their exponents."""
    cases = {case: entry for case, entry in result["cases"].items() if entry.get("axis")}
    lined = {case: entry for case, entry in cases.items() if any("exponent" in row for row in entry["rows"].values())}
    for place, (case, entry) in enumerate(lined.items()):
        axes = figure.add_subplot(2, -(-len(lined) // 2), place + 1)
        for name, row in entry["rows"].items():
            if "exponent" not in row:
                continue
            x, y = row["x"], row["y"]
            start = upper(x)
            middle = math.exp(statistics.fmean(math.log(one) for one in x[start:]))
            level = math.exp(statistics.fmean(math.log(one) for one in y[start:]))
            (points,) = axes.loglog(x, y, ".", markersize=4, label=f"{name}: {row['exponent']:+.2f}")
            fit = [level * (one / middle) ** row["exponent"] for one in x[start:]]
            axes.loglog(x[start:], fit, color=points.get_color(), linewidth=1.2 if name.startswith("engine") else 0.7)
        axes.set_title(case, fontsize=6)
        axes.set_xlabel(entry["axis"], fontsize=6)
        axes.set_ylabel({"s": "seconds", "B": "bytes"}[entry["unit"]], fontsize=6)
        axes.tick_params(labelsize=6)
        axes.legend(fontsize=4.5)


def _range(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _short(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 2**20:.3g} MiB"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
