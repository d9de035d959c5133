"""What is raced on, as torch functions: cleaning of labels, and a penalty for each feature.

Nothing here imports this library. A problem's inner objective is its data loss plus a penalty that is a sum of a
constant times the square of each parameter:

- ``cleaning linear`` and ``cleaning mlp``: inner g = mean of sigmoid(λ_i) ℓ_i + ½ DECAY ‖θ‖², outer f = mean loss of
  trusted examples, λ = logits, one for each training example.
- ``penalties``: inner g = mean logistic loss + ½ Σ exp(λ_j) θ_j², outer f = mean logistic loss of validation examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.problems import Arrays, Task, Tree

DECAY = 1e-3
"""Of the models whose examples are weighted."""
Scores = Callable[[Tree, Tensor], Tensor]


def _linear(params: Tree, x: Tensor) -> Tensor:
    return torch.addmm(params["bias"][:, None], params["weight"], x.mT)


def _mlp(params: Tree, x: Tensor) -> Tensor:
    hidden = torch.addmm(params["bias0"][:, None], params["weight0"], x.mT).tanh()
    return torch.addmm(params["bias1"][:, None], params["weight1"], hidden)


def _features(params: Tree, x: Tensor) -> Tensor:
    return x @ params["weight"]


SCORES: dict[str, Scores] = {"cleaning linear": _linear, "cleaning mlp": _mlp, "penalties": _features}
"""Scores of examples; those of classes have one row a class, which takes half of the time of one row an example."""


def task(problem: str, arrays: Arrays) -> Task:
    """Return a problem as torch functions.

    Args:
        problem: one of :data:`SCORES`.
        arrays: ``x``, ``y``, ``x_valid``, ``y_valid``, and ``params.NAME`` and ``hparams.NAME``.
    """
    given = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    params, hparams = (
        {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
        for start in ("params.", "hparams.")
    )
    make = _penalties if problem == "penalties" else _cleaning
    return make(SCORES[problem], params, hparams, given)


def _cleaning(scores: Scores, params: Tree, hparams: Tree, given: Mapping[str, Tensor]) -> Task:
    def data(params: Tree, hparams: Tree) -> Tensor:
        losses = _losses(scores(params, given["x"]), given["y"])
        return torch.dot(hparams["logits"].sigmoid(), losses) / len(losses)

    def penalty(params: Tree, _hparams: Tree) -> Tensor:
        return 0.5 * DECAY * torch.stack([value.square().sum() for value in params.values()]).sum()

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return _losses(scores(params, given["x_valid"]), given["y_valid"]).mean()

    return Task(params, hparams, data, penalty, outer)


def _losses(scores: Tensor, labels: Tensor) -> Tensor:
    return -scores.log_softmax(dim=0).gather(0, labels[None])[0]


def _penalties(scores: Scores, params: Tree, hparams: Tree, given: Mapping[str, Tensor]) -> Task:
    def data(params: Tree, _hparams: Tree) -> Tensor:
        return binary_cross_entropy_with_logits(scores(params, given["x"]), given["y"])

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        return 0.5 * torch.dot(hparams["log_penalty"].exp(), params["weight"].square())

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return binary_cross_entropy_with_logits(scores(params, given["x_valid"]), given["y_valid"])

    return Task(params, hparams, data, penalty, outer)


def _lbfgs(problem: Task, params: Tree, hparams: Tree, tolerance: float) -> None:
    theta = list(params.values())
    optimizer = torch.optim.LBFGS(
        theta, max_iter=200, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = problem.inner(params, hparams)
        for value, grad in zip(theta, torch.autograd.grad(loss, theta), strict=True):
            value.grad = grad
        return loss.detach()

    optimizer.step(closure)
    for value in theta:
        value.grad = None


def leaves(tree: Tree) -> Tree:
    """Return copies that require grad."""
    return {key: value.detach().clone().requires_grad_() for key, value in tree.items()}


def descend(problem: Task, params: Tree, hparams: Tree, settings: Mapping[str, Any]) -> None:
    """Train in place.

    By torch's L-BFGS until the gradient is below ``tolerance``, where there is one; else by ``inner`` steps of gradient
    descent at ``rate`` with ``momentum``, which starts from zero.
    """
    theta = list(params.values())
    if "tolerance" in settings:
        _lbfgs(problem, params, hparams, settings["tolerance"])
        return
    optimizer = torch.optim.SGD(theta, lr=settings["rate"], momentum=settings.get("momentum", 0.0), foreach=True)
    for _ in range(settings["inner"]):
        grads = torch.autograd.grad(problem.inner(params, hparams), theta)
        for value, grad in zip(theta, grads, strict=True):
            value.grad = grad
        optimizer.step()
    for value in theta:
        value.grad = None


class Leaves(torch.nn.Module):
    """A module that owns a tree of tensors, in order, for peers that want modules."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.names = list(tree)
        self.leaves = torch.nn.ParameterList([torch.nn.Parameter(value.clone()) for value in tree.values()])

    def tree(self) -> Tree:
        """Return the tensors under the problem's names."""
        return dict(zip(self.names, self.leaves, strict=True))
