"""Plain training of the final models: on everything, on what was kept, on what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergrad.cleaning.recipe import MOMENTUM, Recipe
from hypergrad.cleaning.sources import Source
from hypergrad.data import TensorSampler
from hypergrad.guards import pinned_rng

FULL = 50_000_000
"""Entries of the inputs up to which a convex model is trained on all examples at once."""


def trained(recipe: Recipe, source: Source, seed: int, weights: Tensor | None = None) -> nn.Module:
    """Return a model trained on examples, in evaluation mode.

    A linear model on inputs in memory is trained to its optimum, all else for ``final_epochs`` passes of stochastic
    gradient descent with momentum, whose step falls to zero along a cosine.

    Args:
        recipe: the model, the loss and the settings.
        source: the examples.
        seed: of the start and of the batches.
        weights: of the examples, of shape (n,); all the same without them.
    """
    module = recipe.build(seed)
    relative = torch.ones(len(source)) if weights is None else (weights / weights.mean()).float()
    linear = isinstance(module, nn.Sequential) and [type(part) for part in module] == [nn.Flatten, nn.Linear]
    if linear and source.held is not None and source.held.numel() <= FULL:
        _to_the_optimum(recipe, module, source.held, source.labels, relative)
    else:
        _by_minibatches(recipe, module, source, seed, relative)
    return module.eval()


def _to_the_optimum(recipe: Recipe, module: nn.Module, inputs: Tensor, labels: Tensor, weights: Tensor) -> None:
    params = list(module.parameters())
    optimizer = torch.optim.LBFGS(params, max_iter=100, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([value.square().sum() for value in params]).sum()
        value = (weights * recipe.loss(module(inputs), labels)).mean() + recipe.settings.penalty / 2 * squares
        value.backward()
        return value

    optimizer.step(closure)


def _by_minibatches(recipe: Recipe, module: nn.Module, source: Source, seed: int, weights: Tensor) -> None:
    settings = recipe.settings
    size = min(settings.batch_size, len(source))
    sampler = TensorSampler(source.labels, batch_size=size, seed=seed, index=True)
    params = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(params, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.penalty)
    steps = sampler.batches * settings.final_epochs
    module.train()
    with pinned_rng(torch.device("cpu"), seed):
        for step in range(steps):
            rows, labels = sampler.draw()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            (weights[rows] * recipe.loss(module(source.fetch(rows)), labels)).mean().backward()
            optimizer.step()


def probabilities(module: nn.Module, source: Source) -> Tensor:
    """Return the probabilities of all classes for all examples, of shape (n, classes)."""
    module.eval()
    with torch.no_grad(), pinned_rng(torch.device("cpu"), 0):
        return torch.cat([module(inputs).softmax(dim=-1) for _, inputs in source.pieces()])


def accuracy(module: nn.Module, source: Source) -> float:
    """Return the share of examples whose class has the highest score."""
    return float((probabilities(module, source).argmax(dim=1) == source.labels).double().mean())


def fit_linear(inputs: Tensor, labels: Tensor, classes: int, penalty: float) -> Callable[[Tensor], Any]:
    """Return the probabilities of softmax regression, trained to its optimum, as a function of inputs.

    Args:
        inputs: scaled, of shape (n, features).
        labels: of shape (n,).
        classes: number of classes.
        penalty: factor of half the squared norm.
    """
    weight = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(inputs @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    learned = weight.detach(), bias.detach()
    return lambda some: (some @ learned[0] + learned[1]).softmax(dim=-1)
