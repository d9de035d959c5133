"""The pipeline: examples in, a judgement of each out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from hypergrad.algorithm import Algorithm
from hypergrad.callbacks import Callback
from hypergrad.cleaning import ranking
from hypergrad.cleaning.cleaned import Cleaned
from hypergrad.cleaning.folder import Folder
from hypergrad.cleaning.models import Factory, Loss, Scale, builder, check_scores, each_cross_entropy, scale_of
from hypergrad.cleaning.nested import run_nested
from hypergrad.cleaning.online import run_online
from hypergrad.cleaning.parts import Parts, divide, share_of_each_class
from hypergrad.cleaning.recipe import Outcome, Recipe, algorithm_named
from hypergrad.cleaning.result import write_result
from hypergrad.cleaning.second_look import SecondLook, second_look, surprise
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.sources import Source, sources
from hypergrad.cleaning.training import accuracy, probabilities, trained
from hypergrad.cleaning.trust import Trust, estimate_trust
from hypergrad.errors import InputError, NoisyTrustedWarning
from hypergrad.settings import check_kind

NESTED = {"linear": 20_000, "mlp": 20_000, "convnet": 2_000, "": 2_000}
"""Examples up to which ``mode="auto"`` takes all of them in each step; ``""`` stands for the user's own model."""
LARGEST = 6.9
"""Logit of a tuned weight beyond which it counts as this, once a second look has been taken."""
SEEN = 0.8
"""Share of the trusted examples that each of several runs sees."""

Callbacks = Sequence[Callback] | Callable[[int], Sequence[Callback]]


def clean(
    train: Any,
    trusted: Any,
    settings: Settings | None = None,
    *,
    test: Any = None,
    model: nn.Module | Factory | None = None,
    loss: Loss | None = None,
    algorithm: Algorithm[Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    callbacks: Callbacks = (),
) -> Cleaned:
    """Find training examples with wrong labels, by tuning one weight for each of them.

    The inner problem trains a model with each example's loss times its weight, the outer problem is the loss on the
    trusted examples, and the hypergradient says which training examples help there. Several runs are averaged. The
    input is never changed.

    Parts are :class:`Examples`, pairs (inputs, labels) of arrays, or map-style data sets or loaders of pairs. A data
    set is read in this process, in an order of our own: of a loader the data set and ``collate_fn`` count. Training
    examples whose inputs stand in the trusted part as well are not judged: those with the trusted label are kept, the
    others are not.

    Args:
        train: examples to judge.
        trusted: examples whose labels are right.
        settings: all settings; the defaults of :class:`Settings` without them.
        test: examples with right labels, for the accuracies only. Without them a part of ``trusted`` is held out.
        model: a module, which is copied and trained from where it stands, or a function (shape of one example, number
            of classes) that returns one. Its scale of inputs is its own business: they are passed as they are.
        loss: (scores of shape (n, classes), labels of shape (n,)) → losses of shape (n,); cross entropy by default.
            Where labels are tuned it gets distributions of shape (n, classes) instead.
        algorithm: how hypergradients are found; by default the one that the settings name.
        out: directory for the files, see the guide; nothing is written without it.
        overwrite: whether files of an earlier run in ``out`` may be replaced.
        resume: whether to go on with an interrupted run in ``out``; the result is the same, bit for bit on the CPU.
        callbacks: of every run, as of a :class:`~hypergrad.Trainer`, or a function that gives those of a seed.

    Cost: ``seeds`` runs and two or three plain trainings.

    Raises:
        InputError: parts, settings, a model or a directory that cannot be used, or a checkpoint of another cleaning.
        DiskFullError: no space left for the files.
        NumericalError: training that diverged; lower ``lr``.

    Warns:
        NoisyTrustedWarning: a trusted part that seems to be as noisy as the rest.
        MissingClassWarning: a class without a trusted example; its examples are kept.
        DuplicateWarning: training examples that stand in the trusted part as well.

    Example:
        >>> import torch
        >>> from hypergrad.cleaning import Settings, clean
        >>> draw = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(240) % 2
        >>> inputs = torch.randn(240, 2, generator=draw) + 4.0 * labels[:, None]
        >>> given = torch.where(torch.arange(240) < 20, 1 - labels, labels)
        >>> found = clean((inputs[:120], given[:120]), (inputs[120:], labels[120:]), Settings(seeds=1, steps=10))
        >>> [int(row) for row in found.index[found.suspicious][:5]], len(found.kept)
        ([0, 1, 2, 3, 4], 100)
    """
    began = time.perf_counter()
    settings = Settings() if settings is None else settings
    check_kind(_Given(settings), "settings", Settings, "pass hypergrad.cleaning.Settings(...)")
    read = sources(train=train, trusted=trusted, test=test)
    parts = divide(read["train"], read["trusted"], read.get("test"), settings)
    trust = estimate_trust(parts.train, parts.trusted, folds=settings.folds, seed=settings.seed)
    notes = [*parts.notes, trust.note]
    if trust.noisy:
        warnings.warn(NoisyTrustedWarning(f"{trust.note}. Pass examples that someone has checked"), stacklevel=2)
    scale = _scale(parts.train, settings, own=model is not None)
    scaled = parts if scale is None else parts.mapped(scale)
    recipe, online = _recipe(scaled.train, settings, model, loss, algorithm)
    folder = Folder(out, parts.identity(settings, recipe.algorithm), overwrite=overwrite, resume=resume)
    outcomes = [_outcome(seed, recipe, scaled, folder, callbacks, online=online) for seed in _seeds(settings)]
    look = _look(recipe, scaled, outcomes, own=model is not None)
    found = _judge(recipe, scaled, outcomes, look, notes, trust)
    cleaned = Cleaned(
        **{**found, "model": found["model"] if scale is None else scale.before(found["model"])},
        source=parts.train,
        seconds=time.perf_counter() - began + folder.seconds,
        settings=settings,
        algorithm=repr(recipe.algorithm),
    )
    if out is not None:
        write_result(Path(out), cleaned)
    return cleaned


def _seeds(settings: Settings) -> range:
    return range(settings.seed, settings.seed + settings.seeds)


def _scale(train: Source, settings: Settings, *, own: bool) -> Scale | None:
    how = settings.scaling
    if how == "auto":
        how = "none" if own else "columns" if train.kind == "table" else "whole"
    if how == "none":
        return None
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:10_000]
    return scale_of(train.fetch(rows), how)


