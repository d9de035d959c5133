"""RESULTS.md: every sheet's rows and claims, from the JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.sheets import SHEETS

KEYS = {"sheet", "title", "finished", "smoke", "machine", "about", "columns", "cases", "claims"}
"""What the JSON of a sheet has."""


def write_results(folder: Path) -> str:
    """Write ``RESULTS.md`` beside the folder of JSON files, whole, and return its path.

    Args:
        folder: where ``python -m benchmarks run`` wrote.

    Raises:
        SystemExit: no sheet in the folder, or a file that is none.
    """
    found = [_read(path) for name in SHEETS if (path := folder / f"{name}.json").is_file()]
    if not found:
        raise SystemExit(f"{folder} holds no sheet: run python -m benchmarks run all --out {folder}")
    beside = folder.name == "results"
    path = folder.parent / "RESULTS.md" if beside else folder / "RESULTS.md"
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(_page(found, "results/" if beside else "")) + "\n", encoding="utf-8")
    temporary.replace(path)
    return str(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        sheet = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(
            f"{path} is no JSON ({error}): delete it and run python -m benchmarks run {path.stem}"
        ) from None
    missing = sorted(KEYS - sheet.keys()) if isinstance(sheet, dict) else sorted(KEYS)
    if missing:
        lacks = f"it lacks {', '.join(missing)}"
        raise SystemExit(f"{path} is no sheet ({lacks}): delete it and run python -m benchmarks run {path.stem}")
    found: dict[str, Any] = sheet
    return found


def _page(sheets: list[dict[str, Any]], pictures: str) -> list[str]:
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks run all`. Times are CPU seconds on one thread, as medians over alternating",
        "rounds of the ratio to the first hand-written row; spread is the ratio's interquartile range. Where it is",
        "above 15 % no verdict is given.",
        "",
        "## What has to be reached",
        "",
        "| claim | bound | measured | verdict |",
        "|---|---|---|---|",
    ]
    for sheet in sheets:
        for claim in sheet["claims"]:
            sign = "≤" if claim["at_most"] else "≥"
            value = "–" if claim["value"] is None else f"{claim['value']:.3g}"
            lines.append(f"| {claim['text']} | {sign} {claim['limit']:g} | {value} | {claim['verdict']} |")
    for sheet in sheets:
        about = sheet["machine"]
        state = "" if sheet["finished"] else " (interrupted: what was measured)"
        state += " (a smoke run: the figures mean nothing)" if sheet["smoke"] else ""
        lines += ["", f"## {sheet['title']}{state}", ""]
        lines.append(f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, {about['date']}.")
        if sheet["about"]:
            lines += ["", sheet["about"]]
        if sheet["finished"]:
            lines += ["", f"![{sheet['title']}]({pictures}{sheet['sheet']}.png)"]
        for case, entry in sheet["cases"].items():
            lines += ["", f"### {case}", "", *_table(entry["rows"], sheet["columns"])]
    return lines


def _table(rows: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str]:
    shown = [key for key in columns if any(row.get(key) is not None for row in rows.values())]
    lines = [f"| row | {' | '.join(columns[key][0] for key in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, row in rows.items():
        if "reason" in row:
            lines.append(f"| {name} | {row['reason'].replace('|', '/')} |" + " |" * (len(shown) - 1))
            continue
        cells = ["–" if row.get(key) is None else format(row[key], columns[key][1]) for key in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
