"""The tables of a comparison, as Markdown that is readable in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CLOCK_NAMES = {"cpu": "CPU time", "wall": "wall time"}
NONE = "–"


def tables(result: dict[str, Any]) -> str:
    """Return the tables of a result: at equal time and at equal work.

    Args:
        result: what ``compare.json`` holds.
    """
    budget, rows = result["budget"], result["methods"]
    clock = CLOCK_NAMES[budget["clock"]]
    versions = [f"{name} {result['versions'][name]}" for name in ("optuna", "cmaes") if result["versions"][name]]
    count = len(result["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds; median [lowest, highest]"
    lines = [
        result["title"] or result["task"],
        f"{result['hyperparameters']:,} hyperparameters; {', '.join(versions)}; {seeds}.",
        *([result["note"]] if result["note"] else []),
        "",
        f"At equal time: {budget['seconds']:g} s of {clock} a run. `there` is when {rows[0]['name']} has the same "
        "validation loss,",
        "`ahead` how many times sooner than the end.",
        "",
        *_aligned(_by_time(rows)),
        "",
        f"At equal work: {budget['work']:,} passes a run (gradients, products and values of both objectives).",
        "",
        *_aligned(_by_work(rows)),
    ]
    infeasible = [f"{row['name']}: {row['reason']}" for row in rows if row["status"] == "infeasible"]
    return "\n".join([*lines, *(["", "Not run:", *(f"- {line}" for line in infeasible)] if infeasible else [])]) + "\n"


def _by_time(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    measured = [row for row in rows if row["status"] == "measured"]
    names = list(measured[0]["test"]) if measured else []
    table = [["method", "numbers", "validation", *(f"test {name}" for name in names), "trials", "there", "ahead"]]
    for row in measured:
        validation = [row["final_validation"], *row["final_validation_band"]]
        tests = [[row["test"][name], *row["test_band"][name]] for name in names]
        there, ahead = row["ours_seconds_to_final"], row["ours_times_faster"]
        mine = row is rows[0]
        table.append(
            [
                row["name"],
                f"{row['dimensions']:,}",
                _band(validation),
                *(_band(values) for values in tests),
                NONE if row["evaluations"] is None else f"{row['evaluations']:g}",
                NONE if mine or there is None else f"{there:.2g} s",
                NONE if mine or ahead is None else f"{ahead:.2g}×",
            ]
        )
    return table


def _by_work(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    table = [["method", "numbers", "validation", "seconds"]]
    for row in rows:
        if row["status"] == "measured":
            seconds = row["seconds_at_work"]
            spent = f"{seconds:.2g} s" if seconds is not None else f"only {row['work']:g} passes"
            table.append([row["name"], f"{row['dimensions']:,}", _band(row["validation_at_work"]), spent])
    return table


def _band(values: Sequence[float | None]) -> str:
    middle, low, high = (NONE if value is None else f"{value:.3f}" for value in values)
    return middle if middle == low == high else f"{middle} [{low}, {high}]"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]
