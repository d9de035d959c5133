"""How a chain of trials moves on: from what was visited to the next point, with no state but the visits.

Points are in units of the parameters' ranges: 0 at ``low``, 1 at ``high``, in the logarithm where ``log=True``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hypergrad.settings import check_counts, check_number, check_numbers

Vector = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Visit:
    """One finished trial of a chain.

    Attributes:
        point: (d,), each in [0, 1].
        value: to be made small; infinite where the trial failed or was pruned.
        slope: (d,), the derivatives of ``value`` by ``point``; ``None`` where the trial failed.
    """

    point: Vector
    value: float
    slope: Vector | None


class Move(ABC):
    """The rule by which :class:`HypergradientSampler` goes from the trials of a chain to its next one."""

    @abstractmethod
    def propose(self, visits: Sequence[Visit], widths: Vector) -> Vector | None:
        """Return the next point, (d,), each in [0, 1], or ``None`` where the chain is at its end.

        Args:
            visits: the chain's trials in their order; the first has a slope.
            widths: (d,), ``high - low`` of each parameter, of the logarithms where ``log=True``.
        """


@final
@dataclass(frozen=True)
class GradientMove(Move):
    """z ← clip(z − step·v, low, high) with v ← momentum·v + dF/dz.

    z is the parameter, or its logarithm for ``log=True``. A trial that failed or was pruned is left: the move is made
    again from the last good one, half as long.

    Args:
        step: length of a move per unit of the derivative, > 0, in the parameters' own units.
        momentum: share of the last move that is kept, 0 ≤ momentum < 1.

    Cost: none to speak of, and one trial a move.

    Raises:
        InputError: numbers out of range.

    Source: projected gradient descent with heavy-ball momentum (Polyak, 1964), as in ``torch.optim.SGD``.

    Example:
        >>> import numpy as np
        >>> at = Visit(np.array([0.5]), 1.0, np.array([2.0]))
        >>> GradientMove(step=0.1).propose([at], widths=np.array([1.0]))
        array([0.3])
    """

    step: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self, "step", above=0)
        check_numbers(self, "momentum", least=0, below=1)

    def propose(self, visits: Sequence[Visit], widths: Vector) -> Vector:
        """Return the next point."""
        velocity = np.zeros_like(widths)
        for _, slope in _good(visits):
            velocity = self.momentum * velocity + slope / widths
        point, failures = _last(visits)
        return np.clip(point - 0.5**failures * self.step * velocity / widths, 0.0, 1.0)


@final
@dataclass(frozen=True)
class AdamMove(Move):
    """Adam in units of the ranges: each parameter moves by about ``step`` of its range, whatever the derivative's size.

    The moments are those of the chain's trials that succeeded. A trial that failed or was pruned is left: the move is
    made again from the last good one, half as long. For values with noise.

    Args:
        step: largest move of a parameter, in units of its range, > 0.
        betas: how much of the moments is kept, each in [0, 1).
        eps: added to the root of the second moment, > 0, in the units of the value.

    Cost: none to speak of, and one trial a move.

    Raises:
        InputError: numbers out of range.

    Source: Kingma and Ba (2015); the projection is ours.

    Example:
        >>> import numpy as np
        >>> at = Visit(np.array([0.5, 0.5]), 1.0, np.array([2.0, -300.0]))
        >>> AdamMove(step=0.1).propose([at], widths=np.ones(2)).round(6)
        array([0.4, 0.6])
    """

    step: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self, "step", "eps", above=0)
        for beta in self.betas:
            check_number("AdamMove", "betas", beta, least=0, below=1)

    def propose(self, visits: Sequence[Visit], widths: Vector) -> Vector:
        """Return the next point."""
        (first, second), mean, square, count = self.betas, np.zeros_like(widths), np.zeros_like(widths), 0
        for _, slope in _good(visits):
            count += 1
            mean = first * mean + (1 - first) * slope
            square = second * square + (1 - second) * slope**2
        direction = mean / (1 - first**count) / (np.sqrt(square / (1 - second**count)) + self.eps)
        point, failures = _last(visits)
        return np.clip(point - 0.5**failures * self.step * direction, 0.0, 1.0)


@final
@dataclass(frozen=True)
class SpectralMove(Move):
    """Spectral projected gradient: steps from the change of the gradient, shortened where the value grew too much.

    From x the move goes along d = clip(x − α·g) − x. A trial at x + τ·d is accepted if its value is at most the largest
    of the last ``memory`` accepted ones plus ``decrease``·τ·g·d; then α = s·s / s·y of the last two accepted points
    (s their difference, y that of their gradients). Otherwise, and after a trial that failed or was pruned, τ becomes
    smaller: by quadratic interpolation within [0.1·τ, 0.5·τ], or half. Needs no step size. For values without noise.

    Args:
        first: largest move of a parameter in the chain's first step, in units of its range, 0 < first ≤ 1.
        memory: how many accepted values the next one is compared with, ≥ 1; 1 lets no value grow.
        decrease: share of the predicted decrease that is asked for, > 0.
        tolerance: the chain ends where no parameter would move by more than this, in units of its range, ≥ 0.

    Cost: none to speak of, and one trial a move or a shorter one.

    Raises:
        InputError: numbers out of range.

    Source: Birgin, Martínez and Raydan (2000), SPG2. Ours: no move is longer than a range, and where the curvature is
        negative the next move is as long as the first.

    Example:
        >>> import numpy as np
        >>> a, b = (Visit(np.array([x]), x**2, np.array([2 * x])) for x in (0.5, 0.4))
        >>> SpectralMove().propose([a], widths=np.ones(1)), SpectralMove().propose([a, b], widths=np.ones(1))
        (array([0.4]), array([0.]))
    """

    first: float = 0.1
    memory: int = 10
    decrease: float = 1e-4
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self, "first", "decrease", above=0)
        check_numbers(self, "tolerance", least=0)
        check_counts(self, "memory")

    def propose(self, visits: Sequence[Visit], widths: Vector) -> Vector | None:
        """Return the next point, or ``None`` at the end of the chain."""
        at, slope = visits[0], _slope(visits[0])
        values, share, length = [at.value], 1.0, self._restart(slope)
        for visit in visits[1:]:
            if visit.slope is None:
                share /= 2
            elif visit.value > max(values[-self.memory :]) + self.decrease * float(slope @ (visit.point - at.point)):
                along = np.clip(at.point - length * slope, 0.0, 1.0) - at.point
                share = _shorter(share, float(slope @ along), visit.value - at.value)
            else:
                length = self._length(visit.point - at.point, visit.slope - slope, visit.slope)
                at, slope, share = visit, visit.slope, 1.0
                values.append(visit.value)
        move = share * (np.clip(at.point - length * slope, 0.0, 1.0) - at.point)
        if not np.abs(move).max() > self.tolerance:
            return None
        return np.clip(at.point + move, 0.0, 1.0)

    def _restart(self, slope: Vector) -> float:
        largest = float(np.abs(slope).max())
        return self.first / largest if largest > 0 else 0.0

    def _length(self, moved: Vector, changed: Vector, slope: Vector) -> float:
        """Return α for the next step."""
        curvature, restart = float(moved @ changed), self._restart(slope)
        if curvature <= 0:
            return restart
        return min(float(moved @ moved) / curvature, restart / self.first)


def _shorter(share: float, descent: float, grown: float) -> float:
    """Return where the parabola through the old value, its slope along the move and the new value is least."""
    bend = grown - share * descent
    least = -0.5 * share**2 * descent / bend if bend > 0 else 0.5 * share
    return min(max(least, 0.1 * share), 0.5 * share)


def _slope(visit: Visit) -> Vector:
    assert visit.slope is not None
    return visit.slope


def _good(visits: Sequence[Visit]) -> list[tuple[Vector, Vector]]:
    """Return point and slope of each visit that has one."""
    return [(visit.point, visit.slope) for visit in visits if visit.slope is not None]


def _last(visits: Sequence[Visit]) -> tuple[Vector, int]:
    """Return the last good point, and how many trials have failed since."""
    good = max(number for number, visit in enumerate(visits) if visit.slope is not None)
    return visits[good].point, len(visits) - 1 - good
