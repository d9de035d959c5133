"""What a cleaning returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from torch import nn

from hypergrad.cleaning.examples import Skipped
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.sources import Source
from hypergrad.cleaning.trust import Trust


@final
@dataclass(frozen=True)
class Cleaned:
    """What :func:`hypergrad.cleaning.clean` returns. Arrays have one entry for each judged training example, n in all.

    Attributes:
        weight: learned weights from 0 to 1, shape (n,); 1/2 is that of the start, or of a typical example. After a
            second look the probability that the label is right, as weights and judge see it together.
        counted: how much each example counted in the training of ``model``, from 0 to 1.
        rank: 1 for the most suspicious example.
        stability: share of the seeds that judge the example as all of them together do, from 0 to 1.
        threshold: weight below which an example is suspicious.
        suspicious: whether the weight is below the threshold.
        given: given classes as whole numbers.
        proposed: classes that suspicious examples seem to have by the second look's judge or else the final model, and
            by their tuned labels where labels are tuned; the given ones for all others.
        index: row of each example in the input.
        kept: rows of the input that are kept, ascending whole numbers of 64 bits.
        classes: names of the classes.
        noise_estimate: share of suspicious examples.
        trusted: what is known about the noise of the trusted part.
        stability_report: how alike the rankings of the seeds are, by the tuned weights alone.
        accuracy: of models trained alike on everything (``"noisy"``), on what ``model`` was (``"cleaned"``), with tuned
            labels (``"corrected"``, where labels are tuned) and, where the truth is known, on the right labels only
            (``"oracle"``); ``"on"`` and ``"examples"`` say on what. ``None`` where nothing was held out.
        detection: precision, recall and the like, where the truth is known.
        histogram: counts of weights.
        skipped: inputs that were not judged, with the reason.
        notes: what was noticed, in words.
        seconds: wall time.
        settings: as passed.
        algorithm: that found the hypergradients.
        model: trained on what is kept, or, after a second look, on everything, each example times the belief in its
            label, whichever fits the trusted labels better; takes inputs as they were passed.
        source: the judged examples.
    """

    threshold: float
    weight: np.ndarray[Any, np.dtype[np.float64]]
    counted: np.ndarray[Any, np.dtype[np.float64]]
    rank: np.ndarray[Any, np.dtype[np.int64]]
    stability: np.ndarray[Any, np.dtype[np.float64]]
    suspicious: np.ndarray[Any, np.dtype[np.bool_]]
    given: np.ndarray[Any, np.dtype[np.int64]]
    proposed: np.ndarray[Any, np.dtype[np.int64]]
    index: np.ndarray[Any, np.dtype[np.int64]]
    kept: np.ndarray[Any, np.dtype[np.int64]]
    classes: tuple[str, ...]
    noise_estimate: float
    trusted: Trust
    stability_report: dict[str, Any]
    accuracy: dict[str, Any] | None
    detection: dict[str, Any] | None
    histogram: dict[str, Any]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    seconds: float
    settings: Settings
    algorithm: str
    model: nn.Module = field(repr=False)
    source: Source = field(repr=False)
