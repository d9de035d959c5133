"""MAID: its promises checked against closed forms, its accuracies, and what it refuses."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import hypergrad as hg
from hypergrad.errors import ConvergenceWarning, InputError, UnsupportedError
from hypergrad.inner import InnerResult
from hypergrad.linear import Status
from hypergrad.oracle import Trial
from hypergrad.solvers.bilevel.bounds import SHY, least_curvature, mixed_norm, solved
from hypergrad.solvers.bilevel.maid import MAID, _Point
from hypergrad.tree import Tree, leaves
from tests.loop import common
from tests.loop.common import DOMAINS, TARGET, same
from tests.loop.test_moves import pursuer, pursuit
from tests.loop.test_resume import check_same_run


@dataclass(frozen=True)
class Quadratic:
    """g = ½‖A₂ y + A₃ x − b₂‖², f = ½‖A₁ y − b₁‖², with y* linear in x."""

    a1: Tensor
    a2: Tensor
    a3: Tensor
    b1: Tensor
    b2: Tensor

    @classmethod
    def draw(cls, seed: int, inner: float = 10.0, outer: float = 2.0, rows: int = 200, size: int = 8) -> Quadratic:
        """Return one whose A₂ has singular values from 1 to ``inner`` and A₁ from 1 to ``outer``."""
        random = np.random.default_rng(seed)

        def orthonormal(height: int) -> Any:
            return np.linalg.qr(random.standard_normal((height, size)))[0]

        a2 = orthonormal(rows) @ np.diag(np.geomspace(1, inner, size))
        a3 = a2 @ orthonormal(size)
        a1 = orthonormal(rows) @ np.diag(np.linspace(1, outer, size))
        return cls(*map(torch.tensor, (a1, a2, a3, random.standard_normal(rows), random.standard_normal(rows))))

    @property
    def problem(self) -> hg.Problem:
        return hg.Problem(
            lambda params, hparams: (self.a2 @ params["y"] + self.a3 @ hparams["x"] - self.b2).square().sum() / 2,
            lambda params, hparams: (self.a1 @ params["y"] - self.b1).square().sum() / 2,
        )

    @property
    def start(self) -> tuple[Tree, Tree]:
        size = self.a2.shape[1]
        return {"y": torch.zeros(size, dtype=torch.float64)}, {"x": torch.ones(size, dtype=torch.float64)}

    @property
    def response(self) -> Tensor:
        """dy*/dx."""
        solution: Tensor = torch.linalg.lstsq(self.a2, self.a3).solution
        return -solution

    def loss(self, hparams: Tree) -> float:
        optimum = torch.linalg.lstsq(self.a2, self.b2 - self.a3 @ hparams["x"]).solution
        return float((self.a1 @ optimum - self.b1).square().sum() / 2)

    def slope(self, hparams: Tree) -> Tree:
        optimum = torch.linalg.lstsq(self.a2, self.b2 - self.a3 @ hparams["x"]).solution
        return {"x": self.response.T @ (self.a1.T @ (self.a1 @ optimum - self.b1))}

    @property
    def least(self) -> float:
        base = self.loss({"x": torch.zeros(self.a2.shape[1], dtype=torch.float64)})
        assert base > 0
        inside = self.a1 @ self.response
        constant = self.a1 @ torch.linalg.lstsq(self.a2, self.b2).solution
        best = torch.linalg.lstsq(inside, self.b1 - constant).solution
        return self.loss({"x": best})

    @property
    def algorithm(self) -> hg.Implicit:
        """Nesterov's method with the momentum of the inner problem's condition."""
        top, bottom = float(torch.linalg.matrix_norm(self.a2, 2)), float(torch.linalg.matrix_norm(self.a2, -2))
        momentum = (top - bottom) / (top + bottom)
        descent = hg.GradientDescent(lr=1 / top**2, momentum=momentum, nesterov=True, steps=3000)
        return hg.Implicit(hg.CG(preconditioner=None), inner=descent)

    def move(self, **options: Any) -> MAID:
        """MAID with the true constants."""
        given = {
            "strong_convexity": float(torch.linalg.matrix_norm(self.a2, -2)) ** 2,
            "smoothness": float(torch.linalg.matrix_norm(self.a1, 2)) ** 2,
            "convex": True,
        }
        return MAID(**{**given, **options})


@dataclass(frozen=True)
class Seen:
    """What one outer step did."""

    progress: hg.Progress
    accuracy: float
    linear: float
    size: float
    omega: float
    slope: Tree


@pytest.fixture
def omegas(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, float, Tree]]:
    """Every hypergradient with its accuracies and its bound ω, in order."""
    seen: list[tuple[float, float, float, Tree]] = []
    plainly = MAID._measured

    def spy(self: MAID, *rest: Any) -> Any:
        point = plainly(self, *rest)
        seen.append((point.accuracy, point.linear, point.omega, point.result.grads))
        return point

    monkeypatch.setattr(MAID, "_measured", spy)
    return seen


def distance(left: Tree, right: Tree) -> float:
    return math.sqrt(sum(float((left[key] - right[key]).square().sum()) for key in left))


def size_of(tree: Tree) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in tree.values()))


def steps_of(run: hg.Run, omegas: list[Any], steps: int) -> Iterator[Seen]:
    for _ in range(steps):
        grow = run.outer.grow  # type: ignore[attr-defined]
        progress = run.step()
        state: Any = run._outer_state
        if state.stopped:
            return
        accuracy, linear, omega, slope = omegas[-1]
        yield Seen(progress, accuracy, linear, state.step / grow, omega, slope)


def check_promises(run: hg.Run, loss: Any, slope: Any, omegas: list[Any], steps: int, until: float = 0.0) -> list[Seen]:
    """Run, and check decrease, bound and descent of every accepted step against the truth."""
    seen = []
    for step in steps_of(run, omegas, steps):
        before, after = step.progress.hparams, step.progress.moved
        seen.append(step)
        if same(before, after):
            continue
        decrease = 0.1 * step.size * size_of(step.slope) ** 2
        assert loss(after) - loss(before) <= -decrease * (1 - 1e-9), "the decrease was not what was promised"
        assert distance(step.slope, slope(before)) <= step.omega, "the bound on the hypergradient does not hold"
        assert step.omega <= 0.5 * size_of(step.slope), "no direction of descent"
        assert distance(after, before) == pytest.approx(step.size * size_of(step.slope))
        if loss(after) <= until:
            break
    return seen


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


def saddle(curvature: float) -> hg.Problem:
    scales = torch.tensor([1.0, curvature, 2.0], dtype=torch.float64)
    return hg.Problem(
        lambda params, hparams: (scales * (params["w"] - hparams["x"]).square()).sum() / 2,
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square(),
    )


@pytest.mark.parametrize(("curvature", "measured"), [(-1.0, "-1"), (0.0, "0"), (0.25, "0.25")])
def test_an_inner_problem_that_is_not_strongly_convex_is_named_with_its_curvature(
    curvature: float, measured: str
) -> None:
    run = hg.Run(saddle(curvature), hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(0.5, 1.0))
    with pytest.raises(InputError) as caught:
        run.step()
    assert "strong_convexity=0.5" in caught.value.passed
    found = float(caught.value.passed.rsplit(" ", 1)[1])
    assert found == pytest.approx(float(measured), abs=1e-9)
    assert "hypergrad.HOAG" in caught.value.do
    assert run.step_number == 0
    assert run.whole


def test_negative_curvature_where_training_ends_is_refused_as_well() -> None:
    """Convex where the first step looks, and a saddle where training ends."""
    problem = hg.Problem(
        lambda params, hparams: (
            (params["w"] - hparams["x"]).square().sum() / 2 - 2 * torch.relu(params["w"][0] - 1).pow(3)
        ),
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square(),
    )
    params, hparams = pursuer()
    algorithm = hg.Implicit(hg.CG(preconditioner=None), inner=hg.GradientDescent(lr=1e-6, steps=1))
    state = algorithm.init(problem, {"w": params["w"] + 2}, hparams)
    with pytest.raises(InputError, match="met curvature of at most 0"):
        solved(hg.outer.Oracle(problem, algorithm, state, 0), hparams, 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        (hg.Unrolled(3, hg.GradientDescent(lr=0.1)), "Unrolled"),
        (hg.Implicit(hg.Neumann(3), inner=hg.Newton()), "Neumann"),
        (hg.Implicit(hg.CG(), inner=hg.Newton(), damping=0.1), "damping=0.1"),
        (hg.Implicit(hg.CG()), "inner=None"),
        (hg.Implicit(hg.CG(), inner=hg.TorchOptimizer(torch.optim.SGD, steps=3)), "TorchOptimizer"),
    ],
)
def test_an_algorithm_that_certifies_nothing_is_refused(algorithm: Any, named: str) -> None:
    run = hg.Run(pursuit(), algorithm, *pursuer(), MAID(1.0, 1.0))
    with pytest.raises(UnsupportedError) as caught:
        run.step()
    assert named in caught.value.passed
    assert run.whole


def test_minibatches_and_roots_are_refused() -> None:
    data = hg.TensorSampler(TARGET, batch_size=2)
    problem = hg.Problem(pursuit().inner, pursuit().outer, inner_data=data)
    with pytest.raises(UnsupportedError, match="inner_data=TensorSampler"):
        hg.Run(problem, hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(1.0, 1.0))
    root = hg.Problem.fixed_point(
        lambda params, hparams: {"w": 0.5 * params["w"] + hparams["x"]}, lambda params, hparams: params["w"].sum()
    )
    with pytest.raises(UnsupportedError, match="root"):
        hg.Run(root, hg.Implicit(hg.GMRES(), inner=hg.Newton()), *pursuer(), MAID(1.0, 1.0))


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_a_function_that_returns_no_bound_is_refused(value: float) -> None:
    run = hg.Run(pursuit(), hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(lambda hparams: value, 1.0))
    with pytest.raises(InputError) as caught:
        run.step()
    assert "strong_convexity" in caught.value.passed


SETTINGS: list[tuple[str, Any]] = [
    ("strong_convexity", 0.0),
    ("strong_convexity", None),
    ("smoothness", -1.0),
    ("mixed", -1.0),
    ("inverse_lipschitz", -1.0),
    ("mixed_lipschitz", math.nan),
    ("direct_lipschitz", -0.1),
    ("accuracy", 0.0),
    ("linear", -1.0),
    ("step", 0.0),
    ("descent", 1.0),
    ("decrease", 0.5),
    ("shrink", 1.0),
    ("grow", 0.9),
    ("tighten", 0.0),
    ("loosen", 0.9),
    ("backtracks", 0),
    ("budgets", 0),
    ("tolerance", -1e-9),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        MAID(**{"strong_convexity": 1.0, "smoothness": 1.0, name: value})
    assert name in caught.value.passed
