"""One picture a sheet, from its JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
Draw = Callable[[Result, "Figure"], None]


def write(path: Path, result: Result, draw: Draw) -> None:
    """Write the picture of a sheet, whole or not at all.

    Args:
        path: a file name that ends in ``.png``.
        result: what the sheet measured.
        draw: fills the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    draw(result, figure)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100, metadata={"Software": None})
    temporary.replace(path)


def bars(result: Result, figure: Figure, *, key: str = "time", label: str = "time over hand-written") -> None:
    """Draw one panel a case, with one bar a row; rows without the number are left out."""
    cases = {
        case: {name: row[key] for name, row in entry["rows"].items() if row.get(key) is not None}
        for case, entry in result["cases"].items()
    }
    cases = {case: rows for case, rows in cases.items() if rows}
    columns = min(len(cases), 4) or 1
    for place, (case, rows) in enumerate(cases.items()):
        axes = figure.add_subplot(-(-len(cases) // columns), columns, place + 1)
        axes.barh(list(rows), list(rows.values()), color=[_color(name) for name in rows])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.tick_params(labelsize=6)
        axes.set_title(case, fontsize=7)
        axes.set_xlabel(label, fontsize=6)


def curves(result: Result, figure: Figure, *, x: str, y: str, log: str = "xy") -> None:
    """Draw one panel a case, with one line a row from its lists ``x`` and ``y``."""
    cases = {case: entry["rows"] for case, entry in result["cases"].items()}
    columns = min(len(cases), 3) or 1
    for place, (case, rows) in enumerate(cases.items()):
        axes = figure.add_subplot(-(-len(cases) // columns), columns, place + 1)
        for name, row in rows.items():
            if row.get(x) and row.get(y):
                axes.plot(row[x], row[y], label=name, linewidth=2.0 if name.startswith("engine") else 1.0)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
        axes.set_title(case, fontsize=7)
        axes.set_xlabel(x, fontsize=6)
        axes.set_ylabel(y, fontsize=6)
        axes.tick_params(labelsize=6)
        axes.legend(fontsize=5)


def _color(name: str) -> str:
    return {"hand": "tab:gray", "engine": "tab:blue"}.get(name.partition("/")[0], "tab:orange")
