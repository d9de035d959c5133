"""BO-REP: refinement, periodic updates, the tracked adjoint, and steps of fixed length."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.solvers.bilevel.bo_rep import BOREP, EpochSGD, NormalizedMomentum
from hypergrad.testing import counted, problems
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree, leaves

SIZE = 5
START = 15 * torch.ones(SIZE, dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled() -> Tensor:
    """A well-conditioned A with ‖∇F‖ = 3e10 at 15 · ones."""
    a = torch.eye(SIZE, dtype=torch.float64) + 0.3 * normal(SIZE, SIZE, seed=0)
    low, high, middle = 0.1, 3.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(gradient(START, middle * a).norm()) < 3e10 else (low, middle)
    return middle * a


def gradient(x: Tensor, a: Tensor | None = None) -> Tensor:
    a = A if a is None else a
    return a.mT @ torch.sinh(a @ x - B)


B = normal(SIZE, seed=1)
A = scaled()
ROOT: Tensor = torch.linalg.qr(normal(SIZE, SIZE, seed=2)).Q
C = ROOT @ torch.diag(torch.linspace(1.0, 4.0, SIZE, dtype=torch.float64)) @ ROOT.mT
OPTIMUM: Tensor = torch.linalg.solve(A, B)


def cosh(noise: float = 0.0) -> hg.Problem:
    """g = ½(y − Ax)ᵀC(y − Ax), f = Σ cosh(y − b), both with noisy gradients in y."""

    def rough(params: Tree) -> Tensor:
        return noise * torch.randn(SIZE, dtype=torch.float64) @ params["y"] if noise else torch.zeros(())

    def inner(params: Tree, hparams: Tree) -> Tensor:
        gap = params["y"] - A @ hparams["x"]
        return 0.5 * gap @ C @ gap + rough(params)

    return hg.Problem(inner, lambda params, _: torch.cosh(params["y"] - B).sum() + rough(params))


def algorithm(**options: Any) -> BOREP:
    return BOREP(**{"step_size": 0.1, "linear_step_size": 0.2, "interval": 5, "inner_steps": 20, **options})


def decaying(rate: Callable[[int], float]) -> hg.outer.Torch:
    return hg.outer.Torch(NormalizedMomentum, partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate), lr=1.0)


def slow(step: int) -> float:
    return 0.05 / math.sqrt(1 + step / 200)


def started(problem: hg.Problem, move: hg.outer.Torch, x: Tensor = START, **options: Any) -> hg.Run:
    return hg.Run(problem, algorithm(**options), {"y": torch.zeros_like(x)}, {"x": x}, move)


def drive(run: hg.Run, steps: int) -> None:
    for _ in range(steps):
        run.step()


def test_the_start_is_as_steep_as_meant() -> None:
    assert float(gradient(START).norm()) == pytest.approx(3e10, rel=1e-6)
    assert float(gradient(OPTIMUM).norm()) < 1e-12


def test_it_survives_exponential_smoothness() -> None:
    run = started(cosh(0.1), decaying(slow))
    norms = {}
    for step in range(1, 1201):
        before = run.hparams["x"]
        run.step()
        length = float((run.hparams["x"] - before).norm())
        assert abs(length - slow(step - 1)) <= 1e-14 * (1 + float(before.norm()))
        norms[step] = float(gradient(run.hparams["x"]).norm())
    assert norms[200] < 1e8
    assert norms[1000] < 100
    assert norms[1200] < 2


def test_the_step_without_normalisation_overflows() -> None:
    move = hg.outer.Torch(torch.optim.SGD, lr=0.05, momentum=0.9)
    run = started(cosh(0.1), move, interval=1)
    run.step()
    assert float(run.hparams["x"].norm()) > 1e6
    with pytest.raises(hg.errors.NonFiniteError):
        run.step()
    assert bool(torch.isfinite(run.hparams["x"]).all())
    assert bool(torch.isfinite(run.params["y"]).all())


@pytest.mark.parametrize(
    ("noise", "interval", "inner", "steps", "below"),
    [(0.0, 5, 20, 1500, 1e-2), (0.3, 5, 20, 1200, 0.1), (0.3, 1, 1, 1200, 0.1)],
)
def test_it_settles_near_the_optimum_with_steps_like_one_over_k(
    noise: float, interval: int, inner: int, steps: int, below: float
) -> None:
    """The steps still taken leave about 45 η, without noise."""
    run = started(
        cosh(noise), decaying(lambda step: 0.3 / (10 + step)), OPTIMUM + 0.1, interval=interval, inner_steps=inner
    )
    norms = []
    for _ in range(steps):
        run.step()
        norms.append(float(gradient(run.hparams["x"]).norm()))
    assert sum(norms[-200:]) / 200 < below


def test_seldom_updates_track_worse() -> None:
    errors = {}
    for interval in (5, 50):
        run = started(cosh(0.1), decaying(slow), OPTIMUM + 5, interval=interval)
        gaps = []
        for _ in range(400):
            progress = run.step()
            gaps.append(float((progress.params["y"] - A @ progress.hparams["x"]).norm()))
        errors[interval] = gaps
    assert max(errors[5][100:]) < 0.5 * max(errors[50][100:])
    assert sum(errors[5][100:]) < 0.2 * sum(errors[50][100:])


def test_z_settles_at_the_adjoint() -> None:
    known = problems.quadratic()
    made = BOREP(step_size=known.step, linear_step_size=known.step, interval=2, inner_steps=3, iterations=300)
    state = made.init(known.problem, known.params, known.hparams)
    found, state = made.step(known.problem, state, leaves(known.hparams))
    point = known.problem.linearise(known.trained(), known.hparams)
    slope = known.problem.outer_gradients(known.trained(), known.hparams).params
    expected = point.layout.flatten(slope)
    assert torch.allclose(point.hvp(state.solution), expected, rtol=1e-11, atol=1e-12)
    assert relative_error(found.grads, known.hypergradient()) < 1e-11


def scalar_state(made: BOREP, problem: hg.Problem) -> Any:
    return made.init(problem, {"w": torch.zeros((), dtype=torch.float64)}, {"x": HPARAM})


HPARAM = torch.tensor(1.5, dtype=torch.float64)


def test_parameters_move_every_interval_only_and_passes_are_counted() -> None:
    known = problems.scalar()
    problem, counter = counted(known.problem)
    made = BOREP(step_size=0.1, linear_step_size=0.1, interval=3, inner_steps=4, refinement=EpochSGD(epochs=2, steps=5))
    state = scalar_state(made, problem)
    places, costs = [state.params["w"]], []
    for _ in range(7):
        found, state = made.step(problem, state, leaves({"x": HPARAM}))
        places.append(state.params["w"])
        costs.append(found.report.cost)
        assert torch.equal(found.params["w"], state.params["w"])
    moved = [not torch.equal(old, new) for old, new in itertools.pairwise(places)]
    assert moved == [True, False, False, True, False, False, True]
    assert [cost.inner_gradients for cost in costs] == [16, 1, 1, 5, 1, 1, 5]
    assert all((cost.products, cost.outer_gradients) == (2, 1) for cost in costs)
    assert counter.cost() == sum(costs, hg.Cost())
    assert made.budget(1, 1) == costs[0]


def test_one_iteration_by_hand() -> None:
    """G = (w − x)², f = w²/2 + x²/8: three gradient steps, z = ν w, and d = x/4 + 2z, the plain variant."""
    made = BOREP(step_size=0.1, linear_step_size=0.2, inner_steps=3, refinement=None)
    problem = problems.scalar().problem
    found, state = made.step(problem, scalar_state(made, problem), leaves({"x": HPARAM}))
    w = 1.5 * (1 - 0.8**3)
    assert float(state.params["w"]) == pytest.approx(w, rel=1e-14)
    assert float(state.solution) == pytest.approx(0.2 * w, rel=1e-14)
    assert float(found.grads["x"]) == pytest.approx(1.5 / 4 + 2 * 0.2 * w, rel=1e-14)
    _, state = made.step(problem, state, leaves({"x": HPARAM}))
    assert float(state.solution) == pytest.approx(0.2 * w - 0.2 * (2 * 0.2 * w - w), rel=1e-14)


def test_the_average_of_inner_steps_by_hand() -> None:
    made = BOREP(step_size=0.1, linear_step_size=0.2, inner_steps=3, refinement=None, average=True)
    problem = problems.scalar().problem
    _, state = made.step(problem, scalar_state(made, problem), leaves({"x": HPARAM}))
    assert float(state.params["w"]) == pytest.approx(1.5 * (1 - (0.8 + 0.8**2 + 0.8**3) / 3), rel=1e-14)


def test_refinement_halves_steps_and_shrinks_the_ball() -> None:
    places: list[Tensor] = []

    def slope(y: Tensor) -> Tensor:
        places.append(y)
        return y - torch.tensor([30.0, 40.0], dtype=torch.float64)

    rule = EpochSGD(epochs=3, steps=2, step_size=0.5, radius=10.0)
    end = rule.run(slope, torch.zeros(2, dtype=torch.float64), 123.0)
    assert len(places) == rule.total == 14
    unit = torch.tensor([0.6, 0.8], dtype=torch.float64)  # every epoch hits its ball: 10, 10/√2, 5
    distance = [0.0]
    for epoch, (steps, step) in enumerate(((2, 0.5), (4, 0.25), (8, 0.125))):
        radius, origin, at, total = 10 * 2 ** (-epoch / 2), distance[-1], distance[-1], 0.0
        for _ in range(steps):
            at = min(at + step * (50 - at), origin + radius)
            total += at
        distance.append(total / steps)
    assert torch.allclose(end, distance[-1] * unit, rtol=1e-13)
    assert distance[1] == 10.0


def test_inner_steps_stay_in_their_ball() -> None:
    made = BOREP(step_size=0.1, linear_step_size=0.2, inner_steps=50, refinement=None, radius=0.25, interval=1)
    problem = problems.scalar().problem
    state = scalar_state(made, problem)
    for step in (1, 2, 3):
        _, state = made.step(problem, state, leaves({"x": HPARAM}))
        assert float(state.params["w"]) == pytest.approx(0.25 * step, rel=1e-14)


@pytest.mark.parametrize("independent", [False, True])
def test_the_mixed_product_has_a_batch_of_its_own_if_asked(independent: bool) -> None:
    curvatures = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        return (batch[0] * (params["w"] - hparams["x"]).square()).sum() / 2

    data = hg.TensorSampler(curvatures, batch_size=1)
    order = [float(data.draw()[0]) for _ in range(4)]
    data = hg.TensorSampler(curvatures, batch_size=1)
    problem = hg.Problem(inner, lambda params, _: params["w"].square() / 2, inner_data=data)
    made = BOREP(
        step_size=0.1, linear_step_size=0.1, inner_steps=1, refinement=None, independent=independent, interval=1
    )
    found, state = made.step(problem, scalar_state(made, problem), leaves({"x": HPARAM}))
    mixed = order[2] if independent else order[1]
    assert float(found.grads["x"]) == pytest.approx(mixed * float(state.solution), rel=1e-14)
    assert found.report.cost == made.budget(1, 1) == hg.Cost(3 if independent else 2, 2, 1)


def test_a_resumed_run_is_the_same_run() -> None:
    runs = [started(cosh(0.1), decaying(slow)) for _ in range(2)]
    for _ in range(7):
        runs[0].step()
    runs[1].load_state_dict(runs[0].state_dict())
    for run in runs:
        for _ in range(7):
            run.step()
    assert torch.equal(runs[0].hparams["x"], runs[1].hparams["x"])


def test_a_step_of_z_beyond_its_limit_is_told_and_ends_in_an_error() -> None:
    """Curvatures lie between 1 and 4, so the limit is 2 / 4."""
    run = started(cosh(), decaying(slow), OPTIMUM + 1, linear_step_size=0.6)
    with pytest.warns(hg.errors.CurvatureWarning, match="linear_step_size"):
        drive(run, 100)
    run = started(cosh(), decaying(slow), OPTIMUM + 1, linear_step_size=50.0)
    with pytest.warns(hg.errors.CurvatureWarning):
        drive(run, 3)
    with pytest.raises(hg.errors.NonFiniteError):
        drive(run, 1000)
    assert bool(torch.isfinite(run.hparams["x"]).all())
    assert bool(torch.isfinite(run.params["y"]).all())


@pytest.mark.filterwarnings("error::hypergrad.errors.CurvatureWarning")
def test_a_step_of_z_within_its_limit_is_not_told() -> None:
    run = started(cosh(), decaying(slow), OPTIMUM + 1, linear_step_size=0.49)
    for _ in range(100):
        run.step()


@pytest.mark.filterwarnings("ignore::hypergrad.errors.CurvatureWarning")
def test_noise_without_bound_ends_in_an_error_and_not_in_nan() -> None:
    """Curvature with a noise of 30 around 1: inner steps and z grow without bound in the mean square."""

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return 0.5 * (1 + 30 * torch.randn((), dtype=torch.float64)) * (params["w"] - hparams["x"]).square().sum()

    problem = hg.Problem(inner, lambda params, _: params["w"].square().sum() / 2)
    made = BOREP(step_size=0.2, linear_step_size=0.2, interval=1)
    start = {"w": torch.zeros(2, dtype=torch.float64)}, {"x": torch.ones(2, dtype=torch.float64)}
    run = hg.Run(problem, made, *start, hg.outer.Torch(NormalizedMomentum, lr=0.1))
    with pytest.raises(hg.errors.NonFiniteError, match="NaN or infinity"):
        drive(run, 5000)
    assert bool(torch.isfinite(run.hparams["x"]).all())
    assert bool(torch.isfinite(run.params["w"]).all())


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.0},
        {"step_size": -0.1},
        {"linear_step_size": -1},
        {"linear_step_size": float("nan")},
        {"interval": 0},
        {"inner_steps": 0},
        {"radius": 0.0},
        {"refinement": 3},
        {"iterations": 0},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(hg.errors.InputError, match=next(iter(options))):
        algorithm(**options)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"steps": 0}, {"step_size": 0.0}, {"radius": -1.0}])
def test_refinements_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(hg.errors.InputError, match=next(iter(options))):
        EpochSGD(**options)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}])
def test_optimizer_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(hg.errors.InputError, match=list(options)[-1]):
        NormalizedMomentum([torch.zeros(2)], **options)


@pytest.mark.parametrize("name", ["step_size", "linear_step_size"])
def test_schedules_that_go_negative_are_refused_when_read(name: str) -> None:
    options: dict[str, Any] = {name: lambda step: 0.1 - 0.04 * step, "interval": 1}
    run = started(cosh(), decaying(slow), START, **options)
    with pytest.raises(hg.errors.InputError, match="iteration 3"):
        drive(run, 5)
    assert run.step_number == 3


def test_momentum_by_hand_over_two_tensors() -> None:
    tensors = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)]
    optimizer = NormalizedMomentum([tensor.requires_grad_() for tensor in tensors], lr=0.5, momentum=0.8)
    slopes = [torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 10.0, 4.0], dtype=torch.float64)]
    expected, m = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), slopes[0]
    for slope in slopes:
        m = 0.8 * m + 0.2 * slope
        expected = expected - 0.5 * m / m.norm()
        tensors[0].grad, tensors[1].grad = slope[:2].clone(), slope[2].clone()
        optimizer.step()
    found = torch.cat([tensors[0].detach(), tensors[1].detach()[None]])
    assert torch.allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 0.0])
def test_the_length_of_a_step_does_not_depend_on_the_gradient(scale: float) -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x.grad = scale * torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    NormalizedMomentum([x], lr=0.3).step()
    unit = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64) / 3
    assert torch.allclose(x.detach(), -0.3 * unit if scale else torch.zeros_like(unit), rtol=1e-14)


def test_settings_are_shown_in_the_report() -> None:
    made = dataclasses.replace(algorithm(), interval=7)
    found, _ = made.step(cosh(), made.init(cosh(), {"y": START}, {"x": START}), leaves({"x": START}))
    assert "interval=7" in found.report.algorithm
