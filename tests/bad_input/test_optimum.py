"""Far from the optimum, indefinite, not converged: the report says so, or an error does."""

from __future__ import annotations

import math
import re

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import (
    ConvergenceWarning,
    CurvatureWarning,
    DivergenceError,
    StationarityWarning,
)
from hypergrad.tree import Tree
from tests.bad_input.common import PROBLEM, at_optimum, inner, outer, refused, says, start, unchanged


def test_far_from_the_optimum_the_report_and_the_warning_say_how_far() -> None:
    params, hparams = start()
    points = {key: value.clone().requires_grad_() for key, value in params.items()}
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(inner(points, hparams), list(points.values()))])
    judged = torch.cat([g.reshape(-1) for g in torch.autograd.grad(outer(points, hparams), list(points.values()))])
    moved = float((judged @ slope).abs() / (1 + hparams["decay"].exp()))  # the Hessian is a multiple of the identity
    with unchanged(params, hparams), pytest.warns(StationarityWarning) as caught:
        report = hg.hypergradient(PROBLEM, params, hparams, hg.Implicit()).report
    assert report.inner_gradient_norm == pytest.approx(float(slope.norm()), rel=1e-9)
    assert report.implied_error == pytest.approx(moved, rel=1e-6)
    text = str(caught[0].message)
    assert f"gradient norm is {report.inner_gradient_norm:.3g}" in text
    assert f"by about {report.implied_error:.3g}" in text
    assert "train longer" in text
    assert report.notes == {"stationarity": text}


def test_at_the_optimum_nothing_is_warned_of() -> None:
    report = hg.hypergradient(PROBLEM, *at_optimum(), hg.Implicit()).report
    assert report.notes == {}
    assert report.inner_gradient_norm < 1e-12
    assert report.implied_error < 1e-12


def test_how_far_is_too_far_can_be_set() -> None:
    params, hparams = start()
    result = hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(stationarity=math.inf))
    assert result.report.notes == {}
    assert result.report.inner_gradient_norm > 0.1


SADDLE = hg.Problem(
    lambda params, hparams: (
        params["w"][0].square() - params["w"][1].square() / 2 - hparams["x"] @ params["w"]  # Hessian diag(2, -1)
    ),
    lambda params, hparams: (params["w"] - 3).square().sum() / 2,
)


def saddle() -> tuple[Tree, Tree]:
    x = torch.tensor([0.4, 0.8], dtype=torch.float64)
    return {"w": torch.stack([x[0] / 2, -x[1]])}, {"x": x}


SADDLE_ANSWER = torch.tensor([(0.2 - 3) / 2, -(-0.8 - 3)], dtype=torch.float64)


def test_conjugate_gradients_stop_at_negative_curvature_and_say_so() -> None:
    params, hparams = saddle()
    with unchanged(params, hparams), pytest.warns(CurvatureWarning, match=r"not positive definite.*hypergrad\.MINRES"):
        report = hg.hypergradient(SADDLE, params, hparams, hg.Implicit(hg.CG())).report
    assert (report.status, report.negative_curvature) == ("negative_curvature", True)


def test_the_neumann_series_diverges_on_an_indefinite_hessian_and_says_what_to_use() -> None:
    params, hparams = saddle()
    with refused(
        DivergenceError, params, hparams, passed="Neumann(", expected="positive definite", do=("CG", "MINRES")
    ):
        hg.hypergradient(SADDLE, params, hparams, hg.Implicit(hg.Neumann(30)))


@pytest.mark.parametrize("linear", [hg.MINRES(), hg.Dense()])
def test_a_solver_for_indefinite_systems_is_right_at_a_saddle_and_notes_it(linear: hg.LinearSolver) -> None:
    result = hg.hypergradient(SADDLE, *saddle(), hg.Implicit(linear))
    assert torch.allclose(result.grads["x"], SADDLE_ANSWER)
    assert result.report.notes == {}
    assert (result.report.status, result.report.negative_curvature) == ("converged", True)


