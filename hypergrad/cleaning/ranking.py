"""From scores to a judgement: weights, ranks, the guard of the classes, stability over seeds, detection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

PAIRED = 5000
"""Examples on which rankings of two seeds are compared."""


@final
@dataclass(frozen=True)
class Guarded:
    """Scores that leave enough of every class.

    Attributes:
        score: of each example.
        acted: number of the class → by how much the scores of its examples were raised.
    """

    score: Tensor
    acted: dict[int, float]


def level_of(score: Tensor, threshold: float | None) -> float:
    """Return the score below which an example is suspicious.

    Args:
        score: logits of the weights, of shape (n,).
        threshold: a weight, or ``None`` for the score that splits the scores into the two groups with the smallest
            variances within (Otsu, 1979), at most 0. Scores beyond ±8 count as ±8.
    """
    if threshold is not None:
        return math.log(threshold) - math.log1p(-threshold)
    ordered = score.double().clamp(-8, 8).sort().values
    count = torch.arange(1, len(ordered), dtype=torch.float64)
    left, right = ordered.cumsum(0)[:-1], ordered.flip(0).cumsum(0).flip(0)[1:]
    apart = count * (len(ordered) - count) * (left / count - right / (len(ordered) - count)).square()
    if not len(apart) or not float(apart.max()) > 0:
        return 0.0
    place = int(apart.argmax())
    return min(0.0, float((ordered[place] + ordered[place + 1]) / 2))


def guard(score: Tensor, labels: Tensor, classes: int, *, level: float, most_lost: float) -> Guarded:
    """Raise the scores of whole classes, each by one number, until no class loses too much.

    A class loses its examples below the level, and the weight that is missing to that of the start, 1/2 for each
    example. The order within a class stays.

    Args:
        score: logits of the weights, of shape (n,).
        labels: given classes, of shape (n,).
        classes: number of classes.
        level: score below which an example is suspicious.
        most_lost: largest share that a class may lose of either.
    """
    acted, guarded = dict[int, float](), score.clone()
    for number in range(classes):
        rows = (labels == number).nonzero()[:, 0]
        if not len(rows):
            continue
        own = score[rows].double()
        may_go = math.floor(most_lost * len(rows) + 1e-9)
        raised = 0.0
        if int((own < level).sum()) > may_go:
            raised = level - float(own.sort().values[may_go])
        least = (1 - most_lost) / 2
        if float((own + raised).sigmoid().mean()) < least:
            raised = max(raised, _shift(own, least))
        if raised > 0:
            guarded[rows] = torch.maximum(own + raised, own).to(score.dtype)
            kept = rows[own >= own.sort().values[may_go]] if may_go < len(rows) else rows[:0]
            floor = torch.tensor(level, dtype=score.dtype)
            guarded[kept] = torch.maximum(guarded[kept], floor)  # rounding
            acted[number] = raised
    return Guarded(guarded, acted)


def _shift(own: Tensor, least: float) -> float:
    """Return the number to add to scores so that the mean weight is ``least``, by bisection."""
    low, high = 0.0, 1.0
    while float((own + high).sigmoid().mean()) < least:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((own + middle).sigmoid().mean()) < least else (low, middle)
    return high


def ranks(score: Tensor) -> Tensor:
    """Return the place of each example, 1 for the most suspicious one; equal scores rank by row."""
    found = torch.empty(len(score), dtype=torch.long)
    found[score.argsort(stable=True)] = torch.arange(1, len(score) + 1)
    return found


def agreement(scores: Sequence[Tensor], suspicious: Tensor, level: float) -> Tensor:
    """Return for each example the share of seeds that judge it as all seeds together do.

    Args:
        scores: of each seed.
        suspicious: the judgement.
        level: score below which a seed finds an example suspicious.
    """
    return torch.stack([(score < level) == suspicious for score in scores]).double().mean(dim=0)


def compare(scores: Sequence[Tensor], stability: Tensor, suspicious: Tensor, seed: int) -> dict[str, Any]:
    """Return how alike the rankings of several seeds are.

    Spearman's and Kendall's rank correlations are means over pairs of seeds, on at most 5,000 examples that the seed
    draws; ``None`` for one seed, or for scores that are all the same.
    """
    found: dict[str, Any] = {
        "seeds": len(scores),
        "agreement": float(stability.mean()),
        "suspicious_in_all": int((suspicious & (stability == 1)).sum()),
        "spearman": None,
        "kendall": None,
    }
    if len(scores) < 2:
        return found
    from scipy.stats import kendalltau, spearmanr

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(stability), generator=generator)[:PAIRED]
    pairs = [(a[rows].numpy(), b[rows].numpy()) for a, b in combinations(scores, 2)]
    if all(np.ptp(one) > 0 for pair in pairs for one in pair):
        measures: dict[str, Any] = {"spearman": spearmanr, "kendall": kendalltau}
        found |= {name: fmean(float(measure(a, b)[0]) for a, b in pairs) for name, measure in measures.items()}
    return found


def detection(weight: Tensor, suspicious: Tensor, wrong: Tensor) -> dict[str, Any]:
    """Return how well wrong labels are found, where the truth is known.

    Args:
        weight: of each example.
        suspicious: which of them are flagged.
        wrong: which of the labels are wrong.

    Returns:
        ``precision``, ``recall`` and ``f1`` of the flags; ``auc``, the chance that a wrong label has the lower weight
        (``None`` where all labels are right, or all wrong); ``curve``, at most 101 pairs of recall and precision as
        the number of flags grows.
    """
    hits, flagged, all_wrong = int((suspicious & wrong).sum()), int(suspicious.sum()), int(wrong.sum())
    found: dict[str, Any] = {
        "precision": hits / flagged if flagged else 0.0,
        "recall": hits / all_wrong if all_wrong else 0.0,
        "f1": 2 * hits / (flagged + all_wrong) if flagged + all_wrong else 0.0,
        "auc": _auc(weight, wrong),
        "curve": [],
    }
    if all_wrong:
        order = weight.argsort(stable=True)
        caught = wrong[order].cumsum(0)
        places = torch.linspace(0, len(weight) - 1, min(101, len(weight))).round().long()
        found["curve"] = [
            [float(caught[place]) / all_wrong, float(caught[place]) / (place + 1)] for place in places.tolist()
        ]
    return found


def _auc(weight: Tensor, wrong: Tensor) -> float | None:
    from scipy.stats import rankdata

    bad = int(wrong.sum())
    good = len(wrong) - bad
    if not bad or not good:
        return None
    places = torch.from_numpy(rankdata(-weight.double().numpy()))
    return float((places[wrong].sum() - bad * (bad + 1) / 2) / (bad * good))


def histogram(weight: Tensor, suspicious: Tensor, wrong: Tensor | None) -> dict[str, Any]:
    """Return counts of weights in twenty bins from 0 to 1, of two kinds of examples."""
    edges = np.linspace(0, 1, 21)
    kinds = {"suspicious": suspicious, "kept": ~suspicious} if wrong is None else {"wrong": wrong, "right": ~wrong}
    counts = {name: np.histogram(weight[which].numpy(), edges)[0].tolist() for name, which in kinds.items()}
    return {"edges": edges.tolist(), **counts}
