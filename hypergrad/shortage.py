"""Memory that runs out: said plainly, and given back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hypergrad.errors import OutOfMemoryError

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Return whether an exception tells of memory that ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)


@contextmanager
def said_plainly(what: str, plan: Callable[[], tuple[str, Any]]) -> Iterator[None]:
    """Turn what allocators raise into :class:`~hypergrad.errors.OutOfMemoryError`, and free what the block held.

    The local variables of the functions that were interrupted are cleared, so that a smaller attempt finds the memory
    free even while the exception is being handled.

    Args:
        what: what was being done.
        plan: returns what to do in words, and an algorithm that keeps less, or ``None``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        deepest: BaseException | None = error
        while deepest is not None:
            traceback.clear_frames(deepest.__traceback__)
            deepest = deepest.__cause__
        if isinstance(error, OutOfMemoryError):
            what = f"{what}: {error.passed}"
            first: BaseException = error.__cause__ or error
        else:
            what, first = f"{what}, which ran out of memory ({_first_line(error)})", error
        do, smaller = plan()
        plain = OutOfMemoryError(
            passed=what,
            expected="memory for one graph of the inner gradient, its passes and the algorithm's vectors; nothing was "
            "changed",
            do=do,
            smaller=smaller,
        )
        raise plain from first


def in_product(number: int, error: BaseException) -> OutOfMemoryError:
    """Return the error that says in which product of a linear solve memory ran out."""
    return OutOfMemoryError(
        passed=f"product {number} of a linear solve, which ran out of memory ({_first_line(error)})",
        expected="memory for one pass through the graph of the inner gradient",
        do="use a smaller inner batch",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
