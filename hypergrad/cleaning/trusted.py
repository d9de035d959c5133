"""The trusted part: examples with right labels, split off or read beside the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, final

import numpy as np

from hypergrad.cleaning.examples import Examples
from hypergrad.cleaning.reading import Embedding, Reading, open_source
from hypergrad.cleaning.reading.options import listed
from hypergrad.cleaning.reading.source import Rows, Source
from hypergrad.errors import InputError
from hypergrad.settings import check_count


@final
@dataclass(frozen=True)
class Parts:
    """What :func:`read_parts` returns.

    Attributes:
        train: the examples that are cleaned.
        trusted: the examples whose labels are trusted, encoded like the training part. Their ``index`` is the row in
            the same input where they were split off, and the row in their own otherwise.
        split_off: whether the trusted part was split off the input, so that it is right by assumption only.
        test: examples with right labels for measuring only, encoded like the training part.
    """

    train: Examples
    trusted: Examples
    split_off: bool
    test: Examples | None = None


def read_parts(
    path: str | Path,
    trusted: float | str | Path | None = None,
    reading: Reading | None = None,
    *,
    test: str | Path | None = None,
    seed: int = 0,
    embed: Embedding | None = None,
) -> Parts:
    """Return the examples of an input, and those whose labels are trusted.

    Encoders (means, deviations, categories, words) are fitted on the training part only.

    Args:
        path: the file or folder; see :func:`~hypergrad.cleaning.reading.read`.
        trusted: the share of the examples of each class that is split off at random, above 0 and at most 0.5; these are
            right by assumption only, and the pipeline estimates how right they are. Or a file or folder with trusted
            examples, with the same columns. By default the arrays X_trusted and y_trusted of an archive.
        reading: how all are read.
        test: a file or folder with right labels, with the same columns, for measuring only.
        seed: of the split, at least 0.
        embed: what makes numbers of texts.

    Raises:
        InputError: as :func:`~hypergrad.cleaning.reading.read` says; no trusted part, a share out of range, a class of
            the trusted part that the training part does not have.
        MissingDependencyError: a package that this input needs is not installed.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from hypergrad.cleaning.trusted import read_parts
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "points.npz"
        >>> np.savez(path, X=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
        >>> parts = read_parts(path, 0.2)
        >>> len(parts.train), len(parts.trusted), parts.trusted.labels.bincount().tolist()
        (16, 4, [2, 2])
    """
    check_count("read_parts", "seed", seed, least=0)
    reading = reading or Reading()
    share = _share(trusted)
    source = open_source(path, reading, embed=embed)
    classes = source.classes()
    other: Source | None = source
    if share is not None:
        own, kept = _split(source, share, seed)
    else:
        other = source.trusted if trusted is None else open_source(str(trusted), reading, like=source, embed=embed)
        own, kept = np.arange(len(source)), np.arange(len(other) if other is not None else 0)
    if other is None or not len(kept):
        raise InputError(
            passed=f"{path} without a trusted part",
            expected="examples with labels that are known to be right, for about a tenth of the number",
            do="pass trusted='FILE' (--trusted FILE), or trusted=0.1 (--trusted 0.1) to take a tenth of this input, if "
            "most of its labels are right",
        )
    encoder, remarks = source.features.fit(own)
    train = source.encode(encoder, own, classes, source.notes + remarks)
    right = other.encode(encoder, kept, classes)
    notes = [*train.notes, *_notes(train, right, share)]
    measured = None
    if test is not None:
        last = open_source(test, reading, like=source, embed=embed)
        measured = last.encode(encoder, np.arange(len(last)), classes)
    return Parts(replace(train, notes=tuple(notes)), right, share is not None, measured)


def _share(trusted: Any) -> float | None:
    """Return the share that is to be split off, or ``None`` where there is a file."""
    if isinstance(trusted, str):
        try:
            trusted = float(trusted)
        except ValueError:
            return None
    if trusted is None or isinstance(trusted, Path):
        return None
    if isinstance(trusted, Real) and not isinstance(trusted, bool) and 0 < float(trusted) <= 0.5:
        return float(trusted)
    raise InputError(
        passed=f"trusted={trusted!r}",
        expected="a share of the examples, above 0 and at most 0.5, or a file or folder",
        do="pass trusted=0.1 (--trusted 0.1) for a tenth",
    )


def _split(source: Source, share: float, seed: int) -> tuple[Rows, Rows]:
    """Return the rows that stay and those that are split off: of each class its share, and at least one of both."""
    generator = np.random.default_rng(seed)
    labels = np.array(source.labels, dtype=object)
    taken = []
    for name in sorted(set(source.labels)):
        rows = generator.permutation(np.flatnonzero(labels == name))
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        taken.append(rows[:count])
    trusted = np.sort(np.concatenate(taken)).astype(np.int64)
    return np.setdiff1d(np.arange(len(source)), trusted), trusted


def _notes(train: Examples, right: Examples, share: float | None) -> list[str]:
    notes = []
    if share is not None:
        notes.append(
            f"{len(right):,} examples were split off as the trusted part: their labels are right by assumption only, "
            "since nobody looked at them"
        )
    present = set(right.labels.tolist())
    missing = [name for number, name in enumerate(train.classes) if number not in present]
    if missing:
        notes.append(
            f"no trusted example of {len(missing)} classes, whose examples nothing can vouch for: {listed(missing)}"
        )
    return notes
