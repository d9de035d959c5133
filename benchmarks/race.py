"""A race towards a result: a clock that runs while a row works, what is recorded of it, and who judges.

A row takes a number of outer steps. After each it hands over its parameters and hyperparameters, with the clock
stopped; it never sees the test examples. The sheet judges afterwards. Nothing here imports torch, JAX or this library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
Advance = Callable[[], Sequence[Any]]
Look = Callable[[], tuple[Sequence[Any], Sequence[Any]]]


@final
class Race:
    """CPU seconds of the work alone, and where it stood after each outer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._records: list[Array] = []
        self._spent = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count the CPU seconds of the block."""
        began = time.process_time()
        try:
            yield
        finally:
            self._spent += time.process_time() - began

    def note(self, params: Sequence[Any], hparams: Sequence[Any]) -> None:
        """Keep copies of where the row stands now."""
        self.seconds.append(self._spent)
        self._records.append(_flat([*params, *hparams]))

    def result(self, first: Sequence[Any], **counts: Any) -> dict[str, Any]:
        """Return what a row's function returns: the first hypergradient, then all records."""
        return {"answer": [_flat(first), *self._records], "counts": {"seconds": self.seconds, **counts}}


def drive(steps: int, start: Callable[[], tuple[Advance, Look]]) -> dict[str, Any]:
    """Run a row that can take one outer step at a time.

    Args:
        steps: outer steps.
        start: sets the row up, on the clock, and returns two functions: one takes an outer step and returns the
            hypergradients that it used, the other returns parameters and hyperparameters.
    """
    race, first = Race(), None
    with race.clock():
        advance, look = start()
    for _ in range(steps):
        with race.clock():
            found = advance()
        first = _flat(found) if first is None else first
        race.note(*look())
    return race.result([] if first is None else [first])


@final
@dataclass(frozen=True)
class Trace:
    """A race as the sheet sees it.

    Attributes:
        first: the first hypergradient, flat; empty where the row has none.
        seconds: CPU seconds after each record.
        params: flat parameters, one row a record.
        hparams: flat hyperparameters, one row a record.
    """

    first: Array
    seconds: list[float]
    params: Array
    hparams: Array

    @classmethod
    def unpack(cls, answer: Array, seconds: Sequence[float], sizes: tuple[int, int], *, first: bool = True) -> Trace:
        """Take a row's flat answer apart.

        Args:
            answer: the first hypergradient and all records, one after the other.
            seconds: of the records.
            sizes: entries of the parameters and of the hyperparameters.
            first: whether there is a first hypergradient.
        """
        start = sizes[1] if first else 0
        records = answer[start:].reshape(len(seconds), sum(sizes))
        return cls(answer[:start], list(seconds), records[:, : sizes[0]], records[:, sizes[0] :])


def reached(values: Sequence[float], target: float, *, at_most: bool = False) -> int | None:
    """Return the first place where a value reaches the target, or ``None``.

    >>> reached([0.7, 0.86, 0.84], 0.85)
    1
    >>> reached([0.7, 0.6], 0.5, at_most=True) is None
    True
    """
    for place, value in enumerate(values):
        if value <= target if at_most else value >= target:
            return place
    return None


def f1(flags: Array, wrong: Array) -> float:
    """Return F1 of finding the wrong examples: 2 · hits / (flagged + wrong); 0 where neither is any.

    >>> f1(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    marked = int(flags.sum()) + int(wrong.sum())
    return 2 * int((flags & wrong).sum()) / marked if marked else 0.0


def _flat(values: Sequence[Any]) -> Array:
    parts = [value.detach().numpy() if hasattr(value, "detach") else value for value in values]
    return np.concatenate([np.empty(0), *(np.array(part, dtype=np.float64).ravel() for part in parts)])
