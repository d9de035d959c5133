"""Compiled hypergradients are the eager ones, report included."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import hypergrad as hg
from tests.compiled.common import Point, difference, fast, implicit, penalty, point, program, two_steps

__all__ = ["fast"]
SOLVERS: dict[str, Any] = {
    "neumann": hg.Neumann(4, step=0.2),
    "neumann estimated": hg.Neumann(3),
    "cg": hg.CG(rtol=0.0, max_steps=4, preconditioner=None),
    "cg to a tolerance": hg.CG(rtol=1e-3, max_steps=12),
}
CASES = [
    ("neumann", "logistic", True, torch.float64),
    ("neumann", "mlp", False, torch.float32),
    ("neumann", "tanh", False, torch.float64),
    ("neumann estimated", "logistic", False, torch.float32),
    ("cg", "logistic", False, torch.float32),
    ("cg", "mlp", True, torch.float64),
    ("cg", "tanh", True, torch.float32),
    ("cg to a tolerance", "logistic", True, torch.float64),
]


def same(compiled: hg.Hypergradient, eager: hg.Hypergradient, tolerance: float, linearised: int = 0) -> None:
    """Compare answers and reports; ``linearised`` counts gradients for estimates beside the compiled code."""
    assert difference(compiled.grads, eager.grads) <= tolerance
    assert torch.allclose(compiled.outer_loss, eager.outer_loss)
    mine, theirs = compiled.report, eager.report
    assert (mine.status, mine.negative_curvature) == (theirs.status, theirs.negative_curvature)
    assert set(mine.notes) == set(theirs.notes)
    expected = dataclasses.replace(theirs.cost, inner_gradients=theirs.cost.inner_gradients + linearised)
    assert mine.cost == expected
    for name in ("residual", "inner_gradient_norm", "implied_error"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-3, abs=1e-6)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("solver", "name", "apart", "dtype"), CASES)
def test_compiled_and_eager_agree(solver: str, name: str, apart: bool, dtype: torch.dtype) -> None:
    at = point(name, apart=apart, dtype=dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    algorithm = implicit(SOLVERS[solver])
    found, truth = two_steps(algorithm, at), two_steps(dataclasses.replace(algorithm, compile=False), at)
    assert program(at[0]).refused is None
    estimates = 1 if solver in ("neumann estimated", "cg to a tolerance") else 0
    for step, (compiled, eager) in enumerate(zip(found, truth, strict=True)):
        same(compiled, eager, tolerance, linearised=estimates if step == 0 else 0)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("solver", [hg.Neumann(23, step=0.2), hg.CG(rtol=1e-9, max_steps=27, preconditioner=None)])
def test_long_solves_go_in_blocks(solver: Any) -> None:
    at = point("tanh", decay=0.01)
    algorithm = implicit(solver, damping=0.5)
    found, truth = two_steps(algorithm, at), two_steps(dataclasses.replace(algorithm, compile=False), at)
    assert program(at[0]).refused is None
    for compiled, eager in zip(found, truth, strict=True):
        same(compiled, eager, 1e-9)


def saddle() -> Point:
    """A Hessian diag(4, 3, 2, -1), which the third product of CG finds out."""
    scale = torch.tensor([4.0, 3.0, 2.0, -1.0], dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: 0.5 * (scale * params["w"].square()).sum() + (hparams["x"] * params["w"]).sum(),
        lambda params, hparams: (params["w"] * torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64)).sum(),
    )
    return problem, {"w": torch.ones(4, dtype=torch.float64)}, {"x": torch.zeros(4, dtype=torch.float64)}


@pytest.mark.usefixtures("fast")
def test_negative_curvature_is_reported_as_in_eager_mode() -> None:
    problem, params, hparams = saddle()
    algorithm = implicit(hg.CG(rtol=0.0, max_steps=8))
    with pytest.warns(hg.errors.CurvatureWarning):
        compiled = hg.hypergradient(problem, params, hparams, algorithm)
    with pytest.warns(hg.errors.CurvatureWarning):
        eager = hg.hypergradient(problem, params, hparams, dataclasses.replace(algorithm, compile=False))
    assert program(problem).refused is None
    assert compiled.report.status == "negative_curvature"
    same(compiled, eager, 1e-12)


@pytest.mark.usefixtures("fast")
def test_failures_of_the_numbers_are_named_as_in_eager_mode() -> None:
    problem, params, hparams = point("logistic", decay=1.0)
    algorithm = implicit(hg.Neumann(6, step=50.0))
    with pytest.raises(hg.errors.DivergenceError, match="a step below"):
        hg.hypergradient(problem, params, hparams, algorithm)
    gentle = dataclasses.replace(algorithm, linear=hg.Neumann(6, step=0.2))
    hg.hypergradient(problem, params, hparams, gentle)  # the same code, with another step
    params["weight"][0, 0] = torch.nan
    with pytest.raises(hg.errors.NonFiniteError, match="the outer loss"):
        hg.hypergradient(problem, params, hparams, gentle)
    assert program(problem).refused is None


@pytest.mark.usefixtures("fast")
def test_a_gradient_of_zero_has_the_hypergradient_zero() -> None:
    problem = hg.Problem(penalty, lambda params, _: params["w"].square().sum())
    solver = hg.CG(max_steps=3, preconditioner=None)
    result = hg.hypergradient(problem, {"w": torch.zeros(3)}, {"w": torch.zeros(3)}, implicit(solver))
    assert not result.grads["w"].any()
    assert result.report.status == "converged"
