"""What a run of MAID measured."""

from __future__ import annotations

from typing import Any

import pytest

from hypergrad.solvers.bilevel.maid import MAID
from hypergrad.tree import Tree


@pytest.fixture
def omegas(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, float, Tree]]:
    """Every hypergradient with its accuracies and its bound ω, in order."""
    seen: list[tuple[float, float, float, Tree]] = []
    plainly = MAID._measured

    def spy(self: MAID, *rest: Any) -> Any:
        point = plainly(self, *rest)
        seen.append((point.accuracy, point.linear, point.omega, point.result.grads))
        return point

    monkeypatch.setattr(MAID, "_measured", spy)
    return seen
