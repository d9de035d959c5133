"""Weight decay with rates of its own: shapes, gradients, the penalty given apart, and hypergradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError, TreeError
from tests.hyperparameters.common import FIT

F64 = torch.float64
X, XV = torch.randn(2, 20, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
Y, YV = torch.randn(2, 20, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
SHAPES = {
    "model": {"log_rate": ()},
    "tensor": {"0/weight": (), "0/bias": (), "2/weight": (), "2/bias": ()},
    "channel": {"0/weight": (3, 1), "0/bias": (3,), "2/weight": (2, 1), "2/bias": (2,)},
    "weight": {"0/weight": (3, 4), "0/bias": (3,), "2/weight": (2, 3), "2/bias": (2,)},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)


def spread(decay: hg.WeightDecay) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for rate in decay.parameters():
            rate.add_(torch.randn(rate.shape, dtype=F64, generator=generator))


@pytest.mark.parametrize("per", SHAPES)
def test_rates_have_the_shapes_asked_for(per: Any) -> None:
    model = network()
    decay = hg.WeightDecay(model, per, initial=0.3)
    assert {name: tuple(rate.shape) for name, rate in decay.tree().items()} == SHAPES[per]
    assert all(torch.allclose(rate, torch.tensor(0.3, dtype=F64)) for rate in decay.rates().values())
    assert list(decay.rates()) == [name for name, _ in model.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_gradient_is_that_of_torchs_optimizers() -> None:
    model = network()
    decay = hg.WeightDecay(model, "tensor", initial=0.3)
    decay().backward()
    for value in model.parameters():
        assert value.grad is not None
        assert torch.allclose(value.grad, 0.3 * value)


@pytest.mark.parametrize("per", SHAPES)
def test_penalty_is_a_sum_over_entries(per: Any) -> None:
    model = network()
    decay = hg.WeightDecay(model, per)
    spread(decay)
    expected = sum(
        float((rate.expand_as(value) * value**2).sum().detach()) / 2
        for rate, value in zip(decay.rates().values(), model.parameters(), strict=True)
    )
    assert float(decay().detach()) == pytest.approx(expected, rel=1e-12)
    raw = {**decay.tree(), "other": torch.zeros(2)}
    assert torch.equal(decay.penalty(dict(model.named_parameters()), raw), decay())
    assert torch.equal(decay.read(decay.tree()), decay())


@pytest.mark.parametrize("per", SHAPES)
def test_given_apart_it_is_what_it_is_inside(per: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2, dtype=F64)
    decay = hg.WeightDecay(model, per, initial=0.1)
    spread(decay)

    def data() -> Tensor:
        value: Tensor = (model(X) - Y).square().mean()
        return value

    def outer() -> Tensor:
        value: Tensor = (model(XV) - YV).square().mean()
        return value

    algorithm = hg.Implicit(hg.Dense(), inner=FIT)
    found = []
    for inner, penalty in ((data, decay), (lambda: data() + decay(), None)):
        hg.Live(model, decay, inner, outer, algorithm, penalty=penalty).backward()
        found.append([rate.grad for rate in decay.parameters()])
        for rate in decay.parameters():
            rate.grad = None
    problem = hg.Problem(
        lambda p, _: (X @ p["weight"].T + p["bias"] - Y).square().mean(),
        lambda p, _: (XV @ p["weight"].T + p["bias"] - YV).square().mean(),
        penalty=decay.penalty,
    )
    start = {name: value.detach() for name, value in model.named_parameters()}
    found.append(list(hg.hypergradient(problem, start, decay.tree(), algorithm).grads.values()))
    for apart, inside, functional in zip(*found, strict=True):
        assert apart is not None
        assert inside is not None
        assert functional is not None
        assert torch.allclose(apart, inside, rtol=1e-6, atol=1e-10)
        assert torch.allclose(apart, functional, rtol=1e-6, atol=1e-10)


def test_hypergradient_of_ridge_regression_in_closed_form() -> None:
    """θ* = (2XᵀX/n + diag e^λ)⁻¹ 2Xᵀy/n, so that dF/dλ = −e^λ θ* ⊙ (H⁻¹ ∂f/∂θ)."""
    model = nn.Linear(4, 1, bias=False, dtype=F64)
    decay = hg.WeightDecay(model, "weight", initial=0.1)
    spread(decay)
    rates = decay.rates()["weight"].detach().flatten()
    hessian = 2 * X.T @ X / 20 + rates.diag()
    theta = torch.linalg.solve(hessian, 2 * X.T @ Y[:, 0] / 20)
    slope = 2 * XV.T @ (XV @ theta - YV[:, 0]) / 20
    expected = -rates * theta * torch.linalg.solve(hessian, slope)
    with torch.no_grad():
        model.weight.copy_(theta)
    hg.Live(
        model,
        decay,
        lambda: (model(X)[:, 0] - Y[:, 0]).square().mean(),
        lambda: (model(XV)[:, 0] - YV[:, 0]).square().mean(),
        hg.Implicit(hg.CG(rtol=1e-12)),
        penalty=decay,
    ).backward()
    (found,) = (rate.grad for rate in decay.parameters())
    assert found is not None
    assert torch.allclose(found.flatten(), expected, rtol=1e-8)


def test_only_some_weights() -> None:
    model = network()
    model[2].bias.requires_grad_(False)  # noqa: FBT003
    decay = hg.WeightDecay(model, only=lambda name, value: value.dim() > 1)
    assert list(decay.tree()) == ["0/weight", "2/weight"]
    assert "2/bias" not in hg.WeightDecay(model).tree()
    assert [name for name, _ in decay.named_modules()] == [""]


def test_wrong_settings_are_refused() -> None:
    model = network()
    with pytest.raises(InputError, match="did you mean 'tensor'"):
        hg.WeightDecay(model, "tenser")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="initial > 0"):
        hg.WeightDecay(model, initial=0.0)
    with pytest.raises(InputError, match="keeps none"):
        hg.WeightDecay(model, only=lambda name, value: False)
    with pytest.raises(InputError, match="the module"):
        hg.WeightDecay([torch.zeros(2)])  # type: ignore[arg-type]
    with pytest.raises(TreeError, match="0/weight"):
        hg.WeightDecay(model).penalty(dict(model.named_parameters()), {"0.weight": torch.zeros(())})
