"""The same report for a terminal, and for machines."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import Any

from hypergrad.report.blocks import Block, Facts, Figure, Gallery, Notice, Table, Text
from hypergrad.report.document import read_document

SIGNS = {"good": "+", "note": "·", "warning": "!", "bad": "!!"}
MOST_ROWS = 12


def text_report(directory: str | os.PathLike[str], *, width: int = 88) -> str:
    """Return a summary of a run's directory for a terminal.

    Args:
        directory: the run's directory.
        width: longest line, in characters, at least 40; words longer than that stay whole.

    Raises:
        InputError: no such directory, or nothing of a run in it.
    """
    document = read_document(directory)
    lines = [
        f"{document.title}: {document.status}",
        " · ".join(part for part in (document.kind, document.when) if part),
    ]
    lines += [f"  {key.name:<26} {key.value:>14}   {key.remark}".rstrip() for key in document.keys]
    for section in document.sections:
        shown = [line for block in section.blocks for line in _lines(block, width)]
        if shown:
            lines += ["", section.title, "-" * len(section.title), *shown]
    return "\n".join(lines) + "\n"


def summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a report shows as JSON-ready values: title, status, keys, and each section's facts and tables.

    Args:
        directory: the run's directory.

    Raises:
        InputError: no such directory, or nothing of a run in it.
    """
    document = read_document(directory)
    return {
        "title": document.title,
        "kind": document.kind,
        "status": document.status,
        "going_on": document.going,
        "when": document.when,
        "numbers": [dataclasses.asdict(key) for key in document.keys],
        "sections": {section.key: [_plain(block) for block in section.blocks] for section in document.sections},
    }


def _lines(block: Block, width: int) -> list[str]:
    if isinstance(block, Text):
        return [line for part in block.text.splitlines() for line in textwrap.wrap(part, width, break_long_words=False)]
    if isinstance(block, Facts):
        longest = max((len(name) for name, _ in block.pairs), default=0)
        return [line for name, value in block.pairs for line in _hanging(f"{name:<{longest}}  ", value, width)]
    if isinstance(block, Notice):
        lines = _hanging(f"{SIGNS[block.level]:<3}", f"{block.title}. {block.text}", width)
        return lines + (_hanging("   → ", block.remedy, width) if block.remedy else [])
    if isinstance(block, Figure):
        return _hanging("", f"{block.title}: {block.summary}", width)
    if isinstance(block, Gallery):
        return [block.caption + (": see the page" if block.cards else "")]
    return _table(block)


def _hanging(start: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
    ) or [start.rstrip()]


def _table(table: Table) -> list[str]:
    rows = [table.header, *table.rows[:MOST_ROWS]]
    rows = [[" ".join(cell.split())[:60] for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(table.header))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = len(table.rows) - MOST_ROWS
    return [table.caption + ":", *(f"  {line}" for line in lines), *([f"  … and {left} more"] if left > 0 else [])]


def _plain(block: Block) -> dict[str, Any]:
    if isinstance(block, Figure):
        return {
            "kind": "figure",
            "title": block.title,
            "summary": block.summary,
            "header": block.data.header,
            "rows": block.data.rows,
        }
    if isinstance(block, Gallery):
        return {
            "kind": "gallery",
            "examples": [{"title": card.title, "facts": dict(card.facts), "mark": card.mark} for card in block.cards],
        }
    if isinstance(block, Facts):
        return {"kind": "facts", "pairs": [list(pair) for pair in block.pairs]}
    return dataclasses.asdict(block)
