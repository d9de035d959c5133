"""What is compared: each method flags examples of one split, and a model is trained on what it keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from benchmarks.cleaning.data import Parts
from hypergrad.cleaning import Settings, clean
from hypergrad.cleaning import baselines as others
from hypergrad.cleaning.models import scale_of
from hypergrad.cleaning.settings import Look

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""Of the models of the baselines: the one that does best on the trusted part, trained on all given labels."""


@final
@dataclass(frozen=True)
class Flagged:
    """What a method says.

    Attributes:
        flags: which training examples it holds for wrong.
        score: the higher, the more suspicious.
        seconds: CPU seconds that it took.
        weights: of the examples in the last training; 1 for what is not flagged and 0 for the rest if left out.
    """

    flags: Tensor
    score: Tensor
    seconds: float
    weights: Tensor | None = None


@final
class Clock:
    """CPU seconds of what runs inside :meth:`running`, added up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds += time.process_time() - began


def scaled(parts: Parts) -> Parts:
    """Return the parts with the inputs that the pipeline's own models see, so that all methods share them."""
    scale = scale_of(parts.train.inputs, "columns" if parts.train.kind == "table" else "whole")
    return Parts(*(replace(part, inputs=scale(part.inputs)) for part in (parts.train, parts.trusted, parts.test)))


def ours(raw: Parts, parts: Parts, settings: Settings) -> dict[str, Flagged]:
    """Flag by the pipeline as it is shipped, and by its tuned weights alone.

    Args:
        raw: with inputs as they were read.
        parts: with scaled inputs.
        settings: of the pipeline.
    """
    found: dict[str, Flagged] = {}
    looks: dict[str, Look] = {"hypergrad, weights alone": "off", "hypergrad": "auto"}
    for name, look in looks.items():
        clock = Clock()
        with clock.running():
            cleaned = clean(raw.train, raw.trusted, replace(settings, held_out=0.0, second_look=look))
        dropped = torch.ones(len(parts.wrong), dtype=torch.bool)
        dropped[torch.from_numpy(cleaned.kept)] = False
        weight = (~dropped).double()  # of examples that stand in the trusted part as well, which are not judged
        weight[torch.from_numpy(cleaned.index)] = torch.from_numpy(cleaned.weight)
        counted = (~dropped).float()
        counted[torch.from_numpy(cleaned.index)] = torch.from_numpy(cleaned.counted).float()
        found[name] = Flagged(dropped, -weight, clock.seconds, weights=counted)
    return found


def baselines(parts: Parts, *, seed: int) -> dict[str, Flagged]:
    """Flag by loss ranking and by confident learning, without and with the trusted part in the training.

    Args:
        parts: with scaled inputs.
        seed: of the folds.
    """
    train, trusted = parts.train, parts.trusted
    classes, given = len(train.classes), train.labels
    choice = Clock()
    with choice.running():
        fits = [others.softmax_regression(classes, value, 50) for value in PENALTIES]
        rights = [accuracy(fit, train.inputs, given, trusted.inputs, trusted.labels) for fit in fits]
        fit, errors = fits[rights.index(max(rights))], 1 - max(rights)
    found: dict[str, Flagged] = {}
    share = float(parts.wrong.double().mean())
    for suffix, extra in (("", None), (" + trusted", (trusted.inputs, trusted.labels))):
        clock = Clock()
        with clock.running():
            believed = others.out_of_fold(train.inputs, given, fit, trusted=extra, seed=seed)
        found |= _rows(believed, given, errors, share, suffix, choice.seconds + clock.seconds)
    clock = Clock()
    with clock.running():
        alone = others.softmax_regression(classes, 0.01)(trusted.inputs, trusted.labels)(train.inputs)
    found["trusted model disagrees"] = Flagged(
        alone.argmax(dim=1) != given, others.losses_of(alone, given), clock.seconds
    )
    return found


def _rows(
    believed: Tensor, given: Tensor, errors: float, share: float, suffix: str, seconds: float
) -> dict[str, Flagged]:
    losses = others.losses_of(believed, given)
    estimate = others.noise_share(believed, given, errors)
    flags, quality = others.confident_learning(believed, given)
    plain, _ = others.confident_learning(believed, given, "predicted_neq_given")
    return {
        f"loss ranking{suffix}": Flagged(others.loss_ranking(believed, given, estimate), losses, seconds),
        f"loss ranking, true share{suffix}": Flagged(others.loss_ranking(believed, given, share), losses, seconds),
        f"cleanlab{suffix}": Flagged(flags, -quality, seconds),
        f"cleanlab, predicted_neq_given{suffix}": Flagged(plain, -quality, seconds),
    }


def accuracy(fit: others.Fit, inputs: Tensor, labels: Tensor, seen: Tensor, right: Tensor) -> float:
    """Train on some examples, and return the share of others that are classified right."""
    return float((fit(inputs, labels)(seen).argmax(dim=1) == right).double().mean())


def detected(found: Flagged, wrong: Tensor) -> dict[str, float]:
    """Return F1, precision and recall of the flags, and the area under the curve of the scores."""
    from sklearn.metrics import roc_auc_score

    hits, flagged = int((found.flags & wrong).sum()), int(found.flags.sum())
    return {
        "F1": 2 * hits / (flagged + int(wrong.sum())),
        "precision": hits / max(flagged, 1),
        "recall": hits / int(wrong.sum()),
        "AUC": float(roc_auc_score(wrong.numpy(), found.score.numpy())),
    }
