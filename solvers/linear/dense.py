"""A direct solve with the whole matrix, for small problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_counts


@final
@dataclass(frozen=True)
class Dense(LinearSolver):
    """Build A column by column and factor it: Cholesky where it is positive definite, otherwise its spectrum or SVD.

    On a symmetric matrix that is not positive definite the eigenvalues are inverted, those within rounding of zero
    left out (the pseudo-inverse, the solution of least norm). On a general matrix the singular values are.

    Args:
        max_size: largest number of parameters accepted, at least 1; memory is its square.

    Cost: n products.

    Raises:
        InputError: more parameters than ``max_size``.

    Example:
        >>> import torch
        >>> Dense().solve(lambda v: 2 * v, torch.ones(2)).value
        tensor([0.5000, 0.5000])
    """

    max_size: int = 2000
    needs_symmetric = False
    needs_definite = False
    uses_start = False
    exact = True
    cost = "n"

    def __post_init__(self) -> None:
        """Refuse an empty limit."""
        check_counts(self, "max_size")

    def budget(self, size: int) -> int:
        """Return one a column."""
        return size

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        if operator.size > self.max_size:
            raise InputError(
                passed=f"{operator.size} parameters",
                expected=f"at most max_size={self.max_size} for a dense matrix",
                do="use hypergrad.CG, or raise max_size if the memory (its square) is there",
            )
        matrix = materialise(operator)
        products = operator.products - made
        if not bool(torch.isfinite(matrix).all() & torch.isfinite(b).all()):
            return LinearResult(b, Status.NON_FINITE, float("nan"), products, memory=memory)
        x, bent = _solve_symmetric(matrix, b) if operator.symmetric else (_solve_general(matrix, b), False)
        residual = float(torch.linalg.vector_norm(b - matrix @ x) / torch.linalg.vector_norm(b))
        return LinearResult(x, Status.CONVERGED, residual, products, negative_curvature=bent, memory=memory)


def materialise(operator: Operator) -> Tensor:
    """Return the matrix of an operator, with one product a column."""
    basis = torch.eye(operator.size, dtype=operator.dtype, device=operator.device)
    matrix = operator.images(basis).mT.contiguous()
    if operator.diagonal is not None:
        matrix.diagonal().add_(operator.diagonal)
    return matrix


def _solve_symmetric(matrix: Tensor, b: Tensor) -> tuple[Tensor, bool]:
    matrix = (matrix + matrix.mT) / 2
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info):
        return torch.cholesky_solve(b[:, None], factor)[:, 0], False
    values, vectors = torch.linalg.eigh(matrix)
    floor = values.abs().max() * torch.finfo(matrix.dtype).eps * len(values)
    inverse = torch.where(values.abs() > floor, 1 / values, 0.0)
    return vectors @ (inverse * (vectors.mT @ b)), bool((values < -floor).any())


def _solve_general(matrix: Tensor, b: Tensor) -> Tensor:
    factor, pivots, info = torch.linalg.lu_factor_ex(matrix)
    diagonal = factor.diagonal().abs()
    if bool(info) or bool(diagonal.min() <= diagonal.max() * torch.finfo(matrix.dtype).eps * len(b)):
        least: Tensor = torch.linalg.pinv(matrix) @ b
        return least
    solution: Tensor = torch.linalg.lu_solve(factor, pivots, b[:, None])[:, 0]
    return solution
