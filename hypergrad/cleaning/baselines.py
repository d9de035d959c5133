"""Other ways to find wrong labels: loss ranking, and the confident learning of the package cleanlab.

Both start from out-of-fold probabilities: those that a model gives to examples which it was not trained on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.settings import check_count, check_number

Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
"""(inputs, labels) → a function from inputs to probabilities of shape (n, classes)."""
Filter = Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"]


def softmax_regression(classes: int, penalty: float = 0.01, steps: int = 100, *, weights: Tensor | None = None) -> Fit:
    """Return a way to train softmax regression to its optimum, from zero, by L-BFGS.

    Args:
        classes: number of classes, at least 2.
        penalty: factor of half the squared norm of all parameters, beside the mean loss, at least 0.
        steps: iterations at most, at least 1.
        weights: of the training examples, of shape (n,), at least 0; only their proportions matter. All alike where
            they are left out.

    Raises:
        InputError: a number out of range.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[-1.0], [1.0]])
        >>> softmax_regression(2)(inputs, torch.tensor([0, 1]))(inputs).argmax(dim=1)
        tensor([0, 1])
    """
    check_count("softmax_regression", "classes", classes, least=2)
    check_count("softmax_regression", "steps", steps)
    check_number("softmax_regression", "penalty", penalty, least=0)

    def fit(inputs: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        weight = inputs.new_zeros(inputs.shape[1], classes, requires_grad=True)
        bias = inputs.new_zeros(classes, requires_grad=True)
        weigh = inputs.new_ones(len(labels)) if weights is None else weights.to(inputs.dtype)
        weigh = weigh / weigh.sum()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            squares = weight.square().sum() + bias.square().sum()
            losses = cross_entropy(inputs @ weight + bias, labels, reduction="none")
            value = torch.dot(weigh, losses) + penalty / 2 * squares
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(closure)
        found = weight.detach(), bias.detach()
        return lambda some: (some @ found[0] + found[1]).softmax(dim=-1)

    return fit


def out_of_fold(
    inputs: Tensor,
    labels: Tensor,
    fit: Fit,
    *,
    trusted: tuple[Tensor, Tensor] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """Return probabilities of all classes for each example, from models that were not trained on it.

    Cost: one training for each fold.

    Args:
        inputs: of shape (n, …).
        labels: given classes, of shape (n,).
        fit: trains a model; :func:`softmax_regression` makes one.
        trusted: inputs and labels of trusted examples that join the training of every fold.
        folds: parts of the cross-validation, from 2 to n.
        seed: of the random parts.

    Returns:
        Tensor of shape (n, classes).

    Raises:
        InputError: more folds than examples, or fewer than two.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[-1.0], [-1.1], [1.0], [1.1]])
        >>> found = out_of_fold(inputs, torch.tensor([0, 0, 1, 1]), softmax_regression(2), folds=4)
        >>> found.argmax(dim=1)
        tensor([0, 0, 1, 1])
    """
    check_count("out_of_fold", "folds", folds, least=2)
    if len(inputs) != len(labels) or folds > len(labels):
        raise InputError(
            passed=f"{len(inputs)} inputs, {len(labels)} labels and {folds} folds",
            expected="as many inputs as labels, and an example in every fold",
            do="pass fewer folds, or arrays of one length",
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    pieces = []
    for part in order.tensor_split(folds):
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[part] = False
        seen, given = inputs[rest], labels[rest]
        if trusted is not None:
            seen, given = torch.cat([seen, trusted[0]]), torch.cat([given, trusted[1]])
        pieces.append(fit(seen, given)(inputs[part]))
    return torch.cat(pieces)[order.argsort()]


def losses_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return −log p of each given label, of shape (n,)."""
    given = probabilities.gather(1, labels[:, None])[:, 0]
    return -given.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def noise_share(probabilities: Tensor, labels: Tensor, errors: float = 0.0) -> float:
    """Return an estimate of the share of wrong labels, without knowing which they are.

    Of the labels a share d contradicts the model's guess. A model that errs on a share e of right labels contradicts a
    share e of these, and nearly all wrong ones; so the estimate is (d − e)/(1 − e).

    Args:
        probabilities: out of fold, of shape (n, classes).
        labels: given classes, of shape (n,).
        errors: e, the model's share of errors on trusted examples, from 0 to below 1.

    Example:
        >>> import torch
        >>> noise_share(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1]))
        0.25
    """
    check_number("noise_share", "errors", errors, least=0, below=1)
    contradicted = (probabilities.argmax(dim=1) != labels).double().mean().item()
    return max(0.0, (contradicted - errors) / (1 - errors))


def loss_ranking(probabilities: Tensor, labels: Tensor, share: float) -> Tensor:
    """Flag the examples with the largest losses.

    Args:
        probabilities: out of fold, of shape (n, classes).
        labels: given classes, of shape (n,).
        share: of the examples to flag, from 0 to 1: an estimate such as that of :func:`noise_share`, or the true share
            where it is known.

    Returns:
        Which examples are flagged, of shape (n,): round(share · n) of them.

    Raises:
        InputError: a share out of range.

    Example:
        >>> import torch
        >>> loss_ranking(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), torch.tensor([0, 0, 0]), 1 / 3)
        tensor([False,  True, False])
    """
    check_number("loss_ranking", "share", share, least=0, below=1 + 1e-9)
    flagged = torch.zeros(len(labels), dtype=torch.bool)
    flagged[losses_of(probabilities, labels).argsort(descending=True, stable=True)[: round(share * len(labels))]] = True
    return flagged


def confident_learning(
    probabilities: Tensor, labels: Tensor, filter_by: Filter = "prune_by_noise_rate"
) -> tuple[Tensor, Tensor]:
    """Flag examples as cleanlab's ``find_label_issues`` does.

    Args:
        probabilities: out of fold, of shape (n, classes).
        labels: given classes, of shape (n,).
        filter_by: cleanlab's rule; its own default is ``"prune_by_noise_rate"``.

    Returns:
        Which examples are flagged, and cleanlab's score of how good each label is, from 0 to 1; both of shape (n,).

    Raises:
        MissingDependencyError: cleanlab is not installed.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).repeat_interleave(20, dim=0)
        >>> given = torch.tensor([0] * 20 + [1] * 20)
        >>> given[3] = 1
        >>> confident_learning(sure, given)[0].nonzero()[:, 0].tolist()
        [3]
    """
    find, rank = _cleanlab("filter"), _cleanlab("rank")
    given, believed = labels.numpy(), (probabilities / probabilities.sum(dim=1, keepdim=True)).numpy()
    flagged = find.find_label_issues(given, believed, filter_by=filter_by, n_jobs=1)
    quality = rank.get_label_quality_scores(given, believed)
    return torch.from_numpy(flagged), torch.from_numpy(quality)


def _cleanlab(part: str) -> Any:
    try:
        return cast(Any, importlib.import_module(f"cleanlab.{part}"))
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"confident learning without the package cleanlab ({error})",
            expected="cleanlab 2.7 or newer",
            do='pip install "hypergrad-engine[cleanlab]"',
        ) from error
