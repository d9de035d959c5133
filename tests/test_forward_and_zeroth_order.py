"""Known answers of forward mode, zeroth-order estimates and the MAML landscape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Layout, Tree

DOUBLE = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


QUADRATIC = hg.Problem(
    inner=lambda params, hparams: 0.5 * 2.0 * params["w"].square() - hparams["lam"] * params["w"],
    outer=lambda params, _: 0.5 * (params["w"] - 1).square(),
)
TUNED = hg.GradientDescent(lr=hg.Tuned("eta"))
QUADRATIC_POINT = {"lam": number(1.0), "eta": number(0.1)}


@pytest.mark.parametrize(
    "algorithm",
    [
        hg.ForwardMode(5, TUNED),
        hg.Unrolled(5, TUNED),
        hg.Unrolled(5, TUNED, keep="sqrt"),
        hg.ForwardMode(5, TUNED, mode="random", directions=2, distribution="orthonormal"),
    ],
    ids=["forward", "unrolled", "unrolled-sqrt", "orthonormal"],
)
def test_five_steps_on_a_quadratic(algorithm: hg.Algorithm[Any]) -> None:
    """w_T = (1 − (1 − ηa)^T) λ/a, and the derivatives with respect to λ and to the step size η."""
    found = hg.hypergradient(QUADRATIC, {"w": number(0.0)}, QUADRATIC_POINT, algorithm)
    assert float(found.params["w"]) == pytest.approx(0.33616, abs=1e-12)
    assert float(found.grads["lam"]) == pytest.approx(-0.2231564544, abs=1e-10)
    assert float(found.grads["eta"]) == pytest.approx(-1.35954432, abs=1e-10)


@pytest.mark.parametrize(("distribution", "moment"), [("gaussian", 12.0), ("rademacher", 10.0)])
def test_second_moment_and_bias_of_random_directions(distribution: str, moment: float) -> None:
    """E‖s v‖² is (n + 2)‖dF‖² for Gaussian and n‖dF‖² for Rademacher directions, n = 10; the mean is dF."""
    layout = Layout.of({"x": torch.zeros(10, dtype=DOUBLE)})
    slope = torch.linspace(-1, 2, 10, dtype=DOUBLE)
    algorithm = hg.ForwardMode(1, TUNED, mode="random", directions=400_000, distribution=distribution)  # type: ignore[arg-type]
    vectors = torch.stack(algorithm.directions_at(0, layout))
    estimates = (vectors @ slope)[:, None] * vectors
    assert float(estimates.square().sum(1).mean() / slope.square().sum()) == pytest.approx(moment, rel=0.02)
    assert float((estimates.mean(0) - slope).norm() / slope.norm()) < 0.01


def test_random_sphere_directions_are_unbiased_with_their_factor() -> None:
    """Without the factor n the mean over the unit sphere would be dF/n."""
    slope = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=DOUBLE)
    layout = Layout.of({"x": slope})
    algorithm = hg.ZerothOrder(hg.Training(lambda params, _: params), mode="RGE", directions=200_000)
    vectors = torch.stack(algorithm.directions_at(0, layout))
    mean = (vectors @ slope) @ vectors / len(vectors)
    assert float((4 * mean - slope).norm() / slope.norm()) < 0.02
    assert float(mean @ slope / slope.square().sum()) == pytest.approx(0.25, abs=0.005)


def ridge_with_penalties(features: int) -> tuple[hg.Problem, Tree, Tree]:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(*s, generator=generator, dtype=DOUBLE) for s in ((100, features), (100,)))
    xv, yv = (torch.randn(*s, generator=generator, dtype=DOUBLE) for s in ((100, features), (100,)))
    problem = hg.Problem(
        inner=lambda params, hparams: (
            (x @ params["w"] - y).square().mean() / 2 + 0.5 * (hparams["x"].exp() * params["w"].square()).sum()
        ),
        outer=lambda params, _: (xv @ params["w"] - yv).square().mean() / 2,
    )
    hparams = {"x": torch.full((features,), -2.0, dtype=DOUBLE)}
    return problem, {"w": torch.zeros(features, dtype=DOUBLE)}, hparams


def test_guide_repairs_the_length_of_a_truncated_hypergradient() -> None:
    """Truncation's error is mostly one of length, which one forward product along the guess removes."""
    problem, params, hparams = ridge_with_penalties(50)
    rule = hg.GradientDescent(lr=0.1)
    exact = hg.hypergradient(problem, params, hparams, hg.Unrolled(50, rule)).grads
    for window in (1, 3, 10, 50):
        truncated = hg.hypergradient(problem, params, hparams, hg.Unrolled(50, rule, truncate=window)).grads
        guided = hg.hypergradient(problem, params, hparams, hg.ForwardMode(50, rule, mode="guided", guide=window)).grads
        cosine = float(truncated["x"] @ exact["x"] / truncated["x"].norm() / exact["x"].norm())
        error = relative_error(guided, exact)
        assert error == pytest.approx(math.sqrt(max(0.0, 1 - cosine**2)), abs=1e-7), "the projection on the guess"
        assert error <= relative_error(truncated, exact) + 1e-12
        assert float(guided["x"] @ exact["x"]) >= 0
        assert float(guided["x"].norm()) <= float(exact["x"].norm()) * (1 + 1e-12)
        if window in (3, 10):
            assert error < 0.6 * relative_error(truncated, exact)
    assert error < 1e-12, "a guess through all steps is the hypergradient itself"


