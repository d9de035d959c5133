"""Settings that change from one outer step to the next."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError, UnsupportedError
from tests.bad_input.common import refused
from tests.loop.common import SGD, X, Y, inner, outer, same, start

DESCENT = hg.GradientDescent(lr=0.1, steps=5)
NEUMANN = hg.Implicit(hg.Neumann(1, step=0.1), inner=DESCENT, stationarity=1e9)
PROBLEM = hg.Problem(inner, outer)
GROWING = hg.Scheduled(NEUMANN, {"inner.steps": lambda k: 5 + 2 * k}, terms=lambda k: 1 + k)


def run(algorithm: Any, move: Any = SGD, steps: int = 4) -> list[hg.Progress]:
    return list(hg.iterate(PROBLEM, algorithm, *start(), outer=move, steps=steps))


def test_each_outer_step_has_the_settings_of_its_number() -> None:
    reports = [progress.report for progress in run(GROWING)]
    assert [report.cost.products for report in reports] == [2, 3, 4, 5]
    assert [report.cost.inner_gradients for report in reports] == [6, 8, 10, 12]
    assert "terms=3" in reports[2].algorithm
    assert "steps=9" in reports[2].algorithm


def test_a_scheduled_step_is_that_of_the_algorithm_with_these_settings() -> None:
    state, found = GROWING.init(PROBLEM, *start()), []
    for _ in range(3):
        result, state = GROWING.step(PROBLEM, state, start()[1])
        found.append(result)
    by_hand = NEUMANN.init(PROBLEM, *start())
    for k, result in enumerate(found):
        algorithm = hg.Implicit(
            hg.Neumann(1 + k, step=0.1), inner=hg.GradientDescent(lr=0.1, steps=5 + 2 * k), stationarity=1e9
        )
        expected, by_hand = algorithm.step(PROBLEM, by_hand, start()[1])
        assert same(result.grads, expected.grads)
        assert same(result.params, expected.params)


def test_all_trials_of_one_outer_step_see_one_function() -> None:
    accurate = hg.Implicit(hg.Neumann(1, step=0.1), inner=hg.GradientDescent(lr=0.1, steps=300))
    seen: list[int] = []

    def terms(k: int) -> int:
        seen.append(k)
        return 5 + k

    move = hg.outer.Torch(torch.optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe")
    progress = run(hg.Scheduled(accurate, terms=terms), move, steps=2)
    assert progress[0].cost.outer_gradients > 2, "the line search made trials"
    assert progress[0].cost.products == progress[0].cost.outer_gradients * 6
    assert progress[1].cost.products == progress[1].cost.outer_gradients * 7
    assert set(seen) == {0, 1}


def test_a_constant_schedule_changes_nothing() -> None:
    plainly, constant = run(NEUMANN), run(hg.Scheduled(NEUMANN, terms=lambda k: 1))
    assert same(plainly[-1].moved, constant[-1].moved)


def test_a_schedule_resumes_at_its_step(tmp_path: Path) -> None:
    def trainer(*callbacks: hg.Callback) -> hg.Trainer:
        return hg.Trainer(PROBLEM, GROWING, hg.outer.Torch(torch.optim.Adam, lr=0.1), callbacks)

    whole = trainer().fit(*start(), 6)
    trainer(hg.Checkpoint(tmp_path)).fit(*start(), 3)
    resumed = trainer().fit(*start(), 6, resume=tmp_path)
    assert same(whole.hparams, resumed.hparams)
    assert whole.last is not None
    assert resumed.last is not None
    assert whole.last.report.cost == resumed.last.report.cost


def test_a_scheduled_single_loop_method_keeps_its_state() -> None:
    algorithm = hg.Scheduled(hg.AmIGO(step_size=0.05, inner_steps=1), inner_steps=lambda k: 1 + k)
    made = [progress.report.cost.inner_gradients for progress in run(algorithm, steps=3)]
    assert [later - earlier for earlier, later in itertools.pairwise(made)] == [1, 1]


def test_the_live_face_counts_its_hypergradients() -> None:
    model = torch.nn.Linear(3, 1).double()
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        value: Tensor = (model(X)[:, 0] - Y).square().mean() + weight.exp() * model.weight.square().sum()
        return value

    hyper = hg.Live(model, [weight], loss, loss, GROWING)
    assert [hyper.backward().cost.products for _ in range(3)] == [2, 3, 4]


def test_an_algorithm_that_looks_elsewhere_says_so_behind_a_schedule() -> None:
    algorithm = hg.Scheduled(hg.ZerothOrder(DESCENT), step_size=lambda k: 1e-3 / (1 + k))
    model, weight = torch.nn.Linear(1, 1), torch.zeros((), requires_grad=True)
    with refused(UnsupportedError, passed="closures know"):
        hg.Live(model, [weight], lambda: weight, lambda: weight, algorithm)


def test_check_and_solve_take_the_settings_of_the_first_step() -> None:
    exact = hg.Scheduled(hg.Implicit(hg.CG(rtol=0.9)), {"linear.rtol": lambda k: 1e-10})
    trained = {"w": hg.Newton().run(PROBLEM, *start()).params["w"]}
    assert hg.check(PROBLEM, trained, start()[1], exact).passed
    with refused(InputError, passed="Implicit", do="inner="):
        hg.solve(PROBLEM, *start(), exact)


def test_an_outer_move_that_chooses_tolerances_has_the_last_word() -> None:
    algorithm = hg.Scheduled(
        hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=300)), {"linear.max_steps": lambda k: 50 + k}
    )
    progress = run(algorithm, hg.HOAG(lipschitz=0.2))
    assert "max_steps=53" in progress[-1].report.algorithm
    assert "rtol=0.0" in progress[-1].report.algorithm


@pytest.mark.parametrize(
    ("settings", "passed", "expected"),
    [
        ({"term": lambda k: 3}, "did you mean 'terms'?", "linear.terms"),
        ({"linear.tems": lambda k: 3}, "did you mean 'linear.terms'?", "linear.terms"),
        ({"steps": lambda k: 3}, "several parts", "['linear.steps', 'inner.steps']"),
        ({"linear": lambda k: hg.CG()}, "linear=...", "a setting that is a number"),
        ({}, "without a setting", "at least one"),
        ({"damping": 0.3}, "damping=0.3", "a function of the outer step"),
        ({"damping": lambda k: -1.0}, "damping=-1.0", "damping >= 0"),
        ({"linear.terms": lambda k: 3, "terms": lambda k: 3}, "'linear.terms' twice", "one function"),
    ],
)
def test_settings_that_the_algorithm_does_not_have_are_refused(settings: Any, passed: str, expected: str) -> None:
    linear: Any = hg.Stochastic(torch.optim.SGD, steps=3) if "steps" in settings else hg.Neumann(3)
    with refused(InputError, passed=passed, expected=expected):
        hg.Scheduled(hg.Implicit(linear, inner=DESCENT), settings)


def test_a_step_size_that_is_a_function_already_needs_no_schedule() -> None:
    with refused(InputError, passed="step_size", do="itself"):
        hg.Scheduled(hg.SOBA(step_size=lambda k: 0.1), step_size=lambda k: 0.1)


def test_a_value_out_of_range_later_on_names_the_step_and_changes_nothing() -> None:
    made = hg.Run(PROBLEM, hg.Scheduled(NEUMANN, terms=lambda k: 2 - 2 * k), *start(), SGD)
    made.step()
    before = made.state_dict()
    made.step()
    with refused(InputError, passed=("Neumann(terms=-2)", "linear.terms at step 2")):
        made.step()
    assert made.step_number == 2
    assert made.whole
    assert not same(before["hparams"], made.state_dict()["hparams"])


def test_a_scheduled_algorithm_can_be_replaced_in() -> None:
    other = dataclasses.replace(GROWING, algorithm=dataclasses.replace(NEUMANN, damping=0.5))
    assert "damping=0.5" in repr(other.at_step(3))
    assert "terms=4" in repr(other.at_step(3))
    assert dataclasses.replace(GROWING) == GROWING


def test_only_algorithms_are_scheduled() -> None:
    with refused(InputError, passed="algorithm=Neumann", do="hypergrad.Implicit(linear)"):
        hg.Scheduled(hg.Neumann(3), terms=lambda k: 3)  # type: ignore[arg-type]
