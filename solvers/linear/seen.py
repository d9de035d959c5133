"""What a solve saw of its matrix."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from hypergrad.linear import Operator
from hypergrad.stationarity import rescale


@final
class Seen:
    """The first products (v, B v) of a solve, for a preconditioner that learns from them.

    Args:
        room: how many to keep.
        like: a vector of the right length, dtype and device.
    """

    def __init__(self, room: int, like: Tensor) -> None:
        """Start with none."""
        self.room, self.like = room, like
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def through(self, operator: Operator) -> Operator:
        """Return the same matrix, whose products are kept here as well; it counts its products apart."""
        if not self.room:
            return operator

        def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
            if len(self._pairs) >= self.room:
                operator.update(y, v, alpha, scale, shift)
                return
            image = torch.zeros_like(v)
            operator.add_rest(image, v)
            self._pairs.append((v.clone(), image))
            rescale(y, scale, shift)
            y.add_(image, alpha=alpha)

        return Operator(product, self.like, diagonal=operator.diagonal, symmetric=operator.symmetric)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the vectors and their images, one a row."""
        if not self._pairs:
            none = self.like.new_empty(0, self.like.numel())
            return none, none
        vectors, images = zip(*self._pairs, strict=True)
        return torch.stack(vectors), torch.stack(images)