def test_coordinate_differences_on_a_quadratic_have_their_closed_form_error() -> None:
    curvature = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 4.0]], dtype=DOUBLE)
    problem = hg.Problem(
        inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        outer=lambda params, _: 0.5 * params["w"] @ curvature @ params["w"],
    )
    point = {"x": torch.tensor([0.5, -1.0, 2.0], dtype=DOUBLE)}
    fit = hg.Training(lambda _, hparams: {"w": hparams["x"]})
    start = {"w": torch.zeros(3, dtype=DOUBLE)}
    exact = curvature @ point["x"]
    one_sided = hg.hypergradient(problem, start, point, hg.ZerothOrder(fit, central=False, step_size=0.01)).grads["x"]
    central = hg.hypergradient(problem, start, point, hg.ZerothOrder(fit, step_size=0.01)).grads["x"]
    assert float((one_sided - exact - 0.01 * curvature.diagonal() / 2).abs().max()) < 1e-12
    assert float((central - exact).abs().max()) < 1e-12


def test_zeroth_order_stays_inside_the_domain() -> None:
    seen = []

    def fit(_: Tree, hparams: Tree) -> Tree:
        seen.append(float(hparams["x"]))
        return {"w": hparams["x"]}

    problem = hg.Problem(
        inner=lambda params, hparams: (params["w"] - hparams["x"]).square(),
        outer=lambda params, _: 3 * params["w"],
        hparams_domain={"x": hg.Positive()},
    )
    found = hg.hypergradient(problem, {"w": number(0.0)}, {"x": number(0.0)}, hg.ZerothOrder(hg.Training(fit)))
    assert min(seen) >= 0
    assert float(found.grads["x"]) == pytest.approx(3)


