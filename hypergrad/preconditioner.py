"""The preconditioner interface: an approximate inverse that shortens a linear solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from hypergrad.linear import Memory, Operator


class Preconditioner(ABC):
    """An approximate inverse M⁻¹ of a symmetric positive definite matrix.

    Subclasses are frozen dataclasses of their settings.
    """

    @abstractmethod
    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor] | None, Memory]:
        """Return r ↦ M⁻¹ r (``None`` for the identity) and what to keep for the next solve.

        Args:
            operator: the matrix; products made here are counted.
            memory: what an earlier build returned, or an empty dict.
        """

    @abstractmethod
    def budget(self, size: int) -> int:
        """Return the products of the first build with ``size`` unknowns."""

    def room(self, memory: Memory) -> int:
        """Return how many products of the coming solve it wants to learn from; none by default."""
        return 0

    def learn(self, memory: Memory, directions: Tensor, images: Tensor, products: int) -> Memory:
        """Return the memory after a solve.

        Args:
            memory: what :meth:`build` returned for this solve.
            directions: the first vectors v of the solve, one a row, :meth:`room` of them at most.
            images: B v, one a row, without the operator's known diagonal.
            products: products of the solve, those of :meth:`build` not counted.
        """
        return memory
