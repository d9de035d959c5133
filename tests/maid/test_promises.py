"""MAID keeps its promises: decrease, bound and descent, checked against closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import hypergrad as hg
from hypergrad.inner import InnerResult
from hypergrad.linear import Status
from hypergrad.oracle import Trial
from hypergrad.solvers.bilevel.bounds import SHY
from hypergrad.solvers.bilevel.maid import MAID, _Point
from hypergrad.tree import Tree
from tests.loop.common import TARGET
from tests.maid.common import Quadratic, check_promises, distance


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"accuracy": 10.0, "linear": 10.0}, 41),
        ({}, 41),
        ({"accuracy": 1e-4, "linear": 1e-4}, 41),
        ({"step": 100.0}, 14),
        ({"step": 1e-6}, 129),
    ],
)
def test_every_promise_is_kept_down_to_the_optimum_from_any_first_accuracy_and_step(
    options: dict[str, float], steps: int, omegas: list[Any]
) -> None:
    known = Quadratic.draw(0)
    assert known.least == pytest.approx(105.203, abs=5e-4)
    assert known.loss(known.start[1]) == pytest.approx(127.5, abs=0.05)
    norm = float(torch.linalg.matrix_norm(known.a2.T @ known.a3, 2))
    run = hg.Run(known.problem, known.algorithm, *known.start, known.move(mixed=norm, **options))
    until = known.least * (1 + 1e-9)
    seen = check_promises(run, known.loss, known.slope, omegas, steps + 5, until)
    assert known.loss(run.hparams) <= until
    assert len(seen) <= steps
    accuracies = [step.accuracy for step in seen]
    assert any(late < early for early, late in itertools.pairwise(accuracies)), "it never tightened"
    if options.get("step", 0) < 1:  # from too long a step it only tightens
        assert any(late > early for early, late in itertools.pairwise(accuracies)), "it never loosened"
    losses = [known.loss(step.progress.hparams) for step in seen]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("convex", [True, False])
def test_every_promise_is_kept_on_ill_conditioned_problems(seed: int, convex: bool, omegas: list[Any]) -> None:
    known = Quadratic.draw(seed, inner=30.0, outer=12.0, size=5)
    run = hg.Run(known.problem, known.algorithm, *known.start, known.move(convex=convex))
    seen = check_promises(run, known.loss, known.slope, omegas, 25)
    assert len(seen) == 25
    assert known.loss(run.hparams) < known.loss(known.start[1])


def test_every_promise_is_kept_where_all_constants_count(omegas: list[Any]) -> None:
    """Logistic regression with its decay: H and J change with θ, and µ, L_J and L_H with λ; f uses λ as well."""
    random = torch.Generator().manual_seed(0)
    rows, size = 30, 3
    train, validation = (torch.randn(rows, size, dtype=torch.float64, generator=random) for _ in range(2))
    truth = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    noise = 0.5 * torch.randn(2, rows, dtype=torch.float64, generator=random)
    train, validation = (
        x * torch.sign(x @ truth + e)[:, None] for x, e in zip((train, validation), noise, strict=True)
    )

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return softplus(-(train @ params["w"])).sum() + hparams["x"].exp() * params["w"].square().sum() / 2

    def outer(params: Tree, hparams: Tree) -> Tensor:
        mixed = 0.3 * hparams["x"] * params["w"].sum()
        return softplus(-(validation @ params["w"])).sum() + mixed + 0.5 * hparams["x"].square()

    third = float(torch.linalg.eigvalsh(train.T @ train)[-1] * train.norm(dim=1).max()) / (6 * math.sqrt(3))
    move = MAID(
        strong_convexity=lambda hparams: float(hparams["x"].exp()),
        smoothness=float(torch.linalg.eigvalsh(validation.T @ validation)[-1]) / 4,
        inverse_lipschitz=lambda hparams: third * math.exp(-2 * float(hparams["x"])),
        mixed_lipschitz=lambda hparams: float(hparams["x"].exp()),
        direct_lipschitz=0.3 * math.sqrt(size),
        convex=True,
        step=1.0,
    )
    problem = hg.Problem(inner, outer)
    params, hparams = {"w": torch.zeros(size, dtype=torch.float64)}, {"x": torch.tensor(3.0, dtype=torch.float64)}
    accurate = hg.Implicit(hg.Dense(), inner=hg.Newton(tolerance=1e-12))

    def truth_at(hparams: Tree) -> hg.Hypergradient:
        return hg.hypergradient(problem, params, hparams, accurate)

    run = hg.Run(problem, hg.Implicit(inner=hg.Newton()), params, hparams, move)
    seen = check_promises(
        run, lambda point: float(truth_at(point).outer_loss), lambda point: truth_at(point).grads, omegas, 8
    )
    assert len(seen) == 8
    assert abs(float(truth_at(run.hparams).grads["x"])) < 1e-3 * abs(float(truth_at(hparams).grads["x"]))


@dataclass(frozen=True)
class Adversary(hg.InnerSolver):
    """Ends exactly as far from θ* = λ as it may, now where f looks too low and now where it looks too high."""

    calls: list[int]
    tolerance: float = 1.0

    def run(self, problem: hg.Problem, params: Tree, hparams: Tree) -> InnerResult:
        self.calls.append(1)
        away = hparams["x"].detach() - TARGET
        sign = 1 if (len(self.calls) * 7919 + 3) % 5 < 2 else -1
        end = hparams["x"].detach() + sign * self.tolerance * away / away.norm()
        return InnerResult({"w": end}, Status.CONVERGED, hg.Cost())

    def budget(self) -> hg.Cost:
        return hg.Cost()


@pytest.mark.parametrize("convex", [True, False])
def test_every_promise_is_kept_against_the_worst_of_solvers(convex: bool, omegas: list[Any]) -> None:
    """Here ω and ψ are tight: only the share of the tolerance that is kept in reserve separates them from the truth."""
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2,
    )
    point = {"w": torch.zeros(3).double()}, {"x": torch.full((3,), 0.5).double()}
    move = MAID(1.0, 1.0, mixed=1.0, convex=convex, accuracy=0.5, linear=1e-9)
    run = hg.Run(problem, hg.Implicit(hg.CG(), inner=Adversary([])), *point, move)
    seen = check_promises(
        run,
        lambda hparams: float((hparams["x"] - TARGET).square().sum()) / 2,
        lambda hparams: {"x": hparams["x"] - TARGET},
        omegas,
        25,
    )
    gaps = [distance(step.slope, {"x": step.progress.hparams["x"] - TARGET}) / step.omega for step in seen]
    assert len(seen) == 25
    assert min(gaps) > 0.99, "the bound is tight for this solver"


def test_the_bound_has_all_its_terms(omegas: list[Any]) -> None:
    known = Quadratic.draw(4, inner=3.0, size=3)
    constants: dict[str, Any] = {"strong_convexity": 0.5, "smoothness": 3.0, "mixed": 5.0, "inverse_lipschitz": 7.0}
    move = MAID(**constants, mixed_lipschitz=11.0, direct_lipschitz=13.0, accuracy=0.2, linear=0.3)
    run = hg.Run(known.problem, known.algorithm, *known.start, move)
    progress = run.step()
    accuracy, linear, omega, _ = omegas[0]
    inner: Any = known.algorithm.at_tolerance(SHY * 0.5 * 0.2, 0.3).inner
    trained = inner.run(known.problem, *known.start).params["y"]
    steepness = float((known.a1.T @ (known.a1 @ trained - known.b1)).norm())
    assert (accuracy, linear) == (0.2, 0.3)
    assert progress.step == 1
    slope = 3.0 * 5.0 / 0.5 + 7.0 * steepness * 5.0 + 11.0 * steepness / 0.5 + 13.0
    assert omega == pytest.approx(slope * 0.2 + 5.0 / 0.5 * 0.3 + 11.0 * 3.0 / 0.5 * 0.2**2)


@pytest.mark.parametrize(("convex", "slack"), [(True, 0.0), (False, 6.0 / 2 * 0.1**2)])
def test_the_test_of_decrease_has_all_its_terms(convex: bool, slack: float) -> None:
    move = MAID(1.0, 6.0, convex=convex, decrease=0.25)
    result: Any = SimpleNamespace(outer_loss=torch.tensor(5.0))
    point = _Point(result, accuracy=0.1, linear=0.2, norm=1.0, omega=0.1, steepness=3.0)
    trial = Trial({}, outer_loss=4.0, steepness=2.0, gap=0.0)
    before, after = {"x": torch.tensor([1.0, 1.0]).double()}, {"x": torch.tensor([4.0, 5.0]).double()}
    expected = 4 + 2.0 * 0.1 + 6.0 / 2 * 0.1**2 - (5 - 3.0 * 0.1 - slack) + 0.25 * 25 / 0.5
    assert move._psi(before, after, point, trial, 0.5) == pytest.approx(expected)
