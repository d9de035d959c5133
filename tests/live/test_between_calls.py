"""What may happen to the model and to the hyperparameters between two calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import RestartWarning, TreeError, UnreachedError
from tests.bad_input.common import refused
from tests.live.common import EXACT, QUICK, X, Y, decay, first_weight, hypergradient, losses, net

WARM = hg.Implicit(hg.Neumann(20), damping=3.0, stationarity=math.inf)
"""Remembers a power vector, which has the length of all parameters together."""
SOBA = hg.SOBA(step_size=0.05)
ALGORITHMS: dict[str, Any] = {"exact": EXACT, "neumann": WARM, "soba": SOBA}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def first(model: nn.Module) -> Any:
    return next(model.children())


def write_data(model: nn.Module) -> None:
    first(model).weight.data = first(model).weight.data * 1.5


def write_in_place(model: nn.Module) -> None:
    first(model).weight.data.mul_(1.5)


def replace(model: nn.Module) -> None:
    first(model).weight = nn.Parameter(first(model).weight.detach() * 1.5)


def load(model: nn.Module) -> None:
    model.load_state_dict({key: 1.5 * value for key, value in model.state_dict().items()})


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def evaluate(model: nn.Module) -> None:
    model.eval()


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    change.__name__: change for change in (write_data, write_in_place, replace, load, step, evaluate)
}


def answer(hyper: hg.Live, weight: Tensor) -> Tensor:
    weight.grad = None
    hyper.backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_answer_is_that_of_the_changed_model(change: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 1)).double()
    weight = decay(-1)
    hyper = hg.Live(model, [weight], *losses(model, weight), EXACT)
    torch.manual_seed(0)
    before = answer(hyper, weight)
    CHANGES[change](model)
    torch.manual_seed(0)
    after = answer(hyper, weight)
    torch.manual_seed(0)
    assert torch.equal(after, hypergradient(model, weight))
    assert not torch.allclose(after, before, rtol=1e-3)


@each_algorithm
def test_frozen_and_unfrozen_parameters_begin_the_algorithm_anew(algorithm: Any) -> None:
    model, weight = net(), decay(-1)
    hyper = hg.Live(model, [weight], *losses(model, weight), algorithm)
    whole = answer(hyper, weight)
    first(model).requires_grad_(requires_grad=False)
    with pytest.warns(RestartWarning, match=r"params \['0.weight', '0.bias'\] went out.*begins anew"):
        frozen = answer(hyper, weight)
    assert torch.equal(frozen, hypergradient(model, weight, algorithm))
    first(model).requires_grad_(requires_grad=True)
    again = answer(hyper, weight)  # each kind of warning is given once
    assert torch.equal(again, whole)


@each_algorithm
def test_a_layer_of_another_size_begins_the_algorithm_anew(algorithm: Any) -> None:
    model, weight = net(), decay(-1)
    hyper = hg.Live(model, [weight], *losses(model, weight), algorithm)
    answer(hyper, weight)
    wider: Any = model
    wider[0], wider[2] = nn.Linear(2, 5).double(), nn.Linear(5, 1).double()
    with pytest.warns(RestartWarning, match="changed shape"):
        found = answer(hyper, weight)
    assert torch.equal(found, hypergradient(model, weight, algorithm))


def test_a_model_that_moves_to_another_dtype_alone_is_refused_and_goes_on_with_its_hyperparameters() -> None:
    model, weight = net(), decay(-1)
    hyper = hg.Live(
        model,
        [weight],
        lambda: (model(X.to(weight)) * weight).mean() + 0 * weight,
        lambda: model(X.to(weight)).mean(),
        QUICK,
    )
    hyper.backward()
    weight.grad = None
    model.float()
    with refused(TreeError, model, {"weight": weight}, passed=("float32", "float64"), do=".to("):
        hyper.backward()
    weight.data = weight.data.float()
    with pytest.warns(RestartWarning, match="changed shape, dtype or device"):
        hyper.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_hyperparameter_that_is_frozen_between_calls_is_refused() -> None:
    model, weight = net(), decay(-1)
    hyper = hg.Live(model, {"weight": weight}, *losses(model, weight), QUICK)
    hyper.backward()
    weight.requires_grad = False
    with refused(TreeError, model, {"weight": weight}, passed=("hparams['weight']", "does not require grad")):
        hyper.backward()


def test_a_parameter_of_the_hyperparameter_module_may_be_replaced() -> None:
    model = net()
    module = nn.ParameterDict({"weight": nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))})

    def train() -> Tensor:
        loss: Tensor = (model(X) - Y).square().mean() + module["weight"].exp() * first_weight(model).square().sum()
        return loss

    hyper = hg.Live(model, module, train, losses(model, decay())[1], EXACT)
    hyper.backward()
    old = module["weight"]
    module["weight"] = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    kept = old.grad
    hyper.backward()
    assert old.grad is kept
    fresh = module["weight"].grad
    module["weight"].grad = None
    hg.Live(model, module, train, losses(model, decay())[1], EXACT).backward()
    assert fresh is not None
    assert module["weight"].grad is not None
    assert torch.equal(fresh, module["weight"].grad)


def test_all_parameters_frozen_between_calls_is_refused() -> None:
    model, weight = net(), decay(-1)
    hyper = hg.Live(model, [weight], *losses(model, weight), QUICK)
    hyper.backward()
    model.requires_grad_(requires_grad=False)
    with refused(TreeError, model, {"weight": weight}, passed="no tensors"):
        hyper.backward()


def test_a_refusal_between_calls_leaves_the_memory() -> None:
    model, weight = net(), decay(-1)
    train, valid = losses(model, weight)
    hyper, twin = (hg.Live(model, [weight], train, valid, WARM) for _ in range(2))
    answer(hyper, weight)
    answer(twin, weight)
    model.spare = nn.Linear(1, 1)
    with refused(TreeError, passed="mixed dtypes"):
        hyper.backward()
    del model.spare
    assert torch.equal(answer(hyper, weight), answer(twin, weight))


def test_a_loss_that_stops_using_a_parameter_says_so() -> None:
    model, weight, used = net(), decay(-1), [True]
    train, valid = losses(model, weight)

    def sometimes() -> Tensor:
        return train() if used[0] else weight.exp() * first_weight(model).square().sum()

    hyper = hg.Live(model, [weight], sometimes, valid, QUICK)
    hyper.backward()
    used[0] = False
    with pytest.raises(UnreachedError, match=r"'0\.bias'"):
        hyper.backward()
