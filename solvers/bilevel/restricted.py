"""A problem, and an algorithm, as functions of some of the hyperparameters while the others are held."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hypergrad.algorithm import Algorithm
from hypergrad.inner import InnerSolver, Tuned, UpdateRule
from hypergrad.lagrangian import Lagrangian
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.solvers.inner.training import Training
from hypergrad.tree import Tree


def restricted(problem: Problem, held: Tree) -> Problem:
    """Return the problem in the hyperparameters other than ``held``, which every function gets as they are."""
    if not held:
        return problem
    changed: dict[str, Any] = {"envelope": problem.is_envelope}
    for name in ("inner", "outer", "penalty", "condition"):
        function: Any = getattr(problem, name)
        if isinstance(function, Lagrangian):
            parts = {field.name: getattr(function, field.name) for field in dataclasses.fields(function)}
            changed[name] = Lagrangian(
                **{
                    key: part and UserFunction(part.name, _filled(part.name, part.function, held))
                    for key, part in parts.items()
                }
            )
        elif function is not None:
            changed[name] = _filled(name, function, held)
    if problem.initial is not None:
        changed["initial"] = _filled_start(problem.initial, held)
    if problem.response_vjp is not None:
        changed["response_vjp"] = _filled_response(problem, held)
    changed["hparams_domain"] = {key: domain for key, domain in problem.hparams_domain.items() if key not in held}
    return dataclasses.replace(problem, **changed)


def holding(algorithm: Algorithm[Any], held: Tree) -> Algorithm[Any]:
    """Return the algorithm with an inner solver that gets ``held`` beside the other hyperparameters."""
    inner = getattr(algorithm, "inner", None)
    if not held or not isinstance(inner, InnerSolver):
        return algorithm
    plain: Any = algorithm
    changed: Algorithm[Any] = dataclasses.replace(plain, inner=_held(inner, held))
    return changed


def _held(inner: InnerSolver, held: Tree) -> InnerSolver:
    if isinstance(inner, Training):
        train = inner.function
        return Training(lambda params, hparams: train(params, {**held, **hparams}))
    if not isinstance(inner, UpdateRule):
        return inner
    settings = {name: getattr(inner, name) for name in inner.tuned}
    tuned: Any = {name: _filled_setting(value, held) for name, value in settings.items() if isinstance(value, Tuned)}
    return dataclasses.replace(inner, **tuned)


def _filled_setting(setting: Tuned, held: Tree) -> Tuned:
    return Tuned(lambda hparams, step: setting({**held, **hparams}, step))


def _filled(name: str, function: Callable[..., Any], held: Tree) -> Callable[[Tree, Tree, Any], Any]:
    user = UserFunction(name, function)
    return lambda params, hparams, batch: user(params, {**held, **hparams}, batch)


def _filled_start(initial: Callable[[Tree], Any], held: Tree) -> Callable[[Tree], Any]:
    return lambda hparams: initial({**held, **hparams})


def _filled_response(problem: Problem, held: Tree) -> Callable[[Tree, Tree, Tree, Any], Tree]:
    def pull(params: Tree, hparams: Tree, cotangent: Tree, batch: Any) -> dict[str, Tensor]:
        value = problem.pull_back(params, {**held, **hparams}, cotangent, batch)
        return {key: entry for key, entry in value.items() if key in hparams}

    return pull
