"""The cells of a table as inputs: numbers standardised, one input for each category."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.cleaning.reading.labels import printable
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Impute, listed
from hypergrad.cleaning.reading.source import Rows
from hypergrad.errors import InputError

SHOWN = 30
"""Columns of a preview."""
LESS = "name fewer columns with features= (--features), or read a part of the rows"


def left_out(reason: str, names: list[str]) -> str:
    """Return the remark that columns are not used."""
    return f"left out as {reason}: {listed([printable(name) for name in names])}."


@final
@dataclass(frozen=True)
class Plan:
    """How a table is understood: what another one must have to be read in the same way."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    text: str | None


@final
@dataclass(frozen=True)
class Encoded:
    """Encoder of a table.

    Attributes:
        numeric: the columns of numbers that vary, as positions.
        fill: what stands for a missing number.
        mean: subtracted from each number.
        scale: what the difference is divided by.
        categorical: for each column of categories the ones that have a column of their own.
        others: for each of these whether one more column stands for all other categories.
        common: for each of these what stands for a missing category.
    """

    numeric: Rows
    fill: np.ndarray[Any, np.dtype[np.float64]]
    mean: np.ndarray[Any, np.dtype[np.float64]]
    scale: np.ndarray[Any, np.dtype[np.float64]]
    categorical: tuple[tuple[str, ...], ...]
    others: tuple[bool, ...]
    common: tuple[str | None, ...]

    @property
    def width(self) -> int:
        """Number of inputs."""
        return len(self.numeric) + sum(map(len, self.categorical)) + sum(self.others)

    def __call__(self, features: Cells, rows: Rows) -> Tensor:
        """Return the inputs of some rows, of shape (rows, width)."""
        inputs = np.zeros((len(rows), self.width), np.float32)
        for place, column in enumerate(self.numeric):
            cells = features.numbers[rows, column].astype(np.float64)
            cells[np.isnan(cells)] = self.fill[place]
            inputs[:, place] = (cells - self.mean[place]) / self.scale[place]
        place = len(self.numeric)
        for column, (kept, other, common) in enumerate(zip(self.categorical, self.others, self.common, strict=True)):
            width = len(kept) + other
            position = {name: number for number, name in enumerate(kept)}
            spare = len(kept) if other else -1
            at = np.array([position.get(name, spare) for name in features.vocabulary[column]] + [-1], np.int64)
            at[-1] = -1 if common is None else position.get(common, spare)
            found = at[features.codes[rows, column]]  # −1, a missing cell, is the last entry
            known = np.flatnonzero(found >= 0)
            inputs[known, place + found[known]] = 1
            place += width
        return torch.from_numpy(inputs)


@final
@dataclass(frozen=True)
class Cells:
    """The features of a table, as numbers and as codes of categories; −1 is a missing category."""

    plan: Plan
    numbers: np.ndarray[Any, np.dtype[np.float32]]
    codes: np.ndarray[Any, np.dtype[np.int32]]
    vocabulary: tuple[tuple[str, ...], ...]
    impute: Impute | None
    categories: int

    def fit(self, rows: Rows) -> tuple[Encoded, tuple[str, ...]]:
        """Return the encoder that these rows call for, and remarks on it."""
        fill, mean, scale = (np.empty(self.numbers.shape[1]) for _ in range(3))
        for column in range(self.numbers.shape[1]):
            cells = self.numbers[rows, column].astype(np.float64)
            present = cells[~np.isnan(cells)]
            fill[column] = self._fill(present)
            cells[np.isnan(cells)] = fill[column]
            mean[column], scale[column] = cells.mean(), cells.std()
        varying = np.flatnonzero(scale > 1e-9 * np.maximum(np.abs(mean), 1e-30))
        remarks = (
            []
            if len(varying) == len(scale)
            else [
                left_out(
                    "constant in the training part",
                    [self.plan.numeric[c] for c in sorted({*range(len(scale))} - {*varying})],
                )
            ]
        )
        kept, others, common = [], [], []
        for column, name in enumerate(self.plan.categorical):
            counts = Counter(self.codes[rows, column].tolist())
            counts.pop(-1, None)
            names = {self.vocabulary[column][code]: count for code, count in counts.items()}
            order = sorted(names, key=lambda name: (-names[name], name))
            kept.append(tuple(sorted(order[: self.categories])))
            others.append(len(order) > self.categories)
            common.append(order[0] if order else None)
            if others[-1]:
                remarks.append(
                    f"of the {len(order):,} categories in {printable(name)!r} the {self.categories} most frequent "
                    "have an input each, the others one together (--categories)"
                )
        encoder = Encoded(
            varying, fill[varying], mean[varying], scale[varying], tuple(kept), tuple(others), tuple(common)
        )
        if not encoder.width:
            raise InputError(
                passed="a training part in which every feature is constant",
                expected="features that differ between examples",
                do="check which columns are read",
            )
        check_fits(
            f"{len(self.numbers):,} rows with {encoder.width:,} inputs",
            8 * len(self.numbers) * encoder.width,
            "lower categories= (--categories), or " + LESS,
        )
        return encoder, tuple(remarks)

    def _fill(self, present: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        if not len(present):
            return 0.0
        if self.impute == "most-frequent":
            values, counts = np.unique(present, return_counts=True)
            return float(values[counts.argmax()])
        return float(np.median(present)) if self.impute == "median" else 0.0

    def take(self, rows: Rows) -> Cells:
        """Return the features of some rows."""
        return replace(self, numbers=self.numbers[rows], codes=self.codes[rows])

    def show(self, row: int) -> dict[str, Any]:
        """Return the cells of a row, as they were read."""
        cells: dict[str, Any] = {}
        for name, number in zip(self.plan.numeric, self.numbers[row].tolist(), strict=True):
            cells[printable(name)] = None if math.isnan(number) else float(f"{number:.6g}")
        for name, code, known in zip(self.plan.categorical, self.codes[row].tolist(), self.vocabulary, strict=True):
            cells[printable(name)] = None if code < 0 else printable(known[code][:200])
        return {"row": dict(list(cells.items())[:SHOWN])}
