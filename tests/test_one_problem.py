"""One quadratic with a known optimum, solved by every kind of algorithm; and identities between them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

DOUBLE = torch.float64
A = torch.tensor([[1.0, 0.2, 0.0], [-0.3, 0.8, 0.1], [0.0, 0.4, 1.2]], dtype=DOUBLE)
C = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, 0.0], [0.1, 0.0, 1.5]], dtype=DOUBLE)
B = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
RHO = 0.1
OPTIMUM: Tensor = torch.linalg.solve(A.mT @ A + RHO * torch.eye(3, dtype=DOUBLE), A.mT @ B)
ADJOINT: Tensor = torch.linalg.solve(C, A @ OPTIMUM - B)
PROBLEM = hg.Problem(
    inner=lambda params, hparams: 0.5 * (params["y"] - A @ hparams["x"]) @ C @ (params["y"] - A @ hparams["x"]),
    outer=lambda params, hparams: 0.5 * (params["y"] - B).square().sum() + 0.5 * RHO * hparams["x"].square().sum(),
)
START: tuple[Tree, Tree] = {"y": torch.zeros(3, dtype=DOUBLE)}, {"x": torch.ones(3, dtype=DOUBLE)}
SGD, SLOW = (hg.outer.Torch(torch.optim.SGD, lr=rate) for rate in (0.5, 0.1))
ACCURATE = hg.Implicit(hg.CG(), inner=hg.LBFGS())


def true_gradient(x: Tensor) -> Tensor:
    return A.mT @ (A @ x - B) + RHO * x


def seldom(step: int) -> float:
    return 0.3 / (1 + step / 20)


SOLVERS: dict[str, tuple[hg.Algorithm[Any], Any, int, float]] = {
    "Neumann": (hg.Implicit(hg.Neumann(60, step=0.4), inner=hg.GradientDescent(lr=0.4, steps=60)), SGD, 60, 1e-9),
    "CG": (ACCURATE, SGD, 60, 1e-6),
    "K-RMD": (hg.Unrolled(60, hg.GradientDescent(lr=0.4), truncate=55), SGD, 60, 1e-9),
    "ForwardMode": (hg.ForwardMode(60, hg.GradientDescent(lr=0.4)), SGD, 60, 1e-9),
    "HOAG": (ACCURATE, hg.HOAG(), 150, 1e-6),
    "MAID": (
        hg.Implicit(hg.CG(preconditioner=None), inner=hg.GradientDescent(lr=0.4, steps=500)),
        hg.MAID(strong_convexity=0.85, smoothness=1.0, convex=True, tolerance=1e-7),
        150,
        1e-6,
    ),
    "BO-REP": (
        hg.BOREP(step_size=0.3, linear_step_size=0.3, interval=2, inner_steps=5),
        hg.outer.Torch(hg.NormalizedMomentum, partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=seldom), lr=1.0),
        1500,
        0.01,
    ),
    "BSVRB v1": (hg.BSVRBv1(inner_step=0.3, alpha=1.0, beta=1.0), SLOW, 600, 1e-9),
    "BSVRB v2": (hg.BSVRBv2(inner_step=0.3, linear_step=0.3, alpha=1.0, beta=1.0), SLOW, 600, 1e-9),
    "SOBA": (hg.SOBA(step_size=0.3, linear_step_size=0.3), SLOW, 600, 1e-9),
}


def solved(algorithm: hg.Algorithm[Any], move: Any, steps: int) -> hg.Run:
    run = hg.Run(PROBLEM, algorithm, *START, move)
    for _ in range(steps):
        run.step()
    return run


@pytest.mark.parametrize("name", SOLVERS)
def test_every_algorithm_finds_the_same_optimum(name: str) -> None:
    algorithm, move, steps, tolerance = SOLVERS[name]
    run = solved(algorithm, move, steps)
    assert float((run.hparams["x"] - OPTIMUM).norm() / OPTIMUM.norm()) <= tolerance


def test_one_step_of_inverse_ends_where_its_bias_says() -> None:
    """T1-T2 puts αI for C⁻¹: it stops at (α AᵀCA + ρI)⁻¹ α AᵀC b."""
    alpha = 0.4
    run = solved(hg.Implicit(hg.Identity(scale=alpha), inner=hg.GradientDescent(lr=0.4, steps=60)), SGD, 150)
    biased = torch.linalg.solve(alpha * A.mT @ C @ A + RHO * torch.eye(3, dtype=DOUBLE), alpha * A.mT @ C @ B)
    assert float((run.hparams["x"] - biased).norm()) < 1e-9
    assert float((biased - OPTIMUM).norm()) > 0.05


def value_function_optimum(c: float, gamma: float = 1.0) -> Tensor:
    """Where LV-HBA without constraints stands still at a constant penalty: a linear system in x, y and θ."""
    one, zero = torch.eye(3, dtype=DOUBLE), torch.zeros(3, 3, dtype=DOUBLE)
    cross = A.mT @ C
    rows = [
        torch.cat([RHO / c * one, -cross, cross], dim=1),
        torch.cat([-C @ A, (1 / c - 1 / gamma) * one + C, one / gamma], dim=1),
        torch.cat([-C @ A, -one / gamma, C + one / gamma], dim=1),
    ]
    right = torch.cat([zero[0], B / c, zero[0]])
    solution: Tensor = torch.linalg.solve(torch.cat(rows), right)
    return solution[:3]


def test_value_function_method_ends_where_its_penalty_says_and_is_off_by_its_inverse() -> None:
    joint = hg.LVHBA(step_size=0.3, inner_step_size=0.45, center_step_size=0.3, penalty=4.0, power=0.0)
    run = solved(joint, hg.outer.Torch(torch.optim.SGD, lr=0.3), 1500)
    assert float((run.hparams["x"] - value_function_optimum(4.0)).norm()) < 1e-8
    near, nearer = (float((value_function_optimum(c) - OPTIMUM).norm()) for c in (1e4, 2e4))
    assert nearer / near == pytest.approx(0.5, abs=1e-3)
    assert nearer < 1e-3


def test_variables_that_are_tracked_settle_at_the_adjoint() -> None:
    """q of SOBA, z of BO-REP and v of BSVRB end at C⁻¹ ∂f/∂y."""
    kinds: list[hg.Algorithm[Any]] = [
        hg.SOBA(step_size=0.3, linear_step_size=0.3),
        hg.BOREP(step_size=0.3, linear_step_size=0.3),
        hg.BSVRBv2(inner_step=0.3, linear_step=0.3, alpha=1.0, beta=1.0),
    ]
    for algorithm in kinds:
        state, hparams = algorithm.init(PROBLEM, START[0], {"x": OPTIMUM}), {"x": OPTIMUM}
        for _ in range(300):
            found, state = algorithm.step(PROBLEM, state, hparams)
        assert float((state.solution.flatten() - ADJOINT).norm()) < 1e-9, algorithm
        assert float(found.grads["x"].norm()) < 1e-9


@pytest.mark.parametrize("point", [-1.0, 0.5])
def test_loose_oracles_tend_to_the_hypergradient(point: float) -> None:
    """What HOAG and MAID are given at tolerances ε: the error falls with ε, and is gone in the limit."""
    x = torch.full((3,), point, dtype=DOUBLE)
    errors = []
    for tolerance in (1e-2, 1e-5, 1e-11):
        algorithm = hg.Implicit(hg.CG(preconditioner=None), inner=hg.GradientDescent(lr=0.4, steps=500)).at_tolerance(
            tolerance, tolerance
        )
        found = hg.hypergradient(PROBLEM, START[0], {"x": x}, algorithm).grads
        errors.append(relative_error(found, {"x": true_gradient(x)}))
    assert errors[0] < 0.1
    assert errors[1] < 1e-4
    assert errors[2] < 1e-10
    assert errors[0] > errors[1] > errors[2]
