"""A stochastic quadratic with a known optimum, and how the error of a method falls on it.

Many independent copies of the problem lie side by side in one tensor, so that one run gives the mean error of each of
three seeds. Batches are normal, so that the mean of B samples is drawn at once, as one sample with noise over √B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree, leaves

SEEDS, COPIES, SIZE = 3, 64, 4
"""Seeds, independent copies that each seed's error is the mean of, and parameters (as many as hyperparameters)."""

Schedule = Callable[[int], float]
Move = Callable[[int, Tensor, Tensor], Tensor]


def _problem() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    a = torch.diag(torch.linspace(0.9, 1.1, SIZE, dtype=torch.float64))
    b = torch.eye(SIZE, dtype=torch.float64) + 0.15 * normal(SIZE, SIZE)
    return a, b, normal(SIZE), normal(SIZE), normal(SIZE)


A, B, C, T, U = _problem()
RESPONSE = B @ torch.linalg.inv(A)  # of θ*, a row, to λ, a row
HESSIAN = RESPONSE @ RESPONSE.mT + torch.eye(SIZE, dtype=torch.float64) / 4
OFFSET = C @ torch.linalg.inv(A) - T
OPTIMUM = torch.linalg.solve(HESSIAN, U / 4 - RESPONSE @ OFFSET)


def response(x: Tensor) -> Tensor:
    """θ*(λ)."""
    solution: Tensor = (x @ B + C) @ torch.linalg.inv(A)
    return solution


def gradient(x: Tensor) -> Tensor:
    """dF/dλ of each row."""
    slope: Tensor = (response(x) - T) @ RESPONSE.mT + (x - U) / 4
    return slope


def inner(params: Tree, hparams: Tree, batch: Tensor | None = None) -> Tensor:
    """g = θ (A + e) θᵀ / 2 − (λ (B + b) + c) θᵀ with diagonal noise e, b and noise in c."""
    w, x = params["w"], hparams["x"]
    curve, right = w @ A, x @ B + C
    if batch is not None:
        e, b, c = batch.unbind()
        curve, right = curve + e * w, right + b * x + c
    return (w * (curve / 2 - right)).sum()


def outer(params: Tree, hparams: Tree, batch: Tensor | None = None) -> Tensor:
    """f = ‖θ − t‖² / 2 + ‖λ − u‖² / 8 with noise in t and u."""
    t, u = (T, U) if batch is None else (T + batch[0], U + batch[1])
    near, far = (params["w"] - t).square().sum(), (hparams["x"] - u).square().sum()
    return near / 2 + far / 8


def by_block(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function of one block, which has a row of λ of its own."""

    def of_block(params: Tree, hparams: Tree, block: Any) -> Tensor:
        return function(params, {"x": block.row(hparams["x"])}, block.row(block.batch.movedim(0, 1)))

    return of_block


class Stream:
    """Endless fresh samples; ``full`` is a large batch."""

    def __init__(self, rows: int, noise: Tensor | float, large: Tensor | float, seed: int) -> None:
        self.rows, self.noise, self.large, self.seed, self.drawn = rows, noise, large, seed, 0
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        self.drawn += 1
        normal = torch.randn(3, self.rows, SIZE, dtype=torch.float64, generator=self.generator)
        return normal * self.noise

    def full(self) -> Tensor:
        normal = torch.randn(3, self.rows, SIZE, dtype=torch.float64, generator=self.generator)
        return normal * self.large

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        raise NotImplementedError


def sgd(rate: Schedule) -> Move:
    """Plain gradient steps on λ."""
    return lambda step, x, direction: x - rate(step) * direction


NOISE = 0.2


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        make: the algorithm for a seed.
        move: of λ.
        steps: iterations.
        hold: first iterations, during which λ stays at λ*, so that what the method tracks settles.
        sizes: batch sizes; the copies of each size lie side by side.
        outer_sizes: of the outer batches; ``sizes`` by default.
        large: sizes of the large batches; endless by default.
        copies: of each size and seed.
        apart: whether each seed has a run of its own, since the algorithm is random or mixes the copies.
        blockwise: whether the copies are the blocks of a problem of many blocks, whose direction is that of their mean.
    """

    make: Callable[[int], Any]
    move: Move
    steps: int
    hold: int = 20
    sizes: tuple[float, ...] = (1.0,)
    outer_sizes: tuple[float, ...] | None = None
    large: tuple[float, ...] | None = None
    copies: int = COPIES
    apart: bool = False
    blockwise: bool = False

    def scale(self, sizes: tuple[float, ...], seeds: int) -> Tensor:
        """The noise of every row: sizes × seeds × copies."""
        noise = NOISE / torch.tensor(sizes, dtype=torch.float64).sqrt()
        return noise.repeat_interleave(seeds * self.copies)[:, None]

    def errors(self) -> Tensor:
        """‖dF/dλ‖² after every iteration: iterations × sizes × seeds."""
        if self.apart:
            return torch.cat([self._run(1, seed) for seed in range(SEEDS)], dim=2)
        return self._run(SEEDS, 0)

    def _run(self, seeds: int, seed: int) -> Tensor:
        rows = len(self.sizes) * seeds * self.copies
        noise = self.scale(self.sizes, seeds)
        large: Tensor | float = 0.0 if self.large is None else self.scale(self.large, seeds)
        outer_noise = self.scale(self.outer_sizes or self.sizes, seeds)
        below, above = (by_block(inner), by_block(outer)) if self.blockwise else (inner, outer)
        problem = hg.Problem(
            below,
            above,
            inner_data=Stream(rows, noise, large, 2 * seed + 1),
            outer_data=Stream(rows, outer_noise, large, 2 * seed + 2),
        )
        x = OPTIMUM.repeat(rows, 1)
        algorithm = self.make(seed)
        state, seen = algorithm.init(problem, {"w": response(x)}, {"x": x}), []
        for step in range(self.steps + self.hold):
            found, state = algorithm.step(problem, state, leaves({"x": x}))
            if step >= self.hold:
                x = self.move(step, x, found.grads["x"])
                seen.append(gradient(x).square().sum(dim=1).view(len(self.sizes), seeds, self.copies).mean(dim=2))
        return torch.stack(seen)


def slopes(points: Tensor, errors: Tensor) -> Tensor:
    """The slope of log error against log point, for each seed (last dimension)."""
    x, y = points.double().log()[:, None], errors.log()
    x = x - x.mean()
    found: Tensor = (x * (y - y.mean(dim=0))).sum(dim=0) / x.square().sum()
    return found


def decay(errors: Tensor, start: int, hold: int = 20) -> Tensor:
    """The slopes of mean errors over stretches of time, each √2 times as long as the one before, from ``start`` on."""
    points, means, begin = [], [], float(start)
    while begin * 2**0.5 <= len(errors):
        end = begin * 2**0.5
        means.append(errors[int(begin) : int(end)].mean(dim=0))
        points.append((begin * end) ** 0.5 + hold)
        begin = end
    return slopes(torch.tensor(points), torch.stack(means))
