"""Projections onto convex sets that couple the entries of a vector: half-spaces, polyhedra and intersections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.domains import Domain
from hypergrad.errors import DivergenceError, InputError
from hypergrad.settings import check_counts, check_numbers


@final
@dataclass(frozen=True, eq=False)
class Halfspace:
    """Tensors v with ⟨normal, v⟩ ≤ offset.

    Args:
        normal: a tensor of v's shape, not 0.
        offset: any number.

    Raises:
        InputError: a normal that is 0 or not finite.

    >>> Halfspace(torch.tensor([1.0, 1.0]), 3.0).project(torch.tensor([2.0, 3.0]))
    tensor([1., 2.])
    """

    normal: Tensor
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a normal without a direction."""
        length = float(torch.linalg.vector_norm(self.normal))
        if not 0 < length < float("inf"):
            raise InputError(
                passed=f"Halfspace with a normal of length {length}",
                expected="a finite normal with at least one entry that is not 0",
                do="leave the constraint out: it binds nothing, or nothing satisfies it",
            )
        check_numbers(self, "offset")

    def project(self, value: Tensor) -> Tensor:
        """Move back along the normal by what sticks out."""
        outside = ((self.normal * value).sum() - self.offset).clamp(min=0)
        return value - outside / self.normal.square().sum() * self.normal


@final
@dataclass(frozen=True, eq=False)
class Polyhedron:
    """Vectors v with ⟨row, v⟩ ≤ limit for some rows and ⟨row, v⟩ = level for others; made by :meth:`of`.

    One inequality and any number of equalities have closed forms. Otherwise the violated projection is a quadratic
    program, solved to rounding by the active-set method for least distances on the host.

    Attributes:
        equal: orthonormal rows of the equalities.
        levels: their right-hand sides.
        below: rows of length 1 of the inequalities, orthogonal to ``equal``.
        limits: their right-hand sides.

    Cost: a product with the rows; a quadratic program takes a QR factorisation of the rows and a non-negative least
    squares problem of their number.

    Source: Lawson, Hanson, "Solving least squares problems" (1974), chapter 23 (LDP).

    >>> triangle = Polyhedron.of(torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), torch.tensor([0.0, 0.0, 1.0]))
    >>> triangle.project(torch.tensor([1.0, 1.0])).round(decimals=4)
    tensor([0.5000, 0.5000])
    """

    equal: Tensor
    levels: Tensor
    below: Tensor
    limits: Tensor

    @classmethod
    def of(
        cls, matrix: Tensor, limits: Tensor, equal: Tensor | None = None, levels: Tensor | None = None
    ) -> Polyhedron:
        """Return {v: matrix v ≤ limits, equal v = levels}.

        Args:
            matrix: one row for each inequality; may have none.
            limits: one number for each.
            equal: one row for each equality; none by default.
            levels: one number for each.

        Raises:
            InputError: shapes that do not fit, entries that are not finite, or constraints that nothing satisfies.
        """
        equal = matrix[:0] if equal is None else equal
        levels = limits[:0] if levels is None else levels
        for rows, ends in ((matrix, limits), (equal, levels)):
            if rows.ndim != 2 or rows.shape[:1] != ends.shape or rows.shape[1] != matrix.shape[1]:
                raise InputError(
                    passed=f"rows of shape {tuple(rows.shape)} with right-hand sides of shape {tuple(ends.shape)}",
                    expected=f"shapes (p, {matrix.shape[-1]}) and (p,)",
                    do="pass one row and one right-hand side for each constraint",
                )
            if not bool(torch.isfinite(rows).all() & torch.isfinite(ends).all()):
                raise _empty("rows or right-hand sides that are not finite")
        equal, levels = _orthonormal(equal, levels)
        below, limits = _unit(matrix - (matrix @ equal.mT) @ equal, limits - matrix @ (equal.mT @ levels), matrix)
        found = cls(equal, levels, below, limits)
        found.project(matrix.new_zeros(matrix.shape[1]))  # an empty set shows here
        return found

    def project(self, value: Tensor) -> Tensor:
        """Return the nearest point.

        Raises:
            InputError: nothing satisfies the constraints.
        """
        v = value.reshape(-1)
        if len(self.levels):
            v = v - self.equal.mT @ (self.equal @ v - self.levels)
        if len(self.limits) == 1:
            v = v - self.below[0] * (self.below[0] @ v - self.limits[0]).clamp(min=0)
        elif len(self.limits):
            v = self._inside(v)
        return v.view_as(value)

    def _inside(self, v: Tensor) -> Tensor:
        """Return v + d with the shortest d such that below d ≤ limits − below v, among several inequalities."""
        slack = 8 * torch.finfo(v.dtype).eps * (1 + self.limits.abs() + v.abs().max())  # a set may be thin
        outside = self.below @ v - self.limits - slack
        scale = float(outside.max())
        if scale <= 0:
            return v
        from scipy.optimize import nnls

        q, r = torch.linalg.qr(self.below.double().mT)
        dual = torch.cat([-r, (outside.double() / scale)[None]]).cpu().numpy()
        weights, _ = nnls(dual, [0.0] * (len(dual) - 1) + [1.0], maxiter=100 * len(outside))
        residual = dual @ weights
        residual[-1] -= 1
        if -residual[-1] < 1e-13:  # the height of the least-distance cone: 0 for an empty set
            raise _empty("inequalities that contradict each other")
        d = torch.as_tensor(residual[:-1] / -residual[-1]).to(q) * scale
        moved: Tensor = v + (q @ d).to(v)
        return moved


