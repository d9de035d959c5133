"""Tables: which columns are features, what is wrong with them, and all their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from hypergrad.cleaning.examples import Skipped
from hypergrad.cleaning.reading.cells import LESS, Cells, Plan, left_out
from hypergrad.cleaning.reading.columns import Column, Role, Seen, numbers, texts
from hypergrad.cleaning.reading.labels import check_classes, named, printable
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Impute, Reading, listed
from hypergrad.cleaning.reading.source import Source
from hypergrad.cleaning.reading.text import Texts
from hypergrad.errors import InputError, did_you_mean

Chunk = dict[str, Column]


class Table(Protocol):
    """A file of columns that is read in pieces, as often as needed."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def dates(self) -> frozenset[str]:
        """Columns of dates."""
        ...

    @property
    def nested(self) -> frozenset[str]:
        """Columns of neither numbers nor text."""
        ...

    @property
    def coded(self) -> dict[str, list[str]]:
        """Columns of numbers that stand for names, and these names."""
        ...

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the cells of some columns, a few thousand rows at a time."""
        ...


def read_table(table: Table, reading: Reading, plan: Plan | None) -> Source:
    """Return the examples of a table.

    Args:
        table: what is read.
        reading: how.
        plan: of the table that this one belongs to, or ``None`` to make one.

    Raises:
        InputError: columns that are missing or hold something else than expected, missing values without ``impute``,
            labels that are no classes, no feature at all, or more than memory can hold.
    """
    label = _column(table, reading.label, "label")
    truth = None if reading.truth is None else _column(table, reading.truth, "truth")
    roles: dict[str, Role] = {}
    if plan is None:
        roles = {} if reading.text is not None else _roles(table, reading, [label, *([truth] if truth else [])])
        plan = Plan(
            tuple(name for name, role in roles.items() if role == "number"),
            tuple(name for name, role in roles.items() if role == "category"),
            None if reading.text is None else _column(table, reading.text, "text"),
        )
        if plan.text is None and not (plan.numeric or plan.categorical):
            raise InputError(
                passed=f"{table.name} without a usable feature: {' '.join(_remarks(roles))}",
                expected="columns of numbers or categories besides the label, or a text column",
                do="name the text column with text= (--text), or the columns with features= (--features)",
            )
    else:
        for name in (*plan.numeric, *plan.categorical, *([plan.text] if plan.text else [])):
            _column(table, name, "features")
    return _filled(table, reading, plan, label, truth, tuple(_remarks(roles)))


def _column(table: Table, name: str | None, setting: str) -> str:
    if name is None:
        raise InputError(
            passed=f"{table.name} without the name of its label column",
            expected=f"one of its columns: {listed(table.columns)}",
            do="pass label='…' (--label …)",
        )
    if name not in table.columns:
        raise InputError(
            passed=f"{setting}={name!r}, which is no column of {table.name}{did_you_mean(name, table.columns)}",
            expected=f"one of {listed(table.columns)}",
            do="check the spelling",
        )
    return name


def _roles(table: Table, reading: Reading, spoken_for: list[str]) -> dict[str, Role]:
    """Return what each column is good for."""
    wanted = None if reading.features is None else [_column(table, name, "features") for name in reading.features]
    seen = {name: Seen(name) for name in wanted or table.columns if name not in spoken_for}
    for name in seen.keys() & (table.nested | table.dates):
        seen[name].nested, seen[name].dates = name in table.nested, name in table.dates
    scanned = [name for name in seen if name not in table.nested]
    for chunk in table.chunks(scanned):
        for name in scanned:
            seen[name].look(chunk[name])
    roles: dict[str, Role] = {
        name: column.role(wanted=wanted is not None, categories=reading.categories) for name, column in seen.items()
    }
    used = [column for name, column in seen.items() if roles[name] in ("number", "category")]
    _check_holes(table, used, reading.impute)
    return roles


def _check_holes(table: Table, used: list[Seen], impute: Impute | None) -> None:
    for column in used:
        if column.infinite >= 0 and not column.odd:
            raise InputError(
                passed=f"{table.name} with an infinite number in the column {column.name!r}, row {column.infinite:,}",
                expected="finite numbers",
                do="correct or empty these cells, or leave the column out by naming the features",
            )
    holed = [column for column in used if column.missing]
    if holed and impute is None:
        where = "; ".join(
            f"{column.name!r}: {column.missing:,} rows, first {', '.join(f'{row:,}' for row in column.holes)}"
            for column in holed[:5]
        ) + (f"; {len(holed) - 5:,} more columns" if len(holed) > 5 else "")
        raise InputError(
            passed=f"{table.name} with missing values (NaN) in {len(holed):,} columns: {where}",
            expected="a value in each cell of the features",
            do="pass impute='median' (--impute median; categories get the most frequent one) or "
            "impute='most-frequent' (--impute most-frequent), or leave these columns out by naming the features",
        )


def _remarks(roles: dict[str, Role]) -> list[str]:
    why = {
        "constant": "constant",
        "id": "identifiers or row numbers, whose values hardly repeat",
        "text": "free text (pass it with --text to use it instead)",
        "date": "dates (turn them into numbers to use them)",
        "unreadable": "neither numbers nor text",
    }
    return [
        left_out(reason, [name for name, found in roles.items() if found == role])
        for role, reason in why.items()
        if role in roles.values()
    ]


def _filled(
    table: Table, reading: Reading, plan: Plan, label: str, truth: str | None, notes: tuple[str, ...]
) -> Source:
    """Read all cells that the plan asks for."""
    width, wide = len(plan.numeric), len(plan.categorical)
    check_fits(
        f"{table.name}, {table.rows:,} rows with {width + wide:,} columns", 16 * table.rows * (width + wide), LESS
    )
    cells, codes = np.empty((table.rows, width), np.float32), np.empty((table.rows, wide), np.int32)
    known: list[dict[str, int]] = [{} for _ in plan.categorical]
    labels: list[str | None] = []
    truths: list[str | None] = []
    found_texts: list[str | None] = []
    asked = dict.fromkeys([*plan.numeric, *plan.categorical, label, *filter(None, (truth, plan.text))])
    row = 0
    for chunk in table.chunks(list(asked)):
        until = row + len(chunk[label])
        if until > table.rows:
            break
        for column, name in enumerate(plan.numeric):
            cells[row:until, column] = _as_numbers(table, name, chunk[name], row, reading.impute)
        for column, name in enumerate(plan.categorical):
            codes[row:until, column] = _as_codes(known[column], chunk[name])
            _check_codes(table, name, codes[row:until, column], row, reading.impute)
        labels += _names(table, label, chunk[label])
        truths += _names(table, truth, chunk[truth]) if truth else []
        found_texts += texts(chunk[plan.text]) if plan.text else []
        row = until
    if row != table.rows or len(labels) != row:
        raise InputError(
            passed=f"{table.name}, which changed while it was read",
            expected="the same rows as at the start",
            do="try again when nothing writes to it",
        )
    features: Any = Cells(plan, cells, codes, tuple(map(tuple, known)), reading.impute, reading.categories)
    if plan.text:
        features = Texts([text or "" for text in found_texts], reading.vocabulary)
    reasons = {place: "no label" for place, name in enumerate(labels) if name is None}
    reasons |= {place: "no text" for place, text in enumerate(found_texts) if not text}
    source = _labelled(features, labels, truths, reasons, label, truth, table.coded.get(label, []))
    return Source(**source, kind="text" if plan.text else "table", plan=plan, notes=notes)


def _labelled(
    features: Any,
    labels: list[str | None],
    truths: list[str | None],
    reasons: dict[int, str],
    label: str,
    truth: str | None,
    order: list[str],
) -> dict[str, Any]:
    """Return what a source needs, without the rows that have no label."""
    kept = [row for row in range(len(labels)) if row not in reasons]
    names = [str(labels[row]) for row in kept]
    check_classes(names, label)
    right = None
    if truth:
        unknown = [row for row in kept if truths[row] is None]
        if unknown:
            raise InputError(
                passed=f"{len(unknown):,} rows without a value in the truth column {truth!r}, first row {unknown[0]:,}",
                expected="the right class of each example",
                do="fill the column in, or leave truth out",
            )
        right = [str(truths[row]) for row in kept]
    index = np.array(kept, np.int64)
    return {
        "features": features if not reasons else features.take(index),
        "labels": names,
        "truth": right,
        "index": index,
        "order": tuple(order),
        "skipped": tuple(Skipped(f"row {row}", reason) for row, reason in sorted(reasons.items())),
    }


def _names(table: Table, column: str | None, values: Column) -> list[str | None]:
    coded = table.coded.get(column or "")
    if coded is None:
        return named(values)
    return [printable(coded[int(v)]) if v is not None and 0 <= int(v) < len(coded) else None for v in values]


def _as_numbers(table: Table, name: str, values: Column, row: int, impute: Impute | None) -> Any:
    found = numbers(values)
    if found is None:
        raise InputError(
            passed=f"{table.name} with a text in the column {name!r}, in or after row {row:,}",
            expected="numbers, as in the input it belongs to",
            do="correct these cells",
        )
    with np.errstate(over="ignore"):
        short = found.astype(np.float32)
    bad = ~np.isfinite(short) if impute is None else np.isinf(short)
    if bad.any():
        raise InputError(
            passed=f"{table.name} with {found[bad][0]!r} in the column {name!r}, row {row + int(bad.argmax()):,}",
            expected="finite numbers below 3.4e38",
            do="correct these cells; for missing values pass impute='median' (--impute median)",
        )
    return short


def _as_codes(known: dict[str, int], values: Column) -> list[int]:
    return [-1 if text is None else known.setdefault(text, len(known)) for text in texts(values)]


def _check_codes(table: Table, name: str, codes: Any, row: int, impute: Impute | None) -> None:
    if impute is None and (codes < 0).any():
        raise InputError(
            passed=f"{table.name} with a missing value in the column {name!r}, row {row + int((codes < 0).argmax()):,}",
            expected="a category in each row",
            do="pass impute='most-frequent' (--impute most-frequent), or fill the cells in",
        )
