"""What cannot be decided is not decided, and derivatives that are zero are no evidence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

import hypergrad as hg
from hypergrad.testing import KnownProblem, problems
from hypergrad.tree import Tree
from tests.check.common import (
    altered,
    checked,
    disagrees,
    fitted,
    scaled,
    undecided,
)


def test_training_that_is_not_repeatable_is_not_judged() -> None:
    known, own = problems.quadratic(), random.Random(0)

    def train(params: Tree, hparams: Tree) -> Tree:
        return {key: value + 1e-3 * own.random() for key, value in known.solution(hparams).items()}

    result = checked(known, hg.Implicit(inner=hg.Training(train), stationarity=math.inf))
    undecided(result, "two training runs with the same hyperparameters differ", "global generators of torch")


def test_training_that_is_too_coarse_is_not_judged() -> None:
    known = problems.scalar()

    def coarse(params: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"] + 1e-2 * (1e5 * hparams["x"]).sin()}

    result = checked(known, hg.Implicit(inner=hg.Training(coarse), stationarity=math.inf))
    undecided(result, "noise floor is too high", "tighter tolerance", "float64")
    assert result.tensors[0].floor > 0.1


@pytest.mark.parametrize("steps", [(1e-9, 1e-10), (1e-6, 1e-7)])
def test_steps_below_the_rounding_error_are_no_evidence_against_the_hypergradient(steps: tuple[float, ...]) -> None:
    known = problems.quadratic(torch.float32)
    result = checked(known, hg.Implicit(inner=fitted(known)), steps=steps)
    undecided(result, "noise floor is too high", "larger steps")


def near_an_edge(loss: str) -> tuple[hg.Problem, Tree, Tree, hg.Implicit]:
    """The outer loss, or training, is NaN a little to the left."""

    def train(params: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"].clone() if loss == "outer" else (hparams["x"] - 0.9).sqrt()}

    problem = hg.Problem(
        lambda params, hparams: (
            (params["w"] - (hparams["x"] if loss == "outer" else (hparams["x"] - 0.9).sqrt())).square().sum()
        ),
        lambda params, hparams: (params["w"] - 0.9).sqrt().sum() if loss == "outer" else params["w"].square().sum(),
    )
    x = torch.ones(2, dtype=torch.float64)
    return problem, {"w": x.clone()}, {"x": x}, hg.Implicit(inner=hg.Training(train))


@pytest.mark.parametrize("loss", ["outer", "inner"])
def test_steps_at_which_training_breaks_down_are_no_evidence(loss: str) -> None:
    problem, params, hparams, algorithm = near_an_edge(loss)
    result = hg.check(problem, params, hparams, algorithm, steps=(0.4, 0.3), verbose=False)
    undecided(result, "smaller where training breaks down")


@pytest.mark.parametrize("loss", ["outer", "inner"])
def test_the_steps_at_which_training_does_not_break_down_decide(loss: str) -> None:
    problem, params, hparams, algorithm = near_an_edge(loss)
    result = hg.check(problem, params, hparams, algorithm, steps=(0.4, 1e-2, 1e-3, 1e-4), verbose=False)
    assert result.passed, str(result)


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives that are zero
# ----------------------------------------------------------------------------------------------------------------------


def test_a_hyperparameter_whose_derivative_is_zero_agrees() -> None:
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"].square() - hparams["y"]).square().sum(),
        lambda params, hparams: params["w"].square().sum(),
    )
    hparams = {"x": torch.zeros(3, dtype=torch.float64), "y": torch.ones(3, dtype=torch.float64)}
    result = hg.check(
        problem,
        {"w": torch.zeros(3, dtype=torch.float64)},
        hparams,
        hg.Implicit(inner=hg.Training(lambda _, hparams: {"w": hparams["x"].square() + hparams["y"]})),
        verbose=False,
    )
    assert result.passed, str(result)
    row = result.tensors[0]
    assert (row.name, row.predicted, row.cosine) == ("x", (0.0, 0.0, 0.0), 1.0)
    assert row.relative_error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("make", [problems.quadratic, problems.singular, problems.fixed_point])
def test_at_the_optimum_rounding_errors_are_no_evidence_against_the_hypergradient(
    make: Callable[..., KnownProblem], dtype: torch.dtype
) -> None:
    known = make(dtype)
    assert known.optimum is not None
    algorithm = hg.Implicit(hg.Dense(), inner=fitted(known))
    result = hg.check(known.problem, known.params, known.optimum, algorithm, verbose=False)
    assert result.verdict != "disagrees", str(result)


def test_a_hypergradient_that_is_wrongly_zero_disagrees() -> None:
    known = problems.quadratic()
    result = checked(known, altered(known, scaled(0.0)))
    disagrees(result, "'x'")
    assert result.tensors[0].relative_error == pytest.approx(1.0)
