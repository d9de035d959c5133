"""Settings of any algorithm that change from one outer step to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from hypergrad.algorithm import Algorithm, Cost, Hypergradient, check_algorithm
from hypergrad.errors import HypergradError, InputError, did_you_mean
from hypergrad.problem import Problem
from hypergrad.tree import Tree

ScheduleOfSetting = Callable[[int], Any]


@final
@dataclass(frozen=True, init=False)
class Scheduled(Algorithm[Any]):
    """Another algorithm whose settings are functions of the outer step: few terms at first, more later on.

    Step k of λ is a step of ``dataclasses.replace(algorithm, name=function(k), ...)``. In :class:`~hypergrad.Run` and
    what is built on it k is the number of the outer step, from 0, the same for every trial of a line search; elsewhere
    it is the number of hypergradients taken. The state is that of the algorithm, warm starts included.

    Args:
        algorithm: the algorithm, with its parts as usual.
        settings: functions of k by the setting's dotted name: ``{"inner.steps": lambda k: 10 + k}``.
        named: the same by the setting's own name, where only one part has it: ``terms=lambda k: 2 + k``. The
            algorithm's own settings come before those of its parts. A setting that can be scheduled is a number,
            ``None`` or a choice; step sizes that take a function of the iteration themselves stay with that.

    Cost: that of the algorithm with the settings of the step.

    Raises:
        InputError: no such setting, a name that several parts have, a setting that is no number, or a value that the
            setting does not allow; for step 0 at once, later at the step.

    Source: inexact oracles whose accuracy rises over the outer steps: Pedregosa (2016); Ji, Yang, Liang (2021).

    Example:
        >>> import hypergrad as hg
        >>> algorithm = hg.Implicit(hg.Neumann(1), inner=hg.GradientDescent(lr=0.1, steps=10))
        >>> growing = Scheduled(algorithm, {"inner.steps": lambda k: 10 * (k + 1)}, terms=lambda k: min(1 + k, 20))
        >>> growing.at_step(4).linear.terms, growing.at_step(4).inner.steps
        (5, 50)
    """

    algorithm: Algorithm[Any]
    settings: Mapping[str, ScheduleOfSetting] = field(default_factory=dict)
    order = 2
    cost = "that of the algorithm with the settings of the step"
    needs = "what the algorithm needs"

    def __init__(
        self,
        algorithm: Algorithm[Any],
        settings: Mapping[str, ScheduleOfSetting] | None = None,
        **named: ScheduleOfSetting,
    ) -> None:
        """Find every setting, and check its value at step 0."""
        check_algorithm(algorithm)
        given = {**(settings or {}), **named}
        if not given:
            raise InputError(
                "Scheduled without a setting", "at least one function of the step", "pass terms=lambda k: 2 + k"
            )
        paths: dict[str, ScheduleOfSetting] = {}
        for name, function in given.items():
            path = _find(algorithm, name)
            if not callable(function):
                raise InputError(
                    passed=f"Scheduled({name}={function!r})",
                    expected="a function of the outer step, from 0",
                    do=f"pass {name}=lambda k: ..., or set what does not change in the algorithm itself",
                )
            if path in paths:
                raise InputError(f"Scheduled with {path!r} twice", "one function for each setting", "drop one of them")
            paths[path] = function
        object.__setattr__(self, "algorithm", algorithm)
        object.__setattr__(self, "settings", paths)
        for trait in ("order", "elsewhere"):
            object.__setattr__(self, trait, getattr(algorithm, trait))
        self.at_step(0)

    @property
    def exact(self) -> bool:
        """Whether the algorithm with the settings of step 0 is exact."""
        return self.at_step(0).exact

    @property
    def stochastic(self) -> bool:
        """Whether the algorithm is stochastic."""
        return self.algorithm.stochastic

    def at_step(self, step: int) -> Algorithm[Any]:
        """Return the algorithm with the settings of an outer step, from 0."""
        found = self.algorithm
        for path, function in self.settings.items():
            found = _replaced(found, path.split("."), function(step), f"Scheduled, {path} at step {step}")
        return found.at_step(step)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> Any:
        """Return the first state of the algorithm."""
        return self.at_step(0).init(problem, params, hparams)

    def step(self, problem: Problem, state: Any, hparams: Tree) -> tuple[Hypergradient, Any]:
        """Make a step with the settings for the number of hypergradients taken."""
        return self.at_step(state.steps).step(problem, state, hparams)

    def response(self, problem: Problem, state: Any, hparams: Tree) -> Tree:
        """Return θ(λ) with the settings for the number of hypergradients taken."""
        return self.at_step(state.steps).response(problem, state, hparams)

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ(λ) with the backward pass of the algorithm at step 0."""
        return self.at_step(0).attach(problem, params, hparams)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        return self.at_step(0).budget(params_size, hparams_size)


def _settings(part: object) -> dict[str, Any]:
    """Return the settings of an algorithm or of one of its parts."""
    if isinstance(part, Scheduled) or not dataclasses.is_dataclass(part):
        return {}
    return {each.name: getattr(part, each.name) for each in dataclasses.fields(part) if each.init}


def _all(part: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting that can be scheduled by its dotted name, those of the part itself first."""
    found = _settings(part)
    for name, value in found.items():
        if value is None or isinstance(value, bool | int | float | str):
            yield prefix + name, value
    for name, value in found.items():
        yield from _all(value, f"{prefix}{name}.")


def _find(algorithm: Algorithm[Any], name: str) -> str:
    """Return the dotted name of a setting."""
    known = [path for path, _ in _all(algorithm)]
    if name in known:
        return name
    among = [path for path in known if path.rpartition(".")[2] == name]
    if len(among) == 1:
        return among[0]
    if among:
        raise InputError(
            passed=f"Scheduled({name}=...), a setting of several parts of {algorithm!r}",
            expected=f"one of {among}",
            do=f"name the part: Scheduled(algorithm, {{{among[0]!r}: lambda k: ...}})",
        )
    hint = did_you_mean(name, [*known, *(path.rpartition(".")[2] for path in known)])
    raise InputError(
        passed=f"Scheduled({name}=...){hint} of {algorithm!r}",
        expected=f"a setting that is a number: {', '.join(known)}",
        do="rename it; a setting that takes a function of the iteration itself needs no Scheduled",
    )


def _replaced(part: Any, path: list[str], value: Any, where: str) -> Any:
    """Return a part with one setting, its own or that of a part of it, replaced."""
    name, *rest = path
    if rest:
        value = _replaced(getattr(part, name), rest, value, where)
        return dataclasses.replace(part, **{name: value})
    try:
        return dataclasses.replace(part, **{name: value})
    except HypergradError as error:
        raise InputError(f"{error.passed} ({where})", error.expected, error.do) from error
