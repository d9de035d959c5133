"""A second look at suspicious examples, by a model that was trained on the others and on the trusted ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.cleaning.baselines import Fit
from hypergrad.errors import InputError
from hypergrad.settings import check_count


@final
@dataclass(frozen=True)
class SecondLook:
    """What is left of a suspicion.

    Attributes:
        suspicious: examples that were suspicious and whose given label the model contradicts as well, of shape (n,).
        probabilities: that the model gives to each class, of shape (n, classes).
        belief: its probability of the given label, of shape (n,): a weight for the last training.
    """

    suspicious: Tensor
    probabilities: Tensor
    belief: Tensor


def second_look(
    inputs: Tensor,
    labels: Tensor,
    trusted: tuple[Tensor, Tensor],
    suspicious: Tensor,
    fit: Fit,
    *,
    rounds: int = 2,
) -> SecondLook:
    """Ask a model about suspicious labels, and drop the suspicions that it does not share.

    A weight falls below where it started also for examples that are right but of little use to the trusted ones. In
    each round a model is trained on the trusted examples and on those that are not suspicious by then; of the examples
    that were suspicious at first, those remain so whose label is not the model's guess.

    Cost: one training a round.

    Args:
        inputs: of the examples, of shape (n, …).
        labels: given classes, of shape (n,).
        trusted: inputs and labels of the trusted examples.
        suspicious: which examples are suspicious at first, such as those with a weight below 1/2; of shape (n,).
        fit: trains a model, such as :func:`~hypergrad.cleaning.baselines.softmax_regression` makes.
        rounds: at least 1.

    Raises:
        InputError: flags of another shape or kind, or no round.

    Example:
        >>> import torch
        >>> from hypergrad.cleaning.baselines import softmax_regression
        >>> inputs = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> trusted = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> first = torch.tensor([True, True, False, False])
        >>> second_look(inputs, torch.tensor([0, 1, 1, 1]), trusted, first, softmax_regression(2)).suspicious
        tensor([False,  True, False, False])
    """
    check_count("second_look", "rounds", rounds)
    if suspicious.dtype != torch.bool or suspicious.shape != labels.shape:
        raise InputError(
            passed=f"suspicious of shape {tuple(suspicious.shape)} and {suspicious.dtype}",
            expected=f"one true or false for each of the {len(labels)} labels",
            do="pass weight < 0.5, for instance",
        )
    flags = suspicious
    probabilities = inputs.new_zeros(0)
    for _ in range(rounds):
        seen = torch.cat([inputs[~flags], trusted[0]])
        probabilities = fit(seen, torch.cat([labels[~flags], trusted[1]]))(inputs)
        flags = suspicious & (probabilities.argmax(dim=1) != labels)
    return SecondLook(flags, probabilities, probabilities.gather(1, labels[:, None])[:, 0])