@pytest.mark.parametrize("linear", [hg.MINRES(), hg.Dense()])
def test_an_equality_constrained_problem_is_a_saddle_by_design_and_gives_no_warning(linear: hg.LinearSolver) -> None:
    problem = hg.Problem.constrained(
        inner=lambda params, _: params["w"].square().sum() / 2,
        outer=lambda params, _: params["w"][0].square(),
        equality=lambda params, hparams: params["w"].sum() - hparams["x"],
    )
    x = torch.tensor(3.0, dtype=torch.float64)
    params, hparams = {"w": x.expand(2) / 2, "equality_multiplier": -x / 2}, {"x": x}
    result = hg.hypergradient(problem, params, hparams, hg.Implicit(linear))
    assert float(result.grads["x"]) == pytest.approx(1.5)


STEEP = hg.Problem(
    lambda params, hparams: (
        (torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64) * params["w"].square()).sum() / 2
        - hparams["x"] @ params["w"]
    ),
    lambda params, hparams: (params["w"] - 1).square().sum() / 2,
)


def steep() -> tuple[Tree, Tree]:
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    return {"w": x / torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)}, {"x": x}


def test_a_neumann_step_that_is_too_long_gets_the_longest_that_works() -> None:
    params, hparams = steep()
    with unchanged(params, hparams), pytest.raises(DivergenceError) as caught:
        hg.hypergradient(STEEP, params, hparams, hg.Implicit(hg.Neumann(40, step=0.3)))
    says(caught.value, "passed", ("Neumann(", "step=0.3", "curvature up to 8"))
    found = re.search(r"a step below 2 / (\S+) = (\S+)$", caught.value.expected)
    assert found, caught.value.expected
    curvature, longest = float(found[1]), float(found[2])
    assert curvature == pytest.approx(8.0, rel=0.02)
    assert longest == pytest.approx(2 / 8, rel=0.02)
    says(caught.value, "do", "leave step out")
    good = hg.Implicit(hg.Neumann(400, step=0.95 * longest))
    exact = hg.hypergradient(STEEP, params, hparams, hg.Implicit(hg.Dense())).grads["x"]
    assert torch.allclose(hg.hypergradient(STEEP, params, hparams, good).grads["x"], exact, rtol=1e-6)
    unset = hg.Implicit(hg.Neumann(400))  # the remedy
    assert torch.allclose(hg.hypergradient(STEEP, params, hparams, unset).grads["x"], exact, rtol=1e-6)


def test_an_estimated_neumann_step_that_diverges_is_not_told_to_be_left_out() -> None:
    saddle = hg.Problem(
        lambda params, hparams: (
            (torch.tensor([1.0, -2.0, 8.0], dtype=torch.float64) * params["w"].square()).sum() / 2
            - hparams["x"] @ params["w"]
        ),
        STEEP.outer,
    )
    params, hparams = steep()
    with unchanged(params, hparams), pytest.raises(DivergenceError) as caught:
        hg.hypergradient(saddle, params, hparams, hg.Implicit(hg.Neumann(40)))
    says(caught.value, "do", ("the Hessian is indefinite", "damping", "Identity"))
    assert "leave step out" not in caught.value.do
    way_out = hg.Implicit(hg.Identity(0.1), stationarity=float("inf"))  # the remedy
    assert torch.isfinite(hg.hypergradient(saddle, params, hparams, way_out).grads["x"]).all()


@pytest.mark.parametrize(
    "linear", [hg.CG(max_steps=1), hg.MINRES(max_steps=1), hg.GMRES(max_steps=1), hg.NormalCG(max_steps=1)]
)
def test_a_linear_solve_that_runs_out_of_steps_says_how_far_it_came(linear: hg.LinearSolver) -> None:
    params, hparams = steep()
    with unchanged(params, hparams), pytest.warns(ConvergenceWarning, match="raise max_steps") as caught:
        report = hg.hypergradient(STEEP, params, hparams, hg.Implicit(linear)).report
    assert report.status == "max_steps"
    assert 1e-3 < report.residual < 1
    assert f"relative residual of {report.residual:.3g}" in str(caught[0].message)
