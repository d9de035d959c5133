"""The live face: an existing module and loop, ordinary layers, and nothing of the user's moved."""

from __future__ import annotations

import copy
import unittest.mock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
XV, YV = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
QUIET = float("inf")


def exact(**options: Any) -> hg.Implicit:
    return hg.Implicit(hg.Dense(), stationarity=QUIET, **options)


class Attention(nn.Module):
    """Self-attention without weights, which takes the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(2, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(-1, 3, 2))
        mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        out: Tensor = self.head(self.norm(tokens + mixed).mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cells, self.head = kind(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(x.reshape(-1, 3, 2))[0][:, -1])
        return out


class Checkpointed(nn.Module):
    """Runs its body a second time in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    makers: dict[str, Any] = {
        "mlp": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "relu": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        "dropout": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3)),
        "batch-norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        "conv": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ),
        "attention": Attention,
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "tied": Tied,
        "checkpoint": Checkpointed,
        "weight-norm": lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
        ),
    }
    return makers[name]()  # type: ignore[no-any-return]


NAMES = [
    "mlp",
    "relu",
    "dropout",
    "batch-norm",
    "conv",
    "attention",
    "lstm",
    "gru",
    "tied",
    "weight-norm",
    "checkpoint",
]


def losses(model: nn.Module, weight: Tensor, decay: Tensor) -> tuple[Any, Any]:
    dtype = weight.dtype

    def inner(batch: slice) -> Tensor:
        each = cross_entropy(model(X[batch].to(dtype)), Y[batch], reduction="none")
        shrink = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        return (weight[batch].sigmoid() * each).mean() + decay.exp() * shrink

    return inner, lambda: cross_entropy(model(XV.to(dtype)), YV)


def hyperparameters(dtype: torch.dtype = torch.float32) -> Tree:
    return {
        "weight": torch.linspace(-1, 1, 24, dtype=dtype).requires_grad_(),
        "decay": torch.tensor(-2.0, dtype=dtype, requires_grad=True),
    }


def reference(model: nn.Module, hparams: Tree, batch: slice, seed: int) -> Tree:
    """The implicit hypergradient from a dense float64 Hessian, entry by entry, of the same deterministic function."""
    twin = copy.deepcopy(model).double()
    double = {key: value.detach().double().requires_grad_() for key, value in hparams.items()}
    inner, outer = losses(twin, double["weight"], double["decay"])
    params = [p for p in twin.parameters() if p.requires_grad]
    composite = unittest.mock.patch("torch._weight_norm", weight_norm)
    with composite, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.manual_seed(seed)
        v = torch.cat([g.reshape(-1) for g in torch.autograd.grad(outer(), params)])
        loss = inner(batch)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True) for entry in gradient]
    hessian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    q: Tensor = torch.linalg.pinv(hessian, hermitian=True, rtol=1e-13) @ v
    mixed = torch.autograd.grad(gradient, list(double.values()), q)
    return {key: -m for key, m in zip(double, mixed, strict=True)}


def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """The fused kernel has a wrong second derivative in torch 2.13."""
    out: Tensor = v * (g / torch.norm_except_dim(v, 2, dim))
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_ordinary_networks_are_right_and_stay_untouched(name: str, dtype: torch.dtype) -> None:
    model, hparams = build(name).to(dtype), hyperparameters(dtype)
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = slice(0, 16)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    expected = reference(model, hparams, batch, seed=11)
    torch.set_rng_state(state)
    hg.Live(model, hparams, inner, outer, exact()).backward(batch)
    found = {key: value.grad for key, value in hparams.items() if value.grad is not None}
    tolerance = 1e-7 if dtype == torch.float64 else 2e-2 if name != "relu" else 5e-2
    assert relative_error({k: v.double() for k, v in found.items()}, expected) < tolerance
    assert torch.equal(torch.get_rng_state(), state), "the random state moved"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model changed"
    assert all(p.grad is None for p in model.parameters()), "a .grad was left behind"
    assert model.training


def test_dropout_is_one_function_in_every_product() -> None:
    """Two calls at one random state agree bit for bit; another state is another draw."""
    model, hparams = build("dropout"), hyperparameters()
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(10), stationarity=QUIET))
    draws: list[Tensor] = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(10), stationarity=QUIET))
        hparams["weight"].grad = hparams["decay"].grad = None
        hyper.backward(slice(0, 16))
        assert hparams["weight"].grad is not None
        draws.append(hparams["weight"].grad.clone())
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    """The trajectory of a model with dropout and batch norm is bit for bit the same with hypergradients in between."""
    finals = []
    for interleave in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        hparams = hyperparameters()
        inner, outer = losses(model, hparams["weight"], hparams["decay"])
        hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(3), damping=1.0, stationarity=QUIET))
        for _ in range(5):
            optimizer.zero_grad()
            loss: Any = inner(slice(0, 16))
            loss.backward()
            optimizer.step()
            for value in hparams.values():
                value.grad = None
            if interleave:
                hyper.backward(slice(0, 16))
        finals.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


