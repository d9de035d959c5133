"""A small model with a closure over it, and what a hypergradient of it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hypergrad as hg

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2).sin()
Y = X.sum(1, keepdim=True).cos()
EXACT = hg.Implicit(hg.Dense(), damping=0.1, stationarity=math.inf)
QUICK = hg.Implicit(hg.Identity(0.1), stationarity=math.inf)

Loss = Callable[[], Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def decay(value: float = 0.0) -> Tensor:
    return torch.full((), value, dtype=torch.float64, requires_grad=True)


def first_weight(model: nn.Module) -> Tensor:
    weight: Tensor = next(model.parameters())
    return weight


def shrinkage(model: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def losses(model: nn.Module, weight: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> tuple[Loss, Loss]:
    run = model if call is None else call

    def train() -> Tensor:
        error: Tensor = (run(X) - Y).square().mean()
        return error + weight.exp() * shrinkage(model)

    def valid() -> Tensor:
        error: Tensor = (run(X) - 2 * Y).square().mean()
        return error

    return train, valid


def hypergradient(model: nn.Module, weight: Tensor, algorithm: Any = EXACT, **options: Any) -> Tensor:
    """Return the ``.grad`` that one call fills."""
    train, valid = losses(model, weight)
    weight.grad = None
    hg.Live(model, [weight], options.pop("inner", train), options.pop("outer", valid), algorithm, **options).backward()
    assert weight.grad is not None
    return weight.grad
