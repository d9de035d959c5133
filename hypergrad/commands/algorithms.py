"""``hypergrad algorithms``: the catalogue, with needs and cost."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, final

from hypergrad.commands.fields import positional
from hypergrad.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from hypergrad.commands.catalogue import Entry

GAP = "  "
NARROWEST = 60
"""Columns of text; a narrower terminal wraps the lines itself."""


@final
@dataclass(frozen=True)
class Algorithms:
    """Show every algorithm with what it needs and what it costs; with a name, all about that one.

    Order is the highest order of derivative of the inner objective. A product is one reverse pass through the graph
    of the inner gradient.

    Attributes:
        name: an algorithm to show alone.
        needs: keep those whose needs contain this text, in capitals or not.
        order: keep those that take inner derivatives of this order at most.
        json: print JSON.

    Example:
        $ hypergrad algorithms
        $ hypergrad algorithms SOBA
        $ hypergrad algorithms --order 1 --needs "first derivatives" --json
    """

    name: str | None = positional(None)
    needs: str | None = None
    order: Literal[0, 1, 2] | None = None
    json: bool = False

    def __call__(self) -> int:
        """Print it, and return the exit status."""
        from hypergrad.commands.catalogue import details, entries

        known = entries()
        if self.name is not None:
            entry = _named(self.name, known)
            more = details(entry.name)
            sys.stdout.write(_json({**dataclasses.asdict(entry), **more}) if self.json else _page(entry, more))
            return 0
        kept = [entry for entry in known if self._keeps(entry)]
        if not kept:
            raise InputError(
                passed=f"{len(known)} algorithms, of which none has needs with {self.needs!r}"
                + (f" and order {self.order} at most" if self.order is not None else ""),
                expected="words of the column needs",
                do="see hypergrad algorithms",
            )
        sys.stdout.write(_json([dataclasses.asdict(entry) for entry in kept]) if self.json else _table(kept))
        return 0

    def _keeps(self, entry: Entry) -> bool:
        fits = self.needs is None or self.needs.lower() in entry.needs.lower()
        return fits and (self.order is None or entry.order <= self.order)


def _named(name: str, known: Iterable[Entry]) -> Entry:
    by_name = {entry.name.lower(): entry for entry in known}
    if name.lower() not in by_name:
        near = did_you_mean(name.lower(), by_name)
        for lower, entry in by_name.items():
            near = near.replace(repr(lower), repr(entry.name))
        raise InputError(
            passed=f"the algorithm {name!r}{near}",
            expected=f"one of {', '.join(entry.name for entry in by_name.values())}",
            do="see hypergrad algorithms",
        )
    return by_name[name.lower()]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _width() -> int:
    return max(shutil.get_terminal_size((100, 24)).columns, NARROWEST)


def _table(kept: list[Entry]) -> str:
    first = max(len(entry.name) for entry in kept)
    rest = _width() - first - len("order") - 3 * len(GAP)
    widths = (first, len("order"), rest // 2, rest - rest // 2)
    rows = [("name", "order", "needs", "cost")]
    rows += [(entry.name, str(entry.order), entry.needs, entry.cost) for entry in kept]
    lines = [line for row in rows for line in _wrapped(row, widths)]
    return "\n".join(lines) + "\n"


def _wrapped(row: tuple[str, ...], widths: tuple[int, ...]) -> Iterator[str]:
    cells = [textwrap.wrap(text, width) for text, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=""):
        yield GAP.join(f"{part:<{width}}" for part, width in zip(parts, widths, strict=True)).rstrip()


def _page(entry: Entry, more: dict[str, str]) -> str:
    traits = {name: str(getattr(entry, name)) for name in ("exact", "stochastic", "order", "cost", "needs")}
    told = {**traits, "source": more["source"]}
    indent = max(map(len, told)) + len(GAP)
    lines = [
        textwrap.fill(f"{name + ':':<{indent}}{text}", _width(), subsequent_indent=" " * indent)
        for name, text in told.items()
        if text
    ]
    return "\n".join([more["signature"], "", more["text"], "", *lines]) + "\n"
