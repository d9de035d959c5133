"""Schedulers of torch: rates bit for bit, derivatives of the rate that they start from, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import hypergrad as hg
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.solvers.inner import TorchRule
from hypergrad.tree import Tree, cloned
from tests.optimizers.common import inner, outer, start

Optimizer = torch.optim.Optimizer
STEPS = 7
PROBLEM = hg.Problem(inner, outer)
NONE = {"unused": torch.zeros(())}


def rate(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def sequential(optimizer: Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def chained(optimizer: Optimizer) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [1, 4], gamma=0.3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "cosine-above-zero": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10, eta_min=0.002),
    "warm-restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2.0),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=rate(o), total_steps=12),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, base_lr=rate(o), max_lr=3 * rate(o), step_size_up=3),
    "sequential": sequential,
    "chained": chained,
}


def sgd(tensors: list[Tensor]) -> Optimizer:
    return torch.optim.SGD(tensors, lr=0.02, momentum=0.9)


def by_hand(optimizer: Optimizer, scheduler: Any, tensors: Tree, steps: int) -> Tree:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(inner(tensors, {}))
        optimizer.step()
        scheduler.step()
    return cloned(tensors)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_follow_the_scheduler(name: str) -> None:
    """A function that makes one, a live one that has gone some way, and derivatives of the base rate."""
    tensors = {key: value.requires_grad_() for key, value in start().items()}
    optimizer = sgd(list(tensors.values()))
    scheduler = SCHEDULERS[name](optimizer)
    rule = TorchRule(sgd, scheduler=SCHEDULERS[name])
    mine = rule.advance_by(PROBLEM, rule.begin(start()), NONE, 3).params
    theirs = by_hand(optimizer, scheduler, tensors, 3)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    before = str(scheduler.state_dict()), str(optimizer.state_dict())
    rule = TorchRule(optimizer, names=tensors, scheduler=scheduler, continued=True)
    mine = rule.advance_by(PROBLEM, rule.begin(tensors), NONE, 4).params
    assert before == (str(scheduler.state_dict()), str(optimizer.state_dict()))
    theirs = by_hand(optimizer, scheduler, tensors, 4)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_base_rate_has_the_derivative_of_the_whole_loop(name: str) -> None:
    def end(lr: float) -> float:
        tensors = {key: value.requires_grad_() for key, value in start().items()}
        optimizer = torch.optim.SGD(list(tensors.values()), lr=lr, momentum=0.9)
        return float(outer(by_hand(optimizer, SCHEDULERS[name](optimizer), tensors, STEPS), {}))

    measured = (end(0.02 + 1e-6) - end(0.02 - 1e-6)) / 2e-6
    rule = TorchRule(sgd, {"lr": hg.Tuned("lr")}, scheduler=SCHEDULERS[name])
    hparams = {"lr": torch.tensor(0.02, dtype=torch.float64)}
    found = hg.hypergradient(PROBLEM, start(), hparams, hg.Unrolled(STEPS, rule))
    assert float(found.outer_loss) == pytest.approx(end(0.02), rel=1e-12)
    assert float(found.grads["lr"]) == pytest.approx(measured, rel=1e-6)


LIVE = ["step", "exponential", "cosine", "one-cycle", "sequential"]


@pytest.mark.parametrize("name", LIVE)
def test_a_live_scheduler_scales_a_tuned_rate(name: str) -> None:
    tensors = {key: value.requires_grad_() for key, value in start().items()}
    optimizer = sgd(list(tensors.values()))
    scheduler = SCHEDULERS[name](optimizer)
    by_hand(optimizer, scheduler, tensors, 2)
    plain = TorchRule(optimizer, scheduler=scheduler)
    rule = TorchRule(optimizer, {"lr": hg.Tuned("lr")}, scheduler=scheduler)
    hparams = {"lr": torch.tensor(0.02, dtype=torch.float64)}
    assert hg.check(PROBLEM, start(), hparams, hg.Unrolled(3, rule), tolerance=1e-6, verbose=False).passed
    mine, theirs = (r.advance_by(PROBLEM, r.begin(start()), hparams, 3).params["a"] for r in (rule, plain))
    assert torch.allclose(mine, theirs, rtol=1e-12)


def plateau(optimizer: Optimizer) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer)


def squared(optimizer: Optimizer) -> Any:
    lr = rate(optimizer)
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 + epoch * lr)


TUNED = {"lr": hg.Tuned("lr")}
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a metric": (plateau, {}, "metric"),
    "own rates": (lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10), TUNED, "rates of its own"),
    "no line": (squared, TUNED, "no linear function"),
    "two sources": (
        SCHEDULERS["one-cycle"],
        {"momentum": hg.Tuned("lr")},
        "moves it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    scheduler, settings, text = REFUSED[name]
    rule = TorchRule(sgd, settings, scheduler=scheduler)
    hparams = {"lr": torch.tensor(0.02, dtype=torch.float64)}
    with pytest.raises(UnsupportedError, match=text):
        rule.advance_by(PROBLEM, rule.begin(start()), hparams, 3)


def test_a_scheduler_of_another_optimizer_or_none_at_all() -> None:
    tensors = list(start().values())
    other = lr_scheduler.StepLR(sgd(tensors), 2)
    for scheduler, text in ((other, "another optimizer"), (3, "scheduler=3"), (lambda _: None, "returned NoneType")):
        rule = TorchRule(sgd(tensors), scheduler=scheduler)
        with pytest.raises(InputError, match=text):
            rule.advance_by(PROBLEM, rule.begin(start()), NONE, 1)


def test_a_training_longer_than_its_scheduler() -> None:
    rule = TorchRule(sgd, scheduler=lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=4))
    with pytest.raises(InputError, match="at least as long as training"):
        rule.advance_by(PROBLEM, rule.begin(start()), NONE, 9)
