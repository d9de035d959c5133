"""What was read but not yet turned into numbers, so that encoders are fitted on one part and used on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.cleaning.examples import Examples, Kind, Skipped
from hypergrad.errors import InputError, did_you_mean

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Encoder(Protocol):
    """Turns features into inputs, with what it learned from the rows it was fitted on."""

    def __call__(self, features: Any, rows: Rows) -> Tensor:
        """Return the inputs of some rows."""
        ...


class Features(Protocol):
    """The features of all rows of an input, as they were read."""

    def fit(self, rows: Rows) -> tuple[Encoder, tuple[str, ...]]:
        """Return the encoder that these rows call for, and remarks on it."""
        ...

    def show(self, row: int) -> dict[str, Any]:
        """Return what a person would look at."""
        ...


@final
@dataclass(frozen=True)
class Source:
    """Labelled examples as they were read.

    Attributes:
        features: their features.
        labels: the name of each example's class.
        index: row of each example in the input.
        kind: what the examples are.
        truth: the name of each example's right class, where it is known.
        order: the classes in the order the input gives them; sorted by default.
        plan: how the features were understood, for another input that must be read in the same way.
        trusted: trusted examples that the input carries itself.
        skipped: inputs that were left out.
        notes: what a user should hear about.
    """

    features: Features
    labels: list[str]
    index: Rows
    kind: Kind
    truth: list[str] | None = None
    order: tuple[str, ...] = ()
    plan: Any = None
    trusted: Source | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def classes(self) -> tuple[str, ...]:
        """Return the classes that occur: in the input's own order, else numbers by size and names by alphabet."""
        found = set(self.labels) | set(self.truth or ())
        if set(self.order) >= found:
            return tuple(name for name in self.order if name in found)
        return tuple(sorted(found, key=_numbers_first))

    def encode(self, encoder: Encoder, rows: Rows, classes: tuple[str, ...], notes: tuple[str, ...] = ()) -> Examples:
        """Return some rows as examples."""
        kept = rows.tolist()
        show = self.features.show
        return Examples(
            inputs=encoder(self.features, rows),
            labels=_numbered([self.labels[row] for row in kept], classes),
            classes=classes,
            index=self.index[rows],
            kind=self.kind,
            truth=None if self.truth is None else _numbered([self.truth[row] for row in kept], classes),
            preview=lambda row: show(kept[row]),
            skipped=self.skipped,
            notes=notes,
        )

    def everything(self) -> Examples:
        """Return all rows, encoded by what they call for themselves."""
        rows = np.arange(len(self))
        encoder, remarks = self.features.fit(rows)
        return self.encode(encoder, rows, self.classes(), self.notes + remarks)


def _numbers_first(name: str) -> tuple[int, float, str]:
    try:
        number = float(name)
    except ValueError:
        return 1, 0.0, name
    return 0, number, name


def _numbered(names: list[str], classes: tuple[str, ...]) -> Tensor:
    number = {name: position for position, name in enumerate(classes)}
    unknown = next((name for name in names if name not in number), None)
    if unknown is not None:
        raise InputError(
            passed=f"an example of the class {unknown!r}{did_you_mean(unknown, classes)}",
            expected=f"one of the {len(classes)} classes of the training part: {list(classes[:20])}",
            do="correct this label, or give the training part examples of this class",
        )
    return torch.tensor([number[name] for name in names], dtype=torch.int64)
