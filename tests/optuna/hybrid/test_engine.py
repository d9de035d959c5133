"""The engine's settings as a search space: what is asked for, what comes back, that it runs."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest
import torch

import hypergrad as hg
from hypergrad.bridges.optuna import Engine, suggest_engine
from hypergrad.bridges.optuna.engine import CHOICES
from hypergrad.errors import InputError
from tests.optuna.hybrid.common import attrs, problem, run, start, study

COMMON = {"algorithm", "inner_steps", "outer", "outer_adam_rate"}
ASKED = {
    ("implicit", "cg"): {"inner", "gradient_descent_rate", "linear", "terms", "damping"},
    ("implicit", "neumann"): {"inner", "gradient_descent_rate", "linear", "terms", "damping"},
    ("implicit", "nystrom"): {"inner", "gradient_descent_rate", "linear", "terms", "damping"},
    ("implicit", "identity"): {"inner", "gradient_descent_rate", "linear", "scale"},
    ("unrolled", "cg"): {"unrolled_inner", "gradient_descent_rate", "truncate"},
    ("stocbio", "cg"): {"step_size", "terms"},
    ("soba", "cg"): {"step_size"},
    ("f2sa", "cg"): {"step_size", "penalty"},
}
EVERYTHING: dict[str, Any] = {name: CHOICES[name] for name in ("algorithms", "linear", "inner", "outer")}


@pytest.mark.parametrize(("algorithm", "linear"), ASKED)
def test_only_what_matters_is_asked_for(algorithm: str, linear: str) -> None:
    found = study()
    trial = found.ask()
    engine = suggest_engine(
        trial,
        algorithms=[algorithm],  # type: ignore[list-item]
        linear=[linear],  # type: ignore[list-item]
        inner=("gradient_descent", "lbfgs") if algorithm == "unrolled" else ("gradient_descent",),
        outer=("adam",),
    )
    names = {name.removeprefix("engine.") for name in trial.params}
    assert names == COMMON | ASKED[algorithm, linear]
    assert isinstance(engine, Engine)
    assert isinstance(engine.outer, hg.outer.Torch)
    assert engine.outer.options == {"lr": trial.params["engine.outer_adam_rate"]}


GIVEN: list[tuple[dict[str, Any], Any]] = [
    (
        {"algorithm": "implicit", "inner": "lbfgs", "inner_steps": 7, "linear": "cg", "terms": 3, "damping": 0.01},
        hg.Implicit(hg.CG(max_steps=3), inner=hg.LBFGS(tolerance=1e-4, steps=7), damping=0.01),
    ),
    (
        {
            "algorithm": "implicit",
            "inner": "adam",
            "adam_rate": 0.01,
            "inner_steps": 7,
            "linear": "neumann",
            "terms": 3,
            "damping": 0.01,
        },
        hg.Implicit(hg.Neumann(3), inner=hg.Adam(steps=7, lr=0.01), damping=0.01),
    ),
    (
        {
            "algorithm": "implicit",
            "inner": "gradient_descent",
            "gradient_descent_rate": 0.1,
            "inner_steps": 7,
            "linear": "nystrom",
            "terms": 3,
            "damping": 0.01,
        },
        hg.Implicit(hg.Nystrom(rank=3, damping=0.01), inner=hg.GradientDescent(steps=7, lr=0.1)),
    ),
    (
        {
            "algorithm": "implicit",
            "inner": "gradient_descent",
            "gradient_descent_rate": 0.1,
            "inner_steps": 7,
            "linear": "identity",
            "scale": 0.2,
        },
        hg.Implicit(hg.Identity(0.2), inner=hg.GradientDescent(steps=7, lr=0.1)),
    ),
    (
        {"algorithm": "unrolled", "unrolled_inner": "adam", "adam_rate": 0.01, "inner_steps": 10, "truncate": 0.25},
        hg.Unrolled(10, hg.Adam(lr=0.01), truncate=2),
    ),
    (
        {"algorithm": "unrolled", "unrolled_inner": "adam", "adam_rate": 0.01, "inner_steps": 10, "truncate": 1.0},
        hg.Unrolled(10, hg.Adam(lr=0.01)),
    ),
    (
        {"algorithm": "stocbio", "step_size": 0.1, "inner_steps": 7, "terms": 3},
        hg.StocBiO(step_size=0.1, inner_steps=7, terms=3),
    ),
    ({"algorithm": "soba", "step_size": 0.1, "inner_steps": 7}, hg.SOBA(step_size=0.1, iterations=7)),
    (
        {"algorithm": "f2sa", "step_size": 0.1, "inner_steps": 7, "penalty": 20.0},
        hg.F2SA(step_size=0.1, inner_steps=7, penalty=20.0),
    ),
]


@pytest.mark.parametrize(("given", "algorithm"), GIVEN)
def test_names_are_stable_and_mean_what_they_say(given: dict[str, Any], algorithm: Any) -> None:
    named = {f"engine.{name}": value for name, value in given.items()} | {"engine.outer": "lbfgsb"}
    engine = suggest_engine(optuna.trial.FixedTrial(named), **EVERYTHING)
    assert repr(engine.algorithm) == repr(algorithm)
    assert engine.outer == hg.outer.LBFGSB(iterations=1)


@pytest.mark.parametrize("outer", ["adam", "sgd"])
def test_the_outer_move_is_an_optimizer(outer: str) -> None:
    given = {"algorithm": "soba", "step_size": 0.1, "inner_steps": 7, "outer": outer, f"outer_{outer}_rate": 0.5}
    move = suggest_engine(optuna.trial.FixedTrial({f"engine.{name}": value for name, value in given.items()})).outer
    assert isinstance(move, hg.outer.Torch)
    assert move.optimizer is {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[outer]


def search(trial: Any) -> Any:
    algorithm, move = suggest_engine(trial, inner_steps=(2, 6), terms=(1, 3), rate=(0.01, 0.1), **EVERYTHING)
    return problem(), *start(), algorithm, move


@pytest.mark.filterwarnings("ignore::hypergrad.errors.HypergradWarning")
def test_every_engine_runs_in_a_study() -> None:
    found = study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=20))
    moves = itertools.cycle(("adam", "sgd"))
    pairs = [("implicit", linear) for linear in CHOICES["linear"]] + [(name, "cg") for name in CHOICES["algorithms"]]
    for algorithm, linear in pairs:
        wanted = {"algorithm": algorithm, "linear": linear, "outer": next(moves)}
        found.enqueue_trial({f"engine.{name}": value for name, value in wanted.items()})
    run(found, trials=len(pairs) + 4, function=search, steps=2)
    states = {(t.params["engine.algorithm"], t.params.get("engine.linear")): t for t in found.trials[: len(pairs)]}
    assert len(states) == len(pairs) - 1, "implicit with cg is asked for twice"
    assert {t.state.name for t in states.values()} == {"COMPLETE"}, [attrs(t).get("failure") for t in states.values()]
    again = suggest_engine(
        optuna.trial.FixedTrial(found.best_params), inner_steps=(2, 6), terms=(1, 3), rate=(0.01, 0.1), **EVERYTHING
    )
    assert repr(again.algorithm).partition("(")[0] == attrs(found.best_trial)["report"]["algorithm"].partition("(")[0]


def test_two_engines_in_one_trial_have_prefixes() -> None:
    trial = study().ask()
    for prefix in ("first.", "second."):
        suggest_engine(trial, algorithms=("soba",), prefix=prefix)
    assert "first.step_size" in trial.params
    assert "second.step_size" in trial.params
    assert not [name for name in trial.params if name.startswith("engine")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithms": ("implict",)}, "did you mean 'implicit'"),
        ({"algorithms": "implicit"}, r"pass a tuple: algorithms=\(\"implicit\",\)"),
        ({"linear": ()}, "linear"),
        ({"outer": ("adam", "adam")}, "each once"),
        ({"inner": ("lbfgs",)}, "a rule that can be unrolled"),
        ({"inner_steps": (0, 5)}, r"inner_steps\[0\]"),
        ({"inner_steps": (1.5, 5)}, "two whole numbers"),
        ({"terms": (5, 1)}, r"terms\[1\]"),
        ({"rate": 0.1}, "two numbers"),
        ({"damping": (0.0, 1.0)}, r"damping\[0\]"),
    ],
)
def test_a_wrong_space_is_refused(options: dict[str, Any], message: str) -> None:
    trial = study().ask()
    with pytest.raises(InputError, match=message):
        suggest_engine(trial, **options)
    assert trial.params == {}


def test_the_documented_names_are_all_there_are() -> None:
    names = {name for group in ASKED.values() for name in group} | COMMON | {"outer_sgd_rate", "adam_rate"}
    text = suggest_engine.__doc__ or ""
    assert [name for name in sorted(names) if f"``{name}``" not in text] == []
