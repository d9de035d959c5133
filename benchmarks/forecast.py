"""How near the forecasts of hypergrad.choose come to what an outer step takes.

Run ``python -m benchmarks.forecast``. For each problem: the choice's forecast of wall seconds and of the peak of live
bytes of one outer step from cold, against the least of some measured steps, forecast again before each of them since a
shared machine's speed changes, and the measured peak. Measured are CPU seconds on one thread: on a machine with nothing
else to do they are wall seconds, and elsewhere a long step waits for others where a short pass does not. Printed are
the ratios; the aim is 0.7 to 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from benchmarks.harness import write_json
from benchmarks.memory import peak_bytes

Tree = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One problem and how it is trained."""

    problem: hg.Problem
    params: Tree
    hparams: Tree
    inner: hg.InnerSolver | None
    memory: float | None = None


def ridge(size: int) -> Case:
    """Return ridge regression with one log penalty per feature, trained by L-BFGS: CG with the penalty's diagonal."""
    torch.manual_seed(0)
    x, xv = torch.randn(2 * size, size), torch.randn(size, size)
    truth = torch.randn(size)
    y, yv = x @ truth + torch.randn(2 * size), xv @ truth
    problem = hg.Problem(
        inner=lambda params, _: (x @ params["w"] - y).square().mean() / 2,
        outer=lambda params, _: (xv @ params["w"] - yv).square().mean() / 2,
        penalty=lambda params, hparams: (hparams["log_penalty"].exp() * params["w"].square()).sum() / 2,
    )
    return Case(problem, {"w": torch.zeros(size)}, {"log_penalty": torch.full((size,), -3.0)}, hg.LBFGS(tolerance=1e-3))


def cleaning(size: int) -> Case:
    """Return softmax regression with one log weight an example, at trained parameters: CG on a definite Hessian."""
    torch.manual_seed(0)
    x, xv = torch.randn(4 * size, size), torch.randn(size, size)
    teacher = torch.randn(size, 10)
    y, yv = (x @ teacher).argmax(1), (xv @ teacher).argmax(1)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        losses = torch.nn.functional.cross_entropy(x @ params["w"], y, reduction="none")
        return (hparams["log_weight"].sigmoid() * losses).mean() + 0.01 * params["w"].square().sum()

    def outer(params: Tree, _: Tree) -> Tensor:
        return torch.nn.functional.cross_entropy(xv @ params["w"], yv)

    hparams, problem = {"log_weight": torch.zeros(4 * size)}, hg.Problem(inner, outer)
    params = hg.LBFGS(steps=100, tolerance=1e-4).run(problem, {"w": torch.zeros(size, 10)}, hparams).params
    return Case(problem, params, hparams, None)


def network(size: int, steps: int, *, tuned: bool, decays: bool = True, memory: float | None = None) -> Case:
    """Return a network with a log decay per layer if ``decays``, and a log learning rate if ``tuned``."""
    torch.manual_seed(0)
    shapes = {"first": (size, size), "second": (size, size), "last": (10, size)}
    params = {name: torch.randn(shape) / size**0.5 for name, shape in shapes.items()}
    x, xv = torch.randn(size, size), torch.randn(size, size)
    y, yv = torch.randint(10, (size,)), torch.randint(10, (size,))

    def forward(params: Tree, x: Tensor) -> Tensor:
        return (x @ params["first"].mT).tanh() @ params["second"].mT @ params["last"].mT

    def inner(params: Tree, hparams: Tree) -> Tensor:
        decay = sum(rate.exp() * params[name].square().sum() for name, rate in hparams.items() if name != "log_lr")
        return torch.nn.functional.cross_entropy(forward(params, x), y) + decay

    def outer(params: Tree, _: Tree) -> Tensor:
        return torch.nn.functional.cross_entropy(forward(params, xv), yv)

    hparams = {name: torch.tensor(-3.0) for name in shapes} if decays else {}
    lr: Any = 0.1
    if tuned:
        hparams["log_lr"], lr = torch.tensor(-2.3), hg.Tuned(lambda hparams: hparams["log_lr"].exp())
    rule = hg.GradientDescent(lr=lr, steps=steps)
    return Case(hg.Problem(inner, outer), params, hparams, rule, memory)


def cases(size: int, steps: int) -> dict[str, Callable[[], Case]]:
    """Return what is forecast."""
    return {
        "ridge, implicit": lambda: ridge(8 * size),
        "cleaning, implicit": lambda: cleaning(4 * size),
        "network, learning rate, graph": lambda: network(size, steps, tuned=True),
        "network, short training, iterates": lambda: network(
            size, steps, tuned=False, memory=max(1.0, steps * size * size * 24 / 2**20)
        ),
        "network, learning rate, forward": lambda: network(
            size, steps, tuned=True, decays=False, memory=0.5 * size * size / 2**20
        ),
    }


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Return the ratios of forecast to measured seconds and bytes of one case."""
    ratios, found = [], None
    for _ in range(repeats):
        found = hg.choose(case.problem, case.params, case.hparams, inner=case.inner, memory=case.memory)
        algorithm = found.algorithm
        state = algorithm.init(case.problem, case.params, case.hparams)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            algorithm.step(case.problem, state, case.hparams)
            seconds.append(time.process_time() - start)
        ratios.append(found.forecast.seconds / min(seconds))
    assert found is not None
    algorithm = found.algorithm
    state = algorithm.init(case.problem, case.params, case.hparams)
    held = peak_bytes(lambda: algorithm.step(case.problem, state, case.hparams)) / 2**20
    return {
        "plan": found.plan.estimator + (f" {found.plan.linear}" if "implicit" in found.plan.estimator else ""),
        "keep": found.plan.keep,
        "seconds": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "memory": found.forecast.mebibytes / held,
        "measured_mib": held,
    }


def main(size: int = 128, steps: int = 20, repeats: int = 5, out: Path | None = None) -> dict[str, Any]:
    """Measure, print and return the ratios."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = {}
    print(f"{'case':38s} {'plan':16s} {'seconds':>8s} {'from':>6s} {'to':>6s} {'memory':>7s}   forecast / measured")
    for name, make in cases(size, steps).items():
        row = rows[name] = measure(make(), repeats)
        low, high = row["spread"]
        print(f"{name:38s} {row['plan']:16s} {row['seconds']:8.2f} {low:6.2f} {high:6.2f} {row['memory']:7.2f}")
    torch.set_num_threads(threads)
    result = {"size": size, "steps": steps, "repeats": repeats, "rows": rows}
    if out is not None:
        write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    main(**vars(parser.parse_args()))