def test_zeroth_order_uses_common_random_numbers() -> None:
    """Noise in training of size 1 would be divided by the step size if the runs did not share it."""

    def fit(_: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"] + torch.randn((), dtype=DOUBLE)}

    problem = hg.Problem(lambda params, _: params["w"].square(), lambda params, _: params["w"])
    found = hg.hypergradient(problem, {"w": number(0.0)}, {"x": number(1.0)}, hg.ZerothOrder(hg.Training(fit)))
    assert float(found.grads["x"]) == pytest.approx(1, abs=1e-9)


RHO, CENTRES, STEP = torch.tensor([1.0, 0.1], dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE), 0.9


def task_losses(params: Tree, _: Tree) -> Tensor:
    return 0.5 * (RHO * (params["w"] - CENTRES).square()).sum()


MAML = hg.Problem(
    inner=task_losses,
    outer=lambda params, hparams: task_losses(params, hparams) / 2,
    initial=lambda hparams: {"w": hparams["x"].expand(2)},
)
TASKS = {"w": torch.zeros(2, dtype=DOUBLE)}


@pytest.mark.parametrize("mode", ["unrolled", "unrolled-sqrt", "forward"])
def test_maml_optimum_and_its_losses(mode: str) -> None:
    rule = hg.GradientDescent(lr=STEP)
    algorithm: hg.Algorithm[Any] = {
        "unrolled": hg.Unrolled(1, rule),
        "unrolled-sqrt": hg.Unrolled(1, rule, keep="sqrt"),
        "forward": hg.ForwardMode(1, rule),
    }[mode]
    run = hg.Run(MAML, algorithm, TASKS, {"x": number(0.0)}, hg.outer.LBFGSB(iterations=50, gtol=1e-12, ftol=1e-16))
    run.step()
    assert float(run.hparams["x"]) == pytest.approx(0.8922530, abs=1e-7)
    adapted = hg.hypergradient(MAML, TASKS, run.hparams, algorithm)
    assert float(adapted.grads["x"]) == pytest.approx(0, abs=1e-9)
    assert float(adapted.outer_loss) == pytest.approx(0.00223063, abs=1e-8)
    unaware = {"x": (RHO * CENTRES).sum() / RHO.sum()}
    assert float(unaware["x"]) == pytest.approx(0.0909091, abs=1e-7)
    assert float(hg.hypergradient(MAML, TASKS, unaware, algorithm).outer_loss) == pytest.approx(0.01713017, abs=1e-8)


def test_maml_over_random_tasks_needs_the_second_order_term() -> None:
    generator = torch.Generator().manual_seed(5)
    roots = torch.randn(3, 4, 4, generator=generator, dtype=DOUBLE)
    curvature = roots @ roots.mT / 8 + 0.1 * torch.eye(4, dtype=DOUBLE)
    centres = torch.randn(3, 4, generator=generator, dtype=DOUBLE)
    shrink = torch.eye(4, dtype=DOUBLE) - STEP * 0.3 * curvature

    def losses(params: Tree, _: Tree) -> Tensor:
        gap = params["w"] - centres
        return 0.5 * torch.einsum("ti,tij,tj->", gap, curvature, gap)

    problem = hg.Problem(
        inner=losses,
        outer=lambda params, hparams: losses(params, hparams) / 3,
        initial=lambda hparams: {"w": hparams["x"].expand(3, 4)},
    )
    weights = shrink @ curvature @ shrink
    optimum: Tensor = torch.linalg.solve(weights.sum(0), torch.einsum("tij,tj->i", weights, centres))
    partly = curvature @ shrink
    first_order: Tensor = torch.linalg.solve(partly.sum(0), torch.einsum("tij,tj->i", partly, centres))
    algorithm = hg.Unrolled(1, hg.GradientDescent(lr=STEP * 0.3))
    start = {"w": torch.zeros(3, 4, dtype=DOUBLE)}
    at_optimum = hg.hypergradient(problem, start, {"x": optimum}, algorithm).grads["x"]
    at_first_order = hg.hypergradient(problem, start, {"x": first_order}, algorithm).grads["x"]
    assert float(at_optimum.norm()) < 1e-14
    assert float(at_first_order.norm()) > 1e-3, "an engine that drops the second-order term would stop here"


def test_implicit_maml_has_its_closed_form_response() -> None:
    """w* = (S + μI)⁻¹ (S c + μ x), so dw*/dx = μ (S + μI)⁻¹."""
    generator = torch.Generator().manual_seed(6)
    root, centre = (
        torch.randn(4, 4, generator=generator, dtype=DOUBLE),
        torch.randn(4, generator=generator, dtype=DOUBLE),
    )
    curvature, strength = root @ root.mT / 4, 0.7
    identity = torch.eye(4, dtype=DOUBLE)
    problem = hg.Problem(
        inner=lambda params, _: 0.5 * (params["w"] - centre) @ curvature @ (params["w"] - centre),
        outer=lambda params, _: params["w"].square().sum() / 2,
        penalty=lambda params, hparams: 0.5 * strength * (params["w"] - hparams["x"]).square().sum(),
    )
    x = torch.randn(4, generator=generator, dtype=DOUBLE)
    response: Tensor = strength * torch.linalg.inv(curvature + strength * identity)
    solved: Tensor = torch.linalg.solve(curvature + strength * identity, curvature @ centre + strength * x)
    found = hg.hypergradient(problem, {"w": solved}, {"x": x}, hg.Implicit(hg.CG(rtol=1e-13))).grads["x"]
    assert float((found - response.mT @ solved).abs().max()) < 1e-12
