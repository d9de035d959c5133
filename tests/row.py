"""What a row of THE TABLE says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypergrad.algorithm import Algorithm
from hypergrad.testing import KnownProblem
from hypergrad.tree import Tree

Expected = Callable[[KnownProblem], Tree]


@dataclass(frozen=True)
class Row:
    """One algorithm.

    Attributes:
        name: of the row.
        build: the algorithm for a known problem.
        expected: what its hypergradient equals; the closed form dF/dλ for exact rows.
        exact: whether ``expected`` is dF/dλ itself.
        applies: whether a known problem has what the algorithm needs.
        tolerance: largest relative error in float64.
        tolerance32: largest relative error in float32.
        adaptive: whether a tolerance can end the work early, so that the claimed cost is a bound.
        opaque: whether the work is somebody else's, so that its cost cannot be claimed beforehand.
    """

    name: str
    build: Callable[[KnownProblem], Algorithm[Any]]
    expected: Expected
    exact: bool = True
    applies: Callable[[KnownProblem], bool] = lambda known: True
    tolerance: float = 1e-8
    tolerance32: float = 2e-4
    adaptive: bool = False
    opaque: bool = False
