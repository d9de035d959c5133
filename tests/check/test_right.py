"""What is right agrees."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.algorithm import Algorithm
from hypergrad.testing import KnownProblem, problems
from hypergrad.testing.problems import arguments
from hypergrad.tree import Tree
from tests.check.common import (
    checked,
    descent,
    fitted,
    implicit,
)

EXACT: dict[str, tuple[Callable[[KnownProblem], Algorithm[Any]], tuple[Callable[..., KnownProblem], ...]]] = {
    "cg": (implicit(hg.CG()), (problems.quadratic, problems.ridge, problems.logistic, problems.outer_only)),
    "gmres": (implicit(hg.GMRES()), (problems.fixed_point, problems.markov_decision, problems.halfspace)),
    "minres": (implicit(hg.MINRES()), (problems.equality, problems.singular)),
    "dense": (implicit(hg.Dense()), (problems.quadratic, problems.fixed_point, problems.equality)),
    "unrolled": (
        lambda known: hg.Unrolled(known.steps, descent(known)),
        (problems.scalar, problems.maml, problems.ridge, problems.fixed_point),
    ),
    "unrolled-log": (
        lambda known: hg.Unrolled(known.steps, descent(known), keep="log"),
        (problems.maml, problems.ridge),
    ),
    "forward": (lambda known: hg.ForwardMode(known.steps, descent(known)), (problems.maml, problems.ridge)),
    "zeroth-order": (
        lambda known: hg.ZerothOrder(
            fitted(known), step_size=1e-3 if known.params["w"].dtype == torch.float64 else 3e-2
        ),
        (problems.scalar, problems.ridge, problems.envelope),
    ),
}
CASES = [
    pytest.param(build, make, id=f"{name}-{make.__name__}") for name, (build, makes) in EXACT.items() for make in makes
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("build", "make"), CASES)
def test_an_exact_algorithm_agrees(
    build: Callable[[KnownProblem], Algorithm[Any]], make: Callable[..., KnownProblem], dtype: torch.dtype
) -> None:
    known = make(dtype)
    result = checked(known, build(known), tolerance=1e-3 if dtype == torch.float64 else 1e-2)
    assert result.passed, str(result)
    assert (result.verdict, result.cause) == ("agrees", "")
    assert [row.name for row in result.tensors] == list(known.hparams)
    assert all(row.verdict == "agrees" and row.cosine > 0.9999 for row in result.tensors)


@pytest.mark.parametrize("solver", [hg.LBFGS(tolerance=1e-10), hg.Newton()], ids=["lbfgs", "newton"])
@pytest.mark.parametrize("make", [problems.quadratic, problems.logistic])
def test_an_algorithm_with_a_library_solver_agrees(make: Callable[..., KnownProblem], solver: hg.InnerSolver) -> None:
    assert checked(make(), hg.Implicit(hg.CG(rtol=1e-9), inner=solver)).passed


def test_trained_parameters_are_trained_again_by_default() -> None:
    known = problems.logistic()
    result = hg.check(known.problem, known.trained(), known.hparams, hg.Implicit(), verbose=False)
    assert result.passed, str(result)


def test_how_to_train_again_can_be_said() -> None:
    known, calls = problems.quadratic(), itertools.count()

    def train(params: Tree, hparams: Tree) -> Tree:
        next(calls)
        return known.solution(hparams)

    result = hg.check(
        known.problem, known.trained(), known.hparams, hg.Implicit(), resolve=hg.Training(train), verbose=False
    )
    assert result.passed, str(result)
    assert next(calls) == result.trainings > 0


def test_the_slopes_are_those_of_the_outer_loss_and_the_first_is_along_the_hypergradient() -> None:
    known = problems.ridge()
    truth = known.hypergradient()
    result = checked(known, hg.Implicit(hg.CG(rtol=1e-10), inner=fitted(known)), directions=4)
    for row in result.tensors:
        assert row.predicted[0] == pytest.approx(float(truth[row.name].norm()), rel=1e-6)
        assert row.measured == pytest.approx(row.predicted, rel=1e-5, abs=1e-8)
        assert row.relative_error < 1e-5
        assert row.floor < 1e-4
        expected = 4 if truth[row.name].numel() > 1 else 1
        assert len(row.predicted) == len(row.measured) == expected


def test_what_was_checked_is_returned() -> None:
    known = problems.quadratic()
    algorithm = hg.Implicit(inner=fitted(known))
    result = checked(known, algorithm)
    expected = hg.hypergradient(**arguments(known), algorithm=algorithm)
    assert all(torch.equal(result.hypergradient.grads[key], expected.grads[key]) for key in expected.grads)
    assert result.hypergradient.report.algorithm == repr(algorithm)
