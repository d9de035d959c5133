"""Accuracies, trials, ends, domains and resumption of a run of MAID, and the bounds it measures."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import ConvergenceWarning, InputError
from hypergrad.solvers.bilevel.bounds import least_curvature, mixed_norm
from hypergrad.solvers.bilevel.maid import MAID
from hypergrad.tree import Tree, leaves
from tests.loop import common
from tests.loop.common import DOMAINS, same
from tests.loop.test_moves import pursuer, pursuit
from tests.loop.test_resume import check_same_run
from tests.maid.common import Quadratic, size_of


def test_training_goes_on_from_the_trial_that_was_accepted() -> None:
    known = Quadratic.draw(0, inner=3.0, size=3)
    run = hg.Run(known.problem, known.algorithm, *known.start, known.move(accuracy=1e-6, linear=1e-6))
    progress = run.step()
    state: Any = run._state
    assert not same(progress.moved, progress.hparams)
    gap = known.problem.residual(leaves(state.params), progress.moved)["y"]
    assert float(gap.norm()) <= 2e-6
    assert not same(state.params, progress.params)


def test_a_trial_leaves_no_trace() -> None:
    known = Quadratic.draw(0, inner=3.0, size=3)
    state = known.algorithm.init(known.problem, *known.start)
    oracle = hg.outer.Oracle(known.problem, known.algorithm, state, 0)
    first, second = (oracle.trial(known.start[1], (1e-3, math.inf)) for _ in range(2))
    assert same(first.params, second.params)
    assert oracle.state is state
    assert oracle.results == []
    assert oracle.cost.inner_gradients > 2
    assert oracle.cost.outer_gradients == 2


def test_a_run_ends_at_the_accuracy_of_the_numbers_and_says_so() -> None:
    known = Quadratic.draw(0, inner=2.0, size=3)
    algorithm = hg.Implicit(hg.CG(preconditioner=None), inner=hg.GradientDescent(lr=0.25, steps=100))
    move = known.move(mixed=float(torch.linalg.matrix_norm(known.a2.T @ known.a3, 2)), step=0.5, backtracks=3)
    run = hg.Run(known.problem, algorithm, *known.start, move)
    with pytest.warns(ConvergenceWarning, match="no further step can be certified"):
        steps = [run.step() for _ in range(50)]
    assert steps[-1].report.status == "stalled"
    assert same(steps[-1].moved, steps[-1].hparams)
    assert known.loss(run.hparams) == pytest.approx(known.least, rel=1e-12)
    trainer = hg.Trainer(known.problem, algorithm, move, [hg.EarlyStopping(patience=5)])
    with pytest.warns(ConvergenceWarning):
        assert trainer.fit(*known.start, steps=200).steps < 100


def test_a_run_ends_at_its_tolerance_without_a_warning() -> None:
    known = Quadratic.draw(0, inner=2.0, size=3)
    run = hg.Run(known.problem, known.algorithm, *known.start, known.move(tolerance=1e-4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = [run.step() for _ in range(60)]
    assert steps[-1].report.status == "stationary"
    assert size_of(known.slope(run.hparams)) <= 1e-4
    assert steps[-1].cost.products < 20


def test_a_solver_that_is_too_short_is_run_again_while_that_helps() -> None:
    known = Quadratic.draw(0, inner=3.0, size=3)
    short = hg.Implicit(hg.CG(max_steps=2, preconditioner=None), inner=hg.GradientDescent(lr=0.1, steps=12))
    move = known.move(accuracy=0.05, linear=0.05, step=0.05)
    run = hg.Run(known.problem, short, *known.start, move)
    steps = [run.step() for _ in range(10)]
    assert known.loss(run.hparams) < known.loss(known.start[1])
    assert {progress.report.status for progress in steps} <= {"converged", "no_step"}


def test_an_outer_step_without_success_keeps_the_hyperparameters_and_tightens() -> None:
    known = Quadratic.draw(0, inner=3.0, size=3)
    run = hg.Run(known.problem, known.algorithm, *known.start, known.move(step=1e9, backtracks=1, budgets=2))
    progress = run.step()
    assert progress.report.status == "no_step"
    assert same(progress.moved, progress.hparams)
    assert run._outer_state.accuracy < 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", DOMAINS)
def test_it_stays_in_the_domain_and_reaches_its_nearest_point(kind: str) -> None:
    domain, inside, nearest = DOMAINS[kind]
    move = MAID(1.0, 1.0, mixed=1.0, convex=True, step=0.5, backtracks=3)
    last = pursuer(x=7.0)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for progress in hg.iterate(
            pursuit({"x": domain}), hg.Implicit(inner=hg.Newton()), *pursuer(x=7.0), outer=move, steps=30
        ):
            assert inside(progress.hparams["x"])
            assert inside(progress.moved["x"])
            last = progress.moved
    assert torch.allclose(last["x"], nearest, atol=1e-5)


def test_a_corner_that_holds_the_hyperparameters_is_stationary() -> None:
    domain = {"x": hg.Box(-1.0, 1.0), "s": hg.Box(1.0, 3.0)}
    corner = pursuer()[0], {"x": torch.tensor([1.0, -1.0, 0.25]).double(), "s": torch.tensor(1.0).double()}
    target = torch.tensor([3.0, -4.0, 3.0], dtype=torch.float64)
    corner[1]["x"][2] = 1.0
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: (params["w"] - target).square().sum() / 2 + hparams["s"].square() / 2,
        hparams_domain=domain,
    )
    (progress,) = hg.iterate(problem, hg.Implicit(inner=hg.LBFGS()), *corner, outer=MAID(1.0, 1.0), steps=1)
    assert progress.report.status == "stationary"
    assert same(progress.moved, progress.hparams)


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup() -> tuple[hg.Problem, Any, Any]:
        inner = hg.GradientDescent(lr=0.1, steps=500)
        move = MAID(lambda hparams: 0.2 * float(hparams["decay"].exp().min()), 9.0, convex=True, step=1.0)
        return common.plain(), hg.Implicit(hg.CG(), inner=inner), move

    monkeypatch.setitem(common.RESUMED, "maid", setup)
    check_same_run("maid", tmp_path, stops=(1, 2, 4))


@pytest.mark.parametrize(("parameters", "entries"), [(6, 2), (2, 6)])
def test_the_mixed_norm_is_that_of_the_whole_matrix(parameters: int, entries: int) -> None:
    random = torch.Generator().manual_seed(1)
    matrix = torch.randn(parameters, entries, dtype=torch.float64, generator=random)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return params["w"].square().sum() + params["w"] @ (matrix @ hparams["x"])

    problem = hg.Problem(inner, lambda params, hparams: params["w"].sum())
    point = {"w": torch.zeros(parameters).double()}, {"x": torch.zeros(entries).double()}
    norm, cost = mixed_norm(problem, *point, max_size=2)
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12)
    assert cost.products == 2
    with pytest.raises(InputError) as caught:
        mixed_norm(problem, *point, max_size=1)
    assert "mixed=" in caught.value.do


def test_the_least_curvature_is_the_smallest_eigenvalue() -> None:
    known = Quadratic.draw(3)
    least, cost = least_curvature(known.problem, *known.start)
    assert least == pytest.approx(1.0, rel=1e-9)
    assert cost.products == 8
