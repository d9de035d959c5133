"""How far the trusted part can be trusted: an estimate of its own noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.cleaning.models import scale_of
from hypergrad.cleaning.sources import Source
from hypergrad.cleaning.training import fit_linear

MOST = 2000
"""Examples of either part that the estimate looks at."""
PENALTY = 0.03
CREDIBLE = 0.15
"""Noise that is certainly there before the trusted part is called noisy: hard classes look like some noise, too."""
ALIKE = 0.85
QUANTILE = 1.96


@final
@dataclass(frozen=True)
class Trust:
    """What is known about the noise of the trusted part.

    Attributes:
        examples: trusted examples that were passed.
        noise_estimate: share of wrong labels in it, from 0 to 1; ``None`` where it cannot be estimated.
        interval: of that share, with a confidence of 95 %.
        train_estimate: the same estimate for the training examples.
        noisy: whether it seems to be as noisy as the training examples.
        note: what that means, in words.
    """

    examples: int
    noise_estimate: float | None
    interval: tuple[float, float] | None
    train_estimate: float | None
    noisy: bool
    note: str


def estimate_trust(train: Source, trusted: Source, *, folds: int, seed: int) -> Trust:
    """Estimate the noise of the trusted part.

    Softmax regression predicts each trusted example twice without having seen its label: trained on the rest of the
    trusted part, by cross-validation, and trained on the training examples. A label counts as wrong where the model
    is confident of another class: its probability is at least the average one that examples of that class have for
    it (Northcutt et al., 2021). The lower of the two shares is the estimate, the interval is Wilson's. The training
    examples are estimated likewise, with the roles exchanged. What looks wrong to a linear model may be a hard example:
    the estimate is an upper bound rather than a mean.

    The trusted part is called noisy if more than 15 % of it are surely wrong and its estimate is at least 0.85 times
    that of the training examples.

    Args:
        train: the training examples.
        trusted: the trusted ones.
        folds: parts of the cross-validation, at least 2.
        seed: of which examples are looked at, and of the parts.

    Cost: ``folds`` + 1 trainings of a linear model on at most 2,000 examples, twice.
    """
    total, classes = len(trusted), len(trusted.classes)
    if not trusted.fetch(torch.tensor([0])).is_floating_point() or total < 2 * folds or len(train) < 2 * folds:
        note = "its noise was not estimated: that takes numbers as inputs, and more examples"
        return Trust(total, None, None, None, noisy=False, note=note)
    inside, outside = (_sample(part, seed) for part in (trusted, train))
    scale = scale_of(outside[0], "columns" if train.kind == "table" else "whole")
    (x, y), (u, v) = ((scale(inputs).flatten(1), labels) for inputs, labels in (inside, outside))
    own, from_train = _crossed(x, y, classes, folds, seed), fit_linear(u, v, classes, PENALTY)(x)
    crossed, from_trusted = _crossed(u, v, classes, folds, seed), fit_linear(x, y, classes, PENALTY)(u)
    noise, judged = min(_confidently_wrong(own, y), _confidently_wrong(from_train, y))
    rest = min(_confidently_wrong(crossed, v), _confidently_wrong(from_trusted, v))[0]
    interval = wilson(noise, judged)
    noisy = interval[0] > CREDIBLE and noise >= ALIKE * rest
    return Trust(total, noise, interval, rest, noisy, _words(noise, interval, rest, noisy=noisy))


def _words(noise: float, interval: tuple[float, float], rest: float, *, noisy: bool) -> str:
    found = f"about {noise:.0%} of the trusted labels look wrong ({interval[0]:.0%} to {interval[1]:.0%})"
    if noisy:
        return f"{found}, as many as of the training labels ({rest:.0%}): it cannot tell right labels from wrong ones"
    return f"{found}, against {rest:.0%} of the training labels"


def _sample(source: Source, seed: int) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:MOST]
    return source.fetch(rows), source.labels[rows]


def _crossed(inputs: Tensor, labels: Tensor, classes: int, folds: int, seed: int) -> Tensor:
    """Return probabilities for each example by a model that was trained without its part."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))
    found = torch.zeros(len(labels), classes, dtype=inputs.dtype)
    for fold in range(folds):
        seen = torch.ones(len(labels), dtype=torch.bool)
        seen[order[fold::folds]] = False
        found[~seen] = fit_linear(inputs[seen], labels[seen], classes, PENALTY)(inputs[~seen])
    return found


def _confidently_wrong(probabilities: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the share of examples that confidently belong to another class, and of how many examples it is."""
    classes = probabilities.shape[1]
    average = torch.full((classes,), math.inf)
    for number in labels.unique().tolist():
        average[number] = probabilities[labels == number, number].mean()
    confident = torch.where(probabilities >= average, probabilities, -1.0)
    judged = (confident >= 0).any(dim=1)
    wrong = (confident.argmax(dim=1) != labels) & judged
    return int(wrong.sum()) / max(1, int(judged.sum())), int(judged.sum())


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, with a confidence of 95 %.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if not count:
        return 0.0, 1.0
    squared = QUANTILE**2 / count
    centre = (share + squared / 2) / (1 + squared)
    half = QUANTILE * math.sqrt(share * (1 - share) / count + squared / count / 4) / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)
