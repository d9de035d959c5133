"""The moves against closed forms: what the next point is, given what was visited."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hypergrad.bridges.optuna import AdamMove, GradientMove, Move, SpectralMove, Visit
from hypergrad.errors import InputError

Array = np.ndarray[Any, np.dtype[np.float64]]
WIDTHS = np.array([2.0, 10.0, 0.5])


def follow(move: Move, function: Callable[[Array], tuple[float, Array]], start: list[float], moves: int) -> list[Visit]:
    """Visit what a move proposes, with a unit range for every parameter."""
    visits = [Visit(np.array(start), *function(np.array(start)))]
    for _ in range(moves):
        point = move.propose(visits, np.ones(len(start)))
        if point is None:
            break
        visits.append(Visit(point, *function(point)))
    return visits


def bowl(curvatures: Array, least: Array) -> Callable[[Array], tuple[float, Array]]:
    return lambda x: (0.5 * float(curvatures @ (x - least) ** 2), curvatures * (x - least))


def test_a_gradient_move_is_descent_with_momentum_in_the_parameters_own_units() -> None:
    rng = np.random.default_rng(0)
    z = torch.tensor([1.0, 5.0, 0.25], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=0.01, momentum=0.7)
    visits = []
    for _ in range(5):
        derivative = rng.normal(size=3)
        visits.append(Visit(z.detach().numpy().copy() / WIDTHS, 1.0, derivative * WIDTHS))
        z.grad = torch.from_numpy(derivative)
        optimizer.step()
        proposed = GradientMove(step=0.01, momentum=0.7).propose(visits, WIDTHS)
        np.testing.assert_allclose(proposed * WIDTHS, z.detach().numpy(), rtol=1e-14)


def test_an_adam_move_is_adam_in_units_of_the_ranges() -> None:
    rng = np.random.default_rng(0)
    u = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([u], lr=0.01, betas=(0.8, 0.99))
    visits = []
    for _ in range(5):
        slope = rng.normal(size=3)
        visits.append(Visit(u.detach().numpy().copy(), 1.0, slope))
        u.grad = torch.from_numpy(slope)
        optimizer.step()
        proposed = AdamMove(step=0.01, betas=(0.8, 0.99)).propose(visits, WIDTHS)
        np.testing.assert_allclose(proposed, u.detach().numpy(), rtol=1e-14)


@pytest.mark.parametrize("move", [GradientMove(step=0.1), AdamMove(step=0.1)])
def test_a_failed_trial_halves_the_move_from_the_last_good_one(move: Move) -> None:
    good, failed = Visit(np.array([0.5]), 1.0, np.array([1.0])), Visit(np.empty(0), math.inf, None)
    whole = move.propose([good], np.ones(1))
    assert whole is not None
    for failures in (1, 2, 5):
        shorter = move.propose([good] + [failed] * failures, np.ones(1))
        assert shorter == pytest.approx(0.5 + 0.5**failures * (whole - 0.5), rel=1e-15)


@pytest.mark.parametrize("move", [GradientMove(step=3.0), AdamMove(step=3.0), SpectralMove(first=0.9)])
def test_no_move_leaves_the_bounds(move: Move) -> None:
    proposed = move.propose([Visit(np.array([0.2, 0.9]), 1.0, np.array([4.0, -4.0]))], np.ones(2))
    np.testing.assert_array_equal(proposed, [0.0, 1.0])


def test_the_spectral_step_is_that_of_barzilai_and_borwein() -> None:
    function = bowl(np.array([1.0, 4.0, 9.0]), np.array([0.4, 0.6, 0.5]))
    visits = follow(SpectralMove(), function, [0.45, 0.5, 0.55], 3)
    slopes = [function(visit.point)[1] for visit in visits]
    expected = visits[0].point - 0.1 / np.abs(slopes[0]).max() * slopes[0]
    np.testing.assert_allclose(visits[1].point, expected, rtol=1e-14)
    for k in (1, 2):
        moved, changed = visits[k].point - visits[k - 1].point, slopes[k] - slopes[k - 1]
        expected = visits[k].point - moved @ moved / (moved @ changed) * slopes[k]
        np.testing.assert_allclose(visits[k + 1].point, expected, rtol=1e-13)


def test_the_spectral_move_solves_a_bowl_and_ends() -> None:
    rng = np.random.default_rng(1)
    least = rng.uniform(0.1, 0.9, 30)
    visits = follow(SpectralMove(), bowl(np.geomspace(1, 100, 30), least), [0.5] * 30, 300)
    assert len(visits) < 150  # it proposed None: the end
    np.testing.assert_allclose(visits[-1].point, least, atol=1e-7)


def test_the_spectral_move_finds_the_least_point_of_the_box() -> None:
    least = np.array([-0.5, 0.3, 1.7])
    visits = follow(SpectralMove(), bowl(np.array([1.0, 2.0, 3.0]), least), [0.5, 0.5, 0.5], 50)
    assert len(visits) < 50
    np.testing.assert_allclose(visits[-1].point, [0.0, 0.3, 1.0], atol=1e-9)


def test_a_value_that_grew_is_answered_by_the_least_point_of_the_parabola() -> None:
    # f(0.5) = 1, slope 1, first move to 0.4; there 1.4: bend of the parabola 1.4 - 1 + 0.1 = 0.5, least at 0.1
    before, grown = Visit(np.array([0.5]), 1.0, np.array([1.0])), Visit(np.array([0.4]), 1.4, np.array([-9.0]))
    assert SpectralMove().propose([before, grown], np.ones(1)) == pytest.approx(0.5 - 0.1 * 0.1, rel=1e-14)
    worse = Visit(np.array([0.4]), 1e9, np.array([-9.0]))  # the parabola asks for less than a tenth
    assert SpectralMove().propose([before, worse], np.ones(1)) == pytest.approx(0.5 - 0.1 * 0.1, rel=1e-14)
    little = Visit(np.array([0.4]), 1.0 + 1e-9, np.array([1.0]))  # and here for half
    assert SpectralMove().propose([before, little], np.ones(1)) == pytest.approx(0.5 - 0.5 * 0.1, rel=1e-6)


def test_a_failed_trial_halves_the_spectral_move() -> None:
    before, failed = Visit(np.array([0.5]), 1.0, np.array([1.0])), Visit(np.empty(0), math.inf, None)
    assert SpectralMove().propose([before, failed, failed], np.ones(1)) == pytest.approx(0.5 - 0.25 * 0.1, rel=1e-14)


def test_memory_lets_values_grow_for_a_while() -> None:
    a = Visit(np.array([0.5]), 1.0, np.array([1.0]))
    b = Visit(np.array([0.4]), 0.5, np.array([0.9]))
    c = Visit(np.array([0.0]), 0.7, np.array([-0.5]))  # where α = 1 leads from b
    assert SpectralMove(memory=10).propose([a, b, c], np.ones(1)) == pytest.approx(0.4 / 1.4 * 0.5, rel=1e-14)
    bend = 0.7 - 0.5 + 0.4 * 0.9
    assert SpectralMove(memory=1).propose([a, b, c], np.ones(1)) == pytest.approx(0.4 - 0.4 * 0.18 / bend, rel=1e-14)


def test_a_slope_of_zero_is_the_end() -> None:
    assert SpectralMove().propose([Visit(np.array([0.5]), 1.0, np.array([0.0]))], np.ones(1)) is None


def test_negative_curvature_starts_again() -> None:
    visits = follow(SpectralMove(), lambda x: (-float(x @ x), -2 * x), [0.5], 2)
    assert visits[2].point == pytest.approx(0.7)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GradientMove(step=0.0),
        lambda: GradientMove(step=0.1, momentum=1.0),
        lambda: AdamMove(step=-1.0),
        lambda: AdamMove(betas=(0.9, 1.0)),
        lambda: SpectralMove(first=0.0),
        lambda: SpectralMove(memory=0),
        lambda: SpectralMove(tolerance=math.nan),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Callable[[], Move]) -> None:
    with pytest.raises(InputError, match="expected: a"):
        wrong()