def _recipe(
    train: Source, settings: Settings, model: Any, loss: Loss | None, algorithm: Algorithm[Any] | None
) -> tuple[Recipe, bool]:
    build = builder(model, settings.model, train.shape, len(train.classes))
    check_scores(build(settings.seed), train.fetch(torch.arange(min(2, len(train)))), len(train.classes))
    online = settings.mode == "online"
    if settings.mode == "auto":
        online = train.held is None or len(train) > NESTED["" if model is not None else settings.model]
    if algorithm is None:
        algorithm = algorithm_named(settings, online=online)
    elif not isinstance(algorithm, Algorithm):
        raise InputError(
            passed=f"clean(algorithm={algorithm!r})",
            expected="an algorithm object",
            do="pass hypergrad.Implicit(...), or name one in Settings(algorithm=...)",
        )
    return Recipe(settings, build, loss or each_cross_entropy, len(train.classes), algorithm), online


def _outcome(seed: int, recipe: Recipe, parts: Parts, folder: Folder, callbacks: Callbacks, *, online: bool) -> Outcome:
    """Return what a seed's run finds, or found before an interruption."""
    done = folder.done(seed)
    if done is not None:
        return done
    trusted = parts.trusted
    if recipe.settings.seeds > 1:
        trusted = trusted.take(share_of_each_class(trusted.labels, SEEN, seed))
    given = list(callbacks(seed) if callable(callbacks) else callbacks)
    run = run_online if online else run_nested
    found = run(
        recipe,
        parts.train,
        trusted,
        seed,
        folder=folder.of_seed(seed),
        resume=folder.resumed,
        callbacks=[*given, *folder.history(seed, first=seed == recipe.settings.seed)],
    )
    folder.keep(seed, found)
    return found


def _look(recipe: Recipe, parts: Parts, outcomes: Sequence[Outcome], *, own: bool) -> SecondLook | None:
    """Have every label judged out of fold as well, where that is wanted."""
    settings, train, trusted = recipe.settings, parts.train, parts.trusted
    if settings.second_look == "off" or (settings.second_look == "auto" and (own or settings.model != "linear")):
        return None
    if train.held is None or trusted.held is None:
        if settings.second_look == "auto":
            return None
        raise InputError(
            passed='Settings(second_look="on") with examples that are read piece by piece',
            expected="arrays or Examples, which are held in memory",
            do='pass second_look="auto"',
        )
    weight = torch.stack([one.score for one in outcomes]).mean(dim=0).sigmoid()
    return second_look(
        train.held.float(),
        train.labels,
        (trusted.held.float(), trusted.labels),
        weight,
        recipe.classes,
        folds=settings.folds,
        seed=settings.seed,
    )


