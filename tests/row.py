"""What a row of THE TABLE says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hypergrad.algorithm import Algorithm
from hypergrad.testing import KnownProblem
from hypergrad.tree import Tree

Expected = Callable[[KnownProblem], Tree]


@dataclass(frozen=True)
class Rate:
    """How fast a noisy method's error falls on the quadratic of ``tests/stochastic_quadratic.py``.

    The slope of log error against log ``against``, fitted for each of three seeds.

    Attributes:
        claimed: the exponent of the paper, of ‖dF/dλ‖² unless ``claim`` says otherwise.
        claim: the paper's words for it.
        source: of the claim.
        measured: the mean slope.
        spread: the largest distance of a seed's slope from the mean.
        setting: what was run.
        measure: runs it and returns the slope of each seed.
        broken: the twin that must not meet the claim: what is switched off.
        measure_broken: its slopes.
        against: what the error falls with.
        tolerance: how far above the claim the mean slope may lie.
    """

    claimed: float
    claim: str
    source: str
    measured: float
    spread: float
    setting: str
    measure: Callable[[], Tensor]
    broken: str
    measure_broken: Callable[[], Tensor]
    against: str = "iterations"
    tolerance: float = 0.1


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
        rate: of rows that are noisy or follow the solution over iterations: at which rate their error falls.
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
    rate: Rate | None = None
