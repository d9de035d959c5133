"""Budgets: every pass is counted, nothing goes on once they are spent, and curves only fall."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

import hypergrad as hg
from hypergrad.compare import Ours
from hypergrad.compare.budget import Budget, Track, best_within, cost_to, passes
from hypergrad.compare.methods import Method, methods
from hypergrad.compare.samplers import SAMPLERS, quiet
from hypergrad.compare.spaces import SPACES
from hypergrad.compare.summary import cost_at, curve, spread
from hypergrad.compare.task import Task
from hypergrad.testing.counting import Counter
from hypergrad.tree import Tree
from tests.compare.common import by_work, small, stepping, watched

ADAM = hg.outer.Torch(torch.optim.Adam, lr=0.3)
OURS = {
    "Adam": Ours(hg.Implicit(hg.CG(rtol=1e-2), inner=hg.LBFGS(tolerance=1e-3)), ADAM),
    "L-BFGS-B": Ours(hg.Implicit(hg.CG(rtol=1e-2), inner=hg.LBFGS(tolerance=1e-3)), hg.outer.LBFGSB(iterations=4)),
    "auto": Ours("auto", ADAM),
    "HOAG": Ours(hg.Implicit(hg.CG(), inner=hg.LBFGS()), hg.HOAG()),
}


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


def row(task: Task, label: str) -> Method:
    return next(m for m in methods(task, tuple(SAMPLERS), SPACES) if label in (m.label, m.name))


def seen(counter: Counter) -> int:
    return passes(counter.cost())


@pytest.mark.parametrize("label", OURS)
def test_passes_of_ours_are_those_that_the_objectives_see(label: str) -> None:
    task, counter = watched(ours=OURS)
    before = seen(counter)
    track = Track(by_work(120))
    row(task, label).run(track, 0)
    assert track.evaluations > 1
    assert track.work >= 120
    assert track.work == seen(counter) - before


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("space", SPACES)
def test_passes_of_searches_are_those_that_the_objectives_see(sampler: str, space: str) -> None:
    task, counter = watched()
    before = seen(counter)
    track = Track(by_work(150))
    row(task, f"{SAMPLERS[sampler]}, {space}").run(track, 0)
    assert track.evaluations > 1
    assert 150 <= track.work == seen(counter) - before


def test_cut_training_costs_the_same_every_time() -> None:
    task = stepping()
    track = Track(by_work(19 * 7))
    row(task, "random, shared").run(track, 0)
    assert (track.evaluations, track.work) == (7, 19 * 7)  # 18 steps and one validation loss


def test_hyperband_trains_in_parts_that_make_a_whole() -> None:
    task = stepping()
    track = Track(by_work(21))
    row(task, "Hyperband, shared").run(track, 0)
    assert (track.evaluations, track.work) == (1, 21)  # 2 + 4 + 12 steps, a validation loss after each part


def test_training_from_the_start_forgets_what_was_trained_before() -> None:
    task = stepping()
    first, second = (
        task.training.run(task.problem, start, dict(task.hparams)).params
        for start in (
            dict(task.params),
            {"w": torch.full((12,), 7.0, dtype=torch.float64)},
        )
    )
    assert torch.equal(first["w"], second["w"])


@pytest.mark.parametrize("label", [*OURS, "TPE, full", "CMA-ES, grouped", "GP, shared", "Hyperband, shared"])
def test_a_run_ends_with_the_evaluation_that_spends_the_budget(label: str) -> None:
    task = small(ours=OURS)
    track = Track(by_work(100))
    works: list[int] = []
    note = track.note

    def noted(value: float, hparams: Tree) -> None:
        works.append(track.work)
        note(value, hparams)

    object.__setattr__(track, "note", noted)
    row(task, label).run(track, 0)
    assert len(works) > 1
    assert max(works[:-1]) < 100 <= track.work


@pytest.mark.parametrize("label", [*OURS, *(f"{name}, full" for name in SAMPLERS.values())])
def test_curves_only_fall(label: str) -> None:
    track = Track(by_work(200))
    row(small(ours=OURS), label).run(track, 0)
    points = track.finish()["points"]
    for column in range(3):
        assert all(a[column] <= b[column] for a, b in pairwise(points))
    assert all(a[3] >= b[3] for a, b in pairwise(points))
    assert points[-1][3] == track.best == min(point[3] for point in points)


def test_every_method_begins_at_the_same_hyperparameters() -> None:
    task = small()
    firsts = []
    for method in methods(task, tuple(SAMPLERS), SPACES):
        track = Track(by_work(1))
        method.run(track, 0)
        assert torch.allclose(track.selected["log_penalty"], task.hparams["log_penalty"], atol=1e-12)
        firsts.append(track.best)
    # the same training to the same tolerance; Hyperband gets there in three parts
    assert max(firsts) - min(firsts) < 1e-3 * min(firsts)


def test_the_same_seed_is_the_same_run() -> None:
    def points(seed: int) -> list[tuple[float, float]]:
        track = Track(by_work(150))
        row(small(), "TPE, grouped").run(track, seed)
        return [(point[0], point[3]) for point in track.points]

    assert points(1) == points(1)
    assert points(1) != points(2)


def test_what_comes_after_the_time_is_not_selected() -> None:
    track = Track(Budget(seconds=100.0, work=1))
    late = dataclasses.replace(track.budget, seconds=1e-9)
    track.note(2.0, {"x": torch.zeros(1)})
    track.budget = late
    track.note(1.0, {"x": torch.ones(1)})
    assert track.best == 1.0
    assert torch.equal(track.selected["x"], torch.zeros(1))


def test_a_budget_is_spent_when_both_are() -> None:
    budget = Budget(seconds=2.0, work=10, patience=3.0)
    assert not budget.spent(2.5, 9)
    assert not budget.spent(1.9, 11)
    assert budget.spent(2.0, 10)
    assert budget.spent(6.0, 0)


def test_values_at_a_cost() -> None:
    points = [[10, 1.0, 2.0, 5.0], [20, 2.0, 4.0, 3.0], [40, 4.0, 8.0, 3.0]]
    assert best_within(points, 0, 9) is None
    assert best_within(points, 0, 19) == 5.0
    assert best_within(points, 2, 4.0) == 3.0
    assert cost_to(points, 1, 4.0) == 2.0
    assert cost_to(points, 1, 2.9) is None
    assert cost_at(points, 1, 30) == 3.0
    assert cost_at(points, 1, 41) is None


def test_curves_over_seeds_are_medians_with_the_whole_range() -> None:
    runs = [[[10, 1.0, 1.0, 5.0], [30, 3.0, 3.0, 1.0]], [[20, 2.0, 2.0, 4.0], [30, 3.0, 3.0, 2.0]]]
    found = curve(runs, 1)
    assert found[0] == [2.0, 4.5, 4.0, 5.0]  # not before every seed has a value
    assert found[-1] == [3.0, 1.5, 1.0, 2.0]
    assert curve([[], runs[0]], 1) == []
    assert spread([math.nan, 1.0, 2.0]) == [2.0, 1.0, None]
