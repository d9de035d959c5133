"""Runs whose errors the rates of ``tests/rates.py`` are fitted to: steps that fall, batches that grow, variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.schedules import power
from hypergrad.solvers.bilevel.bo_rep import NormalizedMomentum
from hypergrad.tree import leaves
from tests.finite_sums import descend, finite_sum
from tests.stochastic_quadratic import (
    COPIES,
    OPTIMUM,
    SEEDS,
    SIZE,
    Move,
    Schedule,
    Setting,
    decay,
    gradient,
    inner,
    outer,
    response,
    sgd,
    slopes,
)

SIZES = (1.0, 4.0, 16.0, 64.0)
"""Batch sizes of which the error that constant steps leave is measured."""


def falling(setting: Setting, start: int = 50) -> Callable[[], Tensor]:
    """The slopes of the error against the iteration, from iteration ``start`` on."""
    return lambda: decay(setting.errors()[:, 0], start, setting.hold)


def floors(setting: Setting) -> Callable[[], Tensor]:
    """The slopes against the batch size of the mean error in the second half of a run with constant steps."""
    return lambda: slopes(torch.tensor(SIZES), setting.errors()[setting.steps // 2 :].mean(dim=0))


def constant(rate: float) -> Schedule:
    return lambda step: rate


SOBA = Setting(lambda seed: hg.SOBA(step_size=power(0.4, 0.5)), sgd(power(0.2, 0.5)), 800)
SOBA_CONSTANT = Setting(lambda seed: hg.SOBA(step_size=0.1), sgd(constant(0.03)), 400)
FSLA = Setting(lambda seed: hg.FSLA(step_size=power(0.4, 0.5), momentum=power(1.0, 0.5)), sgd(power(0.2, 0.5)), 700)
FSLA_CONSTANT = Setting(lambda seed: hg.FSLA(step_size=0.1, momentum=0.1), sgd(constant(0.03)), 300)


def ttsa(step_size: Any, rate: Schedule, steps: int) -> Setting:
    return Setting(
        lambda seed: hg.TTSA(step_size=step_size, linear_step_size=1.0, terms=2, seed=seed),
        sgd(rate),
        steps,
        apart=True,
    )


def bsa(rounds: Any, rate: Schedule, steps: int) -> Setting:
    return Setting(
        lambda seed: hg.BSA(step_size=power(0.6, 1.0), linear_step_size=1.0, inner_steps=rounds, terms=2, seed=seed),
        sgd(rate),
        steps,
        apart=True,
    )


def recursive(kind: Any, steps: int, momentum: Any = None, **options: Any) -> Setting:
    """MRBO or SUSTAIN with the steps of their papers; ``momentum=1`` switches the recursion off."""
    share = power(1.0, 2 / 3) if momentum is None else momentum

    def make(seed: int) -> Any:
        extra = {"seed": seed} if kind is hg.SUSTAIN else {}
        return kind(step_size=power(0.4, 1 / 3), linear_step_size=1.0, terms=2, momentum=share, **extra)

    return Setting(make, sgd(power(0.3, 1 / 3)), steps, **options)


def bsvrb(kind: Any, steps: int, share: Any) -> Setting:
    """Every copy is a block with a row of λ of its own, so that the direction is its gradient over their number."""
    rows = SEEDS * COPIES
    bound = {"radius": 1e3} if kind is hg.BSVRBv2 else {"mu": 0.3}
    return Setting(
        lambda seed: kind(blocks=rows, inner_step=power(0.4, 1 / 3), alpha=share, beta=share, **bound),
        sgd(power(0.3 * rows, 1 / 3)),
        steps,
        blockwise=True,
    )


def f2sa(penalty: Any, steps: int) -> Setting:
    return Setting(
        lambda seed: hg.F2SA(
            step_size=power(0.4, 4 / 7), penalty=penalty, penalised_step_size=power(0.4, 5 / 7), inner_steps=1
        ),
        sgd(power(0.8, 5 / 7)),
        steps,
        hold=60,
        sizes=(4.0,),
    )


def f2sa_without_noise(penalty: Any, steps: int) -> Setting:
    return Setting(
        lambda seed: hg.F2SA(step_size=0.4, penalty=penalty, penalised_step_size=power(0.4, 1 / 3), inner_steps=1),
        sgd(power(0.4, 1 / 3)),
        steps,
        hold=60,
        sizes=(1e30,),
        copies=1,
    )


def normalised(rate: Schedule, share: Schedule) -> Move:
    """Moves of λ by normalised momentum, of length ``rate`` for each copy and with β = 1 − ``share``."""
    held: dict[str, Any] = {}

    def move(step: int, x: Tensor, direction: Tensor) -> Tensor:
        if not held or step <= held["step"]:  # a new run
            held["x"] = x.clone().requires_grad_()
            held["optimizer"] = NormalizedMomentum([held["x"]], lr=1.0)
        held["step"] = step
        held["optimizer"].param_groups[0].update(lr=rate(step) * len(x) ** 0.5, momentum=1 - share(step))
        held["x"].grad = direction
        held["optimizer"].step()
        moved: Tensor = held["x"].detach().clone()
        return moved

    return move


def bo_rep(rate: Schedule, steps: int, refinement: Any = None) -> Setting:
    return Setting(
        lambda seed: hg.BOREP(
            step_size=power(0.4, 0.5),
            linear_step_size=power(0.4, 0.5),
            interval=2,
            inner_steps=2,
            refinement=refinement,
        ),
        normalised(rate, power(1.0, 0.5)),
        steps,
        apart=True,
        copies=64,
    )


def batches(algorithm: Any, **options: Any) -> Setting:
    """Constant steps, once for each of the batch sizes."""
    return Setting(lambda seed: algorithm, sgd(constant(0.1)), 150, sizes=SIZES, **options)


AMIGO = hg.AmIGO(step_size=0.4, inner_steps=2, linear_steps=2)
STOCBIO = hg.StocBiO(step_size=0.4, linear_step_size=1.0, inner_steps=2, terms=2)
STOCBIO_SHORT = hg.StocBiO(step_size=0.4, linear_step_size=0.5, inner_steps=2, terms=0)


def vrbo(large: tuple[float, ...]) -> Setting:
    algorithm = hg.VRBO(step_size=0.2, linear_step_size=1.0, inner_steps=2, terms=2, period=4)
    return Setting(
        lambda seed: algorithm, sgd(constant(0.1)), 100, sizes=tuple(size**0.5 for size in SIZES), large=large
    )


def pzobo(inner_steps: int, step_size: float, steps: int = 120) -> Tensor:
    """The slopes of the error that constant steps leave against the number of directions, with no other noise."""
    counts, found = (1, 3, 9), []
    for count in counts:

        def make(seed: int, count: int = count) -> Any:
            return hg.PZOBO(step_size=step_size, inner_steps=inner_steps, directions=count, seed=seed)

        setting = Setting(make, sgd(constant(0.05)), steps, sizes=(1e30,), copies=1, apart=True)
        found.append(setting.errors()[40:, 0].mean(dim=0))
    return slopes(torch.tensor(counts), torch.stack(found))


def kkt_residual(params: Tensor, hparams: Tensor) -> float:
    """min over γ ≥ 0 of ‖∇f + γ ∇q‖² + q with the value gap q = g − min g, in (θ, λ)."""
    w, x = (value.detach().clone().requires_grad_() for value in (params, hparams))
    gap = inner({"w": w}, {"x": x}) - inner({"w": response(x)}, {"x": x})
    f = torch.cat(torch.autograd.grad(outer({"w": w}, {"x": x}), [w, x]))
    q = torch.cat(torch.autograd.grad(gap, [w, x]))
    weight = (-(f * q).sum() / q.square().sum().clamp(min=1e-300)).clamp(min=0)
    return float(((f + weight * q).square().sum() + gap).detach())


def bome(step_size: Schedule, counts: tuple[int, ...] = (16, 64, 256)) -> Tensor:
    """The slopes of the smallest KKT residual of K iterations against K, with steps that depend on K."""
    problem = hg.Problem(inner, outer)
    found = torch.zeros(len(counts), SEEDS, dtype=torch.float64)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        away = torch.randn(1, SIZE, dtype=torch.float64, generator=generator)
        for place, count in enumerate(counts):
            x, step = OPTIMUM + away, step_size(count)
            algorithm = hg.BOME(step_size=step, inner_step_size=0.8, inner_steps=3)
            state, best = algorithm.init(problem, {"w": torch.zeros_like(x)}, {"x": x}), float("inf")
            for _ in range(count):
                result, state = algorithm.step(problem, state, leaves({"x": x}))
                x = x - step * result.grads["x"]
                best = min(best, kkt_residual(result.params["w"], x))
            found[place, seed] = best
    return slopes(torch.tensor(counts), found)


def finite(make: Callable[[int], Any], steps: int, seeds: int = 12) -> Tensor:
    """Errors with constant steps, from afar, on a finite sum: iterations × seeds.

    A constant step leaves the slopes of single seeds far apart, so that it takes more of them than elsewhere.
    """
    found = [
        descend(finite_sum(noise=0.5, seed=10 * seed), make(seed), constant(0.03), steps, seed=seed)[0]
        for seed in range(seeds)
    ]
    return torch.tensor(found, dtype=torch.float64).T


def vanishing(make: Callable[[int], Any], steps: int = 250, start: int = 80) -> Callable[[], Tensor]:
    return lambda: decay(finite(make, steps), start, 0)


def variance(make: Callable[[int, int], Any], repeats: int = 40) -> Tensor:
    """The slopes of E‖estimate − dF/dλ‖² at one λ against the number of directions; fewer directions vary more."""
    counts, found = (1, 3, 9), torch.zeros(3, SEEDS, dtype=torch.float64)
    problem, x = hg.Problem(inner, outer), OPTIMUM[None] + 1
    for place, count in enumerate(counts):
        times = round(repeats * (counts[-1] / count) ** 0.5)
        for seed in range(SEEDS):
            algorithm = make(count, seed)
            state = algorithm.init(problem, {"w": response(x)}, {"x": x})
            for _ in range(times):
                result, state = algorithm.step(problem, state, leaves({"x": x}))
                found[place, seed] += (result.grads["x"] - gradient(x)).square().sum() / times
    return slopes(torch.tensor(counts), found)


def tangents(distribution: Any) -> Callable[[int, int], Any]:
    rule = hg.GradientDescent(lr=1.0)
    return lambda count, seed: hg.ForwardMode(
        2, rule, mode="random", directions=count, distribution=distribution, seed=seed
    )


def differences(count: int, seed: int) -> Any:
    rule = hg.GradientDescent(lr=1.0, steps=2)
    return hg.ZerothOrder(rule, step_size=1e-4, mode="RGE", directions=count, seed=seed)


def one_direction(make: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    return lambda count, seed: make(1, seed + 100 * count)
