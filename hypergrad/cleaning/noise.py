"""Wrong labels made on purpose, to see how well they are found: uniform, by class, or where a model is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.settings import check_number


@final
@dataclass(frozen=True)
class Noise:
    """Labels of which some are wrong.

    Attributes:
        labels: the given classes, of shape (n,).
        wrong: which of them differ from the right ones, of shape (n,); exactly round(rate · n) of them.
    """

    labels: Tensor
    wrong: Tensor


def uniform(labels: Tensor, classes: int, rate: float, *, seed: int) -> Noise:
    """Move labels to another class, each wrong one as likely as the others.

    Args:
        labels: right classes, whole numbers from 0 to classes − 1, of shape (n,).
        classes: number of classes, at least 2.
        rate: share of the labels that become wrong, from 0 to 1. With two classes and 0.5 the given labels say
            nothing about the right ones.
        seed: of the random numbers.

    Raises:
        InputError: a rate or labels out of range.

    Example:
        >>> import torch
        >>> noise = uniform(torch.zeros(10, dtype=torch.long), 3, 0.4, seed=0)
        >>> int(noise.wrong.sum()), int((noise.labels != 0).sum())
        (4, 4)
    """
    _check(labels, classes, rate)
    generator = torch.Generator().manual_seed(seed)
    wrong = _some(torch.ones(len(labels), dtype=torch.float64), rate, generator)
    shift = torch.randint(1, classes, (len(labels),), generator=generator)
    return _moved(labels, wrong, (labels + shift) % classes)


def confused(labels: Tensor, classes: int, rate: float, *, seed: int, becomes: Sequence[int] | None = None) -> Noise:
    """Move labels to the one class that theirs is confused with.

    The confusion matrix is (1 − rate) · I + rate · Π on average, with Π the matrix of ``becomes``.

    Args:
        labels: right classes, whole numbers from 0 to classes − 1, of shape (n,).
        classes: number of classes, at least 2.
        rate: share of the labels that become wrong, from 0 to 1. Near 0.5 a wrong label is as frequent as the right
            one in its class, and only trusted examples tell which is which.
        seed: of the random numbers.
        becomes: for each class another one; the next class, and the first one for the last, where it is left out.

    Raises:
        InputError: a rate, labels or classes out of range, or a class that becomes itself.

    Example:
        >>> import torch
        >>> noise = confused(torch.tensor([0, 1, 2, 0]), 3, 1.0, seed=0)
        >>> noise.labels
        tensor([1, 2, 0, 1])
    """
    _check(labels, classes, rate)
    other = [(number + 1) % classes for number in range(classes)] if becomes is None else [int(one) for one in becomes]
    if len(other) != classes or any(one == number or not 0 <= one < classes for number, one in enumerate(other)):
        raise InputError(
            passed=f"becomes={other}",
            expected=f"for each of the {classes} classes a different one from 0 to {classes - 1}",
            do="leave becomes out for the next class of each",
        )
    generator = torch.Generator().manual_seed(seed)
    wrong = _some(torch.ones(len(labels), dtype=torch.float64), rate, generator)
    return _moved(labels, wrong, torch.tensor(other)[labels])


def unsure(labels: Tensor, probabilities: Tensor, rate: float, *, seed: int) -> Noise:
    """Move labels to a model's second guess, the more often the less the model believes in the right class.

    Examples are drawn without putting them back, each with a chance in proportion to 1 − p of its right class. The
    wrong label is the most likely one of the other classes. So the noise depends on the instance.

    Args:
        labels: right classes, whole numbers from 0 to classes − 1, of shape (n,).
        probabilities: of a weak model, of shape (n, classes), rows that sum to 1.
        rate: share of the labels that become wrong, from 0 to 1.
        seed: of the random numbers.

    Raises:
        InputError: a rate or labels out of range, or probabilities of another shape.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.1, 0.5]])
        >>> unsure(torch.tensor([0, 0]), sure, 0.5, seed=0).labels
        tensor([0, 2])
    """
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise InputError(
            passed=f"probabilities of shape {tuple(probabilities.shape)} for {len(labels)} labels",
            expected="one row for each label and one column for each class",
            do="pass a model's softmax for the same examples",
        )
    _check(labels, probabilities.shape[1], rate)
    generator = torch.Generator().manual_seed(seed)
    believed = probabilities.double()
    doubt = 1 - believed.gather(1, labels[:, None])[:, 0]
    wrong = _some(doubt.clamp(min=1e-12), rate, generator)
    others = believed.scatter(1, labels[:, None], -1.0)
    return _moved(labels, wrong, others.argmax(dim=1))


def _some(chances: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Draw a share of all rows without putting them back: those whose exponential variables over chances come first."""
    times = torch.empty_like(chances).exponential_(generator=generator) / chances
    wrong = torch.zeros(len(chances), dtype=torch.bool)
    wrong[times.argsort()[: round(rate * len(chances))]] = True
    return wrong


def _moved(labels: Tensor, wrong: Tensor, other: Tensor) -> Noise:
    return Noise(torch.where(wrong, other, labels), wrong)


def _check(labels: Any, classes: int, rate: float) -> None:
    check_number("noise", "rate", rate, least=0, below=1 + 1e-9, do="pass a share from 0 to 1")
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            passed=f"labels {type(labels).__name__}", expected="whole numbers of shape (n,)", do="pass a long tensor"
        )
    if classes < 2 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise InputError(
            passed=f"labels from {int(labels.min())} to {int(labels.max())}" if len(labels) else f"{classes} classes",
            expected=f"at least two classes, and labels from 0 to {classes - 1}",
            do="pass encoded labels and the number of their classes",
        )
