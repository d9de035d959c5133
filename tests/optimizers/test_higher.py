"""Loops written for higher: the same results where it runs, more optimizers, reports and checks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.bridges.higher import Loop, register
from hypergrad.errors import InputError, MissingDependencyError, UnreachedError, UnsupportedError
from hypergrad.tree import Tree, cloned

higher = pytest.importorskip("higher")
from higher import optim as registry  # noqa: E402

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, dtype=torch.float64, generator=GENERATOR)
Y = X.sum(1, keepdim=True).sin()
STEPS = 6


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dict(registry._opt_mapping)
    yield
    registry._opt_mapping.clear()
    registry._opt_mapping.update(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def train(fmodel: Any, diffopt: Any, hparams: Tree) -> None:
    for _ in range(STEPS):
        diffopt.step(((fmodel(X) - Y).square() * hparams["weights"].exp()).mean())


def outer(params: Tree, _: Tree) -> Tensor:
    found: Tensor = torch.stack([value.sin().sum() for value in params.values()]).sum()
    return found


PROBLEM = hg.Problem(outer, outer)
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 0.5}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
}
NEW = {
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
}


def point(model: nn.Module) -> tuple[Tree, Tree]:
    return dict(model.named_parameters()), {"weights": torch.zeros(12, 1, dtype=torch.float64)}


def by_higher(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tree, Tensor]:
    weights = torch.zeros(12, 1, dtype=torch.float64, requires_grad=True)
    with higher.innerloop_ctx(model, optimizer) as (fmodel, diffopt):
        train(fmodel, diffopt, {"weights": weights})
        ends = dict(zip(dict(model.named_parameters()), fmodel.parameters(), strict=True))
        (grad,) = torch.autograd.grad(outer(ends, {}), [weights])
    return {key: value.detach() for key, value in ends.items()}, grad


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tree:
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward((model(X) - Y).square().mean())
        optimizer.step()
    return cloned(dict(model.named_parameters()))


@pytest.fixture
def double() -> Iterator[None]:
    """Step counts in double precision: higher computes learning rates of Adagrad from them in their precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore:Differentiable RMSprop")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_results_are_those_of_higher(name: str) -> None:
    """The same loop, differentiated by higher alone, in our face, with our steps, and as a TorchRule."""
    kind, options = OPTIMIZERS[name]
    model = network()
    optimizer = kind(model.parameters(), **options)
    before = cloned(dict(model.named_parameters()))
    state = str(optimizer.state_dict())
    ends, grad = by_higher(model, optimizer)
    theirs = hg.hypergradient(PROBLEM, *point(model), Loop(model, optimizer, train))
    register(kind)
    mine = hg.hypergradient(PROBLEM, *point(model), Loop(model, optimizer, train))
    unrolled = hg.Problem(
        lambda params, hparams: (
            (torch.func.functional_call(model, params, (X,)) - Y).square() * hparams["weights"].exp()
        ).mean(),
        outer,
    )
    rule = hg.TorchRule(optimizer, names=model)
    converted = hg.hypergradient(unrolled, *point(model), hg.Unrolled(STEPS, rule))
    for found in (theirs, mine, converted):
        assert torch.allclose(found.grads["weights"], grad, rtol=1e-9, atol=1e-12)
        assert all(torch.allclose(found.params[key], ends[key], rtol=1e-9, atol=1e-12) for key in ends)
        assert found.report.cost == hg.Cost(STEPS, STEPS, 1)
    assert all(torch.equal(value.detach(), before[key]) for key, value in model.named_parameters())
    assert str(optimizer.state_dict()) == state


@pytest.mark.parametrize("name", NEW)
def test_registered_optimizers_have_the_iterates_of_torch(name: str) -> None:
    kind, options = NEW[name]
    model = network()
    optimizer = kind(model.parameters(), **options)
    register(kind)
    loop = Loop(model, optimizer, train)
    assert hg.check(PROBLEM, *point(model), loop, directions=1, tolerance=1e-5, verbose=False).passed
    found = hg.hypergradient(PROBLEM, *point(model), loop).params
    expected = plain(model, optimizer)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_override_is_differentiated() -> None:
    model = network()
    optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}])  # type: ignore[index]
    register(torch.optim.AdamW)

    def override(hparams: Tree) -> dict[str, list[Any]]:
        return {"lr": [hparams["lr"][:1], hparams["lr"][1]], "betas": [(hparams["beta"], 0.99)]}

    hparams = {"lr": torch.tensor([0.01, 0.02]).double(), "beta": torch.tensor(0.8).double()}
    params, more = point(model)
    loop = Loop(model, optimizer, train, override)
    result = hg.check(PROBLEM, params, more | hparams, loop, directions=1, tolerance=1e-4, verbose=False)
    assert result.passed, str(result)


def test_a_loop_is_a_function_of_its_start() -> None:
    model = network()
    params, hparams = point(model)
    problem = hg.Problem(
        outer, outer, initial=lambda hparams: {key: value + hparams["shift"] for key, value in params.items()}
    )
    hparams["shift"] = torch.tensor(0.1, dtype=torch.float64)
    loop = Loop(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), train)
    assert hg.check(problem, params, hparams, loop, directions=1, tolerance=1e-6, verbose=False).passed


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    params, hparams = point(model)
    with pytest.raises(InputError, match="model=3"):
        Loop(3, optimizer, train)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="train=3"):
        Loop(model, optimizer, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes of torch optimizers"):
        register(optimizer)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="missing keys"):
        hg.hypergradient(PROBLEM, {"w": params["0.bias"]}, hparams, Loop(model, optimizer, train))
    more = hparams | {"more": torch.zeros((), dtype=torch.float64)}
    with pytest.raises(UnreachedError, match="'more'"):
        hg.hypergradient(PROBLEM, params, more, Loop(model, optimizer, train))
    register(torch.optim.SGD)
    wide = Loop(model, optimizer, train, lambda hparams: {"lr": [hparams["weights"]]})
    with pytest.raises(InputError, match=r"override of 'lr' with a tensor of shape \(12, 1\)"):
        hg.hypergradient(PROBLEM, params, hparams, wide)
    register(torch.optim.Muon)
    matrices = nn.Linear(3, 1, bias=False).double()
    loop = Loop(matrices, torch.optim.Muon(matrices.parameters()), train)
    with pytest.raises(UnsupportedError, match="bfloat16"):
        hg.hypergradient(PROBLEM, dict(matrices.named_parameters()), hparams, loop)
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(MissingDependencyError, match=r"hypergrad-engine\[higher\]"):
        register(torch.optim.AdamW)