@pytest.mark.parametrize(
    "algorithm",
    [
        hg.Implicit(hg.CG(rtol=1e-12), stationarity=QUIET, damping=2.0),
        hg.Implicit(hg.Neumann(4, step=0.05), stationarity=QUIET),
        hg.Unrolled(3, hg.GradientDescent(lr=0.1, momentum=0.9)),
        hg.Unrolled(4, hg.Adam(lr=0.1), truncate=2, keep="sqrt"),
        hg.ForwardMode(2, hg.GradientDescent(lr=0.1), mode="guided", guide=1),
    ],
    ids=["cg", "neumann", "unrolled", "k-rmd", "guided"],
)
@pytest.mark.parametrize("name", ["mlp", "checkpoint"])
def test_live_face_equals_the_function_face(algorithm: hg.Algorithm[Any], name: str) -> None:
    model, hparams = build(name).double(), hyperparameters(torch.float64)
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    report = hg.Live(model, hparams, inner, outer, algorithm).backward(slice(0, 24))

    def call(params: Tree, x: Tensor) -> Tensor:
        first, first_bias, second, second_bias = params.values()
        hidden = torch.tanh(x.double() @ first.mT + first_bias)
        return hidden @ second.mT + second_bias

    def pure_inner(params: Tree, hparams: Tree) -> Tensor:
        each = cross_entropy(call(params, X), Y, reduction="none")
        shrink = torch.stack([p.square().sum() for p in params.values()]).sum()
        value: Tensor = (hparams["weight"].sigmoid() * each).mean() + hparams["decay"].exp() * shrink
        return value

    problem = hg.Problem(pure_inner, lambda params, _: cross_entropy(call(params, XV), YV))
    expected = hg.hypergradient(problem, dict(model.named_parameters()), hparams, algorithm)
    found = {key: value.grad for key, value in hparams.items() if value.grad is not None}
    assert relative_error(found, expected.grads) < 1e-10
    assert report.cost == expected.report.cost
    assert report.outer_loss == pytest.approx(expected.report.outer_loss)


def test_hyperparameters_may_be_a_module() -> None:
    """A network that weights examples, in a closure, replaced functionally like the model itself."""
    torch.manual_seed(0)
    model, weigher = nn.Linear(6, 3).double(), nn.Linear(6, 1).double()

    def inner() -> Tensor:
        each = cross_entropy(model(X.double()), Y, reduction="none")
        value: Tensor = (weigher(X.double()).sigmoid()[:, 0] * each).mean() + 0.1 * model.weight.square().sum()
        return value

    def outer() -> Tensor:
        return cross_entropy(model(XV.double()), YV)

    grads = {}
    algorithms: dict[str, hg.Algorithm[Any]] = {
        "implicit": exact(damping=0.05),
        "long-unroll": hg.Unrolled(3, hg.GradientDescent(lr=0.1)),
        "differences": hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=3), step_size=1e-4),
    }
    for name, algorithm in algorithms.items():
        weigher.zero_grad()
        hg.Live(model, weigher, inner, outer, algorithm).backward()
        grads[name] = {key: p.grad.clone() for key, p in weigher.named_parameters() if p.grad is not None}
        assert len(grads[name]) == 2
    assert relative_error(grads["differences"], grads["long-unroll"]) < 1e-5
    assert float(grads["implicit"]["weight"].norm()) > 0


def test_grad_accumulates_like_backward() -> None:
    model, hparams = build("mlp"), hyperparameters()
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(2, step=0.01), stationarity=QUIET))
    hyper.backward(slice(0, 8))
    once = {key: value.grad.clone() for key, value in hparams.items() if value.grad is not None}
    hyper.backward(slice(0, 8))
    for key, value in hparams.items():
        assert value.grad is not None
        assert torch.allclose(value.grad, 2 * once[key])


def test_frozen_layers_are_no_params() -> None:
    model, hparams = build("mlp"), hyperparameters()
    first: Any = model[0]  # type: ignore[index]
    first.requires_grad_(requires_grad=False)
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    expected = reference(model, hparams, slice(0, 24), seed=0)
    hg.Live(model, hparams, inner, outer, exact()).backward(slice(0, 24))
    found = {key: value.grad.double() for key, value in hparams.items() if value.grad is not None}
    assert relative_error(found, expected) < 1e-4
    assert all(p.grad is None for p in model.parameters())


def test_penalty_given_apart_changes_nothing_but_the_cost() -> None:
    model, hparams = build("mlp").double(), hyperparameters(torch.float64)
    inner, outer = losses(model, hparams["weight"], hparams["decay"])

    def data(batch: slice) -> Tensor:
        return (
            hparams["weight"][batch].sigmoid() * cross_entropy(model(X[batch].double()), Y[batch], reduction="none")
        ).mean()

    def penalty() -> Tensor:
        return hparams["decay"].exp() * torch.stack([p.square().sum() for p in model.parameters()]).sum()

    grads = []
    for live in (
        hg.Live(model, hparams, inner, outer, exact()),
        hg.Live(model, hparams, data, outer, exact(), penalty=penalty),
    ):
        hparams["weight"].grad = hparams["decay"].grad = None
        live.backward(slice(0, 24))
        grads.append({key: value.grad for key, value in hparams.items() if value.grad is not None})
    assert relative_error(grads[1], grads[0]) < 1e-9


def test_each_kind_of_warning_is_given_once() -> None:
    model, hparams = build("mlp"), hyperparameters()
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(4), damping=0.5))
    with pytest.warns(hg.errors.StationarityWarning, match="gradient norm"):
        hyper.backward(slice(0, 8))
    report = hyper.backward(slice(0, 8))
    assert "stationarity" in report.notes


def test_solver_memory_is_kept_between_calls() -> None:
    model, hparams = build("mlp"), hyperparameters()
    inner, outer = losses(model, hparams["weight"], hparams["decay"])
    hyper = hg.Live(model, hparams, inner, outer, hg.Implicit(hg.Neumann(4), stationarity=QUIET, damping=0.5))
    first, second = hyper.backward(slice(0, 24)), hyper.backward(slice(0, 24))
    assert first.cost.products - second.cost.products == 9, "ten power steps, then one"
