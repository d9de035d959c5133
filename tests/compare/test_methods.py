"""Search spaces and methods: what searches choose, and who is ahead at equal work."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hypergrad as hg
from hypergrad.compare import images, regularisation
from hypergrad.compare.budget import Track
from hypergrad.compare.methods import methods, outcome
from hypergrad.compare.samplers import SAMPLERS, quiet
from hypergrad.compare.spaces import SPACES, space
from hypergrad.compare.task import Task
from hypergrad.compare.tasks import TASKS
from tests.compare.common import by_work, small


def two() -> Task:
    """Two hyperparameters of different shape, range and dtype of use."""
    problem = hg.Problem(
        inner=lambda p, h: (p["w"] - h["a"].sum() - h["b"].sum()).square().sum(),
        outer=lambda p, h: p["w"].square().sum(),
    )
    return Task(
        problem,
        {"w": torch.zeros(2)},
        {"a": torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "b": torch.tensor(-4.0)},
        {"a": (0.0, 4.0), "b": (-8.0, 0.0)},
        test=lambda p, h: p["w"].sum(),
    )


def test_the_full_space_has_a_place_for_every_entry() -> None:
    full = space("full", two())
    assert full.size == 5
    assert full.start() == [0.0, 0.25, 0.5, 0.75, 0.5]
    back = full.expand(full.start())
    assert torch.equal(back["a"], two().hparams["a"])
    assert torch.equal(back["b"], two().hparams["b"])


def test_the_shared_space_puts_all_entries_at_the_same_place_of_their_range() -> None:
    shared = space("shared", two())
    assert shared.size == 1
    assert shared.start() == [pytest.approx(0.4)]
    found = shared.expand([0.25])
    assert torch.equal(found["a"], torch.ones(2, 2))
    assert torch.equal(found["b"], torch.tensor(-6.0))


def test_groups_share_a_place_and_their_numbers_may_have_gaps() -> None:
    groups = {"a": torch.tensor([[7, 7], [3, 3]]), "b": torch.tensor(7)}
    grouped = space("grouped", dataclasses.replace(two(), groups=groups))
    assert grouped.size == 2
    found = grouped.expand([0.5, 1.0])
    assert torch.equal(found["a"], torch.tensor([[4.0, 4.0], [2.0, 2.0]]))
    assert torch.equal(found["b"], torch.tensor(0.0))


def test_groups_are_runs_of_entries_by_default() -> None:
    task = small(size=25, groups=None)
    assert task.groups is not None
    counts = torch.bincount(task.groups["log_penalty"])
    assert len(counts) == 10
    assert int(counts.max()) - int(counts.min()) <= 1


def test_a_space_of_more_than_a_thousand_is_not_searched() -> None:
    task = small(size=1001)
    found = {m.name: m.infeasible for m in methods(task, ("tpe", "random"), SPACES)}
    assert [name for name, reason in found.items() if reason] == ["TPE, full", "random, full"]
    assert "1,001 Optuna parameters" in str(found["TPE, full"])


def test_hyperband_needs_training_that_can_be_cut() -> None:
    class Whole(hg.InnerSolver):
        def run(self, problem, params, hparams):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        def budget(self) -> hg.Cost:
            return hg.Cost()

    task = small(inner=Whole())
    found = {m.label: m.infeasible for m in methods(task, tuple(SAMPLERS), ("shared",)) if m.kind == "search"}
    assert {name for name, reason in found.items() if reason} == {"hyperband"}
    assert "Whole has neither steps nor a tolerance" in str(found["hyperband"])


def test_searches_go_on_after_training_that_diverges() -> None:
    """A step size of 1 is too long where the penalty is high: those trials fail, and their work counts."""
    inner = hg.GradientDescent(lr=1.0, steps=200)
    task = dataclasses.replace(small(), inner=inner, ranges={"log_penalty": (-8.0, 9.0)})
    problem = dataclasses.replace(task.problem, hparams_domain={})
    task = dataclasses.replace(task, problem=problem, hparams={"log_penalty": torch.full((12,), -8.0).double()})
    random = next(m for m in methods(task, ("random",), ("shared",)) if m.kind == "search")
    track = Track(by_work(1500))
    with quiet():
        random.run(track, 0)
    assert track.work >= 1500
    assert 0 < track.evaluations < 1500 // 201


def test_hypergradients_are_ahead_of_every_search_at_equal_work() -> None:
    task, best = small(size=40), {}
    with quiet():
        for method in methods(task, ("tpe", "random"), SPACES):
            track = Track(by_work(300))
            method.run(track, 0)
            best[method.name] = track.best
    ours = best.pop("ours: Implicit(CG), Adam")
    del best["ours: Implicit(CG), L-BFGS-B"]
    assert ours < min(best.values())


def test_the_outcome_is_that_of_training_from_the_start() -> None:
    task = small()
    validation, test = outcome(task, dict(task.hparams))
    params = hg.LBFGS(tolerance=1e-9).run(task.problem, dict(task.params), dict(task.hparams)).params
    assert validation == pytest.approx(float(task.problem.outer(params, task.hparams)), rel=1e-2)
    assert test["loss"] == pytest.approx(float(task.test(params, dict(task.hparams))), rel=1e-2)


def test_the_sparse_data_are_what_their_docstring_says() -> None:
    task = regularisation.sparse(100, 0)
    nothing = {"w": torch.zeros(100, dtype=torch.float64)}
    assert float(task.test(nothing, {})) == pytest.approx((4 + 1) / 2, rel=0.1)  # signal 4, noise 1
    again = regularisation.sparse(100, 0)
    assert float(task.problem.outer(nothing, {})) == float(again.problem.outer(nothing, {}))
    assert float(regularisation.sparse(100, 1).test(nothing, {})) != float(task.test(nothing, {}))


@pytest.mark.parametrize(
    ("name", "size", "groups"),
    [("sparse-1000", 1000, 10), ("digits-640", 640, 10), ("cleaning-2000", 2000, 10), ("decay-100k", 101770, 10)],
)
def test_tasks_have_the_size_that_they_are_named_by(name: str, size: int, groups: int) -> None:
    task = TASKS[name](0)
    assert task.size == size
    assert space("grouped", task).size == groups
    _, test = outcome(task, dict(task.hparams))
    assert test["loss"] > 0
    if name != "sparse-1000":
        assert test["accuracy"] > 0.7


def test_each_image_is_in_one_part_only() -> None:
    assert images.LABELLED + images.JUDGED < 5000
