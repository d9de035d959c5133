"""Chains of trials, read from a study: each begins where a trial reported its hypergradient, and goes on by moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from hypergrad.bridges.optuna.gradients import read_gradient
from hypergrad.bridges.optuna.moves import Move, Visit

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

CHAIN = "hypergrad:chain"
"""The system attribute of a trial that the sampler proposed: the number of its chain's first trial."""

FRESH = -1
"""The same attribute where the fallback sampler proposed the trial."""


@final
@dataclass
class Chain:
    """A chain's trials, in the order of their numbers.

    Attributes:
        start: number of the first, which has a hypergradient.
        finished: the trials that have ended, the first among them.
        busy: one of its trials runs, or waits to be run again.
    """

    start: int
    finished: list[FrozenTrial]
    busy: bool = False

    def numbers(self) -> list[int]:
        """Return the numbers of the finished trials."""
        return [trial.number for trial in self.finished]

    def best(self, sign: float) -> tuple[float, int]:
        """Return the smallest of sign·value, and how many trials have ended since."""
        values = [_value(trial, sign) for trial in self.finished]
        least = min(values)
        return least, len(values) - 1 - values.index(least)

    def propose(self, move: Move, sign: float, hold: bool) -> tuple[dict[str, Any], dict[str, BaseDistribution]] | None:
        """Return parameters and distributions of the chain's next trial, or ``None`` at its end.

        Args:
            move: the rule.
            sign: 1 where values are made small, -1 where they are made large.
            hold: propose the parameters without a derivative too, as they were in the chain's first trial.
        """
        names = sorted(read_gradient(self.finished[0]) or {})
        visited = [(trial, _slopes(trial, names)) for trial in self.finished]
        last = next(trial for trial, slopes in reversed(visited) if slopes is not None)
        space = {name: last.distributions[name] for name in names}
        scales = [_Scale(distribution) for distribution in space.values()]
        widths = np.array([scale.high - scale.low for scale in scales])
        visits = [
            Visit(
                np.array([scale.inward(trial.params[name]) for name, scale in zip(names, scales, strict=True)]),
                _value(trial, sign),
                sign
                * widths
                * [s * scale.factor(trial.params[n]) for n, s, scale in zip(names, slopes, scales, strict=True)],
            )
            if slopes is not None
            else Visit(np.empty(0), math.inf, None)
            for trial, slopes in visited
        ]
        point = move.propose(visits, widths)
        if point is None:
            return None
        params: dict[str, Any] = {name: scale.outward(at) for name, scale, at in zip(names, scales, point, strict=True)}
        if hold:
            kept = {name: value for name, value in self.finished[0].params.items() if name not in params}
            params |= kept
            space |= {name: self.finished[0].distributions[name] for name in kept}
        return params, space


def read_chains(trials: Sequence[FrozenTrial], without: int) -> tuple[list[Chain], int]:
    """Return a study's chains, and the number of trials that are about to begin one.

    Args:
        trials: of the study, in the order of their numbers.
        without: number of a trial that is left out: the one that is being proposed.
    """
    from optuna.trial import TrialState

    repeated = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    chains: dict[int, Chain] = {}
    fresh = 0
    for trial in trials:
        if trial.number in repeated or trial.number == without:
            continue
        chain = chains.get(trial.system_attrs.get(CHAIN, FRESH))
        if chain is None and math.isfinite(_value(trial, 1.0)) and read_gradient(trial) is not None:
            chains[trial.number] = Chain(trial.number, [trial])
        elif chain is None:
            fresh += trial.state == TrialState.RUNNING and CHAIN in trial.system_attrs
        elif trial.state.is_finished():
            chain.finished.append(trial)
        else:
            chain.busy = True
    return list(chains.values()), fresh


@final
class _Scale:
    """The interval of one parameter, in the logarithm where it is searched in it."""

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self.low, self.high = (self._inner(end) for end in (distribution.low, distribution.high))

    def inward(self, value: float) -> float:
        """Return where in the interval a value lies, 0 to 1."""
        return (self._inner(value) - self.low) / (self.high - self.low)

    def outward(self, at: float) -> float:
        """Return the value, within the bounds whatever the rounding."""
        inner = self.low + float(at) * (self.high - self.low)
        value = math.exp(inner) if self.distribution.log else inner
        return float(min(max(value, self.distribution.low), self.distribution.high))

    def factor(self, value: float) -> float:
        """Return dx/dz, by which a derivative by the parameter becomes one by its logarithm."""
        return value if self.distribution.log else 1.0

    def _inner(self, value: float) -> float:
        return math.log(value) if self.distribution.log else float(value)


def _slopes(trial: FrozenTrial, names: list[str]) -> list[float] | None:
    """Return the derivatives by these parameters of a trial that succeeded."""
    gradient = read_gradient(trial)
    if not math.isfinite(_value(trial, 1.0)) or gradient is None or sorted(gradient) != names:
        return None
    return [gradient[name] for name in names]


def _value(trial: FrozenTrial, sign: float) -> float:
    """Return sign·value of a trial that is complete, infinity for others."""
    from optuna.trial import TrialState

    if trial.state != TrialState.COMPLETE or trial.value is None:
        return math.inf
    return sign * float(trial.value)
