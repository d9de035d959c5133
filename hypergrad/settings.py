"""Checks of settings where they are passed: numbers in range, whole numbers, choices, parts of the right kind.

The plural forms read attributes of the object that is being built; ``None`` passes where it is the default.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any

from hypergrad.errors import InputError, did_you_mean


def check_count(call: str, name: str, value: Any, *, least: int = 1, do: str = "") -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless ``value`` is a whole number of at least ``least``.

    Args:
        call: the class or function that got the value.
        name: the argument.
        value: what was passed.
        least: smallest number allowed.
        do: the remedy, by default to pass what is expected.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise _wrong(call, name, value, f"a whole number, {name} {'> 0' if least == 1 else f'>= {least}'}", do)


def check_number(
    call: str,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    do: str = "",
) -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless ``value`` is a number within the limits that are given."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    within = (above is None or number > above) and (least is None or number >= least)
    if math.isnan(number) or not within or (below is not None and not number < below):
        signs = {">": above, ">=": least, "<": below}
        limits = " and ".join(f"{sign} {limit:g}" for sign, limit in signs.items() if limit is not None)
        raise _wrong(call, name, value, f"a number, {name} {limits}", do)


def check_counts(owner: object, *names: str, least: int = 1) -> None:
    """Check whole numbers of an object under construction."""
    for name, value, do in _given(owner, names):
        check_count(type(owner).__name__, name, value, least=least, do=do)


def check_numbers(
    owner: object, *names: str, above: float | None = None, least: float | None = None, below: float | None = None
) -> None:
    """Check numbers of an object under construction."""
    for name, value, do in _given(owner, names):
        check_number(type(owner).__name__, name, value, above=above, least=least, below=below, do=do)


def check_choice(owner: object, name: str, choices: Iterable[str]) -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless an attribute is one of ``choices``."""
    value, choices = getattr(owner, name), list(choices)
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        expected = ", ".join(f'"{choice}"' for choice in choices[:-1]) + f' or "{choices[-1]}"'
        raise _wrong(type(owner).__name__, name, value, expected + hint, "pick one of these")


def check_kind(owner: object, name: str, kind: type, do: str, *, optional: bool = False) -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless an attribute is an instance of ``kind``, or ``optional``."""
    for _, value, _ in _given(owner, [name]):
        if not isinstance(value, kind) and not (optional and value is None):
            raise _wrong(type(owner).__name__, name, value, f"an instance of a {kind.__name__}, not a class", do)


def check_function(owner: object, name: str, expected: str, do: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` unless an attribute can be called."""
    for _, value, _ in _given(owner, [name]):
        if not callable(value):
            raise _wrong(type(owner).__name__, name, value, expected, do)


def _given(owner: object, names: Iterable[str]) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and remedy of each setting, but for those that are ``None`` by default and were left so."""
    parameters = inspect.signature(type(owner)).parameters
    for name in names:
        value, default = getattr(owner, name), parameters[name].default
        if not (value is None and default is None):
            yield name, value, "" if default is inspect.Parameter.empty else f"leave {name} out for the default"


def _wrong(call: str, name: str, value: Any, expected: str, do: str) -> InputError:
    return InputError(passed=f"{call}({name}={value!r})", expected=expected, do=do or f"pass {expected}")
