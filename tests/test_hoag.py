"""HOAG: optima found by brute force, its step rule, its tolerances, and what it refuses."""

from __future__ import annotations

import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import ConvergenceWarning, InputError, UnsupportedError
from hypergrad.solvers.bilevel.hoag import HOAG
from hypergrad.tree import Tree
from tests.loop import common
from tests.loop.common import DOMAINS, TARGET, plain, same, start
from tests.loop.test_moves import pursuer, pursuit
from tests.loop.test_resume import check_same_run

ACCURATE = hg.Implicit(hg.CG(preconditioner=None, max_steps=1000), inner=hg.LBFGS())
OPTIMA = {"cancer": (0.33766, 18.81315), "digits": (1.72548, 245.806)}


@cache
def logistic(name: str, mean: bool = False) -> tuple[hg.Problem, Tree]:
    """Summed logistic losses of halves of a data set, with ½ eˣ ‖w‖² on the first."""
    load: Any = load_breast_cancer if name == "cancer" else load_digits
    data, target = load(return_X_y=True)
    data, target = StandardScaler().fit_transform(data), target if name == "cancer" else target < 5
    order = np.random.default_rng(0).permutation(len(data))
    signed = torch.tensor(data * (2.0 * target - 1)[:, None])
    train, validation = signed[order[: len(order) // 2]], signed[order[len(order) // 2 :]]
    scale = 1 / len(train) if mean else 1.0

    def inner(params: Tree, hparams: Tree) -> Tensor:
        fit = torch.nn.functional.softplus(-(train @ params["w"])).sum()
        return scale * (fit + hparams["x"].exp() * params["w"].square().sum() / 2)

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return scale * torch.nn.functional.softplus(-(validation @ params["w"])).sum()

    problem = hg.Problem(inner, outer, hparams_domain={"x": hg.Box(-12, 12)})
    return problem, {"w": torch.zeros(data.shape[1], dtype=torch.float64)}


def at(x: float) -> Tree:
    return {"x": torch.tensor(x, dtype=torch.float64)}


def validation_loss(name: str, x: float, mean: bool = False) -> float:
    problem, params = logistic(name, mean)
    trained = hg.Newton(tolerance=1e-9).run(problem, params, at(x)).params
    return float(problem.outer_value(trained, at(x)))


def tuned(name: str, x: float, schedule: Any, mean: bool = False, steps: int = 60, **options: Any) -> tuple[float, int]:
    """Return x after a run, and the passes it took."""
    problem, params = logistic(name, mean)
    work, last = hg.Cost(), x
    for progress in hg.iterate(problem, ACCURATE, params, at(x), outer=HOAG(schedule=schedule, **options), steps=steps):
        work, last = work + progress.cost, float(progress.moved["x"])
    return last, work.inner_gradients + work.products


@pytest.mark.parametrize("name", OPTIMA)
def test_the_optima_are_those_of_brute_force(name: str) -> None:
    found: Any = minimize_scalar(lambda x: validation_loss(name, x), bounds=(-1, 4), method="bounded")
    assert found.x == pytest.approx(OPTIMA[name][0], abs=2e-5)
    assert found.fun == pytest.approx(OPTIMA[name][1], abs=5e-4)


@pytest.mark.parametrize("schedule", ["exponential", "quadratic", "cubic", lambda step: 0.1 * 0.85**step])
@pytest.mark.parametrize("x", [0.0, 5.0])
def test_the_regularisation_of_the_cancer_data_is_found(x: float, schedule: Any) -> None:
    found, _ = tuned("cancer", x, schedule)
    assert found == pytest.approx(OPTIMA["cancer"][0], abs=5e-4)
    assert validation_loss("cancer", found) == pytest.approx(OPTIMA["cancer"][1], abs=5e-4)


@pytest.mark.parametrize("x", [0.0, 5.0])
def test_the_regularisation_of_the_digits_is_found(x: float) -> None:
    found, _ = tuned("digits", x, "exponential")
    assert found == pytest.approx(OPTIMA["digits"][0], abs=5e-4)
    assert validation_loss("digits", found) == pytest.approx(OPTIMA["digits"][1], abs=5e-4)


@pytest.mark.parametrize("name", OPTIMA)
def test_a_mean_loss_has_the_same_optimum_and_is_not_left(name: str) -> None:
    """Losses near 0.1 rise by far less than 20 % on the way to the edge of the box."""
    found, _ = tuned(name, 0.0, "exponential", mean=True, start=1e-3)
    assert found == pytest.approx(OPTIMA[name][0], abs=5e-3)


def test_a_found_optimum_is_not_left_in_many_steps() -> None:
    found, _ = tuned("cancer", 0.0, "quadratic", steps=150)
    assert found == pytest.approx(OPTIMA["cancer"][0], abs=5e-4)


@pytest.mark.parametrize("x", [0.0, 5.0])
def test_an_exponential_schedule_is_cheaper_than_a_cubic_one(x: float) -> None:
    assert tuned("cancer", x, "exponential")[1] < tuned("cancer", x, "cubic")[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The tolerances that were asked for, in order."""
    seen: list[tuple[float, float]] = []
    plainly = hg.Implicit.at_tolerance

    def spy(self: hg.Implicit, inner: float, linear: float) -> hg.Implicit:
        seen.append((inner, linear))
        return plainly(self, inner, linear)

    monkeypatch.setattr(hg.Implicit, "at_tolerance", spy)
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("exponential", [0.5 * 0.9**k for k in range(5)]),
        ("quadratic", [0.5 / (k + 1) ** 2 for k in range(5)]),
        ("cubic", [0.5 / (k + 1) ** 3 for k in range(5)]),
        (lambda step: 1e-3 / (step + 2), [1e-3 / (k + 2) for k in range(5)]),
    ],
)
def test_both_solves_get_the_tolerance_of_the_schedule(
    schedule: Any, expected: list[float], asked: list[tuple[float, float]]
) -> None:
    move = HOAG(schedule, start=0.5, lipschitz=50.0)
    *_, last = hg.iterate(pursuit(), ACCURATE, *pursuer(), outer=move, steps=5)
    assert [inner for inner, _ in asked] == pytest.approx(expected)
    assert [linear for _, linear in asked] == pytest.approx(expected)
    assert last.report.inner_gradient_norm <= expected[-1]


def test_the_linear_solve_may_have_a_schedule_of_its_own_and_the_floor_holds(asked: list[tuple[float, float]]) -> None:
    move = HOAG("cubic", "quadratic", start=1e-2, floor=1e-3, lipschitz=50.0)
    list(hg.iterate(pursuit(), ACCURATE, *pursuer(), outer=move, steps=4))
    assert [inner for inner, _ in asked] == pytest.approx([1e-2, 1.25e-3, 1e-3, 1e-3])
    assert [linear for _, linear in asked] == pytest.approx([1e-2, 2.5e-3, 1e-2 / 9, 1e-3])


EXACT = hg.Implicit(hg.Dense(), inner=hg.Newton())


def test_a_step_is_the_hypergradient_over_l_taken_once() -> None:
    (progress,) = hg.iterate(pursuit(), EXACT, *pursuer(), outer=HOAG(start=1e-9, lipschitz=4.0), steps=1)
    assert torch.allclose(progress.moved["x"], 0.5 - (0.5 - TARGET) / 4)
    assert float(progress.moved["s"]) == pytest.approx(2.0 - 2.0 / 4)


def test_the_first_step_has_the_length_of_the_root_of_the_number_of_entries() -> None:
    (progress,) = hg.iterate(pursuit(), EXACT, *pursuer(), outer=HOAG(start=1e-9), steps=1)
    gaps = torch.cat([(progress.moved[key] - progress.hparams[key]).reshape(-1) for key in progress.moved])
    assert float(gaps.norm()) == pytest.approx(2.0)


def test_a_step_that_raised_the_loss_is_taken_back_and_halved_with_the_tolerances(
    asked: list[tuple[float, float]],
) -> None:
    """F has curvature 1, so that L = 1/4 overshoots: x − t becomes −3 (x − t) and F nine times as large."""
    move = HOAG(lambda step: 1e-6, lipschitz=0.25, reach=1.0)
    steps = list(hg.iterate(pursuit(), EXACT, *pursuer(), outer=move, steps=5))
    assert torch.allclose(steps[0].moved["x"], TARGET - 3 * (0.5 - TARGET), atol=1e-5)
    assert steps[1].outer_loss == pytest.approx(9 * steps[0].outer_loss, rel=1e-5)
    assert steps[1].report.status == "rejected"
    assert same(steps[1].moved, steps[0].hparams), "the step that raised the loss is taken back"
    assert torch.allclose(steps[2].moved["x"], TARGET - (0.5 - TARGET), atol=1e-5), "L = 1/2"
    assert [inner for inner, _ in asked][:4] == pytest.approx([1e-6, 1e-6, 5e-7, 5e-7])


def test_good_steps_grow_up_to_the_limit() -> None:
    flat = hg.Problem(  # a linear F: every step falls by L d², and is a good one
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: params["w"].sum() + hparams["s"],
    )
    move = HOAG(lambda step: 1e-3, lipschitz=10.0, grow=0.5, reach=3.0)
    run = hg.Run(flat, EXACT, *pursuer(), move)
    steps = [run.step() for _ in range(4)]
    lengths = [float(progress.hparams["s"] - progress.moved["s"]) for progress in steps]
    assert lengths == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_the_linear_solve_starts_from_the_last_solution() -> None:
    problem, params = logistic("cancer")
    move = HOAG(lambda step: 1e-3, lipschitz=1e12)  # λ stays almost where it is
    first, second = hg.iterate(problem, ACCURATE, params, at(1.0), outer=move, steps=2)
    assert first.cost.products > 10
    assert second.cost.products <= 3


@pytest.mark.parametrize("kind", DOMAINS)
def test_it_stays_in_the_domain_and_reaches_its_nearest_point(kind: str) -> None:
    domain, inside, nearest = DOMAINS[kind]
    params, hparams = pursuer(x=7.0)
    last, move = hparams, HOAG(start=1e-3, lipschitz=1.5)
    for progress in hg.iterate(pursuit({"x": domain}), EXACT, params, hparams, outer=move, steps=60):
        assert inside(progress.hparams["x"])
        assert inside(progress.moved["x"])
        last = progress.moved
    assert torch.allclose(last["x"], nearest, atol=1e-5)


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = hg.GradientDescent(lr=0.1, steps=300)
    move = HOAG(lipschitz=0.2)
    monkeypatch.setitem(common.RESUMED, "hoag", lambda: (plain(), hg.Implicit(hg.CG(), inner=inner), move))
    check_same_run("hoag", tmp_path, stops=(1, 2, 4), steps=8)


def test_the_resumed_run_saw_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = hg.GradientDescent(lr=0.1, steps=300)
    steps = hg.iterate(plain(), hg.Implicit(hg.CG(), inner=inner), *start(), outer=HOAG(lipschitz=0.2), steps=8)
    assert "rejected" in {progress.report.status for progress in steps}


def test_a_run_stands_still_at_a_stationary_point() -> None:
    move = HOAG(start=1e-3, lipschitz=1.2, tolerance=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = list(hg.iterate(pursuit(), EXACT, *pursuer(), outer=move, steps=90))
    assert steps[-1].report.status == "stationary"
    assert same(steps[-1].moved, steps[-1].hparams)
    assert torch.allclose(steps[-1].moved["x"], TARGET, atol=1e-6)


def test_loose_solves_that_see_no_slope_do_not_end_a_run() -> None:
    found, _ = tuned("cancer", 0.0, lambda step: 1e3 if step < 5 else 1e-3, tolerance=1e-9)
    assert found == pytest.approx(OPTIMA["cancer"][0], abs=5e-4)


def uphill() -> hg.Problem:
    """The value rises where the gradient says that it falls."""
    return hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: 2 * params["w"].detach().sum() - params["w"].sum() + 0 * hparams["s"],
    )


def test_a_run_in_which_no_step_is_accepted_says_so_and_stands_still() -> None:
    move = HOAG(lambda step: 1e-9, patience=4)
    run = hg.Run(uphill(), EXACT, *pursuer(), move)
    with pytest.warns(ConvergenceWarning, match="no step is accepted any more"):
        steps = [run.step() for _ in range(10)]
    assert steps[-1].report.status == "stalled"
    assert same(steps[-1].moved, steps[0].hparams)
    fitted = hg.Trainer(uphill(), EXACT, move, [hg.EarlyStopping(patience=15)])
    with pytest.warns(ConvergenceWarning):
        assert fitted.fit(*pursuer(), steps=100).steps < 100


@pytest.mark.parametrize("value", [-1e-3, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["schedule", "linear_schedule"])
def test_a_schedule_that_returns_no_tolerance_is_refused(name: str, value: float) -> None:
    options: Any = {name: lambda step: 1e-2 if step < 2 else value}
    move = HOAG(**options)
    steps = hg.iterate(pursuit(), EXACT, *pursuer(), outer=move)
    next(steps)
    next(steps)
    with pytest.raises(InputError) as caught:
        next(steps)
    assert name in caught.value.passed
    assert f"{value} at step 2" in caught.value.passed


@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        (hg.Unrolled(3, hg.GradientDescent(lr=0.1)), "Unrolled"),
        (hg.ZerothOrder(hg.Newton()), "ZerothOrder"),
        (hg.Implicit(hg.Neumann(3), inner=hg.Newton()), "Neumann"),
        (hg.Implicit(hg.Identity(), inner=hg.Newton()), "Identity"),
        (hg.Implicit(hg.CG()), "inner=None"),
        (hg.Implicit(hg.CG(), inner=hg.Training(lambda params, hparams: params)), "Training"),
        (hg.Implicit(hg.CG(), inner=hg.TorchOptimizer(torch.optim.SGD, steps=3)), "TorchOptimizer"),
    ],
)
def test_an_algorithm_without_tolerances_is_refused(algorithm: Any, named: str) -> None:
    run = hg.Run(pursuit(), algorithm, *pursuer(), HOAG())
    with pytest.raises(UnsupportedError) as caught:
        run.step()
    assert named in caught.value.passed
    assert "hypergrad." in caught.value.do
    assert run.step_number == 0
    assert run.whole


@pytest.mark.parametrize("linear", [hg.CG(rtol=0.5), hg.MINRES(), hg.GMRES(), hg.NormalCG(), hg.Dense()])
def test_the_tolerances_take_the_place_of_those_of_the_parts(linear: hg.LinearSolver) -> None:
    algorithm = hg.Implicit(linear, inner=hg.GradientDescent(lr=0.1, steps=9, tolerance=3.0)).at_tolerance(1e-3, 1e-4)
    assert isinstance(algorithm.inner, hg.GradientDescent)
    assert algorithm.inner == hg.GradientDescent(lr=0.1, steps=9, tolerance=1e-3)
    if not isinstance(linear, hg.Dense):
        assert (getattr(algorithm.linear, "rtol", None), getattr(algorithm.linear, "atol", None)) == (0.0, 1e-4)


SETTINGS: list[tuple[str, Any]] = [
    ("start", 0.0),
    ("floor", -1.0),
    ("slack", -0.1),
    ("demand", 0.0),
    ("rise", -0.1),
    ("grow", 0.0),
    ("grow", 1.5),
    ("reach", 0.5),
    ("lipschitz", 0.0),
    ("patience", 0),
    ("tolerance", -1.0),
    ("schedule", "linear"),
    ("schedule", None),
    ("linear_schedule", "linear"),
    ("start", math.nan),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        HOAG(**{name: value})
    assert name in caught.value.passed


def test_a_state_of_another_move_is_refused() -> None:
    run = hg.Run(pursuit(), EXACT, *pursuer(), HOAG())
    run.step()
    state = run.state_dict()
    outer = state["outer_state"]
    unfit: list[Any] = [{}, outer | {"steps": 1.5}, outer | {"previous": {"x": TARGET}}]
    for entries in unfit:
        with pytest.raises(InputError):
            run.load_state_dict(state | {"outer_state": entries})
    run.load_state_dict(state)
