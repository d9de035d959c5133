"""Optimizers that cannot be followed are refused, with what to do instead; wrong settings are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import HypergradError, InputError, UnsupportedError
from hypergrad.solvers.inner import TorchRule
from tests.optimizers.common import inner, outer, start

PROBLEM = hg.Problem(inner, outer)
HPARAMS = {"lr": torch.tensor(0.01, dtype=torch.float64)}
TUNED = {"lr": hg.Tuned("lr")}


class Own(torch.optim.Optimizer):
    """A gradient step; subclasses do parts of it in ways that cannot be followed."""

    def __init__(self, tensors: Any, lr: float = 0.01) -> None:
        super().__init__(tensors, {"lr": lr})
        self.calls = 0

    def size(self, grad: Tensor) -> Any:
        return 1.0

    def keep(self, state: dict[str, Any], grad: Tensor) -> None:
        return None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        for group in self.param_groups:
            for tensor in group["params"]:
                self.keep(self.state[tensor], tensor.grad)
                tensor.data.add_(tensor.grad * self.size(tensor.grad), alpha=-group["lr"])


class Momentum(Own):
    """What can be followed although it uses ``.data``, ``.item()``, views, slices, and a norm."""

    def size(self, grad: Tensor) -> Any:
        return min(1.0, 1.0 / (grad.reshape(-1).norm().item() + 0.1))

    def keep(self, state: dict[str, Any], grad: Tensor) -> None:
        state["count"] = state.get("count", 0) + 1
        state["mean"] = state["mean"] if "mean" in state else torch.zeros_like(grad)
        state["mean"].mul_(0.5).add_(grad)
        grad.copy_(state["mean"])
        grad[..., :1] = 0.5 * grad[..., :1]


class Numpy(Own):
    def size(self, grad: Tensor) -> Any:
        return 1.0 / (1.0 + float(np.abs(grad.numpy()).max()))


class Number(Own):
    def size(self, grad: Tensor) -> Any:
        return 1.0 / math.sqrt(1.0 + grad.square().sum())


class Hidden(Own):
    """A value that leaves torch without a call that could be seen."""

    def size(self, grad: Tensor) -> Any:
        return torch.frombuffer(bytearray(bytes(grad.untyped_storage())), dtype=grad.dtype).abs().mean()


class Counting(Own):
    def size(self, grad: Tensor) -> Any:
        return 1.0 / self.calls


class Viewing(Own):
    def keep(self, state: dict[str, Any], grad: Tensor) -> None:
        grad.view(-1)[:1].mul_(2.0)


class Listing(Own):
    def keep(self, state: dict[str, Any], grad: Tensor) -> None:
        state.setdefault("history", []).append(grad.clone())


class Late(Own):
    def keep(self, state: dict[str, Any], grad: Tensor) -> None:
        state["count"] = state.get("count", 0) + 1
        if state["count"] == 20:
            state["late"] = grad.clone()


def muon(tensors: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Muon([tensor for tensor in tensors if tensor.dim() == 2], lr=0.01)


def hooked(tensors: list[Tensor]) -> torch.optim.Optimizer:
    made = torch.optim.SGD(tensors, lr=0.01)
    made.register_step_pre_hook(lambda *_: None)
    return made


CASES: dict[str, tuple[Callable[[list[Tensor]], torch.optim.Optimizer], str]] = {
    "a closure": (lambda tensors: torch.optim.LBFGS(tensors, lr=0.01), "LBFGS.*closure"),
    "sparse gradients": (lambda tensors: torch.optim.SparseAdam(tensors, lr=0.01), "SparseAdam.*dense gradients"),
    "half precision": (muon, "rounds torch.float64 to torch.bfloat16"),
    "numpy": (Numpy, "out of torch .numpy"),
    "a Python number": (Number, "out of torch .float"),
    "storage": (Hidden, "Hidden"),
    "memory of its own": (Counting, "step 2 has other values"),
    "a view": (Viewing, "through a view"),
    "a list in its state": (Listing, "'history' is of type list"),
    "hooks": (hooked, "hooks on its step"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    make, text = CASES[name]
    params = start() if name != "half precision" else {"a": start()["a"]}
    problem = PROBLEM if "b" in params else hg.Problem(lambda p, _: p["a"].square().sum(), lambda p, _: p["a"].sum())
    before = torch.get_rng_state()
    for rule in (TorchRule(make), TorchRule(make, TUNED)):
        with pytest.raises(UnsupportedError, match=text) as caught:
            hg.hypergradient(problem, params, HPARAMS, hg.Unrolled(3, rule))
        if name != "hooks":
            assert all(way in caught.value.do for way in ("Implicit", "ZerothOrder", "TorchOptimizer"))
    assert torch.equal(torch.get_rng_state(), before)


def test_state_that_comes_late_is_refused_when_it_comes() -> None:
    rule = TorchRule(Late)
    rule.advance_by(PROBLEM, rule.begin(start()), HPARAMS, 19)
    with pytest.raises(UnsupportedError, match=r"'late'.*came in after"):
        rule.advance_by(PROBLEM, rule.begin(start()), HPARAMS, 20)


def test_an_optimizer_of_ones_own_is_followed() -> None:
    rule = TorchRule(Momentum, TUNED)
    for algorithm in (hg.Unrolled(4, rule), hg.Unrolled(4, rule, keep="log"), hg.ForwardMode(4, rule)):
        assert hg.check(PROBLEM, start(), HPARAMS, algorithm, tolerance=1e-5, verbose=False).passed


WRONG: dict[str, tuple[Callable[[], TorchRule], str]] = {
    "no optimizer": (lambda: TorchRule(3), "optimizer=3"),  # type: ignore[arg-type]
    "another thing": (lambda: TorchRule(lambda _: 3), "returned int"),  # type: ignore[arg-type,return-value]
    "settings": (lambda: TorchRule(Own, 3), "settings=3"),  # type: ignore[arg-type]
    "option": (lambda: TorchRule(Own, {"l": 1.0}), "with 'l' .did you mean 'lr'"),
    "group": (lambda: TorchRule(Own, {4: {"lr": 1.0}}), "for 4"),
    "parameter": (lambda: TorchRule(Own, {"aa": {"lr": 1.0}}), "did you mean 'a'"),
    "flag": (lambda: TorchRule(torch.optim.SGD, {"nesterov": hg.Tuned("lr")}), "which is False"),
    "betas": (lambda: TorchRule(torch.optim.Adam, {"betas": hg.Tuned("lr")}), "as many settings"),
    "vector": (lambda: TorchRule(Own, {"lr": hg.Tuned(lambda h: h["lr"].expand(2))}), "0-d tensor"),
    "continued": (lambda: TorchRule(Own, continued=True), "a new optimizer"),
    "names": (lambda: TorchRule(Own, names=nn.Linear(2, 1)), "drop names"),
    "others": (lambda: TorchRule(Own([torch.zeros(2)])), "have no names"),
    "some": (lambda: TorchRule(Own([("a", torch.zeros(2, 3))])), "missing keys"),
    "groups without names": (
        lambda: TorchRule(Own([{"params": [torch.zeros(2, 3)]}, {"params": [torch.zeros(2)]}])),
        "have no names",
    ),
    "nameless": (lambda: TorchRule(Own(start().values()), names={"c": torch.zeros(1)}), "have no names"),
    "steps": (lambda: TorchRule(Own, steps=0), "steps > 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(name: str) -> None:
    make, text = WRONG[name]
    with pytest.raises(InputError, match=text) as caught:
        hg.hypergradient(PROBLEM, start(), HPARAMS, hg.Unrolled(2, make()))
    assert isinstance(caught.value, HypergradError)
    assert caught.value.do


def test_names_come_from_a_module_or_from_the_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    params = dict(model.named_parameters())
    problem = hg.Problem(
        lambda p, h: (p["weight"].sum() - h["x"]).square() + p["bias"].square().sum(), lambda p, _: p["weight"].sum()
    )
    hparams = {"x": torch.tensor(1.0, dtype=torch.float64)}
    groups: list[dict[str, Any]] = [{"params": [model.bias]}, {"params": [model.weight]}]
    for rule in (
        TorchRule(torch.optim.Adam(groups), names=model),
        TorchRule(torch.optim.Adam(model.named_parameters()), {"weight": {"lr": 0.01}}),
        TorchRule(torch.optim.Adam(model.parameters())),
    ):
        algorithm = hg.Unrolled(3, rule)
        assert hg.check(problem, params, hparams, algorithm, tolerance=1e-6, verbose=False).passed
        assert "Adam" in repr(algorithm)
