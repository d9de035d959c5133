"""LV-HBA: known answers with coupled constraints, first derivatives only, projections, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.projections import Halfspace, Intersection, Polyhedron
from hypergrad.solvers.bilevel.lv_hba import LVHBA, LVHBAState
from hypergrad.testing import counted
from hypergrad.tree import Tree, leaves

N = 10
ONE = torch.ones(N, dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def total(params: Tree, hparams: Tree) -> Tensor:
    """The toys' constraint e'(x + y₁ + y₂) = 0."""
    return (hparams["x"] + params["y1"] + params["y2"]).sum()


def toy_inner(params: Tree, hparams: Tree) -> Tensor:
    """½|y₁|² − x'y₁ + e'y₂."""
    return 0.5 * params["y1"].square().sum() - hparams["x"] @ params["y1"] + params["y2"].sum()


def first_outer(params: Tree, hparams: Tree) -> Tensor:
    return 0.5 * (hparams["x"] - params["y2"]).square().sum() + 0.5 * (params["y1"] - 1).square().sum()


def second_outer(params: Tree, hparams: Tree) -> Tensor:
    return (params["y1"] - 2) @ (hparams["x"] - 1) + (params["y2"] + 3).square().sum()


FIRST, SECOND = hg.Problem(toy_inner, first_outer), hg.Problem(toy_inner, second_outer)
SCALAR = hg.Problem(
    lambda params, hparams: 0.5 * (params["y"] - 2 * hparams["x"]).square(),
    lambda params, hparams: (hparams["x"] - 2).square() + (params["y"] - 2).square(),
)
SCALAR_START = {"y": number(0.0)}, {"x": number(0.0)}


def toy_start() -> tuple[Tree, Tree]:
    return {"y1": torch.zeros_like(ONE), "y2": torch.zeros_like(ONE)}, {"x": torch.zeros_like(ONE)}


def toy(**options: Any) -> LVHBA:
    settings = {"step_size": 0.02, "center_step_size": 0.02, "inner_step_size": 0.06, "gamma1": 10.0, "bound": 2.0}
    return LVHBA(equality=total, **{**settings, "penalty": 1.0, "power": 0.3, **options})


def within_three(params: Tree, hparams: Tree) -> Tensor:
    return params["y"] + hparams["x"] - 3


def scalar(**options: Any) -> LVHBA:
    settings = {"step_size": 0.1, "center_step_size": 0.2, "inner_step_size": 0.2, "penalty": 1.0, "power": 0.3}
    return LVHBA(**{"inequality": within_three, **settings, **options})


def steps(
    problem: hg.Problem, algorithm: LVHBA, params: Tree, hparams: Tree, count: int
) -> Iterator[tuple[hg.Hypergradient, LVHBAState, Tree]]:
    """Gradient descent on x with the algorithm's own step size, as the paper has it."""
    state = algorithm.init(problem, params, hparams)
    for k in range(count):
        found, state = algorithm.step(problem, state, leaves(hparams))
        rate = algorithm.step_size
        alpha = rate(k) if callable(rate) else rate
        hparams = {key: hparams[key] - alpha * slope for key, slope in found.grads.items()}
        yield found, state, hparams


def last(problem: hg.Problem, algorithm: LVHBA, start: tuple[Tree, Tree], count: int) -> tuple[Any, LVHBAState, Tree]:
    *_, end = steps(problem, algorithm, *start, count)
    return end


def toy_error(state: LVHBAState, hparams: Tree, answer: tuple[float, ...]) -> float:
    found = torch.cat([hparams["x"], state.params["y1"], state.params["y2"]])
    wanted = torch.cat([value * ONE for value in answer])
    return float((found - wanted).norm() / wanted.norm())


