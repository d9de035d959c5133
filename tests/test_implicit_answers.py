"""Known answers of implicit differentiation and truncated back-propagation on ridge regression with many penalties."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import DivergenceError
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(*s, generator=GENERATOR, dtype=torch.float64) for s in ((80, 10), (80,)))
XV, YV = (torch.randn(*s, generator=GENERATOR, dtype=torch.float64) for s in ((60, 10), (60,)))
POINT = {"x": 0.3 * torch.randn(10, generator=GENERATOR, dtype=torch.float64) - 1}
START = {"w": torch.zeros(10, dtype=torch.float64)}


def hessian(hparams: Tree) -> Tensor:
    return X.mT @ X / 80 + torch.diag(hparams["x"].exp())


def solution(hparams: Tree) -> Tree:
    w: Tensor = torch.linalg.solve(hessian(hparams), X.mT @ Y / 80)
    return {"w": w}


def inner(params: Tree, hparams: Tree) -> Tensor:
    data = (X @ params["w"] - Y).square().sum() / 160
    return data + 0.5 * (hparams["x"].exp() * params["w"].square()).sum()


def outer(params: Tree, _: Tree) -> Tensor:
    return (XV @ params["w"] - YV).square().sum() / 120


def outer_with_direct_part(params: Tree, hparams: Tree) -> Tensor:
    return outer(params, hparams) + 0.5 * 0.7 * hparams["x"].square().sum()


RIDGE = hg.Problem(inner, outer)
LARGEST, SMALLEST = (float(v) for v in torch.linalg.eigvalsh(hessian(POINT))[[-1, 0]])


def central_differences(value: Callable[[Tree], Tensor], hparams: Tree, step: float = 1e-5) -> Tree:
    slopes = {key: torch.zeros_like(tensor) for key, tensor in hparams.items()}
    for key, tensor in hparams.items():
        for place in range(tensor.numel()):
            shift = torch.zeros_like(tensor)
            shift.view(-1)[place] = step
            above, below = (float(value({**hparams, key: tensor + sign * shift})) for sign in (1, -1))
            slopes[key].view(-1)[place] = (above - below) / (2 * step)
    return slopes


def gradient(problem: hg.Problem, algorithm: hg.Algorithm[Any], params: Tree | None = None) -> Tree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hg.errors.HypergradWarning)
        return hg.hypergradient(problem, params or solution(POINT), POINT, algorithm).grads


@pytest.mark.parametrize("objective", [outer, outer_with_direct_part], ids=["indirect", "with-direct-part"])
def test_exact_hypergradient_equals_central_differences(objective: Callable[..., Tensor]) -> None:
    problem = hg.Problem(inner, objective)
    expected = central_differences(lambda hparams: objective(solution(hparams), hparams), POINT)
    found = gradient(problem, hg.Implicit(hg.CG(rtol=1e-13)))
    assert float((found["x"] - expected["x"]).abs().max()) < 1e-8


@pytest.mark.parametrize("terms", [0, 1, 3, 10, 50])
def test_neumann_equals_truncated_back_propagation_at_the_fixed_point(terms: int) -> None:
    step = 1 / LARGEST
    series = gradient(RIDGE, hg.Implicit(hg.Neumann(terms, step=step)))
    truncated = gradient(RIDGE, hg.Unrolled(terms + 1, hg.GradientDescent(lr=step)))
    assert float((series["x"] - truncated["x"]).abs().max()) < 1e-12


def test_t1_t2_is_the_zero_term_series_and_one_step_of_back_propagation() -> None:
    step = 0.3
    found = [
        gradient(RIDGE, hg.Implicit(hg.Identity(scale=step))),
        gradient(RIDGE, hg.Implicit(hg.Neumann(0, step=step))),
        gradient(RIDGE, hg.Unrolled(7, hg.GradientDescent(lr=step), truncate=1)),
    ]
    assert relative_error(found[0], found[1]) < 1e-10
    assert relative_error(found[0], found[2]) < 1e-10


def test_neumann_error_stays_below_its_bound() -> None:
    params, exact = solution(POINT), gradient(RIDGE, hg.Implicit(hg.Dense()))["x"]
    mixed = float((POINT["x"].exp() * params["w"]).abs().max())
    size = float(torch.linalg.vector_norm(XV.mT @ (XV @ params["w"] - YV) / 60))
    for terms in (0, 1, 5, 20, 50):
        error = torch.linalg.vector_norm(gradient(RIDGE, hg.Implicit(hg.Neumann(terms, step=1 / LARGEST)))["x"] - exact)
        bound = mixed * (1 - SMALLEST / LARGEST) ** (terms + 1) * size / SMALLEST
        assert float(error) <= bound + 1e-14


def test_neumann_diverges_beyond_two_over_the_largest_curvature_and_says_so() -> None:
    with pytest.raises(DivergenceError, match=r"below 2 / "):
        gradient(RIDGE, hg.Implicit(hg.Neumann(50, step=2.2 / LARGEST)))
    long = gradient(RIDGE, hg.Implicit(hg.Neumann(800, step=1.9 / LARGEST)))
    assert relative_error(long, gradient(RIDGE, hg.Implicit(hg.Dense()))) < 1e-12


def test_neumann_keeps_its_step_size_in_the_length() -> None:
    """Without the factor α the answer would be α times too small, which an adaptive outer optimizer hides."""
    exact = gradient(RIDGE, hg.Implicit(hg.Dense()))["x"]
    long = gradient(RIDGE, hg.Implicit(hg.Neumann(300, step=0.3)))["x"]
    assert float(long.norm() / exact.norm()) == pytest.approx(1, abs=1e-9)


def test_full_unroll_equals_differences_of_the_unrolled_objective() -> None:
    algorithm = hg.Unrolled(100, hg.GradientDescent(lr=0.1))
    state = algorithm.init(RIDGE, START, POINT)
    expected = central_differences(lambda hparams: outer(algorithm.response(RIDGE, state, hparams), hparams), POINT)
    found = gradient(RIDGE, algorithm, START)
    assert float((found["x"] - expected["x"]).abs().max()) < 1e-8


def test_truncation_error_falls_geometrically_below_its_bound() -> None:
    step, exact = 1 / LARGEST, gradient(RIDGE, hg.Implicit(hg.Dense()))["x"]
    params = solution(POINT)
    size = float(torch.linalg.vector_norm(XV.mT @ (XV @ params["w"] - YV) / 60))
    mixed = step * float((POINT["x"].exp() * params["w"]).abs().max())
    errors = []
    for window in (1, 2, 5, 10, 20, 50):
        found = gradient(RIDGE, hg.Unrolled(50, hg.GradientDescent(lr=step), truncate=window))["x"]
        rate = step * SMALLEST
        assert float((found - exact).norm()) <= (1 - rate) ** window / rate * size * mixed + 1e-12
        errors.append(float((found - exact).norm() / exact.norm()))
        assert float(found @ exact) > 0, "without a direct part every truncation is a descent direction"
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


@pytest.mark.parametrize(
    ("step", "window", "stationary"),
    [(0.1, 1, -9.99999998), (0.1, 5, -2.44194281), (0.1, 20, -1.13840326), (0.5, 2, -1.33333333)],
)
def test_truncated_stationary_point_is_biased_as_its_closed_form_says(
    step: float, window: int, stationary: float
) -> None:
    """g = (y − x)²/2, f = y²/2 + c x with c = 1: −c / (1 − (1 − γ)^K) in the place of −c."""
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (params["y"] - hparams["x"]).square(),
        outer=lambda params, hparams: 0.5 * params["y"].square() + hparams["x"],
    )
    algorithm = hg.Unrolled(40, hg.GradientDescent(lr=step), truncate=window, warm_start=True)
    zero = torch.zeros((), dtype=torch.float64)
    move = hg.outer.Torch(torch.optim.SGD, lr=1.0)
    run = hg.Run(problem, algorithm, {"y": zero}, {"x": zero}, move)
    for _ in range(300):
        run.step()
    assert float(run.hparams["x"]) == pytest.approx(stationary, abs=2e-7)
    assert float(run.hparams["x"]) == pytest.approx(-1 / (1 - (1 - step) ** window), abs=2e-7)


def test_one_penalty_per_feature_beats_the_best_shared_penalty() -> None:
    """Multinomial logistic regression on digits; the shared penalties are a grid of 13 points."""
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    x, y = torch.tensor(data / 16), torch.tensor(target)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid = rows[:300], rows[300:900]

    def loss(params: Tree, rows: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x[rows] @ params["w"] + params["b"], y[rows])

    problem = hg.Problem(
        inner=lambda params, _: loss(params, train) + 5e-4 * params["b"].square().sum(),
        outer=lambda params, _: loss(params, valid),
        penalty=lambda params, hparams: 0.5 * (hparams["x"].exp()[:, None] * params["w"].square()).sum(),
    )
    start = {"w": torch.zeros(64, 10, dtype=torch.float64), "b": torch.zeros(10, dtype=torch.float64)}
    fit = hg.LBFGS(tolerance=1e-6, steps=300)
    grid = {}
    for log_penalty in np.linspace(-12, 0, 13):
        hparams = {"x": torch.full((64,), float(log_penalty), dtype=torch.float64)}
        grid[log_penalty] = float(problem.outer_value(fit.run(problem, start, hparams).params, hparams))
    best = min(grid, key=lambda key: grid[key])
    algorithm = hg.Implicit(hg.CG(rtol=1e-4, max_steps=300), inner=fit)
    hparams = {"x": torch.full((64,), float(best), dtype=torch.float64)}
    run = hg.Run(problem, algorithm, start, hparams, hg.outer.LBFGSB(iterations=8))
    run.step()
    tuned = float(problem.outer_value(fit.run(problem, run.params, run.hparams).params, run.hparams))
    assert tuned < grid[best] - 0.005
