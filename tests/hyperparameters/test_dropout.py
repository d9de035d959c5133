"""Dropout with a rate that gradients reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError
from tests.hyperparameters.common import FIT, differences

F64 = torch.float64
KINDS = ["concrete", "gaussian"]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_the_moments_of_dropout(kind: Any) -> None:
    torch.manual_seed(0)
    drop = hg.Dropout(0.3, kind, temperature=0.01, dtype=F64)
    noise = drop(torch.ones(400_000, dtype=F64)).detach()
    assert float(noise.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(noise.var()) == pytest.approx(0.3 / 0.7, rel=0.03)
    if kind == "concrete":
        assert float((0.7 * noise < 0.5).double().mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable_twice_in_rate_and_input(kind: Any) -> None:
    drop = hg.Dropout(0.4, kind, temperature=0.5, dtype=F64)
    x = torch.randn(5, dtype=F64, requires_grad=True)

    def call(rate: Tensor, x: Tensor) -> Any:
        torch.manual_seed(3)
        return drop.read({"logit_rate": rate}, x)

    rate = torch.tensor(-0.4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (rate, x))
    assert torch.autograd.gradgradcheck(call, (rate, x))


def test_concrete_formula() -> None:
    drop = hg.Dropout(0.2, temperature=0.3, dtype=F64)
    torch.manual_seed(1)
    found = drop(torch.full((6,), 2.0, dtype=F64))
    torch.manual_seed(1)
    u = torch.rand(6, dtype=F64)
    dropped = torch.sigmoid((torch.tensor(0.2, dtype=F64).logit() + u.logit()) / 0.3)
    assert torch.allclose(found, 2 * (1 - dropped) / 0.8)


def test_layers_own_nothing_and_follow_the_rate() -> None:
    drop = hg.Dropout(0.2, dtype=F64)
    model = nn.Sequential(nn.Linear(3, 3, dtype=F64), drop.layer(), drop.layer())
    assert len(list(model.parameters())) == 2
    x = torch.randn(4, 3, dtype=F64)
    model.eval()
    assert torch.equal(model(x), model[0](x))
    model.train()
    assert not torch.equal(model(x), model[0](x))
    drop.eval()
    assert torch.equal(drop(x), x)


def test_live_reaches_the_rate_through_a_model() -> None:
    """With the noise held, the hypergradient is the slope of retrained models."""
    torch.manual_seed(0)
    x, y, xv, yv = torch.randn(4, 12, 3, dtype=F64)
    drop = hg.Dropout(0.3, "gaussian", dtype=F64)
    layer = nn.Linear(3, 3, dtype=F64)
    model = nn.Sequential(drop.layer(), layer)

    def inner() -> Tensor:
        torch.manual_seed(7)
        value: Tensor = (model(x) - y).square().mean() + 0.05 * layer.weight.square().sum()
        return value

    def outer() -> Tensor:
        value: Tensor = (layer(xv) - yv).square().mean()
        return value

    hg.Live(model, drop, inner, outer, hg.Implicit(hg.Dense(), inner=FIT)).backward()

    def retrained() -> float:
        torch.manual_seed(7)
        noisy = drop.noisy(x).detach()
        task = hg.Problem(
            lambda p, _: (noisy @ p["w"].T + p["b"] - y).square().mean() + 0.05 * p["w"].square().sum(),
            lambda p, _: p["w"].sum(),
        )
        start = {"w": torch.zeros(3, 3, dtype=F64), "b": torch.zeros(3, dtype=F64)}
        found = FIT.run(task, start, {"x": torch.zeros((), dtype=F64)}).params
        return float((xv @ found["w"].T + found["b"] - yv).square().mean())

    assert drop.logit_rate.grad is not None
    assert torch.allclose(drop.logit_rate.grad, differences(retrained, drop.logit_rate), rtol=1e-5)


def test_wrong_settings_are_refused() -> None:
    for options in ({"initial": 0.0}, {"initial": 1.0}, {"kind": "bernouli"}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            hg.Dropout(**options)
