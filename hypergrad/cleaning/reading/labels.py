"""Names of classes, made of whatever stands in a label column."""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypergrad.cleaning.reading.options import listed
from hypergrad.errors import InputError

MISSING = frozenset({"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "NaT"})
"""Cells that hold no label. ``None`` and ``?`` may be the names of classes."""
MOST_CLASSES, LONGEST = 1000, 200
JOINERS = "\u200c\u200d"
WHOLE = re.compile(r"[+-]?\d+\.0*")
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./]\d\d?[./]\d{2,4}")


def name_of(value: Any) -> str | None:
    r"""Return the name of the class that a cell holds, or ``None`` where it holds none.

    Whole numbers that are written as fractions lose these, and characters that do not print are written as escapes.

    >>> [name_of(value) for value in (" cat ", "1.0", 0.0, True, None, "a\x1b[2J", b"dog")]
    ['cat', '1', '0', 'True', None, 'a\\x1b[2J', 'dog']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = str(value).strip()
    if text in MISSING:
        return None
    if WHOLE.fullmatch(text):
        text = text.partition(".")[0]
    return printable(text)


def printable(text: str) -> str:
    r"""Return a text in which characters that control a terminal or the order of writing are escapes.

    >>> printable("a\tb\u202e")
    'a\\tb\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(
        sign.encode("unicode_escape").decode("ascii")
        if unicodedata.category(sign)[0] == "C" and sign not in JOINERS
        else sign
        for sign in text
    )


def safe_cell(text: str) -> str:
    """Return a text as it may stand in a CSV file that is opened in a spreadsheet, which takes some texts for formulas.

    Texts that start with = + - @, a tab or a return get an apostrophe before them; numbers stay as they are.

    >>> [safe_cell(text) for text in ("=1+1", "@cmd", "-1.5", "cat")]
    ["'=1+1", "'@cmd", '-1.5', 'cat']
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def check_classes(names: Iterable[str], column: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` where a label column holds something other than classes."""
    counts = Counter(names)
    total, where = counts.total(), f"the label column {column!r}"
    examples = listed(sorted(counts)[:4], most=3)
    if len(counts) < 2:
        raise InputError(
            passed=f"{where} with " + (f"the one class {examples}" if counts else "no label at all"),
            expected="at least two classes",
            do="check which column holds the label",
        )
    longest = max(counts, key=len)
    if len(longest) > LONGEST:
        raise InputError(
            passed=f"{where} with a label of {len(longest):,} characters: {longest[:60]!r}…",
            expected=f"names of classes, of at most {LONGEST} characters",
            do="check which column holds the label",
        )
    if all(DATE.fullmatch(name) for name in counts):
        raise InputError(
            passed=f"{where} with dates: {examples}",
            expected="names of classes",
            do="check which column holds the label, or turn the dates into classes first",
        )
    fractions = [name for name in counts if _is_fraction(name)]
    if len(counts) > MOST_CLASSES or (total > 20 and len(counts) > total / 2) or len(fractions) > 20:
        raise InputError(
            passed=f"{where} with {len(counts):,} different values in {total:,} rows: {examples}",
            expected=f"names of classes, at most {MOST_CLASSES:,}, most of them for several rows",
            do="check which column holds the label; numbers that are measured have to be cut into classes first",
        )


def _is_fraction(name: str) -> bool:
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def as_text(value: Any) -> str | None:
    """Return a cell of a column that holds no numbers as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return value if isinstance(value, str) else str(value)


def named(values: Iterable[Any]) -> list[str | None]:
    """Return the names of many cells; equal cells are looked at once."""
    known: dict[Any, str | None] = {}
    found = []
    for value in values:
        key = (type(value), value)  # True, 1 and 1.0 are equal
        if key not in known:
            known[key] = name_of(value)
        found.append(known[key])
    return found
