"""What all tests of the check use: known problems, and algorithms that are altered to be wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypergrad as hg
from hypergrad.algorithm import Algorithm, Cost, Hypergradient
from hypergrad.testing import KnownProblem
from hypergrad.testing.problems import arguments
from hypergrad.tree import Tree


def checked(known: KnownProblem, algorithm: Algorithm[Any], **settings: Any) -> hg.CheckResult:
    return hg.check(**arguments(known), algorithm=algorithm, **{"verbose": False, **settings})


def fitted(known: KnownProblem) -> hg.Training:
    return hg.Training(lambda params, hparams: known.solution(hparams))


def implicit(linear: hg.LinearSolver) -> Callable[[KnownProblem], Algorithm[Any]]:
    return lambda known: hg.Implicit(linear, inner=fitted(known))


def descent(known: KnownProblem) -> hg.GradientDescent:
    return hg.GradientDescent(lr=known.step)


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


def undecided(result: hg.CheckResult, *said: str) -> None:
    assert (result.verdict, result.passed) == ("undecided", False), str(result)
    for words in said:
        assert words in result.cause, result.cause
