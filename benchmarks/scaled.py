"""Problems of a chosen size for the sheet ``scaling``: a network of about n weights on random examples.

Nothing here imports this library, so that a peer's process can use it in an environment of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.problems import DEVICE, NETWORKS, Task, Tree, penalty, shapes

CLASSES = 10
LOG_DECAY = -3.0


def sizes(n: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network with two hidden layers and about n weights, at least 100."""
    # 2 w² + 13 w + 10 = n, for two square layers of width w, one onto the classes, and biases
    width = max(2, round((math.sqrt(169 + 8 * (n - CLASSES)) - 13) / 4))
    return shapes("mlp", width, width, CLASSES)


def count(n: int) -> int:
    """Return how many weights the network for n has."""
    return sum(math.prod(size) for size in sizes(n).values())


def network(n: int, batch: int, *, each: bool) -> Task:
    """Return a classification problem with about n weights.

    Args:
        n: number of weights.
        batch: number of training examples, and of validation examples.
        each: whether each weight has a penalty exp(λ); else each tensor has one.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)
    params: Tree = {}
    for name, size in sizes(n).items():
        values = torch.zeros(size, device=DEVICE)
        if len(size) > 1:
            values.normal_(0.0, size[1] ** -0.5, generator=generator)
        params[name] = values
    hparams = {
        name: torch.full_like(value, LOG_DECAY) if each else torch.tensor(LOG_DECAY, device=DEVICE)
        for name, value in params.items()
    }
    inputs = params["weight0"].shape[1]
    # examples of norm 2 whatever the width, so that curvature does not grow with n
    x, x_valid = (2 * inputs**-0.5 * torch.randn(batch, inputs, device=DEVICE, generator=generator) for _ in range(2))
    y, y_valid = (torch.randint(CLASSES, (batch,), device=DEVICE, generator=generator) for _ in range(2))

    def data(params: Tree, _hparams: Tree) -> Tensor:
        return cross_entropy(NETWORKS["mlp"](params, x), y)

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return cross_entropy(NETWORKS["mlp"](params, x_valid), y_valid)

    return Task(params, hparams, data, penalty if each else _decay, outer)


def _decay(params: Tree, hparams: Tree) -> Tensor:
    return 0.5 * torch.stack([hparams[key].exp() * value.square().sum() for key, value in params.items()]).sum()
