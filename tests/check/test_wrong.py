"""What is wrong disagrees, with its cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.algorithm import Algorithm
from hypergrad.testing import KnownProblem, problems
from tests.check.common import (
    altered,
    checked,
    descent,
    direct_part,
    disagrees,
    fitted,
    scaled,
)


def test_an_altered_algorithm_that_alters_nothing_agrees() -> None:
    known = problems.ridge()
    assert checked(known, altered(known, scaled(1.0))).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("factor", [0.5, 2.0, 1.05])
def test_a_wrong_length_is_found_with_its_factor(factor: float, dtype: torch.dtype) -> None:
    known = problems.quadratic(dtype)
    result = checked(known, altered(known, scaled(factor)))
    disagrees(result, "direction of 'x' is right", f"length is off by a factor of {factor:.3g}")
    assert result.tensors[0].relative_error == pytest.approx(abs(factor - 1), rel=0.02)


def test_a_reversed_sign_is_found() -> None:
    known = problems.quadratic()
    result = checked(known, altered(known, scaled(-1.0)))
    disagrees(result, "the sign of 'x' is reversed")
    assert result.tensors[0].cosine == pytest.approx(-1.0)


def test_only_the_tensor_that_is_wrong_is_blamed() -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")))
    assert {row.name: row.verdict for row in result.tensors} == {"x": "disagrees", "z": "agrees"}
    disagrees(result, "'x'")
    assert "'z'" not in result.cause


def with_direct_part() -> KnownProblem:
    """w* = Sx with the direct part ∂f/∂x = c, which is not parallel to the rest."""
    slope = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0], [0.3, 0.0, 1.0]], dtype=torch.float64)
    c = torch.tensor([8.0, 5.0, -6.0], dtype=torch.float64)
    return KnownProblem(
        name="with_direct_part",
        problem=hg.Problem(
            lambda params, hparams: (params["w"] - slope @ hparams["x"]).square().sum() / 2,
            lambda params, hparams: (params["w"] - 1).square().sum() / 2 + c @ hparams["x"],
        ),
        params={"w": torch.zeros(3, dtype=torch.float64)},
        hparams={"x": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)},
        solution=lambda hparams: {"w": slope @ hparams["x"]},
        step=0.5,
        steps=60,
    )


@pytest.mark.parametrize("make", [problems.scalar, problems.outer_only, with_direct_part])
def test_a_direct_part_that_is_left_out_is_found(make: Callable[..., KnownProblem]) -> None:
    known = make()
    result = checked(known, altered(known, direct_part(0.0)))
    name = "z" if make is problems.outer_only else "x"
    disagrees(result, f"the direct part ∂f/∂λ of {name!r}", "left out")


@pytest.mark.parametrize("make", [problems.outer_only, with_direct_part])
def test_a_direct_part_of_the_wrong_sign_is_found(make: Callable[..., KnownProblem]) -> None:
    known = make()
    result = checked(known, altered(known, direct_part(-1.0)))
    disagrees(result, "sign")


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda known: hg.Implicit(hg.Neumann(2, step=known.step / 2), inner=fitted(known)),
        lambda known: hg.Implicit(hg.Identity(known.step), inner=fitted(known)),
        lambda known: hg.Implicit(hg.CG(), inner=fitted(known), damping=1.0),
        lambda known: hg.Unrolled(known.steps, descent(known), truncate=2),
        lambda known: hg.ForwardMode(known.steps, descent(known), mode="random"),
        lambda known: hg.ForwardMode(known.steps, descent(known), mode="guided"),
        lambda known: hg.ZerothOrder(fitted(known), mode="RGE"),
    ],
    ids=["neumann", "identity", "damped", "truncated", "forward-random", "forward-guided", "random-differences"],
)
def test_an_estimator_that_is_biased_or_random_by_design_is_told_from_a_mistake(
    algorithm: Callable[[KnownProblem], Algorithm[Any]],
) -> None:
    known = problems.quadratic()
    built = algorithm(known)
    disagrees(checked(known, built), "biased or random by design", repr(built))


def test_training_that_is_too_short_for_the_implicit_formula_is_found() -> None:
    known = problems.quadratic()
    short = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=3))
    disagrees(checked(known, short), "not at its optimum", "train longer")


def test_a_linear_solve_that_ran_out_of_steps_is_found() -> None:
    known = problems.quadratic()
    disagrees(checked(known, hg.Implicit(hg.CG(max_steps=1), inner=fitted(known))), "linear solve stopped", "max_steps")


def test_negative_curvature_is_found() -> None:
    curvature = torch.tensor([2.0, -1.0], dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: (curvature * params["w"].square()).sum() / 2 - hparams["x"] @ params["w"],
        lambda params, hparams: (params["w"] - 3).square().sum() / 2,
    )
    point = {"w": torch.zeros(2, dtype=torch.float64)}, {"x": torch.tensor([0.4, 0.8], dtype=torch.float64)}
    saddle = hg.Training(lambda params, hparams: {"w": hparams["x"] / curvature})
    disagrees(hg.check(problem, *point, hg.Implicit(inner=saddle), verbose=False), "not positive definite", "MINRES")
    assert hg.check(problem, *point, hg.Implicit(hg.MINRES(), inner=saddle), verbose=False).passed


def test_a_path_that_detach_cut_is_found() -> None:
    known = problems.outer_only()
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: (
            (params["w"] - hparams["z"]).square().sum() + hparams["x"].detach() @ torch.arange(3.0, dtype=torch.float64)
        ),
    )
    exact = hg.Implicit(inner=hg.Training(lambda _, hparams: {"w": hparams["x"]}))
    result = hg.check(problem, known.params, known.hparams, exact, verbose=False)
    disagrees(result, "'x'", ".detach()")
    assert "'z'" not in result.cause


def test_training_that_ends_elsewhere_than_at_the_inner_optimum_is_found() -> None:
    known = problems.quadratic()
    astray = hg.Training(lambda _, hparams: {k: 1.5 * v for k, v in known.solution(hparams).items()})
    result = checked(known, hg.Implicit(inner=astray))
    disagrees(result, "optimum")
