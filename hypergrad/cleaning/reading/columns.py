"""What the columns of a table hold: numbers, categories, or something that is no feature."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from hypergrad.cleaning.reading.labels import DATE, as_text
from hypergrad.errors import InputError

Role = Literal["number", "category", "constant", "id", "text", "date", "unreadable"]
Numbers = np.ndarray[Any, np.dtype[np.float64]]
Column = Sequence[Any] | Numbers
"""Cells of a column: numbers as an array, NaN where one is missing, or whatever stood there."""

MISSING = frozenset(
    {"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "NaT", "None", "?", "-nan"}
)
"""Cells that hold no value, among the features."""
MOST_COUNTED = 10_000
"""Different texts of a column that are counted; a column with more of them holds no categories."""
COUNTED = 20
"""Rows from which on a column that grows by one each is taken for the number of the row."""
WORDS = 4
"""Mean number of words from which on a column is taken for text."""
LIKE_AN_ID = re.compile(
    r"(?i)(.*[_\s-])?(id|idx|index|key|uuid|guid|row|rownum|nr)|unnamed.*|\(column \d+\)|\w*[a-z]Id"
)


def numbers(values: Column) -> Numbers | None:
    """Return the numbers that cells hold, NaN for missing ones, or ``None`` if a cell holds something else."""
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except (TypeError, ValueError):
        pass
    try:
        return np.array([math.nan if _is_missing(v) else float(v) for v in values], np.float64)
    except (TypeError, ValueError):
        return None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in MISSING)


def texts(values: Column) -> list[str | None]:
    """Return what cells hold as stripped text, ``None`` for missing ones."""
    found = []
    for value in values:
        text = as_text(value)
        text = None if text is None else text.strip()
        found.append(None if text is None or text in MISSING else text)
    return found


@final
@dataclass
class Seen:
    """What was seen of one column so far.

    Attributes:
        name: of the column.
        rows: cells seen.
        missing: cells without a value.
        holes: the first few rows without a value.
        infinite: the first row with an infinite number, or −1.
        odd: cells that are no number.
        first_odd: the first of these with its row.
        low: smallest number.
        high: largest number.
        whole: whether all numbers are whole.
        rising: whether each number is larger than the one before.
        steps: whether each is larger by one.
        last: the last number.
        counts: how often each text occurs, or ``None`` where there are too many.
        words: spaces within all texts, and the number of texts.
        nested: whether the cells hold something that is neither a number nor a text.
        dates: whether the cells are dates.
    """

    name: str
    rows: int = 0
    missing: int = 0
    holes: list[int] = field(default_factory=list)
    infinite: int = -1
    odd: int = 0
    first_odd: tuple[int, str] = (-1, "")
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    rising: bool = True
    steps: bool = True
    last: float = math.nan
    counts: Counter[str] | None = field(default_factory=Counter)
    words: int = 0
    nested: bool = False
    dates: bool = False

    def look(self, values: Column) -> None:
        """Take more cells into account."""
        found = numbers(values)
        if found is None:
            found = self._look_at_mixed(texts(values))
        else:
            if self.counts is not None and not isinstance(values, np.ndarray):
                self._count(texts(values))
            self._note_holes(np.flatnonzero(np.isnan(found)))
        self._look_at_numbers(found)
        self.rows += len(values)

    def _count(self, found: list[str | None]) -> None:
        present = [text for text in found if text is not None]
        self.words += sum(text.count(" ") + 1 for text in present)
        if self.counts is not None:
            self.counts.update(present)
            if len(self.counts) > MOST_COUNTED:
                self.counts = None

    def _look_at_mixed(self, found: list[str | None]) -> Numbers:
        """Take cells into account of which some are no numbers, and return the numbers, NaN for the others."""
        self._count(found)
        self._note_holes(np.array([row for row, text in enumerate(found) if text is None], np.int64))
        known: dict[str | None, float] = {text: _number(text) for text in set(found)}
        values = np.array([known[text] for text in found], np.float64)
        odd = [row for row in np.flatnonzero(np.isnan(values)).tolist() if found[row] is not None]
        if odd and not self.odd:
            self.first_odd = (self.rows + odd[0], str(found[odd[0]]))
        self.odd += len(odd)
        return values

    def _look_at_numbers(self, found: Numbers) -> None:
        if self.infinite < 0 and np.isinf(found).any():
            self.infinite = self.rows + int(np.argmax(np.isinf(found)))
        present = found[np.isfinite(found)]
        if not len(present):
            return
        self.low, self.high = min(self.low, float(present.min())), max(self.high, float(present.max()))
        self.whole = self.whole and bool((present == np.floor(present)).all())
        steps = np.diff(present, prepend=self.last)
        steps = steps[1:] if math.isnan(self.last) else steps
        self.rising = self.rising and bool((steps > 0).all())
        self.steps = self.steps and bool((steps == 1).all())
        self.last = float(present[-1])

    def _note_holes(self, rows: np.ndarray[Any, Any]) -> None:
        self.missing += len(rows)
        self.holes += [self.rows + int(row) for row in rows[: 5 - len(self.holes)]]

    def role(self, *, wanted: bool, categories: int) -> Role:
        """Return what the column is good for.

        Args:
            wanted: whether the user asked for this column by name.
            categories: different texts up to which a column holds categories without doubt.
        """
        present = self.rows - self.missing
        if self.nested:
            return "unreadable"
        if self.dates:
            return "date"
        if not present:
            return "constant"
        return self._number_role(wanted) if not self.odd else self._text_role(wanted, present, categories)

    def _number_role(self, wanted: bool) -> Role:
        if self.low == self.high:
            return "constant"
        counting = self.whole and not self.missing and not wanted
        if counting and ((self.steps and self.rows >= COUNTED) or (self.rising and LIKE_AN_ID.fullmatch(self.name))):
            return "id"
        return "number"

    def _text_role(self, wanted: bool, present: int, categories: int) -> Role:
        numeric = present - self.odd
        if self.odd <= 0.1 * present and numeric > MOST_COUNTED / 100:
            row, text = self.first_odd
            raise InputError(
                passed=f"the column {self.name!r}, which holds numbers in {numeric:,} rows and something else in "
                f"{self.odd:,}, first {text[:40]!r} in row {row:,}",
                expected="numbers only, or categories only",
                do="correct these cells, empty them and pass impute='median' (--impute median), or leave the column "
                "out by naming the features",
            )
        distinct = math.inf if self.counts is None else len(self.counts)
        if distinct == 1:
            return "constant"
        if self.counts is not None and all(DATE.fullmatch(text) for text in list(self.counts)[:50]):
            return "date"
        if distinct <= min(categories, max(2, present // 2)):
            return "category"
        if self.words >= WORDS * present and distinct > 0.2 * present:
            return "text"
        if distinct > 0.5 * present or self.counts is None:
            return "category" if wanted and self.counts is not None else "id"
        return "category"


def _number(value: Any) -> float:
    """Return the number in a cell, NaN where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
