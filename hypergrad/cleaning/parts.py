"""The parts of a cleaning: what is judged, what is trusted, what the accuracies are measured on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.cleaning.examples import Skipped
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.sources import Source, duplicates, fingerprints
from hypergrad.errors import DuplicateWarning, InputError, MissingClassWarning

FEW = 20
"""Examples below which an accuracy says nothing."""


@final
@dataclass(frozen=True)
class Parts:
    """The parts of a cleaning.

    Attributes:
        train: training examples that are judged.
        trusted: trusted examples that weights are tuned on.
        judge: examples for the accuracies, used for nothing else.
        judged_on: ``"test"`` or ``"held out of trusted"``.
        agreeing: rows of the input that are kept without being judged.
        skipped: training examples that are not judged.
        notes: what was noticed.
    """

    train: Source
    trusted: Source
    judge: Source | None
    judged_on: str
    agreeing: np.ndarray[Any, np.dtype[np.int64]]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Parts:
        """Return the parts with other inputs."""
        judge = None if self.judge is None else self.judge.mapped(function)
        return replace(self, train=self.train.mapped(function), trusted=self.trusted.mapped(function), judge=judge)

    def unjudged(self, train: Source) -> Tensor:
        """Return which training examples are of a class without a trusted example."""
        return ~torch.isin(train.labels, self.trusted.labels)

    def identity(self, settings: Settings, algorithm: object) -> str:
        """Return a digest of the data and of all settings but the number of seeds."""
        chosen = dataclasses.asdict(replace(settings, seeds=1, checkpoint_every=1))
        digest = hashlib.blake2b(json.dumps([chosen, settings.seeds > 1, repr(algorithm)]).encode(), digest_size=16)
        for source in (self.train, self.trusted):
            digest.update(source.labels.numpy().tobytes())
            for piece in fingerprints(source):
                digest.update(piece)
        return digest.hexdigest()


def divide(train: Source, trusted: Source, test: Source | None, settings: Settings) -> Parts:
    """Look for what does not belong, and hold examples out.

    Raises:
        InputError: one class only, in either part; or no training example that is not a trusted one.
    """
    for name, part in (("train", train), ("trusted", trusted)):
        found = part.labels.unique().tolist()
        if len(found) < 2:
            raise InputError(
                passed=f"{name} with one class only: {[part.classes[number] for number in found]}",
                expected="examples of at least two classes",
                do="check which column holds the label"
                if name == "train"
                else "pass trusted examples of every class, drawn at random",
            )
    notes: list[str] = []
    train, agreeing, skipped = _without_duplicates(train, trusted, notes)
    judge, judged_on = test, "test"
    if test is None:
        trusted, judge = _held_out(trusted, settings)
        judged_on = "held out of trusted"
        if judge is None:
            notes.append(
                "no accuracy was measured: there is no test set, and too few trusted examples to hold some out"
            )
    missing = sorted(set(train.labels.unique().tolist()) - set(trusted.labels.unique().tolist()))
    if missing:
        names = [train.classes[number] for number in missing]
        notes.append(f"the classes {names} have no trusted example: their training examples are kept unjudged")
        warnings.warn(MissingClassWarning(f"{notes[-1]}. Add trusted examples of these classes"), stacklevel=3)
    return Parts(train, trusted, judge, judged_on, agreeing, skipped, tuple(notes))


def _without_duplicates(
    train: Source, trusted: Source, notes: list[str]
) -> tuple[Source, np.ndarray[Any, np.dtype[np.int64]], tuple[Skipped, ...]]:
    doubles = duplicates(train, trusted)
    if not doubles:
        return train, np.empty(0, np.int64), ()
    agree = [row for row, place in doubles.items() if train.labels[row] == trusted.labels[place]]
    rest = torch.tensor([row for row in range(len(train)) if row not in doubles], dtype=torch.long)
    if len(rest.unique()) < 2:
        raise InputError(
            passed=f"train, of which {len(doubles)} of {len(train)} examples stand in trusted as well",
            expected="trusted examples that are not among the training examples",
            do="split the data into two parts first",
        )
    notes.append(
        f"{len(doubles)} training examples stand in the trusted part as well and are not judged: {len(agree)} with the "
        f"trusted label are kept, {len(doubles) - len(agree)} with another label are not"
    )
    warnings.warn(DuplicateWarning(notes[-1]), stacklevel=4)
    skipped = tuple(
        Skipped(str(int(train.index[row])), f"the same inputs as trusted row {int(trusted.index[place])}")
        for row, place in doubles.items()
    )
    return train.take(rest), train.index[np.asarray(agree, dtype=np.int64)], skipped


def _held_out(trusted: Source, settings: Settings) -> tuple[Source, Source | None]:
    """Put examples of every class aside; the last one of a class stays where the weights are tuned."""
    if not settings.held_out:
        return trusted, None
    seen = share_of_each_class(trusted.labels, 1 - settings.held_out, settings.seed + 3_000_000)
    aside = torch.ones(len(trusted), dtype=torch.bool)
    aside[seen] = False
    rows = aside.nonzero()[:, 0]
    return (trusted, None) if len(rows) < FEW else (trusted.take(seen), trusted.take(rows))


def share_of_each_class(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return rows, ascending: a random share of each class, rounded up.

    >>> share_of_each_class(torch.tensor([0, 0, 0, 0, 1]), 0.5, seed=0).shape
    torch.Size([3])
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in labels.unique().tolist():
        rows = (labels == number).nonzero()[:, 0]
        count = min(len(rows), -int(-share * len(rows) // 1))
        found.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(found).sort().values
