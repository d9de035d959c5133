"""When outer steps are due in a loop of one's own."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError
from tests.bad_input.common import refused


def due(schedule: hg.OuterSchedule, losses: list[float], first: int = 0) -> list[int]:
    return [schedule(first + place, loss) for place, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1]),
        ({"inner": 3}, [0, 0, 1, 0, 0, 1, 0]),
        ({"inner": 3, "outer": 2}, [0, 0, 2, 0, 0, 2, 0]),
        ({"inner": 2, "warmup": 3}, [0, 0, 0, 0, 1, 0, 1]),
        ({"warmup": 5}, [0, 0, 0, 0, 0, 1, 1]),
        ({"warmup": 9}, [0] * 7),
    ],
)
def test_outer_steps_come_every_so_many_inner_steps(settings: Any, expected: list[int]) -> None:
    schedule = hg.Every(**settings)
    assert [schedule(step) for step in range(7)] == expected
    assert schedule(4) == expected[4], "it remembers nothing"
    schedule.load_state_dict(schedule.state_dict())


def test_a_plateau_is_patience_steps_without_a_fall() -> None:
    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert due(hg.OnPlateau(patience=2), falling) == [0] * 5
    assert due(hg.OnPlateau(patience=2), [*falling, 1.0, 1.0, 1.0]) == [0] * 6 + [1, 0]
    assert due(hg.OnPlateau(patience=2), [1.0, 2.0, 0.5, 2.0, 0.7]) == [0, 0, 0, 0, 1], "a fall begins to wait again"


def test_a_fall_below_the_threshold_is_none() -> None:
    slow = [1.0, 0.999, 0.998, 0.997]
    assert due(hg.OnPlateau(patience=3, min_delta=0.01), slow) == [0, 0, 0, 1]
    assert due(hg.OnPlateau(patience=3, min_delta=1e-5), slow) == [0, 0, 0, 0]
    assert due(hg.OnPlateau(patience=2, min_delta=0.1), [-1.0, -1.05, -1.2, -1.3, -1.31]) == [0, 0, 0, 0, 1]


def test_after_outer_steps_the_search_begins_again() -> None:
    assert due(hg.OnPlateau(patience=1), [1.0, 1.0, 9.0, 8.0, 8.0]) == [0, 1, 0, 0, 1]


def test_a_limit_brings_outer_steps_while_the_loss_still_falls() -> None:
    losses = [1.0 / (1 + step) for step in range(8)]
    assert due(hg.OnPlateau(patience=5, longest=3, outer=2), losses) == [0, 0, 2, 0, 0, 2, 0, 0]


def test_warm_up_losses_are_not_looked_at() -> None:
    schedule = hg.OnPlateau(patience=2, warmup=3)
    assert [schedule(step) for step in range(3)] == [0, 0, 0], "no loss is needed yet"
    assert due(schedule, [1.0, 1.0, 1.0], first=3) == [0, 0, 1]


def test_smoothing_sees_the_trend_behind_noise() -> None:
    """A loss that falls by 1 a step under noise of size 5 is no plateau, and a level one is."""
    noise = (5 * torch.randn(200, generator=torch.Generator().manual_seed(0))).tolist()
    falling = [300.0 - step + noise[step] for step in range(200)]
    level = [300.0 + noise[step] for step in range(200)]
    assert sum(due(hg.OnPlateau(patience=10, smoothing=0.9), falling)) == 0
    assert sum(due(hg.OnPlateau(patience=10, smoothing=0.9), level)) > 0
    assert sum(due(hg.OnPlateau(patience=5), falling)) > 0, "without smoothing the noise looks like a plateau"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_training_that_diverged_is_no_fall(bad: float) -> None:
    assert due(hg.OnPlateau(patience=2), [1.0, bad, bad, bad]) == [0, 0, 1, 0]
    assert due(hg.OnPlateau(patience=2), [bad, bad, 1.0, 0.5, 0.2]) == [0, 1, 0, 0, 0]
    assert due(hg.OnPlateau(patience=2, smoothing=0.5), [1.0, bad, 0.5, 0.1])[-1] == 0, "it recovers"


def test_a_tensor_is_a_loss() -> None:
    schedule, loss = hg.OnPlateau(patience=1), torch.tensor(1.0, requires_grad=True).square()
    assert [schedule(step, loss) for step in range(2)] == [0, 1]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_resumed_schedule_gives_the_same_answers(cut: int) -> None:
    losses = [3.0, 2.0, 2.5, 2.0, 1.9, 1.9, 2.2, 1.8, 1.9, 1.9, 1.9, 1.9]

    def fresh() -> hg.OnPlateau:
        return hg.OnPlateau(patience=2, smoothing=0.3, longest=5, warmup=1)

    expected, first, second = due(fresh(), losses), fresh(), fresh()
    begin = due(first, losses[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begin + due(second, losses[cut:], first=cut) == expected
    assert sum(expected) > 1


@pytest.mark.parametrize("state", [{}, {"lowest": 1.0}, {"lowest": 1, "smooth": 1.0, "made": 2, "waited": 1}])
def test_a_state_of_something_else_is_refused(state: Any) -> None:
    schedule = hg.OnPlateau()
    before = schedule.state_dict()
    with refused(InputError, passed="OnPlateau", expected="'waited'"):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == before


def test_a_missing_loss_is_named() -> None:
    schedule = hg.OnPlateau(warmup=2)
    with refused(InputError, passed="without a loss at step 2", do="schedule(step, loss)"):
        schedule(2)


@pytest.mark.parametrize("step", [-1, 1.5, None])
def test_a_step_is_a_whole_number(step: Any) -> None:
    with refused(InputError, passed=("Every", "step="), do="from 0"):
        hg.Every(2)(step)


def test_a_schedule_of_ones_own() -> None:
    class Squares(hg.OuterSchedule):
        def due(self, step: int, loss: Any) -> bool:
            return math.isqrt(step) ** 2 == step

    assert [step for step in range(11) if Squares(warmup=1)(step)] == [1, 2, 5, 10]
