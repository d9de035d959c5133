"""The sampler in studies: exact sequences of points, what it reads from the study, and what it refuses."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from hypergrad.bridges.optuna import AdamMove, GradientMove, HypergradientSampler, SpectralMove, report_hypergradient
from hypergrad.errors import HypergradWarning, InputError

Objective = Callable[[optuna.Trial], float]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def bowl(trial: optuna.Trial) -> float:
    """(x - 1)² + 2·(y + 1)²."""
    x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -5, 5)
    report_hypergradient(trial, {"x": 2 * (x - 1), "y": 4 * (y + 1)})
    return (x - 1) ** 2 + 2 * (y + 1) ** 2


def study_with(sampler: HypergradientSampler, **settings: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler, **settings)


def points(study: optuna.Study, name: str = "x") -> list[float]:
    return [trial.params[name] for trial in study.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_plain_descent_visits_the_points_of_the_formula(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -50, 50)
        report_hypergradient(trial, {"x": sign * 2 * (x - 1), "y": sign * 2 * (y - 3)})
        return sign * ((x - 1) ** 2 + (y - 3) ** 2)

    study = study_with(HypergradientSampler(GradientMove(step=0.1)), direction=direction)
    study.enqueue_trial({"x": 4.0, "y": -7.0})
    study.optimize(objective, n_trials=8)
    assert points(study) == pytest.approx([1 + 3 * 0.8**k for k in range(8)], rel=1e-13)
    assert points(study, "y") == pytest.approx([3 - 10 * 0.8**k for k in range(8)], rel=1e-13)


def test_a_parameter_with_log_moves_in_its_logarithm() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 1e-6, 1e3, log=True)  # F = (ln x)², dF/dx = 2·ln x / x, dF/dz = 2·z
        report_hypergradient(trial, {"x": 2 * math.log(x) / x})
        return math.log(x) ** 2

    study = study_with(HypergradientSampler(GradientMove(step=0.1)))
    study.enqueue_trial({"x": math.exp(4)})
    study.optimize(objective, n_trials=8)
    assert points(study) == pytest.approx([math.exp(4 * 0.8**k) for k in range(8)], rel=1e-12)


@pytest.mark.parametrize("log", [False, True])
def test_a_move_out_of_the_bounds_ends_on_them(log: bool) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.3, 0.7, log=log)
        report_hypergradient(trial, {"x": -1e6})
        return -x

    study = study_with(HypergradientSampler(GradientMove(step=1.0)))
    study.enqueue_trial({"x": 0.4})
    study.optimize(objective, n_trials=3)
    assert points(study) == [0.4, 0.7, 0.7]


def test_the_derivative_may_be_a_tensor() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = torch.tensor(trial.suggest_float("x", -5, 5), dtype=torch.float64, requires_grad=True)
        value = (x - 1).square()
        report_hypergradient(trial, {"x": torch.autograd.grad(value, x, create_graph=True)[0]})
        return value.item()

    study = study_with(HypergradientSampler(GradientMove(step=0.5)))
    study.enqueue_trial({"x": 4.0})
    study.optimize(objective, n_trials=2)
    assert points(study) == [4.0, pytest.approx(1.0)]


def test_ten_times_better_than_tpe_in_fifty_dimensions_with_as_many_trials() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = torch.tensor([trial.suggest_float(f"x{i}", -2, 2) for i in range(50)], dtype=torch.float64)
        x.requires_grad_()
        value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()  # Rosenbrock's valley
        (slope,) = torch.autograd.grad(value, x)
        report_hypergradient(trial, {f"x{i}": slope[i] for i in range(50)})
        return value.item()

    ours = study_with(HypergradientSampler(seed=0))
    theirs = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for study in (ours, theirs):
        study.optimize(objective, n_trials=60)
    assert ours.trials[0].params == theirs.trials[0].params
    assert ours.best_value < 0.1 * theirs.best_value


def test_a_chain_keeps_its_categories_and_whole_numbers() -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        layers = trial.suggest_int("layers", 1, 100)
        grid = trial.suggest_float("grid", 0, 1, step=0.25)
        x = trial.suggest_float("x", -5, 5)
        report_hypergradient(trial, {"x": 2 * (x - 1)})
        return (x - 1) ** 2 + layers + grid + ord(kind)

    study = study_with(HypergradientSampler(AdamMove(), seed=0))
    study.optimize(objective, n_trials=6)
    rest = [{name: value for name, value in trial.params.items() if name != "x"} for trial in study.trials]
    assert rest == [rest[0]] * 6
    assert len(set(points(study))) == 6
    study = study_with(HypergradientSampler(AdamMove(), seed=0, hold=False))
    study.optimize(objective, n_trials=6)
    assert len(set(points(study, "layers"))) > 3
    assert [trial.system_attrs["hypergrad:chain"] for trial in study.trials] == [-1, 0, 0, 0, 0, 0]


def test_a_structure_that_changes_what_is_suggested_has_chains_of_its_own() -> None:
    def objective(trial: optuna.Trial) -> float:
        name = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float(name, -5, 5)
        report_hypergradient(trial, {name: 2 * (x - 1)})
        return (x - 1) ** 2 + (name == "a")

    study = study_with(HypergradientSampler(seed=0, chains=3, patience=4))
    study.optimize(objective, n_trials=40)
    assert study.best_params["kind"] == "b"
    assert study.best_value < 1e-20


def test_several_chains_take_turns() -> None:
    study = study_with(HypergradientSampler(GradientMove(step=0.01), chains=3, seed=0))
    study.optimize(bowl, n_trials=12)
    assert [trial.system_attrs["hypergrad:chain"] for trial in study.trials] == [-1] * 3 + [0, 1, 2] * 3


def test_more_chains_find_the_lower_valley() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -2, 2)
        report_hypergradient(trial, {"x": 4 * x * (x * x - 1) + 0.3})
        return (x * x - 1) ** 2 + 0.3 * x

    one, many = (study_with(HypergradientSampler(chains=n, seed=3, patience=200)) for n in (1, 6))
    for study in (one, many):
        study.enqueue_trial({"x": 1.5})
        study.optimize(objective, n_trials=40)
    assert many.best_params["x"] < 0


def test_a_chain_at_its_end_gives_way_to_a_new_one() -> None:
    study = study_with(HypergradientSampler(SpectralMove(), seed=0))
    study.optimize(bowl, n_trials=40)
    begun = [trial.number for trial in study.trials if trial.system_attrs["hypergrad:chain"] == -1]
    assert begun[0] == 0
    assert len(begun) > 1
    assert min(trial.value or 0 for trial in study.trials if trial.number < begun[1]) < 1e-14


def test_patience_ends_a_chain_that_gets_no_better() -> None:
    study = study_with(HypergradientSampler(GradientMove(step=1.0), patience=3, seed=0))
    study.enqueue_trial({"x": 1.1, "y": -1.1})  # the step is too long: it jumps across the valley
    study.optimize(bowl, n_trials=5)
    assert [trial.system_attrs.get("hypergrad:chain") for trial in study.trials] == [None, 0, 0, 0, -1]


def test_a_running_trial_keeps_its_chain() -> None:
    study = study_with(HypergradientSampler(GradientMove(step=0.1), seed=0))
    study.optimize(bowl, n_trials=1)
    first, second, third = (study.ask() for _ in range(3))
    values = [bowl(trial) for trial in (first, second, third)]
    chains = [trial.system_attrs["hypergrad:chain"] for trial in study.get_trials()[1:]]
    assert chains == [0, -1, -1]
    assert len(set(points(study))) == 4
    for trial, value in zip((second, third, first), values[1:] + values[:1], strict=True):
        study.tell(trial, value)
    again = [study.ask() for _ in range(3)]  # as many at a time as there are chains now, each of another one
    for trial in again:
        bowl(trial)
    assert sorted(trial.system_attrs["hypergrad:chain"] for trial in study.get_trials()[4:]) == [0, 2, 3]


@pytest.mark.parametrize("finished", [False, True])
def test_a_chain_claimed_by_two_workers_at_once_goes_to_one(finished: bool) -> None:
    sampler = HypergradientSampler(GradientMove(step=0.1), seed=0)
    study = study_with(sampler)
    study.optimize(bowl, n_trials=1)
    choose = sampler._choose
    others: list[Any] = []

    def late(*args: Any) -> Any:
        found = choose(*args)
        if not others:  # between reading and claiming, another worker claims and perhaps finishes
            others.append(None)
            others[0] = study.ask()
            value = bowl(others[0])
            if finished:
                study.tell(others[0], value)
        return found

    sampler._choose = late  # type: ignore[assignment,method-assign]
    trial = study.ask()
    bowl(trial)
    assert len(set(points(study))) == 3
    claims = [trial.system_attrs["hypergrad:chain"] for trial in study.get_trials()]
    assert claims == ([-1, 0, 0] if finished else [-1, -1, 0])
    if finished:
        assert trial.params["x"] - 1 == pytest.approx(0.8**2 * (study.trials[0].params["x"] - 1))


@pytest.mark.parametrize("trouble", ["raise", "nan", "prune", "slope", "none"])
def test_a_trial_in_trouble_shortens_the_next_move(trouble: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -5, 5)
        if x < 2.9 and trouble == "raise":
            raise FloatingPointError
        if x < 2.9 and trouble == "prune":
            trial.report(1.0, 0)
            raise optuna.TrialPruned
        if not (x < 2.9 and trouble == "none"):
            report_hypergradient(trial, {"x": math.nan if x < 2.9 and trouble == "slope" else 2.0})
        return math.nan if x < 2.9 and trouble == "nan" else 2 * x

    study = study_with(HypergradientSampler(GradientMove(step=0.5)))
    study.enqueue_trial({"x": 4.5})
    study.optimize(objective, n_trials=6, catch=(FloatingPointError,))
    assert points(study) == pytest.approx([4.5, 3.5, 2.5, 3.0, 2.0, 2.5])


def test_a_trial_that_runs_again_counts_once() -> None:
    study = study_with(HypergradientSampler(GradientMove(step=0.1), seed=0))
    study.optimize(bowl, n_trials=2)
    killed = study.ask()
    bowl(killed)
    study.tell(killed, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, study.trials[2])
    other = study.ask()  # the queued one, with the same parameters and in the same chain
    assert study.tell(other, bowl(other)).params == study.trials[2].params
    study.optimize(bowl, n_trials=1)
    assert [study.trials[k].params["x"] - 1 for k in (0, 1, 3, 4)] == pytest.approx(
        [(study.trials[0].params["x"] - 1) * 0.8**k for k in range(4)]
    )


def test_the_same_seed_gives_the_same_trials() -> None:
    runs = [study_with(HypergradientSampler(seed=seed, chains=2)) for seed in (5, 5, 6)]
    for study in runs:
        study.optimize(bowl, n_trials=10)
    assert points(runs[0]) == points(runs[1]) != points(runs[2])


def go_on(storage: str, trials: int) -> None:
    """Open or create a study for each move and run some trials."""
    moves = {"gradient": GradientMove(step=0.1, momentum=0.9), "adam": AdamMove(step=0.1), "spectral": SpectralMove()}
    for name, move in moves.items():
        sampler = HypergradientSampler(move)
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True, sampler=sampler)
        if not study.trials:
            study.enqueue_trial({"x": 4.0, "y": 3.0})
        study.optimize(bowl, n_trials=trials)


@pytest.mark.slow
def test_another_process_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    whole, parts = f"sqlite:///{tmp_path}/whole.db", f"sqlite:///{tmp_path}/parts.db"
    go_on(whole, 8)
    go_on(parts, 5)
    code = f"from tests.optuna.sampler.test_sampler import go_on; go_on({parts!r}, 3)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    for name in ("gradient", "adam", "spectral"):
        once, twice = (optuna.load_study(study_name=name, storage=storage) for storage in (whole, parts))
        assert [trial.params for trial in once.trials] == [trial.params for trial in twice.trials]
        assert len(set(points(once))) == 8


def test_trials_of_another_sampler_are_continued_from_the_best() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(bowl, n_trials=10)
    best = study.best_trial.number
    study.sampler = HypergradientSampler(seed=0)
    study.optimize(bowl, n_trials=3)
    assert {trial.system_attrs["hypergrad:chain"] for trial in study.trials[10:]} == {best}


def test_it_works_with_threads_hyperband_and_another_fallback() -> None:
    sampler = HypergradientSampler(fallback=optuna.samplers.CmaEsSampler(seed=0, warn_independent_sampling=False))
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = study_with(sampler, pruner=pruner)
    study.optimize(bowl, n_trials=30, n_jobs=3)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert study.best_value < 1e-6


def test_it_can_be_pickled() -> None:
    study = study_with(pickle.loads(pickle.dumps(HypergradientSampler(GradientMove(step=0.1), seed=0))))
    study.optimize(bowl, n_trials=3)
    assert [trial.system_attrs["hypergrad:chain"] for trial in study.trials] == [-1, 0, 0]


def test_bounds_that_move_are_those_of_the_last_trial() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -5, 5 - trial.number)
        report_hypergradient(trial, {"x": -2.0})
        return -2 * x

    study = study_with(HypergradientSampler(GradientMove(step=0.75), seed=0))
    study.enqueue_trial({"x": 0.0})
    study.optimize(objective, n_trials=6)
    assert points(study)[:2] == [0.0, 1.5]
    assert all(trial.params["x"] <= 5 - trial.number for trial in study.trials)


def test_a_study_with_two_objectives_is_refused() -> None:
    study = study_with(HypergradientSampler(), directions=["minimize", "maximize"])
    with pytest.raises(InputError, match="a study with 2 objectives"):
        study.ask()


def test_more_than_a_thousand_parameters_are_refused_with_what_they_cost() -> None:
    cost = "one million of them would be an hour of CPU per trial in SQLite"
    fixed = optuna.trial.FixedTrial({f"x{i}": 0.5 for i in range(1001)})
    for name in [f"x{i}" for i in range(1001)]:
        fixed.suggest_float(name, 0, 1)
    with pytest.raises(InputError, match=cost):
        report_hypergradient(fixed, {f"x{i}": 0.0 for i in range(1001)})
    report_hypergradient(fixed, {f"x{i}": 0.0 for i in range(1000)})
    study = study_with(HypergradientSampler(fallback=optuna.samplers.RandomSampler(seed=0)))
    trial = study.ask({f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(1000)})
    trial.suggest_categorical("kind", ["a", "b"])
    with pytest.raises(InputError, match=cost):
        trial.suggest_float("x1000", 0, 1)


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        ({"w": 1.0}, "'w'"),
        ({"rate": 1.0}, "did you mean 'rates'"),
        ({"whole": 1.0}, "'whole', IntDistribution"),
        ({"kind": 1.0}, "'kind', CategoricalDistribution"),
        ({"grid": 1.0}, "'grid', FloatDistribution"),
        ({"single": 1.0}, "'single', FloatDistribution"),
    ],
)
def test_a_derivative_for_what_has_none_is_refused(gradient: dict[str, float], words: str) -> None:
    trial = optuna.create_study().ask()
    trial.suggest_float("rates", 0, 1)
    trial.suggest_int("whole", 0, 1)
    trial.suggest_categorical("kind", ["a", "b"])
    trial.suggest_float("grid", 0, 1, step=0.5)
    trial.suggest_float("single", 1, 1)
    with pytest.raises(InputError, match=words):
        report_hypergradient(trial, gradient)
    assert trial.user_attrs == {}


def test_a_study_whose_trials_report_nothing_is_told_so_once() -> None:
    study = study_with(HypergradientSampler(seed=0))
    with pytest.warns(HypergradWarning, match="none of 20 complete trials reported") as caught:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=23)
    assert len(caught) == 1
    assert len(study.trials) == 23


@pytest.mark.parametrize(
    "stored",
    [
        "x",
        [],
        [["x"]],
        [["x"], "1"],
        [["x"], ["1"]],
        [["x"], [1.0, 2.0]],
        [["w"], [1.0]],
        [[["x"]], [1.0]],
        [{}, {}],
        3,
    ],
)
def test_an_attribute_that_is_no_gradient_counts_as_none(stored: Any) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("hypergrad:gradient", stored)
        return trial.suggest_float("x", 0, 1)

    study = study_with(HypergradientSampler(seed=0))
    study.optimize(objective, n_trials=3)
    assert [trial.system_attrs["hypergrad:chain"] for trial in study.trials] == [-1, -1, -1]


@pytest.mark.parametrize(
    "settings", [{"chains": 0}, {"patience": 0}, {"move": "adam"}, {"fallback": optuna.samplers.TPESampler}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="HypergradientSampler"):
        HypergradientSampler(**settings)