def penalised(c: float, gamma: float = 10.0) -> Tensor:
    """(x, y₁, y₂, θ₁, θ₂, μ, ν) where a step with a constant penalty c stands still; ν belongs to the joint projection.

    Stationarity in θ₁ and θ₂, the constraint at θ, d_x + ν = d_y + ν = 0, and the constraint at y.
    """
    g = 1 / gamma
    matrix = [
        [-1, -g, 0, 1 + g, 0, 1, 0],
        [0, 0, -g, 0, g, 1, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [1 / c, -1, -1 / c, 1, 0, -1, 1],
        [-1, 1 / c + 1 - g, 0, g, 0, 0, 1],
        [-1 / c, 0, 1 / c - g, 0, g, 0, 1],
        [1, 1, 1, 0, 0, 0, 0],
    ]
    right = [0, -1, 0, 0, 1 / c, -1, 0]
    solution: Tensor = torch.linalg.solve(
        torch.tensor(matrix, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    )
    return solution


ANSWER = torch.tensor([-0.3, 0.7, -0.4], dtype=torch.float64)


@pytest.mark.parametrize("c", [2.0, 4.0])
def test_first_toy_stands_where_the_penalty_says(c: float) -> None:
    _, state, hparams = last(FIRST, toy(penalty=c, power=0.0), toy_start(), 2000)
    x, y1, y2, theta1, theta2, mu, _ = penalised(c)
    found = (hparams["x"], state.params["y1"], state.params["y2"], state.proximal["y1"], state.proximal["y2"])
    for tensor, value in zip(found, (x, y1, y2, theta1, theta2), strict=True):
        assert torch.allclose(tensor, value * ONE, atol=1e-8, rtol=0)
    assert float(state.multipliers) == pytest.approx(float(mu), abs=1e-8)


def test_that_point_tends_to_the_first_toys_answer_like_one_over_the_penalty() -> None:
    """Two penalties, extrapolated to 1/c = 0, and the multiplier −1."""
    near, far = penalised(1e4), penalised(2e4)
    limit = 2 * far - near
    assert torch.allclose(limit[:3], ANSWER, atol=1e-8, rtol=0)
    assert float(limit[5]) == pytest.approx(-1, abs=1e-8)
    assert float((near[:3] - ANSWER).norm() / (far[:3] - ANSWER).norm()) == pytest.approx(2, rel=1e-3)


def test_first_toy_with_a_growing_penalty_is_off_by_one_over_it() -> None:
    scaled = []
    for _, state, hparams in steps(FIRST, toy(), *toy_start(), 3000):
        if state.steps in (1000, 3000):
            scaled.append(toy_error(state, hparams, (-0.3, 0.7, -0.4)) * state.steps**0.3)
    assert scaled == [pytest.approx(0.20, abs=0.005)] * 2


def test_second_toy_has_no_such_error() -> None:
    _, state, hparams = last(SECOND, toy(), toy_start(), 4000)
    assert toy_error(state, hparams, (1, 2, -3)) < 1e-8
    assert float(state.multipliers) == pytest.approx(-1, abs=1e-8)


@pytest.mark.parametrize("bound", [10.0, 1.5])
def test_active_inequality(bound: float) -> None:
    found, state, hparams = last(SCALAR, scalar(bound=bound), SCALAR_START, 2500)
    values = (hparams["x"], state.params["y"], state.multipliers, state.centers)
    assert [float(value) for value in values] == pytest.approx([1.5] * 4, abs=1e-4)
    assert float(found.outer_loss) == pytest.approx(0.5, abs=1e-4)
    assert bound == 1.5 or found.report.notes == {}


def test_inactive_inequality_is_as_if_there_were_none() -> None:
    """Without a bound in reach min (x − 2)² + (2x − 2)² is at x = 6/5."""
    loose = scalar(inequality=lambda params, hparams: params["y"] + hparams["x"] - 9, power=0.3)
    ends = [last(SCALAR, algorithm, SCALAR_START, 400) for algorithm in (loose, scalar(inequality=None))]
    assert torch.equal(ends[0][2]["x"], ends[1][2]["x"])
    assert float(ends[0][1].multipliers) == 0
    assert float(ends[0][2]["x"]) == pytest.approx(1.2, abs=0.1)


def test_a_bound_below_the_multiplier_is_told() -> None:
    """With μ = r = ½ the iteration stands at x = (5.25 + 6/c) / (4.5 + 4/c), which is 7/6 and not 3/2 for large c."""
    found, state, hparams = last(SCALAR, scalar(bound=0.5, power=0.0), SCALAR_START, 1000)
    assert float(hparams["x"]) == pytest.approx(11.25 / 8.5, abs=1e-8)
    assert float(state.params["y"]) == pytest.approx(3 - 11.25 / 8.5, abs=1e-8)
    assert float(state.multipliers) == 0.5
    assert "multiplier 0 sits on its bound 0.5" in found.report.notes["convergence"]
    run = hg.Run(SCALAR, scalar(bound=0.5), *SCALAR_START, hg.outer.Torch(torch.optim.SGD, lr=0.1))
    with pytest.warns(hg.errors.ConvergenceWarning, match="raise bound"):
        advance(run, 200)


def test_without_the_joint_projection_it_leaves_the_set_and_says_so() -> None:
    found, state, hparams = last(SCALAR, scalar(projection=None), SCALAR_START, 600)
    assert float(found.outer_loss) > 100
    assert float(hparams["x"] + state.params["y"]) > 30
    assert float(state.multipliers) == 10
    assert "without a joint projection" in found.report.notes["convergence"]


def test_one_step_by_hand() -> None:
    """The equations of the method on numbers, from a state with θ ≠ y, through a projection that binds."""
    algorithm = scalar(gamma1=2.0, gamma2=0.5, penalty=3.0)
    x, y, theta, mu, z, k = 2.0, 1.4, 0.5, 0.7, 0.2, 4
    start = algorithm.init(SCALAR, {"y": number(y)}, {"x": number(x)})
    state = LVHBAState(
        {"y": number(y)}, {"y": number(theta)}, number(mu)[None], number(z)[None], start.low, start.equal, start.levels,
        start.below, start.limits, start.target, k,
    )  # fmt: skip
    found, following = algorithm.step(SCALAR, state, leaves({"x": number(x)}))
    c = 3 * 5**0.3
    new_theta = theta - 0.2 * (theta - 2 * x + mu + (theta - y) / 2)
    new_mu = mu + 0.2 * (theta + x - 3 - (mu - z) / 0.5)
    d_x = 2 * (x - 2) / c - 2 * (y - 2 * x) + 2 * (new_theta - 2 * x) - new_mu
    d_y = 2 * (y - 2) / c + (y - 2 * x) - (y - new_theta) / 2
    new_x, new_y = x - 0.1 * d_x, y - 0.1 * d_y
    outside = max(new_x + new_y - 3, 0) / 2
    assert outside > 0.01
    new_x, new_y = new_x - outside, new_y - outside
    assert float(following.proximal["y"]) == pytest.approx(new_theta, rel=1e-14)
    assert float(following.multipliers) == pytest.approx(new_mu, rel=1e-14)
    assert float(following.centers) == pytest.approx(z + 0.2 * (new_mu - z) / 0.5, rel=1e-14)
    assert float(following.params["y"]) == pytest.approx(new_y, rel=1e-14)
    assert x - 0.1 * float(found.grads["x"]) == pytest.approx(new_x, rel=1e-14)


def test_gradient_descent_of_a_run_lands_on_the_projected_point() -> None:
    run = hg.Run(SCALAR, scalar(), *SCALAR_START, hg.outer.Torch(torch.optim.SGD, lr=0.1))
    for found, state, hparams in steps(SCALAR, scalar(), *SCALAR_START, 40):
        progress = run.step()
        assert torch.equal(progress.params["y"], found.params["y"])
        assert torch.allclose(progress.moved["x"], hparams["x"], rtol=1e-15)
        assert float(within_three(state.params, hparams)) <= 1e-14
    other = hg.Run(SCALAR, scalar(), *SCALAR_START, hg.outer.Torch(torch.optim.Adam, lr=0.02))
    with pytest.warns(hg.errors.OuterMoveWarning, match="left the joint projection"):
        advance(other, 700)
    assert float(other.hparams["x"]) == pytest.approx(1.5, abs=0.05)


def test_no_hessian_product_is_ever_made() -> None:
    """Neither by the counter nor by an operation that cannot be differentiated twice."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            slope: Tensor = 2 * ctx.saved_tensors[0] * grad_outputs[0]
            return slope

    square: Any = Square.apply
    once = hg.Problem(lambda params, hparams: 0.5 * square(params["y"] - 2 * hparams["x"]), SCALAR.outer)
    problem, counter = counted(once)
    expected = [slopes["x"] for slopes in (end[0].grads for end in steps(SCALAR, scalar(), *SCALAR_START, 25))]
    found = [end[0] for end in steps(problem, scalar(), *SCALAR_START, 25)]
    assert all(torch.equal(one.grads["x"], other) for one, other in zip(found, expected, strict=True))
    assert counter.products == 0
    assert counter.cost() == sum((one.report.cost for one in found), hg.Cost())
    assert found[0].report.cost == scalar().budget(1, 1) == hg.Cost(inner_gradients=3, outer_gradients=1)


def test_both_kinds_of_constraints_domains_and_several_rows() -> None:
    """Every iterate lies in C: two inequalities, one equality, y in a box and x in a simplex."""
    normal = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def joint(params: Tree, hparams: Tree) -> Tensor:
        return torch.cat([params["y"], hparams["x"]])

    problem = hg.Problem(
        lambda params, hparams: 0.5 * (params["y"] - 3 * hparams["x"]).square().sum(),
        lambda params, hparams: (params["y"] - 2).square().sum() + hparams["x"].square().sum(),
        hparams_domain={"x": hg.Simplex()},
    )
    algorithm = LVHBA(
        inequality=lambda params, hparams: normal @ joint(params, hparams) - 0.3,
        equality=lambda params, hparams: params["y"].sum() - 2 * hparams["x"][0] - 0.1,
        params_domain={"y": hg.Box(0.0, 1.0)},
        step_size=0.05,
        inner_step_size=0.1,
        center_step_size=0.1,
    )
    start = {"y": 0.0 * ONE[:2]}, {"x": 0.5 * ONE[:2]}
    count = 0
    for _, state, hparams in steps(problem, algorithm, *start, 150):
        point = joint(state.params, hparams)
        assert float((normal @ point - 0.3).max()) < 1e-9
        assert abs(float(state.params["y"].sum() - 2 * hparams["x"][0] - 0.1)) < 1e-9
        assert float(state.params["y"].min()) > -1e-9
        assert float(state.params["y"].max()) < 1 + 1e-9
        assert float(hparams["x"].sum()) == pytest.approx(1, abs=1e-9)
        assert 0 <= float(state.proximal["y"].min()) <= float(state.proximal["y"].max()) <= 1
        assert float(state.multipliers[:2].min()) >= 0
        count += 1
    assert count == 150


def test_a_projection_of_ones_own() -> None:
    """The half-space of the scalar problem, written by hand, gives the same run."""

    def project(params: Tree, hparams: Tree) -> tuple[Tree, Tree]:
        outside = within_three(params, hparams).clamp(min=0) / 2
        return {"y": params["y"] - outside}, {"x": hparams["x"] - outside}

    ends = [last(SCALAR, scalar(**options), SCALAR_START, 300) for options in ({}, {"projection": project})]
    assert torch.allclose(ends[0][2]["x"], ends[1][2]["x"], rtol=1e-12)
    ball = scalar(
        inequality=lambda params, hparams: params["y"].square() + hparams["x"].square() - 1, projection=onto_disc
    )
    _, state, hparams = last(SCALAR, ball, SCALAR_START, 800)
    point = torch.stack([hparams["x"], state.params["y"]])
    assert float(point.norm()) == pytest.approx(1, abs=1e-6)
    assert float(state.params["y"]) > float(hparams["x"]) > 0.2


def onto_disc(params: Tree, hparams: Tree) -> tuple[Tree, Tree]:
    scale = torch.hypot(params["y"], hparams["x"]).clamp(min=1)
    return {"y": params["y"] / scale}, {"x": hparams["x"] / scale}


def test_a_resumed_run_is_the_same_run() -> None:
    runs = [hg.Run(SCALAR, scalar(), *SCALAR_START, hg.outer.Torch(torch.optim.SGD, lr=0.1)) for _ in range(2)]
    for _ in range(9):
        runs[0].step()
    runs[1].load_state_dict(runs[0].state_dict())
    for run in runs:
        for _ in range(9):
            run.step()
    assert torch.equal(runs[0].hparams["x"], runs[1].hparams["x"])


@pytest.mark.parametrize("name", ["step_size", "inner_step_size", "center_step_size"])
def test_schedules_that_go_negative_are_refused_when_read(name: str) -> None:
    algorithm = scalar(**{name: lambda step: 0.1 - 0.04 * step})
    state = algorithm.init(SCALAR, *SCALAR_START)
    for _ in range(3):
        _, state = algorithm.step(SCALAR, state, leaves(SCALAR_START[1]))
    with pytest.raises(hg.errors.InputError, match=f"{name}.*iteration 3"):
        algorithm.step(SCALAR, state, leaves(SCALAR_START[1]))


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": -0.1},
        {"inner_step_size": 0.0},
        {"center_step_size": float("nan")},
        {"gamma1": 0.0},
        {"gamma2": -1.0},
        {"bound": 0.0},
        {"penalty": 0.0},
        {"power": 0.5},
        {"power": -0.1},
        {"projection": "exact"},
        {"inequality": 3},
        {"equality": lambda params: params["y"]},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(hg.errors.InputError, match=next(iter(options))):
        scalar(**options)


def refused_at_init(match: str, problem: hg.Problem = SCALAR, **options: Any) -> None:
    algorithm = scalar(**options)
    with pytest.raises(hg.errors.InputError, match=match):
        algorithm.init(problem, *SCALAR_START)


def test_sets_that_cannot_be_projected_onto_are_refused() -> None:
    refused_at_init("not affine", inequality=lambda params, hparams: params["y"].square() + hparams["x"] - 1)
    refused_at_init("not affine", inequality=lambda params, hparams: params["y"] * hparams["x"] - 1)
    refused_at_init("fails at every point", inequality=lambda params, hparams: 0 * params["y"] + 1)
    refused_at_init("contradict", inequality=lambda params, hparams: torch.stack([params["y"] + 1, 1 - params["y"]]))
    refused_at_init(
        "contradict",
        inequality=None,
        equality=lambda params, hparams: torch.stack([params["y"] - hparams["x"], params["y"] - hparams["x"] - 1]),
    )
    refused_at_init("violates constraint 0", projection=lambda params, hparams: (params, hparams), inequality=beyond)
    refused_at_init("pair", projection=lambda params, hparams: params)
    refused_at_init("one entry", inequality=lambda params, hparams: 3.0)


def beyond(params: Tree, hparams: Tree) -> Tensor:
    return params["y"] + hparams["x"] + 1


def test_domains_that_miss_the_constraints_are_refused() -> None:
    algorithm = scalar(inequality=beyond, params_domain={"y": hg.Box(0.0, 1.0)})
    problem = hg.Problem(SCALAR.inner, SCALAR.outer, hparams_domain={"x": hg.Box(0.0, 1.0)})
    with pytest.raises(hg.errors.DivergenceError, match="sets that meet"):
        algorithm.init(problem, *SCALAR_START)


def test_wrong_domains_are_refused() -> None:
    refused_at_init("params_domain", params_domain={"z": hg.Box(0.0, 1.0)})
    refused_at_init("params_domain", params_domain={"y": 3})


def test_problems_without_an_inner_objective_are_refused() -> None:
    root = hg.Problem.fixed_point(lambda params, hparams: {"y": 0.5 * params["y"] + hparams["x"]}, SCALAR.outer)
    refused_at_init("condition", root)
    tuned = hg.Problem(SCALAR.inner, SCALAR.outer, initial=lambda hparams: {"y": hparams["x"]})
    refused_at_init("initial", tuned)
    with pytest.raises(hg.errors.UnsupportedError, match="both levels together"):
        hg.solve(SCALAR, *SCALAR_START, scalar())


def test_steps_too_long_end_in_an_error_and_not_in_nan() -> None:
    algorithm = scalar(inequality=None, step_size=50.0, inner_step_size=50.0)
    run = hg.Run(SCALAR, algorithm, *SCALAR_START, hg.outer.Torch(torch.optim.SGD, lr=50.0))
    with pytest.raises(hg.errors.NonFiniteError):
        advance(run, 1000)
    assert bool(torch.isfinite(run.hparams["x"]))
    assert bool(torch.isfinite(run.params["y"]))


def advance(run: hg.Run, count: int) -> None:
    for _ in range(count):
        run.step()


def test_noise_without_bound_ends_in_an_error_and_not_in_nan() -> None:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        return 0.5 * (1 + 100 * torch.randn((), dtype=torch.float64)) * (params["y"] - hparams["x"]).square()

    run = hg.Run(
        hg.Problem(inner, SCALAR.outer), scalar(inequality=None), *SCALAR_START, hg.outer.Torch(torch.optim.SGD, lr=0.1)
    )
    with pytest.raises(hg.errors.NonFiniteError):
        advance(run, 5000)
    assert bool(torch.isfinite(run.hparams["x"]))


def polyhedra() -> Iterator[tuple[Polyhedron, tuple[Tensor, ...], Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(100):
        n = int(torch.randint(1, 8, (1,), generator=generator))
        rows, equal = normal(int(torch.randint(0, 9, (1,), generator=generator)), n), normal(n // 2, n)
        inside = normal(n)
        slack = normal(len(rows)).abs() * (torch.rand(len(rows), generator=generator) > 0.3)
        parts = rows, rows @ inside + slack, equal, equal @ inside
        yield Polyhedron.of(*parts), parts, 3 * normal(n)


def test_polyhedra_meet_the_conditions_of_the_nearest_point() -> None:
    """V − p lies in the cone of the binding rows and the span of the equalities: their non-negative combination."""
    for polyhedron, (rows, limits, equal, levels), value in polyhedra():
        point = polyhedron.project(value)
        gaps = rows @ point - limits
        assert bool((gaps < 1e-11).all())
        assert torch.allclose(equal @ point, levels, atol=1e-11)
        normals = np.concatenate([rows[gaps > -1e-8].numpy(), equal.numpy(), -equal.numpy()]).T
        left = (value - point).numpy()
        residual = scipy.optimize.nnls(normals, left)[1] if normals.shape[1] else np.linalg.norm(left)
        assert residual < 1e-10


def test_alternating_projections_agree_with_the_quadratic_program() -> None:
    compared = 0
    for polyhedron, (rows, limits, equal, levels), value in polyhedra():
        halves = [Halfspace(row, float(limit)) for row, limit in zip(rows, limits, strict=True)]
        flat = Polyhedron.of(rows[:0], limits[:0], equal, levels)
        if len(halves) in (2, 3) and len(levels):
            point = Intersection([*halves, flat], tolerance=1e-10, sweeps=50_000).project(value)
            assert torch.allclose(point, polyhedron.project(value), atol=1e-6)
            compared += 1
    assert compared > 10


def test_redundant_equalities_are_one() -> None:
    equal = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    none = torch.zeros(0, 2, dtype=torch.float64)
    line = Polyhedron.of(none, none[:, 0], equal, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert line.equal.shape == (1, 2)
    assert torch.allclose(line.project(torch.zeros(2, dtype=torch.float64)), 0.5 * ONE[:2])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Halfspace(torch.zeros(2)), "not 0"),
        (lambda: Halfspace(torch.ones(2), float("nan")), "offset"),
        (lambda: Polyhedron.of(torch.ones(2, 2), torch.ones(3)), "shapes"),
        (lambda: Polyhedron.of(torch.full((1, 2), float("nan")), torch.ones(1)), "finite"),
        (lambda: Intersection([]), "at least one domain"),
        (lambda: Intersection([3]), "at least one domain"),  # type: ignore[list-item]
        (lambda: Intersection([hg.Box(0, 1)], tolerance=0.0), "tolerance"),
        (lambda: Intersection([hg.Box(0, 1)], sweeps=0), "sweeps"),
    ],
)
def test_wrong_sets_are_refused(make: Any, match: str) -> None:
    with pytest.raises(hg.errors.InputError, match=match):
        make()


def test_sets_that_do_not_meet_are_told() -> None:
    apart = Intersection([hg.Box(0.0, 1.0), Halfspace(torch.ones(2), -1.0)], sweeps=200)
    with pytest.raises(hg.errors.DivergenceError, match="sets that meet"):
        apart.project(torch.ones(2))


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_another_outer_rate_is_noted(rate: float) -> None:
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (params["y"] - 2 * hparams["x"]) ** 2,
        outer=lambda params, hparams: (params["y"] - 2) ** 2 + (hparams["x"] - 2) ** 2,
    )
    algorithm = LVHBA(inequality=lambda params, hparams: params["y"] + hparams["x"] - 3, step_size=0.1)
    start = {"y": torch.tensor(0.0)}, {"x": torch.tensor(0.0)}
    run = hg.Run(problem, algorithm, *start, hg.outer.Torch(torch.optim.SGD, lr=rate))
    run.step()
    with pytest.warns(hg.errors.OuterMoveWarning, match="lr=step_size"):
        run.step()
    run.step()


def test_an_overflow_before_a_quadratic_program_is_named() -> None:
    one = torch.ones(2, dtype=torch.float64)
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (hparams["x"].exp() * params["y"].square()).sum(),
        outer=lambda params, hparams: (params["y"] - 2).square().sum(),
    )

    def below(params: Tree, hparams: Tree) -> Tensor:
        return torch.cat([params["y"] + hparams["x"] - 3, hparams["x"] - 1, -1 - hparams["x"], -params["y"] - 1])

    algorithm = LVHBA(inequality=below, step_size=0.01, inner_step_size=50.0)
    run = hg.Run(problem, algorithm, {"y": one}, {"x": 0 * one}, hg.outer.Torch(torch.optim.SGD, lr=0.01))
    with pytest.raises(hg.errors.NonFiniteError, match="before they are projected"):
        advance(run, 1000)
    assert all(value.isfinite().all() for value in (*run.params.values(), *run.hparams.values()))
