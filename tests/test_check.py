"""The hypergradient check: it agrees with what is right, and finds what is wrong with what is not."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.algorithm import Algorithm, Cost, Hypergradient
from hypergrad.errors import InputError, NonFiniteError, TreeError
from hypergrad.testing import KnownProblem, problems
from hypergrad.testing.problems import arguments
from hypergrad.tree import Tree, cloned

# ----------------------------------------------------------------------------------------------------------------------
# What is right agrees
# ----------------------------------------------------------------------------------------------------------------------


def checked(known: KnownProblem, algorithm: Algorithm[Any], **settings: Any) -> hg.CheckResult:
    return hg.check(**arguments(known), algorithm=algorithm, **{"verbose": False, **settings})


def fitted(known: KnownProblem) -> hg.Training:
    return hg.Training(lambda params, hparams: known.solution(hparams))


def implicit(linear: hg.LinearSolver) -> Callable[[KnownProblem], Algorithm[Any]]:
    return lambda known: hg.Implicit(linear, inner=fitted(known))


def descent(known: KnownProblem) -> hg.GradientDescent:
    return hg.GradientDescent(lr=known.step)


EXACT: dict[str, tuple[Callable[[KnownProblem], Algorithm[Any]], tuple[Callable[..., KnownProblem], ...]]] = {
    "cg": (implicit(hg.CG()), (problems.quadratic, problems.ridge, problems.logistic, problems.outer_only)),
    "gmres": (implicit(hg.GMRES()), (problems.fixed_point, problems.markov_decision, problems.halfspace)),
    "minres": (implicit(hg.MINRES()), (problems.equality, problems.singular)),
    "dense": (implicit(hg.Dense()), (problems.quadratic, problems.fixed_point, problems.equality)),
    "unrolled": (
        lambda known: hg.Unrolled(known.steps, descent(known)),
        (problems.scalar, problems.maml, problems.ridge, problems.fixed_point),
    ),
    "unrolled-log": (
        lambda known: hg.Unrolled(known.steps, descent(known), keep="log"),
        (problems.maml, problems.ridge),
    ),
    "forward": (lambda known: hg.ForwardMode(known.steps, descent(known)), (problems.maml, problems.ridge)),
    "zeroth-order": (
        lambda known: hg.ZerothOrder(
            fitted(known), step_size=1e-3 if known.params["w"].dtype == torch.float64 else 3e-2
        ),
        (problems.scalar, problems.ridge, problems.envelope),
    ),
}
CASES = [
    pytest.param(build, make, id=f"{name}-{make.__name__}") for name, (build, makes) in EXACT.items() for make in makes
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("build", "make"), CASES)
def test_an_exact_algorithm_agrees(
    build: Callable[[KnownProblem], Algorithm[Any]], make: Callable[..., KnownProblem], dtype: torch.dtype
) -> None:
    known = make(dtype)
    result = checked(known, build(known), tolerance=1e-3 if dtype == torch.float64 else 1e-2)
    assert result.passed, str(result)
    assert (result.verdict, result.cause) == ("agrees", "")
    assert [row.name for row in result.tensors] == list(known.hparams)
    assert all(row.verdict == "agrees" and row.cosine > 0.9999 for row in result.tensors)


@pytest.mark.parametrize("solver", [hg.LBFGS(tolerance=1e-10), hg.Newton()], ids=["lbfgs", "newton"])
@pytest.mark.parametrize("make", [problems.quadratic, problems.logistic])
def test_an_algorithm_with_a_library_solver_agrees(make: Callable[..., KnownProblem], solver: hg.InnerSolver) -> None:
    assert checked(make(), hg.Implicit(hg.CG(rtol=1e-9), inner=solver)).passed


def test_trained_parameters_are_trained_again_by_default() -> None:
    known = problems.logistic()
    result = hg.check(known.problem, known.trained(), known.hparams, hg.Implicit(), verbose=False)
    assert result.passed, str(result)


def test_how_to_train_again_can_be_said() -> None:
    known, calls = problems.quadratic(), itertools.count()

    def train(params: Tree, hparams: Tree) -> Tree:
        next(calls)
        return known.solution(hparams)

    result = hg.check(
        known.problem, known.trained(), known.hparams, hg.Implicit(), resolve=hg.Training(train), verbose=False
    )
    assert result.passed, str(result)
    assert next(calls) == result.trainings > 0


def test_the_slopes_are_those_of_the_outer_loss_and_the_first_is_along_the_hypergradient() -> None:
    known = problems.ridge()
    truth = known.hypergradient()
    result = checked(known, hg.Implicit(hg.CG(rtol=1e-10), inner=fitted(known)), directions=4)
    for row in result.tensors:
        assert row.predicted[0] == pytest.approx(float(truth[row.name].norm()), rel=1e-6)
        assert row.measured == pytest.approx(row.predicted, rel=1e-5, abs=1e-8)
        assert row.relative_error < 1e-5
        assert row.floor < 1e-4
        expected = 4 if truth[row.name].numel() > 1 else 1
        assert len(row.predicted) == len(row.measured) == expected


def test_what_was_checked_is_returned() -> None:
    known = problems.quadratic()
    algorithm = hg.Implicit(inner=fitted(known))
    result = checked(known, algorithm)
    expected = hg.hypergradient(**arguments(known), algorithm=algorithm)
    assert all(torch.equal(result.hypergradient.grads[key], expected.grads[key]) for key in expected.grads)
    assert result.hypergradient.report.algorithm == repr(algorithm)


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong disagrees, with its cause
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Altered(Algorithm[Any]):
    """An algorithm that claims to be exact and spoils its answer."""

    base: Algorithm[Any]
    alter: Callable[[hg.Problem, Hypergradient, Tree], Tree]
    order = 2
    cost = "that of its base"
    needs = "what its base needs"

    @property
    def exact(self) -> bool:
        return True

    @property
    def stochastic(self) -> bool:
        return False

    def init(self, problem: hg.Problem, params: Any, hparams: Any) -> Any:
        return self.base.init(problem, params, hparams)

    def step(self, problem: hg.Problem, state: Any, hparams: Tree) -> tuple[Hypergradient, Any]:
        result, state = self.base.step(problem, state, hparams)
        return dataclasses.replace(result, grads=self.alter(problem, result, hparams)), state

    def response(self, problem: hg.Problem, state: Any, hparams: Tree) -> Tree:
        return self.base.response(problem, state, hparams)

    def attach(self, problem: hg.Problem, params: Any, hparams: Tree) -> Tree:
        return self.base.attach(problem, params, hparams)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        return self.base.budget(params_size, hparams_size)


def scaled(factor: float, *names: str) -> Callable[[hg.Problem, Hypergradient, Tree], Tree]:
    def alter(problem: hg.Problem, result: Hypergradient, hparams: Tree) -> Tree:
        return {key: factor * g if key in names or not names else g for key, g in result.grads.items()}

    return alter


def direct_part(times: float) -> Callable[[hg.Problem, Hypergradient, Tree], Tree]:
    """Keep this multiple of ∂f/∂λ."""

    def alter(problem: hg.Problem, result: Hypergradient, hparams: Tree) -> Tree:
        direct = problem.outer_gradients(result.params, hparams).hparams
        return {key: g + (times - 1) * direct[key] if key in direct else g for key, g in result.grads.items()}

    return alter


def altered(known: KnownProblem, alter: Callable[[hg.Problem, Hypergradient, Tree], Tree]) -> Altered:
    return Altered(hg.Implicit(hg.Dense(), inner=fitted(known)), alter)


def disagrees(result: hg.CheckResult, *said: str) -> None:
    assert (result.verdict, result.passed) == ("disagrees", False), str(result)
    assert result.cause.startswith("likely cause: ")
    for words in said:
        assert words in result.cause, result.cause


def test_an_altered_algorithm_that_alters_nothing_agrees() -> None:
    known = problems.ridge()
    assert checked(known, altered(known, scaled(1.0))).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("factor", [0.5, 2.0, 1.05])
def test_a_wrong_length_is_found_with_its_factor(factor: float, dtype: torch.dtype) -> None:
    known = problems.quadratic(dtype)
    result = checked(known, altered(known, scaled(factor)))
    disagrees(result, "direction of 'x' is right", f"length is off by a factor of {factor:.3g}")
    assert result.tensors[0].relative_error == pytest.approx(abs(factor - 1), rel=0.02)


def test_a_reversed_sign_is_found() -> None:
    known = problems.quadratic()
    result = checked(known, altered(known, scaled(-1.0)))
    disagrees(result, "the sign of 'x' is reversed")
    assert result.tensors[0].cosine == pytest.approx(-1.0)


def test_only_the_tensor_that_is_wrong_is_blamed() -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")))
    assert {row.name: row.verdict for row in result.tensors} == {"x": "disagrees", "z": "agrees"}
    disagrees(result, "'x'")
    assert "'z'" not in result.cause


def with_direct_part() -> KnownProblem:
    """w* = Sx with the direct part ∂f/∂x = c, which is not parallel to the rest."""
    slope = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0], [0.3, 0.0, 1.0]], dtype=torch.float64)
    c = torch.tensor([8.0, 5.0, -6.0], dtype=torch.float64)
    return KnownProblem(
        name="with_direct_part",
        problem=hg.Problem(
            lambda params, hparams: (params["w"] - slope @ hparams["x"]).square().sum() / 2,
            lambda params, hparams: (params["w"] - 1).square().sum() / 2 + c @ hparams["x"],
        ),
        params={"w": torch.zeros(3, dtype=torch.float64)},
        hparams={"x": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)},
        solution=lambda hparams: {"w": slope @ hparams["x"]},
        step=0.5,
        steps=60,
    )


@pytest.mark.parametrize("make", [problems.scalar, problems.outer_only, with_direct_part])
def test_a_direct_part_that_is_left_out_is_found(make: Callable[..., KnownProblem]) -> None:
    known = make()
    result = checked(known, altered(known, direct_part(0.0)))
    name = "z" if make is problems.outer_only else "x"
    disagrees(result, f"the direct part ∂f/∂λ of {name!r}", "left out")


@pytest.mark.parametrize("make", [problems.outer_only, with_direct_part])
def test_a_direct_part_of_the_wrong_sign_is_found(make: Callable[..., KnownProblem]) -> None:
    known = make()
    result = checked(known, altered(known, direct_part(-1.0)))
    disagrees(result, "sign")


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda known: hg.Implicit(hg.Neumann(2, step=known.step / 2), inner=fitted(known)),
        lambda known: hg.Implicit(hg.Identity(known.step), inner=fitted(known)),
        lambda known: hg.Implicit(hg.CG(), inner=fitted(known), damping=1.0),
        lambda known: hg.Unrolled(known.steps, descent(known), truncate=2),
        lambda known: hg.ForwardMode(known.steps, descent(known), mode="random"),
        lambda known: hg.ForwardMode(known.steps, descent(known), mode="guided"),
        lambda known: hg.ZerothOrder(fitted(known), mode="RGE"),
    ],
    ids=["neumann", "identity", "damped", "truncated", "forward-random", "forward-guided", "random-differences"],
)
def test_an_estimator_that_is_biased_or_random_by_design_is_told_from_a_mistake(
    algorithm: Callable[[KnownProblem], Algorithm[Any]],
) -> None:
    known = problems.quadratic()
    built = algorithm(known)
    disagrees(checked(known, built), "biased or random by design", repr(built))


def test_training_that_is_too_short_for_the_implicit_formula_is_found() -> None:
    known = problems.quadratic()
    short = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=3))
    disagrees(checked(known, short), "not at its optimum", "train longer")


def test_a_linear_solve_that_ran_out_of_steps_is_found() -> None:
    known = problems.quadratic()
    disagrees(checked(known, hg.Implicit(hg.CG(max_steps=1), inner=fitted(known))), "linear solve stopped", "max_steps")


def test_negative_curvature_is_found() -> None:
    curvature = torch.tensor([2.0, -1.0], dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: (curvature * params["w"].square()).sum() / 2 - hparams["x"] @ params["w"],
        lambda params, hparams: (params["w"] - 3).square().sum() / 2,
    )
    point = {"w": torch.zeros(2, dtype=torch.float64)}, {"x": torch.tensor([0.4, 0.8], dtype=torch.float64)}
    saddle = hg.Training(lambda params, hparams: {"w": hparams["x"] / curvature})
    disagrees(hg.check(problem, *point, hg.Implicit(inner=saddle), verbose=False), "not positive definite", "MINRES")
    assert hg.check(problem, *point, hg.Implicit(hg.MINRES(), inner=saddle), verbose=False).passed


def test_a_path_that_detach_cut_is_found() -> None:
    known = problems.outer_only()
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: (
            (params["w"] - hparams["z"]).square().sum() + hparams["x"].detach() @ torch.arange(3.0, dtype=torch.float64)
        ),
    )
    exact = hg.Implicit(inner=hg.Training(lambda _, hparams: {"w": hparams["x"]}))
    result = hg.check(problem, known.params, known.hparams, exact, verbose=False)
    disagrees(result, "'x'", ".detach()")
    assert "'z'" not in result.cause


def test_training_that_ends_elsewhere_than_at_the_inner_optimum_is_found() -> None:
    known = problems.quadratic()
    astray = hg.Training(lambda _, hparams: {k: 1.5 * v for k, v in known.solution(hparams).items()})
    result = checked(known, hg.Implicit(inner=astray))
    disagrees(result, "optimum")


# ----------------------------------------------------------------------------------------------------------------------
# What cannot be decided is not decided
# ----------------------------------------------------------------------------------------------------------------------


def undecided(result: hg.CheckResult, *said: str) -> None:
    assert (result.verdict, result.passed) == ("undecided", False), str(result)
    for words in said:
        assert words in result.cause, result.cause


def test_training_that_is_not_repeatable_is_not_judged() -> None:
    known = problems.quadratic()

    def train(params: Tree, hparams: Tree) -> Tree:
        return {key: value + 1e-3 * random.random() for key, value in known.solution(hparams).items()}

    result = checked(known, hg.Implicit(inner=hg.Training(train), stationarity=math.inf))
    undecided(result, "two training runs with the same hyperparameters differ", "torch's generators")


def test_training_that_is_too_coarse_is_not_judged() -> None:
    known = problems.scalar()

    def coarse(params: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"] + 1e-2 * (1e5 * hparams["x"]).sin()}

    result = checked(known, hg.Implicit(inner=hg.Training(coarse), stationarity=math.inf))
    undecided(result, "noise floor is too high", "tighter tolerance", "float64")
    assert result.tensors[0].floor > 0.1


@pytest.mark.parametrize("steps", [(1e-9, 1e-10), (1e-6, 1e-7)])
def test_steps_below_the_rounding_error_are_no_evidence_against_the_hypergradient(steps: tuple[float, ...]) -> None:
    known = problems.quadratic(torch.float32)
    result = checked(known, hg.Implicit(inner=fitted(known)), steps=steps)
    undecided(result, "noise floor is too high", "larger steps")


def near_an_edge(loss: str) -> tuple[hg.Problem, Tree, Tree, hg.Implicit]:
    """The outer loss, or training, is NaN a little to the left."""

    def train(params: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"].clone() if loss == "outer" else (hparams["x"] - 0.9).sqrt()}

    problem = hg.Problem(
        lambda params, hparams: (
            (params["w"] - (hparams["x"] if loss == "outer" else (hparams["x"] - 0.9).sqrt())).square().sum()
        ),
        lambda params, hparams: (params["w"] - 0.9).sqrt().sum() if loss == "outer" else params["w"].square().sum(),
    )
    x = torch.ones(2, dtype=torch.float64)
    return problem, {"w": x.clone()}, {"x": x}, hg.Implicit(inner=hg.Training(train))


@pytest.mark.parametrize("loss", ["outer", "inner"])
def test_steps_at_which_training_breaks_down_are_no_evidence(loss: str) -> None:
    problem, params, hparams, algorithm = near_an_edge(loss)
    result = hg.check(problem, params, hparams, algorithm, steps=(0.4, 0.3), verbose=False)
    undecided(result, "smaller where training breaks down")


@pytest.mark.parametrize("loss", ["outer", "inner"])
def test_the_steps_at_which_training_does_not_break_down_decide(loss: str) -> None:
    problem, params, hparams, algorithm = near_an_edge(loss)
    result = hg.check(problem, params, hparams, algorithm, steps=(0.4, 1e-2, 1e-3, 1e-4), verbose=False)
    assert result.passed, str(result)


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives that are zero
# ----------------------------------------------------------------------------------------------------------------------


def test_a_hyperparameter_whose_derivative_is_zero_agrees() -> None:
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"].square() - hparams["y"]).square().sum(),
        lambda params, hparams: params["w"].square().sum(),
    )
    hparams = {"x": torch.zeros(3, dtype=torch.float64), "y": torch.ones(3, dtype=torch.float64)}
    result = hg.check(
        problem,
        {"w": torch.zeros(3, dtype=torch.float64)},
        hparams,
        hg.Implicit(inner=hg.Training(lambda _, hparams: {"w": hparams["x"].square() + hparams["y"]})),
        verbose=False,
    )
    assert result.passed, str(result)
    row = result.tensors[0]
    assert (row.name, row.predicted, row.cosine) == ("x", (0.0, 0.0, 0.0), 1.0)
    assert row.relative_error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("make", [problems.quadratic, problems.singular, problems.fixed_point])
def test_at_the_optimum_rounding_errors_are_no_evidence_against_the_hypergradient(
    make: Callable[..., KnownProblem], dtype: torch.dtype
) -> None:
    known = make(dtype)
    assert known.optimum is not None
    algorithm = hg.Implicit(hg.Dense(), inner=fitted(known))
    result = hg.check(known.problem, known.params, known.optimum, algorithm, verbose=False)
    assert result.verdict != "disagrees", str(result)


def test_a_hypergradient_that_is_wrongly_zero_disagrees() -> None:
    known = problems.quadratic()
    result = checked(known, altered(known, scaled(0.0)))
    disagrees(result, "'x'")
    assert result.tensors[0].relative_error == pytest.approx(1.0)


# ----------------------------------------------------------------------------------------------------------------------
# What it costs, and what it leaves behind
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("steps", [(1e-2, 1e-3), (1e-1, 1e-2, 1e-3, 1e-4)])
def test_the_number_of_trainings_is_the_one_that_is_documented(directions: int, steps: tuple[float, ...]) -> None:
    calls = itertools.count()

    def train(params: Tree, hparams: Tree) -> Tree:
        next(calls)
        return {"w": hparams["x"] + hparams["y"]}

    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"] - hparams["y"]).square().sum(),
        lambda params, hparams: (params["w"] - 1).square().sum(),
    )
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    hparams = {"x": torch.full((3,), 0.2, dtype=torch.float64), "y": torch.full((3,), 0.1, dtype=torch.float64)}
    algorithm = hg.Implicit(inner=hg.Training(train))
    result = hg.check(problem, params, hparams, algorithm, directions=directions, steps=steps, verbose=False)
    assert result.passed
    assert result.trainings == 2 * directions * len(steps) * len(hparams) + 2
    assert next(calls) == result.trainings + 1, "one more for the hypergradient itself"


def test_a_scalar_has_one_direction_only() -> None:
    known = problems.scalar()
    result = checked(known, hg.Implicit(inner=fitted(known)), directions=5)
    assert result.trainings == 2 * 3 + 2


def noisy_problem(noise: str) -> tuple[hg.Problem, Tree, Tree]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)

    def loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        rows, targets = (x, y) if batch is None else batch
        if noise == "dropout":
            rows = nn.functional.dropout(rows, 0.3)
        return (rows @ params["w"] - targets).square().mean() + (hparams["d"].exp() * params["w"].square()).sum()

    def judge(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        rows, targets = (x, y) if batch is None else batch
        return (rows @ params["w"] - targets).square().mean() + (params["w"] - 1).square().sum()

    samplers: dict[str, Any] = {}
    if noise == "batches":
        samplers["inner_data"] = hg.TensorSampler(x, y, batch_size=4, seed=1)
        samplers["outer_data"] = hg.TensorSampler(x, y, batch_size=5, seed=2)
        samplers["inner_data"].draw()  # in the middle of an epoch
    params, hparams = {"w": torch.zeros(3, dtype=torch.float64)}, {"d": torch.full((3,), -2.0, dtype=torch.float64)}
    return hg.Problem(loss, judge, **samplers), params, hparams


@pytest.mark.parametrize("noise", ["dropout", "batches"])
@pytest.mark.parametrize("keep", ["graph", "sqrt"])
def test_training_runs_see_the_same_random_numbers_and_batches(noise: str, keep: Any) -> None:
    problem, params, hparams = noisy_problem(noise)
    algorithm = hg.Unrolled(7, hg.GradientDescent(lr=0.05, momentum=0.5), keep=keep)
    result = hg.check(problem, params, hparams, algorithm, verbose=False)
    assert result.passed, str(result)


@pytest.mark.parametrize("noise", ["dropout", "batches"])
def test_a_check_leaves_everything_as_it_was(noise: str) -> None:
    problem, params, hparams = noisy_problem(noise)
    before, state = (cloned(params), cloned(hparams)), torch.get_rng_state()
    places = [sampler.state_dict() for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    hg.check(problem, params, hparams, hg.Unrolled(3, hg.GradientDescent(lr=0.05)), verbose=False)
    for now, then in zip((params, hparams), before, strict=True):
        assert all(torch.equal(now[key], then[key]) and now[key].grad is None for key in then)
        assert not any(value.requires_grad for value in now.values())
    assert torch.equal(torch.get_rng_state(), state)
    after = [sampler.state_dict() for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    assert after == places


def test_the_same_seed_gives_the_same_comparison_and_another_seed_other_directions() -> None:
    known = problems.quadratic()
    first, again, other = (checked(known, hg.Implicit(inner=fitted(known)), seed=seed) for seed in (0, 0, 1))
    assert first.tensors == again.tensors
    assert first.tensors[0].predicted[0] == other.tensors[0].predicted[0], "along the hypergradient"
    assert first.tensors[0].predicted[1:] != other.tensors[0].predicted[1:]


# ----------------------------------------------------------------------------------------------------------------------
# What it prints
# ----------------------------------------------------------------------------------------------------------------------


def test_the_table_is_printed_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")), verbose=False)
    assert capsys.readouterr().out == ""
    checked(known, altered(known, scaled(0.5, "x")), verbose=True)
    assert capsys.readouterr().out == f"{result}\n"


def test_the_table_has_a_line_for_each_tensor_and_the_verdict_and_the_cause_under_them() -> None:
    known = problems.outer_only()
    result = checked(known, altered(known, scaled(0.5, "x")))
    heading, *rows, verdict, cause = str(result).splitlines()
    assert heading.split("  ")[0].strip() == "hyperparameter"
    assert [row.split()[0] for row in rows] == ["x", "z"]
    assert [row.split()[-1] for row in rows] == ["disagrees", "agrees"]
    assert f"{result.tensors[0].relative_error:.2e}" in rows[0]
    assert verdict == f"disagrees ({result.trainings} training runs)"
    assert cause == result.cause


def test_a_table_of_what_agrees_has_no_cause() -> None:
    known = problems.scalar()
    assert str(checked(known, hg.Implicit(inner=fitted(known)))).splitlines()[-1].startswith("agrees (")


# ----------------------------------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({"directions": 0}, "check(directions=0)"),
        ({"directions": -2}, "check(directions=-2)"),
        ({"tolerance": 0.0}, "check(tolerance=0.0)"),
        ({"tolerance": math.nan}, "check(tolerance=nan)"),
        ({"steps": (1e-2,)}, "check(steps=(0.01,))"),
        ({"steps": (1e-3, 1e-2)}, "check(steps=(0.001, 0.01))"),
        ({"steps": (1e-2, 1e-2)}, "check(steps=(0.01, 0.01))"),
        ({"steps": (1e-2, 0.0)}, "check(steps=(0.01, 0.0))"),
        ({"steps": (1e-2, math.nan)}, "check(steps=(0.01, nan))"),
        ({"steps": ()}, "check(steps=())"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_any_training(settings: dict[str, Any], passed: str) -> None:
    known = problems.quadratic()

    def never(params: Tree, hparams: Tree) -> Tree:
        raise AssertionError("training began")

    with pytest.raises(InputError) as caught:
        checked(known, hg.Implicit(inner=hg.Training(never)), **settings)
    assert caught.value.passed == passed
    assert caught.value.expected
    assert caught.value.do


def test_nan_at_the_point_itself_is_an_error() -> None:
    known = problems.quadratic()
    problem = known.problem.with_outer(lambda params, hparams: known.problem.outer(params, hparams) * math.nan)
    with pytest.raises(NonFiniteError) as caught:
        hg.check(problem, known.params, known.hparams, hg.Implicit(inner=fitted(known)), verbose=False)
    assert "the outer loss" in caught.value.passed


def test_bad_trees_are_refused() -> None:
    known = problems.quadratic()
    with pytest.raises(TreeError, match="params"):
        hg.check(known.problem, {}, known.hparams, hg.Implicit(), verbose=False)
