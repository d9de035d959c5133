"""Inner solvers: bitwise iterates, tolerances, tuned settings, schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.inner import UpdateRule
from hypergrad.testing import problems
from hypergrad.tree import Tree, cloned

START = {"a": torch.tensor([[1.5, -2.0], [0.3, 0.0]]), "b": torch.tensor(0.7)}


def rosenbrock(params: Tree, _: Tree) -> Tensor:
    a = params["a"]
    return (
        (1 - a[0]).square().sum() + 5 * (a[1] - a[0].square()).square().sum() + (params["b"] ** 4 + params["b"]).sum()
    )


PROBLEM = hg.Problem(rosenbrock, rosenbrock)
NONE = {"unused": torch.zeros(())}

RULES: dict[str, tuple[UpdateRule, Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (hg.GradientDescent(lr=0.01), torch.optim.SGD, {"lr": 0.01}),
    "sgd-momentum": (hg.GradientDescent(lr=0.01, momentum=0.9), torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "sgd-nesterov": (
        hg.GradientDescent(lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (hg.Adam(lr=0.03), torch.optim.Adam, {"lr": 0.03}),
    "adam-decay": (
        hg.Adam(lr=0.03, beta1=0.8, beta2=0.95, eps=1e-5, weight_decay=0.2),
        torch.optim.Adam,
        {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.2},
    ),
    "adamw": (
        hg.Adam(lr=0.03, weight_decay=0.2, decoupled=True),
        torch.optim.AdamW,
        {"lr": 0.03, "weight_decay": 0.2},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_iterates_are_bitwise_those_of_torch(name: str, dtype: torch.dtype) -> None:
    rule, make, options = RULES[name]
    params = {key: value.to(dtype) for key, value in START.items()}
    mine = rule.advance_by(PROBLEM, rule.begin(params), NONE, 25).params
    theirs = {key: value.requires_grad_() for key, value in cloned(params).items()}
    optimizer = make(list(theirs.values()), foreach=False, **options)
    for _ in range(25):
        optimizer.zero_grad()
        loss: Any = rosenbrock(theirs, {})
        loss.backward()
        optimizer.step()
    for key in params:
        assert torch.equal(mine[key], theirs[key].detach()), key


@pytest.mark.parametrize("name", RULES)
def test_tuned_settings_have_the_derivatives_of_central_differences(name: str) -> None:
    rule, _, options = RULES[name]
    settings = {key: float(getattr(rule, key)) for key in rule.tuned}
    names: dict[str, Any] = {key: hg.Tuned(key) for key in settings}
    if name.startswith("sgd"):
        tuned: UpdateRule = hg.GradientDescent(**names, nesterov=options.get("nesterov", False))
    else:
        tuned = hg.Adam(**names, eps=options.get("eps", 1e-8), decoupled=name == "adamw")
    params = {key: value.double() for key, value in START.items()}
    hparams = {key: torch.tensor(value, dtype=torch.float64) for key, value in settings.items()}
    for algorithm in (hg.Unrolled(8, tuned), hg.Unrolled(8, tuned, keep="log"), hg.ForwardMode(8, tuned)):
        result = hg.check(PROBLEM, params, hparams, algorithm, tolerance=1e-5, verbose=False)
        assert result.passed, f"{result}"


def test_tuned_schedule_is_one_number_a_step() -> None:
    rule = hg.GradientDescent(lr=hg.Tuned(lambda hparams, step: hparams["rates"][step]))
    params = {key: value.double() for key, value in START.items()}
    hparams = {"rates": torch.tensor([0.01, 0.02, 0.005], dtype=torch.float64)}
    assert hg.check(PROBLEM, params, hparams, hg.Unrolled(3, rule), verbose=False).passed
    assert hg.check(PROBLEM, params, hparams, hg.ForwardMode(3, rule), verbose=False).passed


def test_schedule_of_the_step_is_followed() -> None:
    rule = hg.GradientDescent(lr=lambda step: 0.1 / (step + 1))
    quadratic = hg.Problem(lambda params, _: 0.5 * params["w"].square(), lambda params, _: params["w"])
    after = rule.advance_by(quadratic, rule.begin({"w": torch.tensor(1.0)}), NONE, 3).params["w"]
    assert float(after) == pytest.approx(0.9 * 0.95 * (1 - 0.1 / 3))


@pytest.mark.parametrize(
    "solver",
    [hg.LBFGS(tolerance=1e-9), hg.Newton(tolerance=1e-10), hg.GradientDescent(lr=1.0, steps=900, tolerance=1e-10)],
)
def test_solver_reaches_its_tolerance(solver: hg.InnerSolver) -> None:
    known = problems.logistic()
    result = solver.run(known.problem, known.params, known.hparams)
    assert result.status is hg.Status.CONVERGED
    assert float((result.params["w"] - known.trained()["w"]).abs().max()) < 1e-7
    assert torch.equal(known.params["w"], torch.zeros(6, dtype=torch.float64)), "the start stays as it is"
    assert result.cost.inner_gradients <= solver.budget().inner_gradients


@pytest.mark.parametrize(
    "solver",
    [
        hg.LBFGS(tolerance=1e-12, steps=2),
        hg.Newton(tolerance=1e-12, steps=1),
        hg.GradientDescent(lr=0.1, steps=3, tolerance=1e-9),
    ],
)
def test_solver_out_of_steps_says_so(solver: hg.InnerSolver) -> None:
    known = problems.logistic()
    assert solver.run(known.problem, known.params, known.hparams).status is hg.Status.MAX_STEPS


def test_newton_goes_down_where_the_hessian_is_indefinite() -> None:
    saddle = hg.Problem(
        lambda params, _: (params["w"].square() - 1).square().sum(), lambda params, _: params["w"].sum()
    )
    start = {"w": torch.tensor([0.1, -0.2], dtype=torch.float64)}
    found = hg.Newton().run(saddle, start, NONE).params["w"]
    assert torch.allclose(found, torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_newton_finds_roots() -> None:
    known = problems.fixed_point()
    found = hg.Newton().run(known.problem, known.params, known.hparams)
    assert found.status is hg.Status.CONVERGED
    assert float((found.params["z"] - known.trained()["z"]).abs().max()) < 1e-10


def test_torch_optimizer_follows_its_scheduler() -> None:
    quadratic = hg.Problem(lambda params, _: 0.5 * params["w"].square(), lambda params, _: params["w"])
    solver = hg.TorchOptimizer(
        lambda p: torch.optim.SGD(p, lr=0.5),
        steps=3,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )
    found = solver.run(quadratic, {"w": torch.tensor(1.0)}, NONE)
    assert float(found.params["w"]) == pytest.approx(0.5 * 0.75 * 0.875)
    assert found.cost.inner_gradients == 3


def test_minibatches_come_from_the_sampler_in_every_solver() -> None:
    data = torch.arange(12.0)
    seen: list[int] = []

    def loss(params: Tree, _: Tree, batch: tuple[Tensor]) -> Tensor:
        seen.append(len(batch[0]))
        return (params["w"] - batch[0]).square().mean()

    for solver in (
        hg.GradientDescent(lr=0.1, steps=4),
        hg.TorchOptimizer(lambda p: torch.optim.SGD(p, lr=0.1), steps=4),
        hg.LBFGS(steps=4),
        hg.Newton(),
    ):
        seen.clear()
        problem = hg.Problem(loss, loss, inner_data=hg.TensorSampler(data, batch_size=5))
        solver.run(problem, {"w": torch.tensor(0.0)}, NONE)
        assert seen[0] == 5
        one_batch = isinstance(solver, hg.LBFGS | hg.Newton)
        assert set(seen) == ({5} if one_batch else {5, 2}), "12 = 5 + 5 + 2; a line search sees one batch"