@final
@dataclass(frozen=True)
class Intersection:
    """What lies in each of several convex sets, by Dykstra's alternating projections.

    Args:
        domains: the sets, at least one.
        tolerance: the corrections may still move by this, relative to 1 + ‖v‖, above 0.
        sweeps: largest number of rounds over all sets, at least 1.

    Raises:
        InputError: no sets, or something that cannot project.
        DivergenceError: the sweeps ended first; the sets meet nowhere, or at a sharp angle.

    Source: Boyle and Dykstra (1986); stopped as by Birgin and Raydan (2005).

    >>> from hypergrad.domains import Box
    >>> corner = Intersection([Box(0, 1), Halfspace(torch.tensor([1.0, 1.0]), 1.0)])
    >>> corner.project(torch.tensor([2.0, 0.5])).round(decimals=4)
    tensor([1., 0.])
    """

    domains: Sequence[Domain]
    tolerance: float = 1e-12
    sweeps: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what cannot project."""
        check_numbers(self, "tolerance", above=0)
        check_counts(self, "sweeps")
        if not self.domains or not all(isinstance(domain, Domain) for domain in self.domains):
            raise InputError(
                passed=f"Intersection({self.domains!r})",
                expected="at least one domain, each with a method project(value)",
                do="pass hypergrad.Box(low, high), Halfspace(normal, offset), or sets of your own",
            )

    def project(self, value: Tensor) -> Tensor:
        """Project onto one set after the other, each time with that set's own correction taken back first."""
        tolerance = max(self.tolerance, 4 * torch.finfo(value.dtype).eps)
        corrections = [torch.zeros_like(value) for _ in self.domains]
        moved = value.new_zeros(())
        for _ in range(self.sweeps):
            moved = torch.zeros_like(moved)
            for place, domain in enumerate(self.domains):
                aim = value + corrections[place]
                value = domain.project(aim)
                moved = moved + (aim - value - corrections[place]).square().sum()
                corrections[place] = aim - value
            if bool(moved.sqrt() <= tolerance * (1 + torch.linalg.vector_norm(value))):
                return value
        raise DivergenceError(
            passed=f"alternating projections that still move by {float(moved.sqrt()):.3g} after {self.sweeps} sweeps",
            expected="sets that meet",
            do="check that some point satisfies all constraints, or raise sweeps or tolerance",
        )


def _orthonormal(rows: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal rows with the same solutions; redundant equalities are dropped."""
    if not len(rows):
        return rows, ends
    u, s, vt = torch.linalg.svd(rows, full_matrices=False)
    rank = int((s > s.max() * max(rows.shape) * torch.finfo(rows.dtype).eps).sum())
    inside = u[:, :rank].mT @ ends
    gap = ends - u[:, :rank] @ inside
    if bool(gap.norm() > torch.finfo(rows.dtype).eps ** 0.75 * (ends.norm() + s.max())):
        raise _empty("equalities that contradict each other")
    return vt[:rank], inside / s[:rank]


def _unit(rows: Tensor, ends: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length 1; rows without a direction must hold anyway."""
    lengths = rows.norm(dim=1)
    small = torch.finfo(rows.dtype).eps ** 0.75
    free = lengths <= small * original.norm(dim=1)
    if bool((ends[free] < -small * (1 + ends[free].abs())).any()):
        raise _empty("an inequality that fails at every point")
    return rows[~free] / lengths[~free, None], ends[~free] / lengths[~free]


def _empty(passed: str) -> InputError:
    return InputError(
        passed=passed,
        expected="finite constraints that some point satisfies",
        do="check the signs: an inequality means ⟨row, v⟩ <= limit",
    )
