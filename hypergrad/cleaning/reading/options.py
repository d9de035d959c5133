"""What a reader is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypergrad.errors import InputError
from hypergrad.settings import check_choice, check_counts

Impute = Literal["median", "most-frequent"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How an input is read.

    Attributes:
        label: the column that holds the given classes; of an archive the array, "y" by default; of a saved data set the
            column of type ClassLabel by default. A folder of images needs none.
        text: the column of texts to learn from, in the place of all other columns.
        features: the columns to learn from, all that are numbers or categories by default; of an archive the array, "X"
            by default.
        truth: the column with the right classes where they are known, for scoring only.
        split: the split of a saved data set, "train" by default.
        impute: fills missing values of features in: "median" (the most frequent category), or "most-frequent".
        categories: categories of a column that have an input each, at least 1; rarer ones share one.
        vocabulary: most frequent words of a text column that are counted, at least 1.
        size: height and width that images are brought to; by default the one they have in common up to 64, else 32.
        separator: between the cells of a CSV file; found in its first line by default.
        encoding: of a CSV file; UTF-8 by default.

    Raises:
        InputError: a setting out of range, ``text`` together with ``features``, or one column in two places.
    """

    label: str | None = None
    text: str | None = None
    features: tuple[str, ...] | None = None
    truth: str | None = None
    split: str | None = None
    impute: Impute | None = None
    categories: int = 50
    vocabulary: int = 5000
    size: int | None = None
    separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.features, str):
            object.__setattr__(self, "features", (self.features,))
        elif self.features is not None:
            object.__setattr__(self, "features", tuple(self.features))
        check_counts(self, "categories", "vocabulary", "size")
        if self.impute is not None:
            check_choice(self, "impute", ("median", "most-frequent"))
        if self.text is not None and self.features is not None:
            raise InputError(
                passed=f"text={self.text!r} and features={list(self.features)}",
                expected="one of the two: a text column or feature columns",
                do="leave one of them out",
            )
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n\0'):
            raise InputError(
                passed=f"separator={self.separator!r}",
                expected="one character, such as ';'",
                do="leave it out to have it found",
            )
        self._check_columns()

    def _check_columns(self) -> None:
        named: list[str] = [name for name in (self.label, self.text, self.truth) if name is not None]
        named += self.features or ()
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise InputError(
                passed=f"the column {twice[0]!r} in two places: label={self.label!r}, truth={self.truth!r}, "
                f"text={self.text!r}, features={self.features and list(self.features)}",
                expected="another column for each",
                do="check the names; the label and the truth are no features",
            )


def check_unused(reading: Reading, path: Path, *names: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for settings that mean nothing for an input.

    Args:
        reading: the settings.
        path: the input.
        names: the settings that it has no use for.
    """
    for name in names:
        value = getattr(reading, name)
        if value is not None:
            raise InputError(
                passed=f"{name}={value!r} for {path.name}",
                expected=f"no {name}, which an input of this kind does not have",
                do=f"leave {name} (--{name}) out",
            )


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return names for a message: the first ones, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