def _judge(
    recipe: Recipe,
    parts: Parts,
    outcomes: Sequence[Outcome],
    look: SecondLook | None,
    notes: list[str],
    trust: Trust,
) -> dict[str, Any]:
    """Return the fields of :class:`Cleaned` that follow from the scores."""
    settings, train = recipe.settings, parts.train
    scores = [one.score for one in outcomes]
    if look is not None:
        scores = [score.clamp(-LARGEST, LARGEST) + torch.logit(look.belief, eps=1e-6) for score in scores]
    mean = torch.stack(scores).mean(dim=0)
    half = look is not None and settings.threshold is None
    level = 0.0 if half else ranking.level_of(mean, settings.threshold)
    mean[parts.unjudged(train)] = max(0.0, level)
    guarded = ranking.guard(mean, train.labels, recipe.classes, level=level, most_lost=settings.most_lost)
    notes += [
        f"the guard kept class {train.classes[number]!r} from losing more than {settings.most_lost:.0%} of its "
        "examples or of its weight"
        for number in guarded.acted
    ]
    score = guarded.score.double()
    suspicious, weight = guarded.score < level, score.sigmoid()
    stability = ranking.agreement(scores, suspicious, level)
    kept = (~suspicious).nonzero()[:, 0]
    tuned = [one.labels for one in outcomes if one.labels is not None]
    mean_labels = torch.stack(tuned).mean(dim=0) if tuned else None
    final, counted = _final(recipe, parts, kept, look)
    proposed = train.labels.clone()
    if bool(suspicious.any()):
        chances = probabilities(final, train) if look is None else look.probabilities
        guess = chances if mean_labels is None else chances * mean_labels
        proposed[suspicious] = guess.argmax(dim=1)[suspicious]
    wrong = None if train.truth is None else train.truth != train.labels
    rows = np.concatenate([train.index[kept.numpy()], parts.agreeing])
    return {
        "threshold": float(torch.tensor(level, dtype=torch.float64).sigmoid()),
        "weight": weight.numpy(),
        "counted": counted.numpy(),
        "rank": ranking.ranks(guarded.score).numpy(),
        "stability": stability.numpy(),
        "suspicious": suspicious.numpy(),
        "given": train.labels.numpy(),
        "proposed": proposed.numpy(),
        "index": train.index,
        "kept": np.sort(rows).astype(np.int64),
        "classes": train.classes,
        "noise_estimate": float(suspicious.double().mean()),
        "trusted": trust,
        "stability_report": ranking.compare([one.score for one in outcomes], stability, suspicious, settings.seed),
        "accuracy": _accuracies(recipe, parts, final, None if mean_labels is None else mean_labels.argmax(dim=1)),
        "detection": None if wrong is None else ranking.detection(weight, suspicious, wrong),
        "histogram": ranking.histogram(weight, suspicious, wrong),
        "skipped": (*train.skipped, *parts.skipped),
        "notes": tuple(notes),
        "model": final,
    }


def _final(recipe: Recipe, parts: Parts, kept: Tensor, look: SecondLook | None) -> tuple[nn.Module, Tensor]:
    """Train the last model, and return it with how much each example counted.

    Without a second look it is trained on what is kept. With one, also on everything times the belief in each label;
    what fits the trusted labels better, once its probabilities are sharpened, is taken.
    """
    train, trusted, seed = parts.train, parts.trusted, recipe.settings.seed
    hard = torch.zeros(len(train), dtype=torch.float64)
    hard[kept] = 1.0
    model = trained(recipe, train.take(kept), seed)
    if look is None:
        return model, hard
    soft = look.belief.double()
    other = trained(recipe, train, seed, soft)
    first, second = (surprise(probabilities(one, trusted), trusted.labels) for one in (model, other))
    return (model, hard) if first < second else (other, soft)


def _accuracies(recipe: Recipe, parts: Parts, final: nn.Module, labels: Tensor | None) -> dict[str, Any] | None:
    """Train alike on several versions of the training examples, and count what is right on examples kept apart."""
    train, judge, seed = parts.train, parts.judge, recipe.settings.seed
    if judge is None:
        return None
    found: dict[str, Any] = {
        "noisy": accuracy(trained(recipe, train, seed), judge),
        "cleaned": accuracy(final, judge),
        "oracle": None,
        "examples": len(judge),
        "on": parts.judged_on,
    }
    if labels is not None:
        found["corrected"] = accuracy(trained(recipe, train.relabelled(labels), seed), judge)
    if train.truth is not None and bool((right := train.truth == train.labels).any()):
        found["oracle"] = accuracy(trained(recipe, train.take(right.nonzero()[:, 0]), seed), judge)
    return found


@final
@dataclass(frozen=True)
class _Given:
    settings: Any
