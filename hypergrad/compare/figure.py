"""The picture of a comparison: the best validation loss so far against time and against work."""

from __future__ import annotations

import importlib
import math
import textwrap
from pathlib import Path
from typing import Any

from hypergrad.compare.samplers import INSTALL
from hypergrad.compare.spaces import SPACES
from hypergrad.compare.table import CLOCK_NAMES
from hypergrad.errors import MissingDependencyError

OURS = (("#000000", "-"), ("#56b4e9", "-"), ("#555555", "--"))
SEARCHES = (("#0072b2", "--"), ("#d55e00", "-."), ("#009e73", ":"), ("#e69f00", (0, (1, 1))), ("#cc79a7", (0, (5, 1))))
"""Colours that colour-blind readers tell apart (Okabe and Ito), and lines that differ without colour."""
MARKERS = "osD^v"
HEADS = {"full": "every hyperparameter", "grouped": "one value for each group", "shared": "one value for all"}
WORST = 98
"""Percentile of all values that the axis ends at, so that a first bad trial does not flatten the rest."""


def draw(path: Path, result: dict[str, Any]) -> None:
    """Write a PNG: one column for each search space, time above and work below; bands are all seeds.

    Args:
        path: the file.
        result: what ``compare.json`` holds.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(f"a plot without matplotlib ({error})", "matplotlib", INSTALL) from error
    rows = result["methods"]
    spaces = [name for name in SPACES if any(row["kind"] == "search" and row["space"] == name for row in rows)]
    count = len(result["seeds"])
    figure = figures.Figure(figsize=(1.5 + 4.3 * max(len(spaces), 1), 8.6), dpi=110, layout="constrained")
    figure.suptitle(
        f"{result['title'] or result['task']}\noptuna {result['versions']['optuna']}; median of "
        f"{count} seed{'s' if count > 1 else ''}, bands from the lowest to the highest",
        fontsize=13,
    )
    grid = figure.subplots(2, max(len(spaces), 1), sharex="row", sharey=True, squeeze=False)
    axes_of = (("curve", f"{CLOCK_NAMES[result['budget']['clock']]} in seconds"), ("curve_work", "work in passes"))
    limits = _limits(rows)
    for line, (key, label) in enumerate(axes_of):
        limit = result["budget"]["seconds" if line == 0 else "work"]
        for column, space in enumerate(spaces):
            axes = grid[line][column]
            _panel(axes, rows, key, space)
            axes.axvline(limit, color="#999999", linewidth=1, zorder=0)
            where = axes.get_xaxis_transform()
            axes.text(limit, 1.005, "budget", transform=where, color="#555555", ha="center", va="bottom", fontsize=8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_ylim(*limits)
            axes.set_xlabel(label, fontsize=11)
            _ticks(axes)
            if line == 0:
                axes.set_title(f"searches choose {HEADS[space]}", fontsize=11, pad=14)
            if column == 0:
                axes.set_ylabel("best validation loss so far", fontsize=11)
    _legend(figure, grid)
    figure.savefig(path, format="png")


def _panel(axes: Any, rows: list[dict[str, Any]], key: str, space: str) -> None:
    ours = [row for row in rows if row["kind"] == "ours"]
    searches = [row for row in rows if row["kind"] == "search" and row["space"] == space]
    for number, row in enumerate(searches):
        color, style = SEARCHES[number % len(SEARCHES)]
        _line(axes, row, key, color, style, label=row["name"].rpartition(", ")[0], marker=MARKERS[number % 5])
    for number, row in enumerate(ours):
        color, style = OURS[number % len(OURS)]
        _line(axes, row, key, color, style, label=row["name"], width=2.6)
    reasons = sorted({row["reason"] for row in searches if row["status"] == "infeasible"})
    if reasons:
        text = "\n".join(textwrap.fill(f"not run: {reason}", 34) for reason in reasons)
        axes.text(
            0.03,
            0.03,
            text,
            transform=axes.transAxes,
            ha="left",
            va="bottom",
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "#999999"},
        )


def _line(
    axes: Any,
    row: dict[str, Any],
    key: str,
    color: str,
    style: Any,
    *,
    label: str,
    width: float = 1.6,
    marker: str = "",
) -> None:
    points = row.get(key) or []
    if not points:
        return
    cost, middle, low, high = zip(*points, strict=True)
    axes.fill_between(cost, low, high, color=color, alpha=0.13, linewidth=0, step="post")
    axes.step(
        cost,
        middle,
        where="post",
        color=color,
        linestyle=style,
        linewidth=width,
        label=label,
        marker=marker or None,
        markevery=0.13,
        markersize=4.5,
    )


def _limits(rows: list[dict[str, Any]]) -> tuple[float, float]:
    values = sorted(value for row in rows for point in row.get("curve") or [] for value in point[1:4])
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return 0.1, 1.0
    top = positive[min(len(positive) - 1, len(positive) * WORST // 100)]
    return positive[0] / 1.08, max(top, positive[0] * 1.01) * 1.08


def _ticks(axes: Any) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    low, high = axes.get_ylim()
    few = high / low < 30
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if few else (1, 3)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, grid: Any) -> None:
    seen: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    names = sorted(seen, key=lambda name: not name.startswith("ours"))
    figure.legend(
        [seen[name] for name in names], names, loc="outside lower center", ncols=4, fontsize=10, frameon=False
    )
