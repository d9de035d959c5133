"""Every optimizer of torch as a rule: its iterates bit for bit, its derivatives, what stays untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.solvers.inner import TorchRule
from hypergrad.tree import Tree, leaves
from tests.optimizers.common import CASES, inner, outer, start

NONE = {"unused": torch.zeros(())}
STEPS = 7  # RAdam takes another branch from its step 6 on


@pytest.fixture
def double() -> Iterator[None]:
    """Scalars of the optimizers' state in double precision: in single they hide what differences measure."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_tuned_iterates_are_bitwise_those_at_the_same_numbers(name: str) -> None:
    case, problem = CASES[name], hg.Problem(inner, outer)
    settings, hparams = case.settings()
    rule = TorchRule(case.make, settings)
    theirs = case.trained(start(), 10)
    mine = rule.advance_by(problem, rule.begin(start()), hparams, 10)
    graph = rule.begin(start())
    for _ in range(10):
        at = hg.inner.Iterate(leaves(graph.params), graph.slots, graph.step)
        graph = rule.advance(problem, at, leaves(hparams), create_graph=True)
    for key in theirs:
        assert torch.equal(mine.params[key], theirs[key]), key
        assert torch.equal(graph.params[key].detach(), theirs[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_iterates_are_bitwise_those_of_the_optimizer(name: str, dtype: torch.dtype) -> None:
    case, params = CASES[name], start(dtype)
    theirs = case.trained(params, 10)
    rule = TorchRule(case.make)
    mine = rule.advance_by(hg.Problem(inner, outer), rule.begin(params), NONE, 10).params
    assert all(torch.equal(mine[key], theirs[key]) for key in params)


def along(name: str) -> tuple[hg.Problem, TorchRule, Tree]:
    settings, hparams = CASES[name].settings()
    problem = hg.Problem(
        inner, outer, initial=lambda hparams: {key: value + hparams[key] for key, value in start().items()}
    )
    shift = {key: torch.zeros_like(value) for key, value in start().items()}
    return problem, TorchRule(CASES[name].make, settings), hparams | shift


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_central_differences(name: str) -> None:
    """Along every option and the initial point."""
    problem, rule, hparams = along(name)
    found = hg.hypergradient(problem, start(), hparams, hg.Unrolled(STEPS, rule)).grads
    for key, value in hparams.items():
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        expected = float((found[key] * direction).sum())
        quotients = []
        for width in (2e-7, 1e-7):
            ends = [
                outer(rule.advance_by(problem, rule.begin(moved(problem, at)), at, STEPS).params, at)
                for at in (hparams | {key: value + side * width * direction} for side in (1, -1))
            ]
            quotients.append(float(ends[0] - ends[1]) / (2 * width))
        measured = (4 * quotients[1] - quotients[0]) / 3
        assert expected == pytest.approx(measured, rel=1e-5, abs=1e-9), key


def moved(problem: hg.Problem, hparams: Tree) -> Tree:
    return {key: value.detach() for key, value in problem.start(hparams, start()).items()}


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw-amsgrad", "nadam", "rmsprop-centered", "adafactor", "rprop"])
def test_all_ways_to_unroll_agree(name: str) -> None:
    problem, rule, hparams = along(name)
    full = hg.hypergradient(problem, start(), hparams, hg.Unrolled(STEPS, rule)).grads
    others: list[Any] = [hg.Unrolled(STEPS, rule, keep=keep) for keep in ("iterates", "sqrt", "log")]
    for algorithm in (*others, hg.ForwardMode(STEPS, rule)):
        found = hg.hypergradient(problem, start(), hparams, algorithm).grads
        for key in hparams:
            assert torch.allclose(found[key], full[key], rtol=1e-6, atol=1e-10), (algorithm, key)
    keys = [key for key in hparams if key not in start()]
    problem, hparams = hg.Problem(inner, outer), {key: hparams[key] for key in keys}
    short = [
        hg.hypergradient(problem, start(), hparams, hg.Unrolled(STEPS, rule, truncate=3, keep=keep)).grads
        for keep in ("graph", "sqrt")
    ]
    assert all(torch.allclose(short[0][key], short[1][key], rtol=1e-9, atol=1e-12) for key in keys)
    assert any(not torch.allclose(short[0][key], full[key]) for key in keys)


def trained_optimizer() -> tuple[Tree, torch.optim.Optimizer]:
    tensors = {key: value.requires_grad_() for key, value in start().items()}
    groups: list[dict[str, Any]] = [{"params": [tensors["a"]], "lr": 0.02}]
    groups.append({"params": [tensors["b"]], "name": "offsets"})
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(inner(tensors, {}))
        optimizer.step()
    return tensors, optimizer


def picture(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        copy.deepcopy(optimizer.state_dict()),
        [tensor.detach().clone() for group in optimizer.param_groups for tensor in group["params"]],
        [tensor.grad.clone() for group in optimizer.param_groups for tensor in group["params"]],
        sorted(vars(optimizer)),
    ]


def test_a_live_optimizer_is_continued_and_stays_untouched() -> None:
    tensors, optimizer = trained_optimizer()
    before = picture(optimizer)
    rule = TorchRule(optimizer, {"lr": hg.Tuned("lr")}, names=tensors, continued=True)
    algorithm = hg.Unrolled(3, rule)
    hparams = {"lr": torch.tensor(0.01, dtype=torch.float64)}
    problem = hg.Problem(inner, outer)
    found = hg.hypergradient(problem, tensors, hparams, algorithm)
    assert hg.check(problem, tensors, hparams, algorithm, tolerance=1e-6, verbose=False).passed
    assert str(picture(optimizer)) == str(before)
    plain = TorchRule(optimizer, names=tensors, continued=True)
    expected = plain.advance_by(problem, plain.begin(tensors), NONE, 3).params
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(inner(tensors, {}))
        optimizer.step()
    assert all(torch.equal(expected[key], tensors[key].detach()) for key in tensors)
    assert not torch.equal(found.params["a"], expected["a"]), "one rate for both groups is another training"


def test_options_are_read_at_every_step_from_the_groups() -> None:
    tensors, optimizer = trained_optimizer()
    problem = hg.Problem(inner, outer)
    rule = TorchRule(optimizer, names=tensors)
    first = rule.advance_by(problem, rule.begin(tensors), NONE, 2).params
    optimizer.param_groups[0]["lr"] *= 0.5
    second = rule.advance_by(problem, rule.begin(tensors), NONE, 2).params
    assert not torch.equal(first["a"], second["a"])
    optimizer.param_groups[0]["lr"] *= 2
    assert torch.equal(rule.advance_by(problem, rule.begin(tensors), NONE, 2).params["a"], first["a"])


def test_groups_and_parameters_have_settings_of_their_own() -> None:
    tensors, optimizer = trained_optimizer()
    problem = hg.Problem(inner, outer)
    hparams = {name: torch.tensor(value, dtype=torch.float64) for name, value in {"x": 0.01, "y": 0.02}.items()}
    for settings in (
        {0: {"lr": hg.Tuned("x")}, "offsets": {"lr": hg.Tuned("y")}},
        {"a": {"lr": hg.Tuned("x")}, "b": {"lr": hg.Tuned("y")}},
        {"lr": hg.Tuned("x"), "b": {"lr": hg.Tuned("y"), "betas": (0.9, hg.Tuned(lambda h: 1 - 0.05 * h["x"]))}},
    ):
        rule = TorchRule(optimizer, settings, names=tensors)
        assert hg.check(problem, tensors, hparams, hg.Unrolled(4, rule), tolerance=1e-6, verbose=False).passed


def test_one_group_is_taken_apart_for_a_parameter() -> None:
    problem = hg.Problem(inner, outer)
    hparams = {name: torch.tensor(value, dtype=torch.float64) for name, value in {"x": 0.01, "y": 0.02}.items()}
    settings = {"lr": hg.Tuned("x"), "b": {"lr": hg.Tuned("y")}}
    rule = TorchRule(lambda tensors: torch.optim.RMSprop(tensors, momentum=0.5), settings)
    found = hg.hypergradient(problem, start(), hparams, hg.Unrolled(4, rule))

    def by_hand(tensors: list[Tensor]) -> torch.optim.Optimizer:
        groups = [{"params": tensors[:1], "lr": 0.01}, {"params": tensors[1:], "lr": 0.02}]
        return torch.optim.RMSprop(groups, momentum=0.5)

    plain = TorchRule(by_hand)
    expected = plain.advance_by(problem, plain.begin(start()), NONE, 4).params
    assert all(torch.equal(found.params[key], expected[key]) for key in expected)
    assert hg.check(problem, start(), hparams, hg.Unrolled(4, rule), tolerance=1e-6, verbose=False).passed


def test_a_run_stops_and_resumes_bit_for_bit() -> None:
    settings, _ = CASES["nadam"].settings()
    hparams = {"lr": torch.tensor(0.01), "betas0": torch.tensor(0.8), "betas1": torch.tensor(0.95)}
    hparams |= {"weight_decay": torch.tensor(0.0), "momentum_decay": torch.tensor(4e-3)}
    problem = hg.Problem(inner, outer)

    def move(tensors: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(tensors, lr=1e-4)

    def run() -> hg.Run:
        algorithm = hg.Unrolled(3, TorchRule(CASES["nadam"].make, settings), warm_start=True)
        return hg.Run(problem, algorithm, start(torch.float32), hparams, outer=hg.outer.Torch(move))

    straight, stopped = run(), run()
    for _ in range(4):
        straight.step()
    for _ in range(2):
        stopped.step()
    resumed = run()
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(2):
        resumed.step()
    assert all(torch.equal(straight.params[key], resumed.params[key]) for key in straight.params)
    assert all(torch.equal(straight.hparams[key], resumed.hparams[key]) for key in straight.hparams)


def test_zero_gradients_have_finite_derivatives() -> None:
    """A second moment of exactly zero, whose root has an infinite slope."""
    problem = hg.Problem(lambda params, hparams: params["a"][0].square().sum() * hparams["x"], outer)
    hparams = {"x": torch.tensor(1.0, dtype=torch.float64)}
    for kind in (torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam):
        params = {"a": start()["a"], "b": torch.zeros(2, dtype=torch.float64)}
        problem = hg.Problem(
            lambda params, hparams: (params["a"][0].square().sum() + 0 * params["b"].sum()) * hparams["x"], outer
        )
        rule = TorchRule(lambda tensors, kind=kind: kind(tensors, lr=0.01))  # type: ignore[misc]
        found = hg.hypergradient(problem, params, hparams, hg.Unrolled(3, rule)).grads["x"]
        assert bool(torch.isfinite(found)), kind


def test_other_branches_of_the_step_are_probed_when_they_are_taken() -> None:
    tensors = {key: value.requires_grad_() for key, value in start().items()}
    optimizer = torch.optim.SGD(tensors.values(), lr=0.01)
    rule, problem = TorchRule(optimizer), hg.Problem(inner, outer)
    rule.advance_by(problem, rule.begin(tensors), NONE, 2)
    optimizer.param_groups[0]["momentum"] = 0.9
    found = rule.advance_by(problem, rule.begin(tensors), NONE, 3)
    assert set(found.slots) == {"momentum_buffer"}
    expected = hg.GradientDescent(lr=0.01, momentum=0.9)
    assert torch.equal(found.params["a"], expected.advance_by(problem, expected.begin(tensors), NONE, 3).params["a"])


def test_a_live_loop_looks_ahead_with_its_own_optimizer() -> None:
    """The hypergradient of what the next steps of the loop would do, from its momentum and its step counts."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    weights = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.05)

    def loss() -> Tensor:
        found: Tensor = ((model(x) - y).square() * weights.exp()).mean()
        return found

    def train() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss(), inputs=list(model.parameters()))
        optimizer.step()

    for _ in range(3):
        train()
    rule = TorchRule(optimizer, names=model, continued=True)
    live = hg.Live(
        model,
        {"weights": weights},
        inner=loss,
        outer=lambda: model(x + 0.1).square().mean(),
        algorithm=hg.Unrolled(2, rule),
    )
    live.backward()
    assert weights.grad is not None
    found, width = weights.grad.clone(), 1e-5
    saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    ends = []
    for side in (1, -1):
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
        with torch.no_grad():
            weights[0] = side * width
        for _ in range(2):
            train()
        ends.append(float(model(x + 0.1).square().mean().detach()))
    assert float(found[0]) == pytest.approx((ends[0] - ends[1]) / (2 * width), rel=1e-6)
