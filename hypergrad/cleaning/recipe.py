"""What every run of a cleaning shares: settings, model, loss and algorithm."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.algorithm import Algorithm
from hypergrad.cleaning.hyperparameters import Judgement
from hypergrad.cleaning.models import Builder, Loss
from hypergrad.cleaning.settings import Settings
from hypergrad.errors import InputError, UnsupportedError, did_you_mean
from hypergrad.inner import InnerSolver
from hypergrad.solvers import bilevel
from hypergrad.solvers.bilevel import Implicit
from hypergrad.solvers.inner import GradientDescent
from hypergrad.solvers.linear import CG, Identity, Neumann

MOMENTUM = 0.8
TERMS = 5


@final
@dataclass(frozen=True)
class Recipe:
    """What every run of a cleaning shares.

    Attributes:
        settings: all settings.
        build: makes the model for a seed.
        loss: (scores, targets) → one loss for each example.
        classes: number of classes.
        algorithm: how hypergradients are found.
    """

    settings: Settings
    build: Builder
    loss: Loss
    classes: int
    algorithm: Algorithm[Any]


@final
@dataclass(frozen=True)
class Outcome:
    """What one run found.

    Attributes:
        score: logit of each training example's weight, 0 for one that weighs as much as at the start.
        labels: tuned distributions over the classes, where labels were tuned.
    """

    score: Tensor
    labels: Tensor | None


def algorithm_named(settings: Settings, *, online: bool) -> Algorithm[Any]:
    """Return the algorithm that the settings name.

    Args:
        settings: name, step sizes and lengths.
        online: whether someone else trains, so that the algorithm does not.

    Raises:
        InputError: an unknown name.
        UnsupportedError: an algorithm with settings that no default suits.
    """
    rule = GradientDescent(lr=settings.lr, momentum=MOMENTUM, steps=settings.inner_steps)
    inner: InnerSolver | None = None if online else rule
    linear = {"neumann": Neumann(TERMS), "identity": Identity(settings.lr), "cg": CG()}
    name = settings.algorithm.lower()
    if name == "auto":  # the Hessian of a minibatch is often indefinite, which a Neumann series does not survive
        name = "identity" if online else "neumann"
    if name in ("implicit", *linear):
        solver = linear.get(name, linear["neumann"])
        # training is cut short on purpose: at its end the weights fit the trusted examples' own peculiarities
        return Implicit(solver, inner=inner, damping=settings.damping, stationarity=math.inf)
    public = ((key, getattr(bilevel, key)) for key in dir(bilevel) if not key.startswith("_"))
    known = {key.lower(): kind for key, kind in public if _is_algorithm(kind)}
    if name not in known:
        raise InputError(
            passed=f"Settings(algorithm={settings.algorithm!r}){did_you_mean(name, ['auto', *linear, *known])}",
            expected=f"one of {sorted({'auto', *linear, *known})}",
            do="pick one of these, or pass an algorithm object to clean(algorithm=...)",
        )
    needs = inspect.signature(known[name]).parameters
    offers = {"step_size": settings.lr / 2, "linear_step_size": settings.lr / 2, "steps": settings.inner_steps}
    given: dict[str, Any] = {key: value for key, value in offers.items() if key in needs}
    if "inner" in needs:
        given["inner"] = GradientDescent(lr=settings.lr, momentum=MOMENTUM) if "steps" in needs else rule
    missing = [key for key, need in needs.items() if need.default is inspect.Parameter.empty and key not in given]
    if missing:
        raise UnsupportedError(
            passed=f"Settings(algorithm={settings.algorithm!r}), which needs {missing}",
            expected="an algorithm that is made by its name alone",
            do=f"pass clean(algorithm=hypergrad.{known[name].__name__}(...))",
        )
    made: Algorithm[Any] = known[name](**given)
    return made


def _is_algorithm(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Algorithm) and not inspect.isabstract(kind)


def outcome(judgement: Judgement, losses: Tensor | None) -> Outcome:
    """Return what the hyperparameters say about the training examples.

    Args:
        judgement: the hyperparameters.
        losses: of all training examples, where the weights are computed from them.
    """
    with torch.no_grad():
        if judgement.link == "mlp":
            assert losses is not None
            weights = judgement.weights(losses)
            score = (weights.clamp_min(1e-12) / weights.mean().clamp_min(1e-12)).log()
        else:
            score = torch.as_tensor(judgement.weights.example_weights).detach().clone()
            score = score - score.mean() if judgement.link == "softmax" else score
        labels = None if judgement.labels is None else judgement.labels.soft_labels.detach().softmax(-1)
    return Outcome(score, labels)
