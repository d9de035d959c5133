"""The section about hyperparameters: how they are distributed, and which have moved most."""

from __future__ import annotations

from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Notice, Section, Table, Text
from hypergrad.report.reading import listing, number, text_of
from hypergrad.report.running import RUN_HINT
from hypergrad.report.series import Tensors
from hypergrad.report.svg import Line, line_chart


def hyperparameters(tensors: Tensors) -> Section:
    """Show how hyperparameters are distributed, and which have moved most."""
    title = "Hyperparameters"
    if not tensors.last:
        return Section(
            "hyperparameters",
            title,
            [Notice("note", "Not recorded", "There is no hparams.jsonl with a whole line.", RUN_HINT)],
        )
    blocks: list[Block] = []
    ranked = sorted(tensors.last, key=lambda name: -_farthest(tensors.last[name]))
    for place, name in enumerate(ranked[:8]):
        if (figure := _fan(f"hparam-{place}", name, tensors)) is not None:
            blocks.append(figure)
    moved = sorted(
        ((name, *row) for name in tensors.last for row in _moves(tensors.last[name])),
        key=lambda row: -abs(row[3] - row[2]),
    )
    rows = [
        [_entry(name, index, label), words.shown(start), words.shown(now), words.shown(now - start)]
        for name, index, start, now, label in moved[:20]
    ]
    if rows:
        blocks.append(Table("The entries that moved most since the start", ["entry", "start", "now", "change"], rows))
    facts = []
    for name in ranked[:40]:
        last = tensors.last[name]
        cells = [words.shown(number(last.get(key))) for key in ("entries", "min", "mean", "max")]
        facts.append([text_of(name, 80), *cells])
    blocks.append(Table("All tensors at the last record", ["tensor", "entries", "smallest", "mean", "largest"], facts))
    looked = [
        name
        for name, last in tensors.last.items()
        if (number(last.get("looked_at")) or 0) < (number(last.get("entries")) or 0) and "looked_at" in last
    ]
    if looked:
        names = ", ".join(text_of(name, 40) for name in looked[:5])
        blocks.append(
            Text(
                f"Quantiles and moves of large tensors ({names}) are those of an evenly spaced sample of their entries."
            )
        )
    return Section("hyperparameters", title, blocks)


def _fan(key: str, name: str, tensors: Tensors) -> Block | None:
    known = [
        (float(step), row) for step, row in zip(tensors.step, tensors.quantiles[name], strict=True) if row is not None
    ]
    if not known:
        return None
    points, shown = [(step, row[5]) for step, row in known], text_of(name, 60)
    entries = number(tensors.last[name].get("entries")) or 1
    last = known[-1][1]
    if entries == 1:
        summary = f"From {words.shown(points[0][1])} to {words.shown(points[-1][1])}."
        return line_chart(key, f"Value of {shown}", summary, [Line(shown, points)], x_name="outer step", y_name="value")
    bands = [([row[low] for _, row in known], [row[10 - low] for _, row in known]) for low in (0, 1, 3)]
    low, at, high = (words.shown(last[place]) for place in (0, 5, 10))
    summary = f"At the last record the median of {int(entries):,} entries is {at}, and all lie from {low} to {high}."
    hint = "The line is the median; the bands hold the middle 40 %, the middle 80 %, and all entries."
    return line_chart(
        key,
        f"Distribution of {shown}",
        summary,
        [Line("median", points, bands)],
        x_name="outer step",
        y_name="value",
        hint=hint,
    )


def _moves(tensor: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    found = []
    for row in listing(tensor.get("moved"))[:10]:
        if isinstance(row, list) and len(row) >= 3:
            start, now = number(row[1]), number(row[2])
            if start is not None and now is not None:
                index = ", ".join(text_of(place, 20) for place in listing(row[0])[:8])
                found.append((index, start, now, text_of(row[3], 80) if len(row) > 3 else ""))
    return found


def _farthest(tensor: dict[str, Any]) -> float:
    return max((abs(now - start) for _, start, now, _ in _moves(tensor)), default=0.0)


def _entry(name: str, index: str, label: str) -> str:
    return f"{text_of(name, 60)}[{label or index}]" if index or label else text_of(name, 60)
