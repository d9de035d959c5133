"""Noise is drawn once a solve and is the same in every product; another draw is another hypergradient, but not far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg
from hypergrad.errors import CurvatureWarning
from tests.networks.methods import METHODS
from tests.networks.test_matrix import on_each_device

Closure = Callable[[], Tensor]


def noisy(device: str) -> tuple[nn.Module, Tensor, Closure, Closure]:
    """A trained perceptron with dropout 0.1 and inputs that augmentation shakes, one log weight decay per weight."""
    torch.manual_seed(0)
    layers = [nn.Linear(10, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).to(device)
    decay = torch.full((64, 10), -6.0, device=device, requires_grad=True)
    centres = 2 * torch.randn(3, 10)
    y = torch.arange(120) % 3
    x = (centres[y] + torch.randn(120, 10)).to(device)
    y = y.to(device)

    def inner() -> Tensor:
        shaken = x + 0.1 * torch.randn_like(x)
        first, _, last, _ = model.parameters()
        shrinkage = (decay.exp() * first.square()).sum() + 0.01 * last.square().sum()
        value: Tensor = cross_entropy(model(shaken), y, label_smoothing=0.2) + shrinkage
        return value

    def outer() -> Tensor:
        return cross_entropy(model(x), y.roll(1), label_smoothing=0.5)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        inner().backward()
        optimizer.step()
    decay.grad = None
    return model, decay, inner, outer


@on_each_device
@pytest.mark.filterwarnings(f"ignore::{CurvatureWarning.__module__}.CurvatureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_noise_to_signal_is_zero_on_one_draw_and_small_across_draws(method: str, device: str) -> None:
    if method == "forward":
        algorithm: hg.Algorithm[Any] = hg.ForwardMode(2, hg.GradientDescent(lr=0.1), mode="guided")
    else:
        algorithm = METHODS[method].algorithm(torch.float32)
    model, decay, inner, outer = noisy(device)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        decay.grad = None
        hg.Live(model, [decay], inner, outer, algorithm).backward()
        assert decay.grad is not None
        return decay.grad.clone()

    pinned = torch.stack([draw(7) for _ in range(3)])
    assert torch.equal(pinned[0], pinned[1])
    assert torch.equal(pinned[0], pinned[2])
    draws = torch.stack([draw(seed) for seed in range(12)])
    mean = draws.mean(0)
    noise = (draws - mean).square().sum((1, 2)).sum().div(len(draws) - 1).sqrt() / mean.norm()
    assert float(noise) > 0
    assert float(noise) <= 0.15


@on_each_device
def test_every_product_sees_one_draw(device: str) -> None:
    """A Hessian product of a noisy loss is linear and symmetric only if all products share their noise."""
    model = noisy(device)[0]
    params = {key: value.detach() for key, value in model.named_parameters()}

    def loss(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        x = torch.randn(8, 10, device=device)
        value: Tensor = hparams["scale"] * torch.func.functional_call(model, params, (x,)).pow(4).mean()
        return value

    hparams = {"scale": torch.ones((), device=device)}
    graph = hg.Problem(loss, loss).linearise(params, hparams)
    u, v = (torch.randn(graph.layout.size, device=device) for _ in range(2))
    assert torch.equal(graph.hvp(v), graph.hvp(v))
    assert float(u @ graph.hvp(v)) == pytest.approx(float(v @ graph.hvp(u)), rel=1e-3)
