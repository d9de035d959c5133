"""The hypergradient that a trial carries with it: written by the objective, read by the sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from torch import Tensor

from hypergrad.bridges.optuna.trials import refuse_many
from hypergrad.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial, FrozenTrial

GRADIENT = "hypergrad:gradient"
"""The user attribute of a trial: ``[[name, …], [derivative, …]]``, ``null`` for a derivative that is not finite."""


def continuous(distribution: BaseDistribution) -> bool:
    """Whether a parameter can be moved by a derivative: a float without a grid, in an interval with a length."""
    from optuna.distributions import FloatDistribution

    return isinstance(distribution, FloatDistribution) and distribution.step is None and not distribution.single()


def report_hypergradient(trial: BaseTrial, gradient: Mapping[str, SupportsFloat]) -> None:
    """Attach dF/dx of the trial's value F to the trial, for :class:`HypergradientSampler` to move by.

    Call it in the objective, at any time before it returns. F is the value that the objective returns, at the values
    of the parameters that the trial suggested: never report an improved value for the parameters it began with.

    Args:
        trial: the running trial; an ``optuna.trial.FixedTrial`` will do as well.
        gradient: ``{name: dF/dx}`` with numbers or tensors of one entry, for continuous parameters that the trial
            suggested. The derivative is with respect to the parameter itself, for ``log=True`` too. Where one is NaN
            or infinite, the trial counts as one that failed.

    Cost: one attribute in the storage, about 20 bytes a parameter.

    Raises:
        InputError: a name that was not suggested, is no float, has a ``step`` or a single value; more than 1,000.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({"x": 2.0})
        >>> x = trial.suggest_float("x", 0.0, 5.0)
        >>> report_hypergradient(trial, {"x": 2 * x})
        >>> trial.user_attrs["hypergrad:gradient"]
        [['x'], [4.0]]
    """
    refuse_many(len(gradient), "report_hypergradient")
    names = sorted(gradient)
    suggested = trial.distributions  # a deep copy each time it is asked for
    for name in names:
        if name not in suggested:
            raise InputError(
                passed=f"report_hypergradient with a derivative for {name!r}{did_you_mean(name, suggested)}",
                expected="names of parameters that this trial has suggested",
                do="call trial.suggest_float for it before",
            )
        if not continuous(suggested[name]):
            raise InputError(
                passed=f"report_hypergradient with a derivative for {name!r}, {suggested[name]}",
                expected="floats without step, whose low and high differ",
                do="leave it out: the sampler's fallback proposes it",
            )
    numbers = [_number(gradient[name]) for name in names]
    trial.set_user_attr(GRADIENT, [names, [number if math.isfinite(number) else None for number in numbers]])


def _number(derivative: SupportsFloat) -> float:
    return float(derivative.detach() if isinstance(derivative, Tensor) else derivative)


def read_gradient(trial: FrozenTrial) -> dict[str, float] | None:
    """Return what a trial was given, or ``None``: nothing, something else, or a derivative that is not finite."""
    stored: Any = trial.user_attrs.get(GRADIENT)
    if not (isinstance(stored, list) and len(stored) == 2 and all(isinstance(part, list) and part for part in stored)):
        return None
    names, numbers = stored
    whole = len(names) == len(numbers) and all(isinstance(number, int | float) for number in numbers)
    if not whole or not all(_movable(trial, name) for name in names):
        return None
    return dict(zip(names, numbers, strict=True)) if all(map(math.isfinite, numbers)) else None


def _movable(trial: FrozenTrial, name: Any) -> bool:
    return isinstance(name, str) and name in trial.params and continuous(trial.distributions[name])
