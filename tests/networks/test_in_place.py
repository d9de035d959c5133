"""A tensor that is changed in place between the evaluation and its products is named; nothing wrong comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError
from hypergrad.linear import LinearResult, Memory, Operator
from hypergrad.tree import Tree

DATA = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RULE = hg.GradientDescent(lr=0.1)


def inner(params: Tree, hparams: Tree, batch: Tensor) -> Tensor:
    shrinkage = (hparams["decay"].square() * params["w"].square()).sum()
    value: Tensor = (torch.tanh(batch @ params["w"].exp() + params["b"]) - 0.3).square().mean() + shrinkage
    return value


def outer(params: Tree, hparams: Tree) -> Tensor:
    return params["w"].square().sum()


def point() -> tuple[Tree, Tree, Tensor]:
    params = {"w": torch.full((3,), 0.2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    return params, {"decay": torch.full((3,), -1.0, dtype=torch.float64, requires_grad=True)}, DATA.clone()


Change = Callable[[Tensor], Any]
CHANGES: dict[str, Change] = {
    "an in-place operation": lambda tensor: tensor.detach().add_(1),
    "an optimizer": lambda tensor: torch._foreach_mul_([tensor.detach()], 2.0),
    "indexing": lambda tensor: tensor.detach().view(-1).__setitem__(0, 1.0),
}
each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def outcome(product: Callable[[Tensor], Any]) -> Any:
    """What a product along ones returns as one vector, or the error that it raises."""
    try:
        value = product(torch.ones(4, dtype=torch.float64))
    except InputError as error:
        return error
    return value["decay"] if isinstance(value, dict) else value


@each_change
@pytest.mark.parametrize(("name", "needed"), [("params['w']", 2), ("hparams['decay']", 1), ("params['b']", 0)])
def test_products_after_a_change_name_the_tensor_or_do_not_need_it(name: str, needed: int, change: Change) -> None:
    """What a graph did not save it does not read again: such a product is that of the point where it was recorded."""
    params, hparams, batch = point()
    graph = hg.Problem(inner, outer).linearise(params, hparams, batch)
    products: list[Callable[[Tensor], Any]] = [graph.hvp, graph.cross, lambda v: graph.jvp(v, None)]
    before = [outcome(product) for product in products]
    change({"params['w']": params["w"], "hparams['decay']": hparams["decay"], "params['b']": params["b"]}[name])
    raised = 0
    for product, expected in zip(products, before, strict=True):
        found = outcome(product)
        if isinstance(found, InputError):
            raised += 1
            assert f"{name}, changed in place" in found.passed
            assert "clone" in found.do
        else:
            assert torch.equal(found, expected)
    assert raised >= needed


@each_change
def test_a_changed_batch_is_told_apart(change: Change) -> None:
    params, hparams, batch = point()
    graph = hg.Problem(inner, outer).linearise(params, hparams, batch)
    change(batch)
    with pytest.raises(InputError, match="no parameter and no hyperparameter"):
        graph.hvp(torch.ones(4, dtype=torch.float64))


REPLAYED = [
    hg.Unrolled(3, RULE),
    hg.Unrolled(3, RULE, keep="sqrt"),
    hg.ForwardMode(3, RULE),
    hg.SOBA(step_size=0.1),
    hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=3)),
]
IMPLICIT = hg.Implicit(hg.CG(), inner=hg.LBFGS())


@each_change
@pytest.mark.parametrize(
    ("algorithm", "name"), [*((a, name) for a in REPLAYED for name in ("w", "decay")), (IMPLICIT, "decay")]
)
def test_backward_through_training_names_the_tensor(algorithm: hg.Algorithm[Any], name: str, change: Change) -> None:
    """Without the check, methods that replay training would start elsewhere and return another gradient."""
    params, hparams, batch = point()
    problem = hg.Problem(inner, outer).with_batches(batch)
    trained = hg.solve(problem, params, hparams, algorithm)
    loss = trained["w"].sum()
    change({**params, **hparams}[name])
    with pytest.raises(InputError, match=f"{name}'.*changed in place"):
        loss.backward()
    assert hparams["decay"].grad is None


def test_trained_parameters_may_go_on_training() -> None:
    """What the user's training returns is copied, so the gradient is that of where it ended."""
    grads = []
    for go_on in (False, True):
        params, hparams, _ = point()
        model = {key: value.clone() for key, value in params.items()}
        train = hg.differentiable(
            functools.partial(lambda found, *point: found, model), lambda p, h: inner(p, h, DATA), linear=hg.CG()
        )
        loss = train(params, hparams)["w"].sum()
        if go_on:
            model["w"].mul_(0.9)
        loss.backward()
        grads.append(hparams["decay"].grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert torch.equal(grads[0], grads[1])


@dataclass(frozen=True)
class Meddling(hg.LinearSolver):
    """Steps the model's optimizer in the middle of a solve, as another thread could."""

    optimizer: torch.optim.Optimizer
    needs_symmetric = needs_definite = uses_start = exact = False
    cost = "2"

    def budget(self, size: int) -> int:
        return 2

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        operator(b)
        self.optimizer.step()
        return LinearResult(operator(b), hg.Status.COMPLETED, 0.0, 2)


def test_a_model_that_is_trained_meanwhile_is_noticed() -> None:
    model, decay = nn.Linear(3, 1).double(), torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        value: Tensor = torch.tanh(model(DATA)).square().mean() + decay.exp() * model.weight.square().sum()
        return value

    loss().backward()
    decay.grad = None
    meddling = Meddling(torch.optim.SGD(model.parameters(), lr=0.1))
    hyper = hg.Live(model, [decay], loss, loss, hg.Implicit(meddling, stationarity=float("inf")))
    with pytest.raises(InputError, match=r"params\['weight'\].*changed in place"):
        hyper.backward()
    assert decay.grad is None
