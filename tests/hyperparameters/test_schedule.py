"""Learning rates of every step: their pieces, their hypergradients, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError, TreeError
from tests.hyperparameters.common import differences

F64 = torch.float64


def test_constant_pieces() -> None:
    schedule = hg.LearningRateSchedule(5, [0.1, 0.2], knots=2)
    assert schedule.rates().tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2])
    assert hg.LearningRateSchedule(3, [0.1, 0.2, 0.3]).rates().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert float(schedule(99).detach()) == pytest.approx(0.2)


def test_linear_pieces_are_linear_in_the_logarithm() -> None:
    schedule = hg.LearningRateSchedule(5, [1.0, 0.01, 0.1], knots=3, pieces="linear", dtype=F64)
    assert schedule.rates().log10().tolist() == pytest.approx([0, -1, -2, -1.5, -1])
    assert hg.LearningRateSchedule(4, 0.3, knots=1, pieces="linear").rates().tolist() == pytest.approx([0.3] * 4)
    assert float(hg.LearningRateSchedule(1, 0.3, pieces="linear")(0).detach()) == pytest.approx(0.3)


@pytest.mark.parametrize("pieces", ["constant", "linear"])
@pytest.mark.parametrize("build", [hg.GradientDescent, hg.Adam])
def test_hypergradient_is_the_slope_of_training_runs(pieces: Any, build: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, 3, dtype=F64)
    schedule = hg.LearningRateSchedule(7, [0.05, 0.1, 0.02], knots=3, pieces=pieces, dtype=F64)
    problem = hg.Problem(
        lambda p, raw: (torch.tanh(x @ p["w"]) - y[:, 0]).square().mean(),
        lambda p, raw: (torch.tanh(y @ p["w"]) - x[:, 0]).square().mean(),
    )
    start = {"w": torch.ones(3, dtype=F64)}
    algorithm = hg.Unrolled(7, build(lr=schedule.tuned()))
    found = hg.hypergradient(problem, start, schedule.tree(), algorithm).grads["log_learning_rate"]

    def run() -> float:
        raw = {name: value.detach() for name, value in schedule.tree().items()}
        return float(hg.hypergradient(problem, start, raw, algorithm).outer_loss)

    assert torch.allclose(found, differences(run, schedule.log_learning_rate), rtol=1e-6, atol=1e-9)
    forward = hg.hypergradient(problem, start, schedule.tree(), hg.ForwardMode(7, build(lr=schedule.tuned())))
    assert torch.allclose(found, forward.grads["log_learning_rate"], rtol=1e-9)


def test_live_tunes_it_beside_other_hyperparameters() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, 3, dtype=F64)
    schedule = hg.LearningRateSchedule(4, 0.05, dtype=F64)
    decay = hg.Hyperparameters(decay=hg.Hyperparameter(0.1, hg.Positive()), dtype=F64)
    both = torch.nn.ModuleDict({"rates": schedule, "others": decay})
    model = torch.nn.Linear(3, 3, dtype=F64)
    rule = hg.GradientDescent(lr=schedule.tuned("rates.log_learning_rate"))
    hg.Live(
        model,
        both,
        lambda: (model(x) - y).square().mean() + decay["decay"] * model.weight.square().sum(),
        lambda: (model(y) - x).square().mean(),
        hg.Unrolled(4, rule),
    ).backward()
    problem = hg.Problem(
        lambda p, raw: (
            (x @ p["weight"].T + p["bias"] - y).square().mean() + raw["decay"].exp() * p["weight"].square().sum()
        ),
        lambda p, raw: (y @ p["weight"].T + p["bias"] - x).square().mean(),
    )
    start = {name: value.detach() for name, value in model.named_parameters()}
    algorithm = hg.Unrolled(4, hg.GradientDescent(lr=schedule.tuned()))
    found = hg.hypergradient(problem, start, {**schedule.tree(), **decay.tree()}, algorithm).grads
    assert torch.allclose(schedule.log_learning_rate.grad, found["log_learning_rate"], rtol=1e-9)  # type: ignore[arg-type]
    assert torch.allclose(decay.tree()["decay"].grad, found["decay"], rtol=1e-9)  # type: ignore[arg-type]


def test_bounds_are_those_of_the_logarithm() -> None:
    schedule = hg.LearningRateSchedule(2, bounds=(1e-3, 1.0))
    domain = schedule.domains()["log_learning_rate"]
    assert (domain.low, domain.high) == (math.log(1e-3), 0.0)
    assert hg.LearningRateSchedule(2).domains() == {}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "steps": (lambda: hg.LearningRateSchedule(0), "steps > 0"),
    "knots": (lambda: hg.LearningRateSchedule(3, knots=4), "knots <= steps"),
    "no knots": (lambda: hg.LearningRateSchedule(3, knots=0), "knots > 0"),
    "rates": (lambda: hg.LearningRateSchedule(3, [0.1, 0.2]), "each of 3 knots"),
    "zero": (lambda: hg.LearningRateSchedule(3, 0.0), "initial > 0"),
    "pieces": (lambda: hg.LearningRateSchedule(3, pieces="lineer"), "did you mean 'linear'"),  # type: ignore[arg-type]
    "bounds": (lambda: hg.LearningRateSchedule(3, bounds=(1.0, 0.1)), "low < high"),
    "outside its bounds": (lambda: hg.LearningRateSchedule(3, 2.0, bounds=(0.1, 1.0)), "inside the bounds"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(TreeError, match="log_learning_rate"):
        hg.LearningRateSchedule(3).tuned()({"learning_rate": torch.zeros(3)}, 0)
