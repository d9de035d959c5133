"""What a check costs, what it leaves behind, what it prints, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError, NonFiniteError, TreeError
from hypergrad.testing import problems
from hypergrad.tree import Tree, cloned
from tests.check.common import (
    altered,
    checked,
    fitted,
    scaled,
)


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("steps", [(1e-2, 1e-3), (1e-1, 1e-2, 1e-3, 1e-4)])
def test_the_number_of_trainings_is_the_one_that_is_documented(directions: int, steps: tuple[float, ...]) -> None:
    calls = itertools.count()

    def train(params: Tree, hparams: Tree) -> Tree:
        next(calls)
        return {"w": hparams["x"] + hparams["y"]}

    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"] - hparams["y"]).square().sum(),
        lambda params, hparams: (params["w"] - 1).square().sum(),
    )
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    hparams = {"x": torch.full((3,), 0.2, dtype=torch.float64), "y": torch.full((3,), 0.1, dtype=torch.float64)}
    algorithm = hg.Implicit(inner=hg.Training(train))
    result = hg.check(problem, params, hparams, algorithm, directions=directions, steps=steps, verbose=False)
    assert result.passed
    assert result.trainings == 2 * directions * len(steps) * len(hparams) + 2
    assert next(calls) == result.trainings + 1, "one more for the hypergradient itself"


def test_a_scalar_has_one_direction_only() -> None:
    known = problems.scalar()
    result = checked(known, hg.Implicit(inner=fitted(known)), directions=5)
    assert result.trainings == 2 * 3 + 2


def noisy_problem(noise: str) -> tuple[hg.Problem, Tree, Tree]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)

    def loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        rows, targets = (x, y) if batch is None else batch
        if noise == "dropout":
            rows = nn.functional.dropout(rows, 0.3)
        return (rows @ params["w"] - targets).square().mean() + (hparams["d"].exp() * params["w"].square()).sum()

    def judge(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        rows, targets = (x, y) if batch is None else batch
        return (rows @ params["w"] - targets).square().mean() + (params["w"] - 1).square().sum()

    samplers: dict[str, Any] = {}
    if noise == "batches":
        samplers["inner_data"] = hg.TensorSampler(x, y, batch_size=4, seed=1)
        samplers["outer_data"] = hg.TensorSampler(x, y, batch_size=5, seed=2)
        samplers["inner_data"].draw()  # in the middle of an epoch
    params, hparams = {"w": torch.zeros(3, dtype=torch.float64)}, {"d": torch.full((3,), -2.0, dtype=torch.float64)}
    return hg.Problem(loss, judge, **samplers), params, hparams


@pytest.mark.parametrize("noise", ["dropout", "batches"])
@pytest.mark.parametrize("keep", ["graph", "sqrt"])
def test_training_runs_see_the_same_random_numbers_and_batches(noise: str, keep: Any) -> None:
    problem, params, hparams = noisy_problem(noise)
    algorithm = hg.Unrolled(7, hg.GradientDescent(lr=0.05, momentum=0.5), keep=keep)
    result = hg.check(problem, params, hparams, algorithm, verbose=False)
    assert result.passed, str(result)


@pytest.mark.parametrize("noise", ["dropout", "batches"])
def test_a_check_leaves_everything_as_it_was(noise: str) -> None:
    problem, params, hparams = noisy_problem(noise)
    before, state = (cloned(params), cloned(hparams)), torch.get_rng_state()
    places = [sampler.state_dict() for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    hg.check(problem, params, hparams, hg.Unrolled(3, hg.GradientDescent(lr=0.05)), verbose=False)
    for now, then in zip((params, hparams), before, strict=True):
        assert all(torch.equal(now[key], then[key]) and now[key].grad is None for key in then)
        assert not any(value.requires_grad for value in now.values())
    assert torch.equal(torch.get_rng_state(), state)
    after = [sampler.state_dict() for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    assert after == places


def test_the_same_seed_gives_the_same_comparison_and_another_seed_other_directions() -> None:
    known = problems.quadratic()
    first, again, other = (checked(known, hg.Implicit(inner=fitted(known)), seed=seed) for seed in (0, 0, 1))
    assert first.tensors == again.tensors
    assert first.tensors[0].predicted[0] == other.tensors[0].predicted[0], "along the hypergradient"
    assert first.tensors[0].predicted[1:] != other.tensors[0].predicted[1:]


# ----------------------------------------------------------------------------------------------------------------------
# What it prints
# ----------------------------------------------------------------------------------------------------------------------


def test_the_table_is_printed_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")), verbose=False)
    assert capsys.readouterr().out == ""
    checked(known, altered(known, scaled(0.5, "x")), verbose=True)
    assert capsys.readouterr().out == f"{result}\n"


def test_the_table_has_a_line_for_each_tensor_and_the_verdict_and_the_cause_under_them() -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")))
    heading, *rows, verdict, cause = str(result).splitlines()
    assert heading.split("  ")[0].strip() == "hyperparameter"
    assert [row.split()[0] for row in rows] == ["x", "z"]
    assert [row.split()[-1] for row in rows] == ["disagrees", "agrees"]
    assert f"{result.tensors[0].relative_error:.2e}" in rows[0]
    assert verdict == f"disagrees ({result.trainings} training runs)"
    assert cause == result.cause


def test_a_table_of_what_agrees_has_no_cause() -> None:
    known = problems.scalar()
    assert str(checked(known, hg.Implicit(inner=fitted(known)))).splitlines()[-1].startswith("agrees (")


# ----------------------------------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({"directions": 0}, "check(directions=0)"),
        ({"directions": -2}, "check(directions=-2)"),
        ({"tolerance": 0.0}, "check(tolerance=0.0)"),
        ({"tolerance": math.nan}, "check(tolerance=nan)"),
        ({"steps": (1e-2,)}, "check(steps=(0.01,))"),
        ({"steps": (1e-3, 1e-2)}, "check(steps=(0.001, 0.01))"),
        ({"steps": (1e-2, 1e-2)}, "check(steps=(0.01, 0.01))"),
        ({"steps": (1e-2, 0.0)}, "check(steps=(0.01, 0.0))"),
        ({"steps": (1e-2, math.nan)}, "check(steps=(0.01, nan))"),
        ({"steps": ()}, "check(steps=())"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_any_training(settings: dict[str, Any], passed: str) -> None:
    known = problems.quadratic()

    def never(params: Tree, hparams: Tree) -> Tree:
        raise AssertionError("training began")

    with pytest.raises(InputError) as caught:
        checked(known, hg.Implicit(inner=hg.Training(never)), **settings)
    assert caught.value.passed == passed
    assert caught.value.expected
    assert caught.value.do


def test_nan_at_the_point_itself_is_an_error() -> None:
    known = problems.quadratic()
    problem = known.problem.with_outer(lambda params, hparams: known.problem.outer(params, hparams) * math.nan)
    with pytest.raises(NonFiniteError) as caught:
        hg.check(problem, known.params, known.hparams, hg.Implicit(inner=fitted(known)), verbose=False)
    assert "the outer loss" in caught.value.passed


def test_bad_trees_are_refused() -> None:
    known = problems.quadratic()
    with pytest.raises(TreeError, match="params"):
        hg.check(known.problem, {}, known.hparams, hg.Implicit(), verbose=False)
