"""Settings that a method lets decay: a number, or a function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypergrad.errors import InputError
from hypergrad.settings import check_number

Schedule = float | Callable[[int], float]
"""A number above 0, or a function of the iteration's number, from 0, that returns one."""


def check_schedules(owner: object, *names: str, optional: bool = False) -> None:
    """Refuse schedules that are neither a number above 0 nor a function, at the object under construction."""
    for name in names:
        value = getattr(owner, name)
        if not callable(value) and not (optional and value is None):
            check_number(
                type(owner).__name__, name, value, above=0, do="pass a number above 0 or a function of the step"
            )


def scheduled(owner: object, name: str, step: int) -> float:
    """Return a schedule's value at an iteration.

    Raises:
        InputError: the function returned something else than a finite number above 0.
    """
    schedule: Any = getattr(owner, name)
    if not callable(schedule):
        return float(schedule)
    returned: Any = schedule(step)
    value = float(returned)
    if not 0 < value < math.inf:
        raise InputError(
            passed=f"{type(owner).__name__}({name}=...), which returned {value} at iteration {step}",
            expected="a finite number above 0 at every iteration",
            do=f"let {name} fall towards 0 without reaching it, for instance 0.1 / (1 + step) ** 0.5",
        )
    return value


def scheduled_like(owner: object, name: str, other: str, step: int) -> float:
    """Return a schedule's value at an iteration, that of another one where it is ``None``."""
    return scheduled(owner, other if getattr(owner, name) is None else name, step)


def power(start: float, exponent: float) -> Callable[[int], float]:
    """Return the schedule start · (1 + step)^(−exponent).

    >>> power(0.1, 0.5)(3)
    0.05
    """
    return _Power(start, exponent)


class _Power:
    def __init__(self, start: float, exponent: float) -> None:
        self.start, self.exponent = start, exponent

    def __call__(self, step: int) -> float:
        return float(self.start * (1 + step) ** -self.exponent)

    def __repr__(self) -> str:
        return f"power({self.start}, {self.exponent})"
