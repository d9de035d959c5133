"""A second look at the labels, by models that were not trained on the example which they judge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hypergrad.cleaning.baselines import noise_share, softmax_regression
from hypergrad.errors import InputError
from hypergrad.settings import check_count, check_number

LEAST = 1e-3
"""Weights beyond this and one minus this count as these: the weights alone never outvote a sure judge."""
SHARPEST = 16.0
"""Largest factor, and the inverse of the smallest, by which a judge's log probabilities are multiplied."""


@final
@dataclass(frozen=True)
class SecondLook:
    """What judge and weights say together.

    Attributes:
        score: log odds that the given label is right, of shape (n,); suspicious below 0.
        belief: the judge's probability that it is, without the weights; a weight for the last training, of shape (n,).
        probabilities: of all classes, out of fold, of shape (n, classes).
        noise: the estimated share of wrong labels.
    """

    score: Tensor
    belief: Tensor
    probabilities: Tensor
    noise: float


def second_look(
    inputs: Tensor,
    labels: Tensor,
    trusted: tuple[Tensor, Tensor],
    weight: Tensor,
    classes: int,
    *,
    penalty: float = 0.01,
    folds: int = 5,
    rounds: int = 2,
    seed: int = 0,
) -> SecondLook:
    """Ask softmax regression about every label, and add its answer to what the weights say.

    Tuned weights tell which examples help the trusted ones, which is not quite which labels are right: a right label
    of an odd example helps little. In each round, for each of several folds, a model is trained on the other examples,
    each times its weight, and on the trusted ones of the other folds. Its log probabilities are sharpened by the one
    factor that fits the trusted labels best. With p the probability of a given label, q the share of wrong labels and
    K classes, Bayes' rule for noise that is spread evenly gives the belief that the label is right:

        b = (1 − q) p / ((1 − q) p + q (1 − p) / (K − 1)),        score = logit b + logit weight

    With e the model's share of errors on trusted examples, q is (1 − e) times what follows from how often it
    contradicts given labels (:func:`~hypergrad.cleaning.baselines.noise_share`), plus e times one minus the mean
    weight. The next round's weights are sigmoid(score).

    Where wrong labels gather at examples that the model finds hard, q comes out too low.

    Args:
        inputs: of the examples, scaled, of shape (n, …); flattened.
        labels: given classes, of shape (n,).
        trusted: inputs and labels of the trusted examples, at least one.
        weight: tuned weights from 0 to 1, where 1/2 says nothing; of shape (n,).
        classes: number of classes, at least 2.
        penalty: of the judge, factor of half its squared norm, at least 0.
        folds: of the cross-validation, at least 2.
        rounds: at least 1.
        seed: of the folds.

    Cost: rounds · folds trainings of softmax regression.

    Raises:
        InputError: weights of another shape or outside of 0 to 1, or a number out of range.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[-1.0], [-2.0], [-1.5], [1.0], [2.0], [1.5]])
        >>> trusted = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> labels = torch.tensor([0, 1, 0, 1, 1, 1])
        >>> look = second_look(inputs, labels, trusted, torch.full((6,), 0.5), 2, folds=3)
        >>> (look.score < 0).nonzero()[:, 0].tolist()
        [1]
    """
    check_count("second_look", "rounds", rounds)
    check_count("second_look", "folds", folds, least=2)
    check_number("second_look", "penalty", penalty, least=0)
    if weight.shape != labels.shape or not bool(((weight >= 0) & (weight <= 1)).all()):
        raise InputError(
            passed=f"weights of shape {tuple(weight.shape)} from {float(weight.min()):g} to {float(weight.max()):g}",
            expected=f"one number from 0 to 1 for each of the {len(labels)} labels",
            do="pass the tuned weights, not their logits",
        )
    judge = _Judge(inputs.flatten(1), labels, (trusted[0].flatten(1), trusted[1]), classes, penalty, folds)
    tuned = torch.logit(weight.to(inputs.dtype), eps=LEAST)
    score, look = tuned, None
    for turn in range(rounds):
        look = judge.look(score.sigmoid(), tuned, seed + turn)
        score = look.score
    assert look is not None
    return look


@final
@dataclass(frozen=True)
class _Judge:
    inputs: Tensor
    labels: Tensor
    trusted: tuple[Tensor, Tensor]
    classes: int
    penalty: float
    folds: int

    def look(self, weight: Tensor, tuned: Tensor, seed: int) -> SecondLook:
        """Return one round's answer."""
        count = len(self.labels)
        believed = self._out_of_fold(weight, seed)
        own, others = believed[:count], believed[count:]
        errors = float((others.argmax(dim=1) != self.trusted[1]).double().mean())
        share = noise_share(own, self.labels, min(errors, 0.99))
        noise = (1 - errors) * share + errors * float(1 - tuned.sigmoid().mean())
        noise = min(max(noise, 0.01), 0.95)
        sharp = (own.clamp(min=1e-12).log() * sharpening(others, self.trusted[1])).softmax(dim=1)
        given = sharp.gather(1, self.labels[:, None])[:, 0].clamp(1e-6, 1 - 1e-6)
        spread = math.log(1 - noise) - math.log(noise) + math.log(max(self.classes - 1, 1))
        odds = torch.logit(given) + spread
        return SecondLook(odds + tuned, odds.sigmoid(), sharp, noise)

    def _out_of_fold(self, weight: Tensor, seed: int) -> Tensor:
        """Return probabilities of examples and trusted ones, each from a model that did not see it."""
        inputs = torch.cat([self.inputs, self.trusted[0].to(self.inputs.dtype)])
        labels = torch.cat([self.labels, self.trusted[1]])
        weights = torch.cat([weight, weight.new_ones(len(self.trusted[1]))])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        pieces = []
        for part in order.tensor_split(min(self.folds, len(order))):
            rest = torch.ones(len(labels), dtype=torch.bool)
            rest[part] = False
            fit = softmax_regression(self.classes, self.penalty, 50, weights=weights[rest])
            pieces.append(fit(inputs[rest], labels[rest])(inputs[part]))
        return torch.cat(pieces)[order.argsort()]


def surprise(probabilities: Tensor, labels: Tensor) -> float:
    """Return minus the mean log probability of labels, once probabilities are sharpened.

    Args:
        probabilities: of shape (n, classes).
        labels: of shape (n,).
    """
    logs = probabilities.double().clamp(min=1e-12).log()
    return float(cross_entropy(logs * sharpening(probabilities, labels), labels))


def sharpening(probabilities: Tensor, labels: Tensor) -> float:
    """Return the factor of log probabilities, from 1/16 to 16, that makes labels most likely.

    Args:
        probabilities: of shape (n, classes).
        labels: of shape (n,).

    Example:
        >>> import torch
        >>> shy = torch.tensor([[0.6, 0.4]] * 9 + [[0.4, 0.6]])
        >>> round(sharpening(shy, torch.zeros(10, dtype=torch.long)), 1)  # 0.9 = 1 / (1 + (2/3)^5.4)
        5.4
    """
    from scipy.optimize import minimize_scalar

    logs = probabilities.double().clamp(min=1e-12).log()
    bound = math.log(SHARPEST)
    found = minimize_scalar(
        lambda power: float(cross_entropy(logs * math.exp(power), labels)), bounds=(-bound, bound), method="bounded"
    )
    return math.exp(float(found.x))
