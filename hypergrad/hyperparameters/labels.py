"""Labels as hyperparameters: one rate of smoothing, or a distribution over the classes for each example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError
from hypergrad.hyperparameters.module import HyperparameterModule, check_index, take_rows
from hypergrad.settings import check_choice, check_count, check_number
from hypergrad.tree import NamedTree


@final
class LabelSmoothing(HyperparameterModule):
    """Targets (1 − r) one-hot + r / classes, with a smoothing rate r = sigmoid(λ) that can be tuned.

    ``cross_entropy(model(x), smoothing(y))`` takes the targets as they are.

    Args:
        classes: number of classes, at least 2.
        initial: rate at the start, between 0 and 1.
        per: ``"all"`` for one rate, ``"class"`` for one of each true class.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        label_smoothing: λ, of shape () or (classes,).

    Raises:
        InputError: settings out of range; at a call, labels that are no tensor of whole numbers.

    Example:
        >>> import torch, hypergrad as hg
        >>> hg.LabelSmoothing(2, initial=0.1)(torch.tensor([0, 1])).detach()
        tensor([[0.9500, 0.0500],
                [0.0500, 0.9500]])
    """

    def __init__(
        self,
        classes: int,
        *,
        initial: float = 0.1,
        per: Literal["all", "class"] = "all",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the rates."""
        super().__init__()
        self.classes, self.per = classes, per
        check_count("LabelSmoothing", "classes", classes, least=2)
        check_number("LabelSmoothing", "initial", initial, above=0, below=1)
        check_choice(self, "per", ("all", "class"))
        start = math.log(initial) - math.log1p(-initial)
        shape = () if per == "all" else (classes,)
        self.label_smoothing = nn.Parameter(torch.full(shape, start, dtype=dtype, device=device))

    @property
    def rate(self) -> Tensor:
        """The smoothing rate, between 0 and 1."""
        return self.label_smoothing.sigmoid()

    def forward(self, labels: Tensor) -> Tensor:
        """Return the targets of the labels, of their shape with a dimension of classes at the end."""
        labels = check_index("LabelSmoothing", labels)
        hard = nn.functional.one_hot(labels, self.classes).to(self.label_smoothing.dtype)
        rate = self.rate if self.per == "all" else self.rate[labels].unsqueeze(-1)
        return (1 - rate) * hard + rate / self.classes

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.classes}, per={self.per!r}"


@final
class SoftLabels(HyperparameterModule):
    """A distribution over the classes for each training example, softmax(λ); ``labels(index)`` returns a batch's.

    Gradients are rows of the batch only, as in :class:`ExampleWeights`: use :class:`torch.optim.SparseAdam` or
    :class:`torch.optim.SGD`, or pass ``sparse=False``.

    Args:
        n: number of training examples, at least 1.
        classes: number of classes, at least 2.
        labels: hard labels to start from, of shape (n,); without them all classes are equal.
        confidence: probability of the hard label at the start, above 1 / classes and below 1.
        sparse: whether gradients are sparse.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        soft_labels: λ, of shape (n, classes).

    Raises:
        InputError: settings out of range, or labels of another length; at a call, an index that is no tensor of whole
            numbers.

    Example:
        >>> import torch, hypergrad as hg
        >>> soft = hg.SoftLabels(3, classes=2, labels=torch.tensor([0, 1, 1]), confidence=0.8)
        >>> soft(torch.tensor([0, 2])).detach()
        tensor([[0.8000, 0.2000],
                [0.2000, 0.8000]])
    """

    def __init__(
        self,
        n: int,
        classes: int,
        labels: Tensor | None = None,
        *,
        confidence: float = 0.9,
        sparse: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the table."""
        super().__init__()
        self.n, self.classes, self.sparse = n, classes, sparse
        check_count("SoftLabels", "n", n)
        check_count("SoftLabels", "classes", classes, least=2)
        check_number("SoftLabels", "confidence", confidence, above=1 / classes, below=1)
        table = torch.zeros(n, classes, dtype=dtype, device=device)
        if labels is not None:
            places = check_index("SoftLabels", labels).to(table.device)
            if places.shape != (n,) or bool(((places < 0) | (places >= classes)).any()):
                raise InputError(
                    passed=f"SoftLabels({n}, {classes}, labels) with labels of shape {tuple(places.shape)} "
                    f"from {int(places.min())} to {int(places.max())}",
                    expected=f"{n} labels from 0 to {classes - 1}",
                    do="pass the labels of the whole training set",
                )
            gap = math.log(confidence) - math.log((1 - confidence) / (classes - 1))
            table.scatter_(1, places.unsqueeze(1), gap)
        self.soft_labels = nn.Parameter(table)

    def forward(self, index: Tensor) -> Tensor:
        """Return the distributions of the examples at ``index``, with a dimension of classes at the end."""
        return take_rows(self.soft_labels, check_index("SoftLabels", index), sparse=self.sparse).softmax(-1)

    def read(self, hparams: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return the same under the table ``hparams["soft_labels"]``, with dense gradients."""
        table = NamedTree("hparams", hparams)["soft_labels"]
        return take_rows(table, check_index("SoftLabels", index), sparse=False).softmax(-1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.n}, {self.classes}, sparse={self.sparse}"
