"""Algorithms by a word."""

from __future__ import annotations

from typing import Any

from hypergrad.algorithm import Algorithm, check_algorithm
from hypergrad.errors import InputError
from hypergrad.problem import Problem


def resolve(algorithm: Any, problem: Problem | None = None) -> Algorithm[Any]:
    """Return the algorithm, made from the word ``"auto"`` where it is that.

    Args:
        algorithm: what a face was given.
        problem: where the face has to train and was told no more than that word: the problem, for an inner solver.

    Raises:
        InputError: what is neither an algorithm nor that word; sampled training data, for which no inner solver goes
            without saying.
    """
    if not isinstance(algorithm, str):
        check_algorithm(algorithm)
        found: Algorithm[Any] = algorithm
        return found
    if algorithm != "auto":
        raise InputError(
            passed=f"algorithm={algorithm!r}",
            expected='an algorithm, or the word "auto"',
            do='pass algorithm="auto", hypergrad.Auto(inner=...) or hypergrad.Implicit(...)',
        )
    # it imports every algorithm that it may choose
    from hypergrad.solvers.bilevel.auto import automatic

    return automatic(problem)
