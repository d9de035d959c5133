"""Several outer objectives at one point, and several right-hand sides in one solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError, UnreachedError
from hypergrad.linear import Operator
from hypergrad.testing import counted


def system(seed: int = 0, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)


def operator(matrix: Tensor, diagonal: Tensor | None = None) -> Operator:
    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        image = alpha * (matrix @ v)
        y.copy_(image + (y if scale is None else scale * y) + (0 if shift is None else shift))

    return Operator(product, torch.empty(len(matrix), dtype=matrix.dtype), diagonal=diagonal)


@pytest.mark.parametrize("steps", [3, 100])
@pytest.mark.parametrize("preconditioner", [None, hg.PenaltyDiagonal(), hg.NystromPreconditioner(rank=4)])
def test_each_row_is_solved_as_it_would_be_alone(preconditioner: Any, steps: int) -> None:
    matrix, diagonal = system(), torch.linspace(0.5, 3, 12, dtype=torch.float64)
    rows = torch.randn(4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[2] = 0
    rows[3] = matrix @ torch.ones(12, dtype=torch.float64) + diagonal
    solver = hg.CG(rtol=1e-12, max_steps=steps, preconditioner=preconditioner)
    together = operator(matrix, diagonal)
    found = solver.solve_rows(together, rows)
    made = together.products
    for row, b in zip(found, rows, strict=True):
        alone = solver.solve_flat(operator(matrix, diagonal), b, None, {})
        assert row.status is alone.status
        assert torch.allclose(row.value, alone.value, rtol=1e-6, atol=1e-9)
        assert row.residual == pytest.approx(alone.residual, rel=1e-3, abs=1e-12)
    assert made == sum(row.products for row in found)
    assert found[2].products == 0


def test_a_row_that_meets_negative_curvature_does_not_stop_the_others() -> None:
    matrix = torch.diag(torch.tensor([-1.0, 2.0, 3.0], dtype=torch.float64))
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    bent, fine = hg.CG(rtol=1e-10, preconditioner=None).solve_rows(operator(matrix), rows)
    assert bent.status is hg.Status.NEGATIVE_CURVATURE
    assert bent.negative_curvature
    assert fine.status is hg.Status.CONVERGED
    assert torch.allclose(fine.value, torch.tensor([0, 1 / 2, 1 / 3], dtype=torch.float64))


def test_a_row_that_is_not_finite_does_not_stop_the_others() -> None:
    rows = torch.tensor([[torch.nan, 0.0], [1.0, 1.0]], dtype=torch.float64)
    broken, fine = hg.CG(preconditioner=None).solve_rows(operator(torch.eye(2, dtype=torch.float64)), rows)
    assert broken.status is hg.Status.NON_FINITE
    assert torch.allclose(fine.value, torch.ones(2, dtype=torch.float64))


def ridge() -> tuple[hg.Problem, dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    x, xv = (torch.randn(30, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y, yv = (torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(2))
    problem = hg.Problem(
        inner=lambda params, hparams: (x @ params["w"] - y).square().mean(),
        outer=lambda params, hparams: params["w"].sum(),
        penalty=lambda params, hparams: (hparams["log"].exp() * params["w"].square()).sum(),
    )

    def group(start: int) -> Any:
        rows = slice(start, start + 10)
        return lambda params, hparams: (xv[rows] @ params["w"] - yv[rows]).square().mean() + hparams["log"].sum() / 7

    point = {"w": torch.zeros(5, dtype=torch.float64)}, {"log": torch.linspace(-2, 1, 5, dtype=torch.float64)}
    return problem, *point, {f"group {start}": group(start) for start in (0, 10, 20)}


@pytest.mark.parametrize(
    "algorithm",
    [
        hg.Implicit(hg.CG(rtol=1e-12), inner=hg.Newton()),
        hg.Implicit(hg.Dense(), inner=hg.Newton()),
        hg.Implicit(hg.Neumann(5, step=0.05), inner=hg.Newton()),
        hg.Unrolled(steps=5, inner=hg.GradientDescent(lr=0.1)),
    ],
    ids=["cg", "dense", "neumann", "unrolled"],
)
def test_each_objective_gets_the_hypergradient_that_it_gets_alone(algorithm: Any) -> None:
    problem, params, hparams, outers = ridge()
    found = hg.hypergradients(problem, params, hparams, algorithm, outers)
    assert list(found) == list(outers)
    for name, outer in outers.items():
        alone = hg.hypergradient(problem.with_outer(outer), params, hparams, algorithm)
        assert torch.allclose(found[name].grads["log"], alone.grads["log"], rtol=1e-9, atol=1e-12)
        assert torch.allclose(found[name].outer_loss, alone.outer_loss)
        assert found[name].report.status == alone.report.status


def test_the_model_is_trained_and_linearised_once() -> None:
    apart, params, hparams, outers = ridge()
    assert apart.inner is not None
    assert apart.penalty is not None
    data, penalty = apart.inner, apart.penalty
    problem = hg.Problem(lambda params, hparams: data(params, hparams) + penalty(params, hparams), apart.outer)
    algorithm = hg.Implicit(hg.CG(rtol=1e-12), inner=hg.Newton())
    alone, once = counted(problem)
    hg.hypergradient(alone, params, hparams, algorithm)
    together, several = counted(problem)
    found = hg.hypergradients(together, params, hparams, algorithm, outers)
    assert several.inner_gradients == once.inner_gradients
    claimed = sum((result.report.cost for result in found.values()), hg.Cost())
    assert claimed.inner_gradients == several.inner_gradients
    assert claimed.products == several.products
    assert claimed.outer_gradients == len(outers)


def test_a_hyperparameter_may_be_used_by_one_objective_alone() -> None:
    problem, params, hparams, outers = ridge()
    more = {**hparams, "shift": torch.zeros(1, dtype=torch.float64)}
    given = {**outers, "shifted": lambda params, hparams: (params["w"].sum() + hparams["shift"]).square().sum()}
    algorithm = hg.Implicit(inner=hg.Newton())
    found = hg.hypergradients(problem, params, more, algorithm, given)
    assert float(found["group 0"].grads["shift"].abs()) == 0
    assert float(found["shifted"].grads["shift"].abs()) > 0
    with pytest.raises(UnreachedError, match="shift"):
        hg.hypergradients(problem, params, more, algorithm, outers)


@pytest.mark.parametrize("outers", [{}, [lambda params, hparams: 0], {"one": 3}])
def test_what_is_no_set_of_objectives_is_refused(outers: Any) -> None:
    problem, params, hparams, _ = ridge()
    with pytest.raises(InputError, match="outers"):
        hg.hypergradients(problem, params, hparams, hg.Implicit(), outers)
