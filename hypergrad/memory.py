"""A computation that ran out of memory, answered with a smaller plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypergrad import shortage
from hypergrad.algorithm import Algorithm
from hypergrad.problem import Problem


@contextmanager
def shortage_explained(what: str, algorithm: Algorithm[Any], problem: Problem) -> Iterator[None]:
    """A block that answers a lack of memory with a smaller plan; batches go back to where they stood.

    Args:
        what: what is done in the block.
        algorithm: the algorithm that needs the memory.
        problem: the problem, whose samplers are put back.

    Raises:
        OutOfMemoryError: in place of what the allocator raised, which it was caused by.
    """
    samplers = [sampler for sampler in (problem.inner_data, problem.outer_data) if sampler is not None]
    positions = [sampler.state_dict() for sampler in samplers]

    def plan() -> tuple[str, Algorithm[Any] | None]:
        for sampler, position in zip(samplers, positions, strict=True):
            sampler.load_state_dict(position)
        smaller, advice = smaller_plan(algorithm)
        return "; or ".join([*advice, algorithm.lighter]), smaller

    with shortage.said_plainly(what, plan):
        yield


def smaller_plan(algorithm: Algorithm[Any]) -> tuple[Algorithm[Any] | None, list[str]]:
    """Return an algorithm of the same kind that keeps less, where there is one, and what else would help, in words."""
    settings: Any = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
    plain: Any = algorithm
    smaller: Algorithm[Any] | None = None
    advice = []
    if settings.get("keep") in ("graph", "iterates"):
        smaller = dataclasses.replace(plain, keep="sqrt")
        advice.append('pass keep="sqrt", which holds the square root of the number of steps')
    elif settings.get("keep") == "sqrt":
        smaller = dataclasses.replace(plain, keep="log")
        advice.append('pass keep="log", which holds the logarithm of the number of steps')
    if "truncate" in settings:
        advice.append("pass truncate=, which differentiates the last steps only")
    if (settings.get("directions") or 0) > 1:
        smaller = dataclasses.replace(plain, directions=settings["directions"] // 2)
        advice.append(f"pass directions={settings['directions'] // 2}, one tangent of the parameters each")
    linear: Any = settings.get("linear")
    for name in ("restart", "rank", "keep"):
        for part in (linear, getattr(linear, "preconditioner", None)):
            if getattr(part, name, 1) > 1:
                held: Any = part
                fewer = dataclasses.replace(held, **{name: max(1, getattr(part, name) // 2)})
                changed = fewer if part is linear else dataclasses.replace(linear, preconditioner=fewer)
                smaller = dataclasses.replace(plain, linear=changed)
                advice.append(f"use {fewer!r}, which holds half as many vectors")
    return smaller, advice
