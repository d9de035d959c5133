"""Quadratic problems with closed forms, and a run whose every promise is checked against them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.solvers.bilevel.maid import MAID
from hypergrad.tree import Tree
from tests.loop.common import same


@dataclass(frozen=True)
class Quadratic:
    """g = ½‖A₂ y + A₃ x − b₂‖², f = ½‖A₁ y − b₁‖², with y* linear in x."""

    a1: Tensor
    a2: Tensor
    a3: Tensor
    b1: Tensor
    b2: Tensor

    @classmethod
    def draw(cls, seed: int, inner: float = 10.0, outer: float = 2.0, rows: int = 200, size: int = 8) -> Quadratic:
        """Return one whose A₂ has singular values from 1 to ``inner`` and A₁ from 1 to ``outer``."""
        random = np.random.default_rng(seed)

        def orthonormal(height: int) -> Any:
            return np.linalg.qr(random.standard_normal((height, size)))[0]

        a2 = orthonormal(rows) @ np.diag(np.geomspace(1, inner, size))
        a3 = a2 @ orthonormal(size)
        a1 = orthonormal(rows) @ np.diag(np.linspace(1, outer, size))
        return cls(*map(torch.tensor, (a1, a2, a3, random.standard_normal(rows), random.standard_normal(rows))))

    @property
    def problem(self) -> hg.Problem:
        return hg.Problem(
            lambda params, hparams: (self.a2 @ params["y"] + self.a3 @ hparams["x"] - self.b2).square().sum() / 2,
            lambda params, hparams: (self.a1 @ params["y"] - self.b1).square().sum() / 2,
        )

    @property
    def start(self) -> tuple[Tree, Tree]:
        size = self.a2.shape[1]
        return {"y": torch.zeros(size, dtype=torch.float64)}, {"x": torch.ones(size, dtype=torch.float64)}

    @property
    def response(self) -> Tensor:
        """dy*/dx."""
        solution: Tensor = torch.linalg.lstsq(self.a2, self.a3).solution
        return -solution

    def loss(self, hparams: Tree) -> float:
        optimum = torch.linalg.lstsq(self.a2, self.b2 - self.a3 @ hparams["x"]).solution
        return float((self.a1 @ optimum - self.b1).square().sum() / 2)

    def slope(self, hparams: Tree) -> Tree:
        optimum = torch.linalg.lstsq(self.a2, self.b2 - self.a3 @ hparams["x"]).solution
        return {"x": self.response.T @ (self.a1.T @ (self.a1 @ optimum - self.b1))}

    @property
    def least(self) -> float:
        base = self.loss({"x": torch.zeros(self.a2.shape[1], dtype=torch.float64)})
        assert base > 0
        inside = self.a1 @ self.response
        constant = self.a1 @ torch.linalg.lstsq(self.a2, self.b2).solution
        best = torch.linalg.lstsq(inside, self.b1 - constant).solution
        return self.loss({"x": best})

    @property
    def algorithm(self) -> hg.Implicit:
        """Nesterov's method with the momentum of the inner problem's condition."""
        top, bottom = float(torch.linalg.matrix_norm(self.a2, 2)), float(torch.linalg.matrix_norm(self.a2, -2))
        momentum = (top - bottom) / (top + bottom)
        descent = hg.GradientDescent(lr=1 / top**2, momentum=momentum, nesterov=True, steps=3000)
        return hg.Implicit(hg.CG(preconditioner=None), inner=descent)

    def move(self, **options: Any) -> MAID:
        """MAID with the true constants."""
        given = {
            "strong_convexity": float(torch.linalg.matrix_norm(self.a2, -2)) ** 2,
            "smoothness": float(torch.linalg.matrix_norm(self.a1, 2)) ** 2,
            "convex": True,
        }
        return MAID(**{**given, **options})


@dataclass(frozen=True)
class Seen:
    """What one outer step did."""

    progress: hg.Progress
    accuracy: float
    linear: float
    size: float
    omega: float
    slope: Tree


def distance(left: Tree, right: Tree) -> float:
    return math.sqrt(sum(float((left[key] - right[key]).square().sum()) for key in left))


def size_of(tree: Tree) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in tree.values()))


def steps_of(run: hg.Run, omegas: list[Any], steps: int) -> Iterator[Seen]:
    for _ in range(steps):
        grow = run.outer.grow  # type: ignore[attr-defined]
        progress = run.step()
        state: Any = run._outer_state
        if state.stopped:
            return
        accuracy, linear, omega, slope = omegas[-1]
        yield Seen(progress, accuracy, linear, state.step / grow, omega, slope)


def check_promises(run: hg.Run, loss: Any, slope: Any, omegas: list[Any], steps: int, until: float = 0.0) -> list[Seen]:
    """Run, and check decrease, bound and descent of every accepted step against the truth."""
    seen = []
    for step in steps_of(run, omegas, steps):
        before, after = step.progress.hparams, step.progress.moved
        seen.append(step)
        if same(before, after):
            continue
        decrease = 0.1 * step.size * size_of(step.slope) ** 2
        assert loss(after) - loss(before) <= -decrease * (1 - 1e-9), "the decrease was not what was promised"
        assert distance(step.slope, slope(before)) <= step.omega, "the bound on the hypergradient does not hold"
        assert step.omega <= 0.5 * size_of(step.slope), "no direction of descent"
        assert distance(after, before) == pytest.approx(step.size * size_of(step.slope))
        if loss(after) <= until:
            break
    return seen
