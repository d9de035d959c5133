"""Whether the derivatives of followed steps are those of the optimizer's own step: central differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.solvers.inner.torch_groups import Optimizer, Part
from hypergrad.solvers.inner.torch_state import State
from hypergrad.solvers.inner.torch_step import Options, followed_step, plain_step
from hypergrad.tree import Tree

WIDTHS = 1e-3, 1e-6
AGREEMENT = 1e-3
ATTEMPTS = 3
TINY = 0.02
"""Where a setting of zero is looked at: an optimizer may take another branch at zero itself."""


@final
@dataclass(frozen=True)
class Differences:
    """A weighted sum of all that a step in double precision returns, as a function of all that it takes.

    Attributes:
        optimizer: whose step.
        parts: which parameters share which options.
        options: of each part, with tensors in the place of tuned settings.
        live: ``parameter/name`` of the state entries that are differentiated.
        generator: of directions and weights.
    """

    optimizer: Optimizer
    parts: list[Part]
    options: Options
    live: set[str]
    generator: torch.Generator

    def disagreement(self, params: Tree, gradient: Tree, state: State, seed: int) -> str | None:
        """Return what disagrees at a point of training, in words, if anything does for every direction tried."""
        point = {f"params/{key}": value for key, value in params.items()}
        point |= {f"gradient/{key}": value for key, value in gradient.items()}
        point |= {
            f"state/{key}/{name}": value
            for key, entries in state.items()
            for name, value in entries.items()
            if f"{key}/{name}" in self.live
        }
        settings = self._settings()
        point |= settings
        for start in ("params/", "gradient/", "state/", *settings):
            moved = [name for name in point if name.startswith(start)]
            found = None
            for _ in range(ATTEMPTS if moved else 0):
                found = self._compare(point, moved, state, seed)
                if found is None:
                    break
            if found is not None:
                return f"the derivative along {start.strip('/')} is {found[0]:.6g}, and differences say {found[1]:.6g}"
        return None

    def _settings(self) -> Tree:
        return {
            f"settings/{place}/{name}/{spot}": torch.where(value == 0, TINY, value).detach().double()
            for place, chosen in enumerate(self.options)
            for name, entry in chosen.items()
            for spot, value in enumerate(entry if isinstance(entry, tuple) else (entry,))
            if isinstance(value, Tensor)
        }

    def _compare(self, point: Tree, moved: list[str], state: State, seed: int) -> tuple[float, float] | None:
        """Return the followed derivative along a random direction and the measured one, unless they agree."""
        weights: Tree = {}
        leaves = tree.leaves(point)
        total = self._value(leaves, state, weights, seed, graph=True)
        pulled = torch.autograd.grad(total, [leaves[name] for name in moved], allow_unused=True)
        along = {name: self._draw(point[name]) for name in moved}
        along = {name: v * _reach(name, point[name]) for name, v in along.items()}
        terms = [(along[name] * g).sum() for name, g in zip(moved, pulled, strict=True) if g is not None]
        sizes = [(along[name] * g).abs().sum() for name, g in zip(moved, pulled, strict=True) if g is not None]
        expected, size = float(sum(terms, torch.zeros(()))), float(sum(sizes, torch.zeros(())))
        allowed = 1e-9 * abs(float(total.detach()))
        best = float("inf")
        for width in WIDTHS:
            coarse, fine = (self._quotient(point, along, h, state, weights, seed) for h in (width, width / 2))
            slope = (4 * fine - coarse) / 3
            best = min(best, slope, key=lambda slope: abs(slope - expected))
            if abs(slope - expected) <= AGREEMENT * max(size, abs(slope)) + allowed:
                return None
        return expected, best

    def _quotient(self, point: Tree, along: Tree, width: float, state: State, weights: Tree, seed: int) -> float:
        """Return the difference quotient of plain steps."""
        sides = [
            self._value(
                point | {n: point[n] + side * width * v for n, v in along.items()}, state, weights, seed, graph=False
            )
            for side in (1, -1)
        ]
        return float(sides[0] - sides[1]) / (2 * width)

    def _value(self, point: Tree, state: State, weights: Tree, seed: int, *, graph: bool) -> Tensor:
        """Return the weighted sum; the first call draws the weights."""
        params = {key: point[f"params/{key}"] for part in self.parts for key in part.keys}
        gradient = {key: point[f"gradient/{key}"] for key in params}
        held = {
            key: {name: point.get(f"state/{key}/{name}", value) for name, value in entries.items()}
            for key, entries in state.items()
        }
        options = [
            {name: _filled(point, f"settings/{place}/{name}", entry, graph=graph) for name, entry in chosen.items()}
            for place, chosen in enumerate(self.options)
        ]
        torch.manual_seed(seed)
        given = (self.optimizer, self.parts, options, params, gradient, held)
        moved, after = followed_step(*given, self.live, graph=True) if graph else plain_step(*given)
        ends = moved | {
            f"{key}/{name}": value
            for key, entries in after.items()
            for name, value in entries.items()
            if f"{key}/{name}" in self.live
        }
        for name, end in ends.items():
            if name not in weights:
                weights[name] = self._draw(end)
        return torch.stack([(end * weights[name]).sum().double() for name, end in ends.items()]).sum()

    def _draw(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(like.device, like.dtype)


def _reach(name: str, value: Tensor) -> Tensor | float:
    """Return how far an entry may be moved: second moments stay positive, and betas between 0 and 1."""
    if name.startswith("state/"):
        return value.abs()
    if name.startswith("settings/"):
        return torch.where((value > 0) & (value < 1), torch.minimum(value, 1 - value), value)
    return 1.0


def _filled(point: Tree, name: str, entry: Any, *, graph: bool) -> Any:
    """Return an option with the point's settings: tensors for a graph, numbers without."""
    several = entry if isinstance(entry, tuple) else (entry,)
    found = [point.get(f"{name}/{spot}", value) for spot, value in enumerate(several)]
    read = tuple(float(value) if isinstance(value, Tensor) and not graph else value for value in found)
    return read if isinstance(entry, tuple) else read[0]
