"""A computation that ran out of memory, answered with a smaller plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hypergrad.algorithm import Algorithm
from hypergrad.errors import MemoryShortageError
from hypergrad.problem import Problem

PHRASES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, MemoryShortageError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


@contextmanager
def shortage_explained(algorithm: Algorithm[Any], problem: Problem) -> Iterator[None]:
    """A block that answers a lack of memory with a smaller plan; batches go back to where they stood.

    Raises:
        MemoryShortageError: in place of torch's own error, which it was caused by.
    """
    samplers = [sampler for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    positions = [sampler.state_dict() for sampler in samplers]
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        for sampler, position in zip(samplers, positions, strict=True):
            sampler.load_state_dict(position)
        smaller, advice = smaller_plan(algorithm)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemoryShortageError(
            passed=f"{algorithm!r}, which ran out of memory ({first})",
            expected="a plan that fits; nothing was changed, the same step can be tried again",
            do="; or ".join(advice),
            smaller=smaller,
        ) from error


def smaller_plan(algorithm: Algorithm[Any]) -> tuple[Algorithm[Any] | None, list[str]]:
    """Return an algorithm of the same kind that keeps less, where there is one, and what else would help, in words."""
    settings: Any = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
    plain: Any = algorithm
    smaller: Algorithm[Any] | None = None
    advice = []
    if settings.get("keep") in ("graph", "iterates"):
        smaller = dataclasses.replace(plain, keep="sqrt")
        advice.append('keep="sqrt", which holds the square root of the number of steps')
    elif settings.get("keep") == "sqrt":
        smaller = dataclasses.replace(plain, keep="log")
        advice.append('keep="log", which holds the logarithm of the number of steps')
    if "truncate" in settings:
        advice.append("truncate=, which differentiates the last steps only")
    if (settings.get("directions") or 0) > 1:
        smaller = dataclasses.replace(plain, directions=settings["directions"] // 2)
        advice.append(f"directions={settings['directions'] // 2}, one tangent of the parameters each")
    linear: Any = settings.get("linear")
    for name in ("restart", "rank"):
        for part in (linear, getattr(linear, "preconditioner", None)):
            if getattr(part, name, 1) > 1:
                held: Any = part
                fewer = dataclasses.replace(held, **{name: max(1, getattr(part, name) // 2)})
                changed = fewer if part is linear else dataclasses.replace(linear, preconditioner=fewer)
                smaller = dataclasses.replace(plain, linear=changed)
                advice.append(f"{fewer!r}, which holds half as many vectors")
    advice.append("a smaller inner batch: the graph of the inner gradient grows with it")
    if linear is not None:
        advice.append("hypergrad.Neumann or hypergrad.Identity, which hold two vectors where CG holds five")
    return smaller, advice
