"""Data sets with right labels, split into three parts, and wrong labels put into the first."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from benchmarks.papers.datasets import texts
from hypergrad.cleaning import noise
from hypergrad.cleaning.baselines import softmax_regression
from hypergrad.cleaning.examples import Examples, Kind
from hypergrad.cleaning.models import scale_of
from hypergrad.demo.data import load
from hypergrad.errors import InputError, MissingDependencyError

NAMES = ("fashion", "mnist", "newsgroups", "adult")
NOISES = ("uniform", "class", "instance")
WHEEL = "mglearn-0.2.0-py2.py3-none-any.whl"
MEMBER = "mglearn/data/adult.data"
MAX_BYTES = 2**24
NUMBERS = (0, 2, 4, 10, 11, 12)
"""Columns of Adult that hold numbers; those of capital are counted in logarithms."""
SKEWED = (10, 11)
WEAK = 10
"""The model whose doubts make the noise that depends on the instance sees every tenth training example."""


@final
@dataclass(frozen=True)
class Parts:
    """One split.

    Attributes:
        train: examples of which some labels are wrong; their truth is known.
        trusted: with right labels.
        test: with right labels, for accuracies only.
    """

    train: Examples
    trusted: Examples
    test: Examples

    @property
    def wrong(self) -> Tensor:
        """Return which of the training labels are wrong."""
        assert self.train.truth is not None
        return self.train.labels != self.train.truth


def draw(name: str, kind: str, rate: float, sizes: tuple[int, int, int], seed: int, words: int = 2000) -> Parts:
    """Return a random split with wrong labels in its first part.

    Args:
        name: one of ``NAMES``.
        kind: ``"uniform"``, ``"class"`` (each class becomes the next one) or ``"instance"`` (the second guess of
            softmax regression on a tenth of the examples, the more often the less it believes in the right class).
        rate: share of wrong labels, exactly.
        sizes: examples of the three parts.
        seed: of the split and the noise.
        words: of the tf-idf features, the most frequent ones of the training part.
    """
    inputs, labels, classes = _read(name)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: sum(sizes)]
    rows = order.split(sizes)
    features = _tfidf(inputs, rows, words) if name == "newsgroups" else [inputs[part].float() for part in rows]
    right = labels[rows[0]]
    given = _noisy(kind, features[0], right, classes, rate, seed)
    names = tuple(str(number) for number in range(classes))
    origin: Kind = {"newsgroups": "text", "adult": "table"}.get(name, "image")  # type: ignore[assignment]
    train, trusted, test = (
        Examples(part, given if number == 0 else labels[rows[number]], names, kind=origin, truth=labels[rows[number]])
        for number, part in enumerate(features)
    )
    return Parts(train, trusted, test)


def _noisy(kind: str, inputs: Tensor, right: Tensor, classes: int, rate: float, seed: int) -> Tensor:
    if kind == "uniform":
        return noise.uniform(right, classes, rate, seed=seed).labels
    if kind == "class":
        return noise.confused(right, classes, rate, seed=seed).labels
    if kind != "instance":
        raise InputError(passed=f"the noise {kind!r}", expected=f"one of {list(NOISES)}", do="pick one of these")
    scaled = scale_of(inputs, "whole")(inputs)
    guess = softmax_regression(classes, penalty=0.01, steps=50)(scaled[::WEAK], right[::WEAK])(scaled)
    return noise.unsure(right, guess, rate, seed=seed).labels


def _tfidf(documents: Any, rows: tuple[Tensor, ...], words: int) -> list[Tensor]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    kind: Any = np.float32  # float64 in the stubs, any in the library
    vectorizer = TfidfVectorizer(max_features=words, sublinear_tf=True, min_df=2, dtype=kind)
    vectorizer.fit([documents[row] for row in rows[0].tolist()])
    return [
        torch.from_numpy(vectorizer.transform([documents[row] for row in part.tolist()]).toarray()) for part in rows
    ]


@cache
def _read(name: str) -> tuple[Any, Tensor, int]:
    """Return inputs (documents for text), right labels and the number of classes."""
    if name in ("fashion", "mnist"):
        images, labels = load(name)
        return images, labels, 10
    if name == "newsgroups":
        first, second, classes = texts("20newsgroups")
        return first.documents + second.documents, torch.cat([first.labels, second.labels]), len(classes)
    if name == "adult":
        return (*adult(), 2)
    raise InputError(passed=f"the data set {name!r}", expected=f"one of {list(NAMES)}", do="pick one of these")


def adult(root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return the census table as numbers, one column for each value of a category, and whether incomes are above 50K.

    The file is read out of a wheel whose code is never imported.

    Args:
        root: folder with the wheel; the one that ``HYPERGRAD_DATA`` names where it is missing.

    Raises:
        MissingDependencyError: the wheel is not there.
    """
    folder = root or (Path(os.environ["HYPERGRAD_DATA"]) if os.environ.get("HYPERGRAD_DATA") else None)
    if folder is None or not (folder / WHEEL).is_file():
        raise MissingDependencyError(
            passed=f"{folder or 'no folder'}, without {WHEEL}",
            expected="that file in the folder root or in the one that HYPERGRAD_DATA names",
            do='pip download --no-deps mglearn==0.2.0 -d "$HYPERGRAD_DATA"',
        )
    with zipfile.ZipFile(folder / WHEEL) as archive, archive.open(MEMBER) as file:
        text = file.read(MAX_BYTES).decode()
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if len(row) == 15]
    columns = [_column([row[place] for row in rows], place) for place in range(14)]
    return torch.from_numpy(np.concatenate(columns, axis=1)), torch.tensor([row[14] == ">50K" for row in rows]).long()


def _column(values: list[str], place: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if place in NUMBERS:
        numbers = np.array(values, dtype=np.float32)[:, None]
        return np.log1p(numbers) if place in SKEWED else numbers
    kinds = sorted(set(values))
    return np.eye(len(kinds), dtype=np.float32)[[kinds.index(value) for value in values]]
