"""First and second derivatives of both objectives on minibatches, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Cost
from hypergrad.data import Fixed, Partitioned, Sampler
from hypergrad.errors import InputError
from hypergrad.problem import Problem
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Layout, Tree


def parts(name: str, sampler: Sampler | None) -> tuple[int, Callable[[int], Any]]:
    """Return how many batches a sampler has that stay the same, and the function that gives them.

    Raises:
        InputError: a sampler whose batches are not numbered.
    """
    if sampler is None:
        return 1, lambda place: None
    if isinstance(sampler, Partitioned):
        return sampler.batches, sampler.batch
    if isinstance(sampler, Fixed):
        return 1, lambda place: sampler.batch
    raise InputError(
        passed=f"{name} of type {type(sampler).__name__} for a method that remembers every batch",
        expected="a sampler of batches that stay the same",
        do="use hypergrad.Partition(*tensors, batch_size=...), or a method without tables: SRBA or SOBA",
    )


def whole(sampler: Sampler | None) -> Any:
    """Return the whole data set as one batch, ``None`` without a sampler."""
    return None if sampler is None else sampler.full()


def random_terms(limit: int, seed: int, made: int) -> int:
    """Return a number of factors from 0 to ``limit`` − 1 that depends on the seed and the iteration only."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + made) % 2**63)
    return int(torch.randint(limit, (), generator=generator))


@dataclass(frozen=True)
class Directions:
    """Where θ, q and λ shall go, all at one point and on one pair of batches.

    Attributes:
        params: ∇_θ g, a flat vector.
        linear: H q − ∂f/∂θ, a flat vector.
        hparams: ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q.
        value: f.
    """

    params: Tensor
    linear: Tensor
    hparams: Tree
    value: Tensor

    def plus(self, other: Directions, factor: float = 1.0) -> Directions:
        """Return the sum of this and a multiple of other directions; the value stays."""
        hparams = {key: value + factor * other.hparams[key] for key, value in self.hparams.items()}
        return Directions(self.params + factor * other.params, self.linear + factor * other.linear, hparams, self.value)


@dataclass(frozen=True)
class NeumannBatches:
    """What one stochastic Neumann series sees.

    Attributes:
        outer: the outer batch.
        factors: one inner batch for each factor I − α H_k.
        mixed: the inner batch of the mixed product.
        weight: ``None`` for the sum of all terms, or the weight of the last term alone.
    """

    outer: Any
    factors: list[Any]
    mixed: Any
    weight: float | None = None

    @classmethod
    def draw(cls, problem: Problem, count: int, weight: float | None = None) -> NeumannBatches:
        """Draw them from the problem's samplers."""
        outer = problem.draw_outer()
        return cls(outer, [problem.draw_inner() for _ in range(count)], problem.draw_inner(), weight)


class Oracles:
    """First and second derivatives of both objectives at points, counted.

    Attributes:
        cost: passes made.
        reached: hyperparameters that some objective was seen to use.
    """

    def __init__(self, problem: Problem, params: Tree, hparams: Tree) -> None:
        """Keep the problem and how its parameters lie in a flat vector."""
        self.problem, self.hparams, self.layout = problem, hparams, Layout.of(params)
        self.cost = Cost()
        self.reached: set[str] = set()
        self._looked: list[Tensor] = []

    def slope(self, z: Tensor, batch: Any, hparams: Tree | None = None) -> Tensor:
        """Return ∇_θ g on a batch; one inner gradient."""
        self.cost += Cost(inner_gradients=1)
        point = tree.leaves(self.layout.views(z))
        values = self.problem.residual(point, tree.detached(self.hparams if hparams is None else hparams), batch)
        return self.layout.flatten(values)

    def product(self, z: Tensor, v: Tensor, batch: Any, hparams: Tree | None = None) -> Tensor:
        """Return H v on a batch; one inner gradient and one product."""
        point = self._point(z, batch, hparams)
        made = point.products
        product = point.hvp(v)
        self.cost += Cost(products=point.products - made)
        self.look_at(v, product)
        return product

    def look_at(self, v: Tensor, product: Tensor) -> None:
        """Remember the curvature along v if H v points clearly against it."""
        self._looked.append(torch.stack([torch.dot(v, v), torch.dot(v, product), torch.dot(product, product)]))

    def curvature(self) -> float:
        """Return the most negative curvature vᵀHv/‖v‖² that a product met clearly; 0 where there was none."""
        if not self._looked:
            return 0.0
        square, along, length = torch.stack(self._looked).unbind(dim=1)
        against = along < -1e-6 * (square * length).sqrt()
        return float(torch.where(against, along / square, 0.0).min())

    def outer(self, z: Tensor, batch: Any, hparams: Tree | None = None) -> tuple[Tensor, Tensor, Tree]:
        """Return f, ∂f/∂θ flat, and ∂f/∂λ, zero where f does not use a hyperparameter; one outer gradient."""
        self.cost += Cost(outer_gradients=1)
        hparams = self.hparams if hparams is None else hparams
        found = self.problem.outer_gradients(self.layout.views(z), hparams, batch)
        self.reached |= set(found.hparams)
        unused = {key: value for key, value in hparams.items() if key not in found.hparams}
        direct = {**tree.zeros_like(unused), **found.hparams}
        return found.value, self.layout.flatten(found.params), {key: direct[key] for key in hparams}

    def mixed(self, z: Tensor, v: Tensor, batch: Any, hparams: Tree | None = None) -> Tree:
        """Return (∂²g/∂θ∂λ)ᵀ v on a batch; one inner gradient and one product."""
        self.cost += Cost(products=1)
        return self._point(z, batch, hparams).cross(v, last=True)

    def _point(self, z: Tensor, batch: Any, hparams: Tree | None) -> Stationarity:
        self.cost += Cost(inner_gradients=1)
        lam = self.hparams if hparams is None else tree.leaves(hparams)
        point = self.problem.linearise(self.layout.views(z), lam, batch, looping=True)
        self.reached |= point.reached
        return point

    def slopes(self, z: Tensor, batch: Any, hparams: Tree | None = None) -> tuple[Tensor, Tree]:
        """Return ∇_θ g and ∇_λ g on a batch, of first order only; one inner gradient."""
        self.cost += Cost(inner_gradients=1)
        lam = self.hparams if hparams is None else tree.leaves(hparams)
        point = tree.leaves(self.layout.views(z))
        with torch.enable_grad():
            value = self.problem.inner_value(point, lam, batch)
        inputs = [*point.values(), *lam.values()]
        found = torch.autograd.grad(value, inputs, allow_unused=True)  # unused: a zero derivative
        self.reached |= {key for key, slope in zip(lam, found[len(point) :], strict=True) if slope is not None}
        pairs = zip(inputs, found, strict=True)
        full = [torch.zeros_like(x).detach() if slope is None else slope for x, slope in pairs]
        slopes = self.layout.flatten(dict(zip(point, full[: len(point)], strict=True)))
        return slopes, dict(zip(lam, full[len(point) :], strict=True))

    def neumann(
        self, z: Tensor, batches: NeumannBatches, step: float, hparams: Tree | None = None
    ) -> tuple[Tensor, Tree]:
        """Return f and ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q with q from a stochastic Neumann series, each factor on its own batch.

        The sum α Σ_{j ≤ Q} Π_{k ≤ j} (I − α H_k) ∂f/∂θ, or its last term alone times a weight. Cost: 1 outer gradient,
        Q + 1 inner gradients and products.
        """
        value, slope, direct = self.outer(z, batches.outer, hparams)
        term, total = slope, slope.clone()
        for batch in batches.factors:
            term = term - step * self.product(z, term, batch, hparams)
            total += term
        q = step * total if batches.weight is None else step * batches.weight * term
        mixed = self.mixed(z, q, batches.mixed, hparams)
        return value, {key: direct[key] - value_ for key, value_ in mixed.items()}

    def direction(
        self, z: Tensor, q: Tensor, inner: Any, outer: Any, hparams: Tree | None = None
    ) -> tuple[Tensor, Tree]:
        """Return f and ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q; 1 inner gradient, 1 product, 1 outer gradient."""
        mixed = self.mixed(z, q, inner, hparams)
        value, _, direct = self.outer(z, outer, hparams)
        return value, {key: direct[key] - m for key, m in mixed.items()}

    def descend(self, z: Tensor, step: float, steps: int) -> Tensor:
        """Return θ after stochastic gradient steps, each on a fresh inner batch; 1 inner gradient each."""
        for _ in range(steps):
            z = torch.sub(z, self.slope(z, self.problem.draw_inner()), alpha=step)
        return z

    def masks(self) -> AbstractContextManager[None]:
        """Return a block that draws the random numbers that come next once more, so that two points share masks."""
        return guards.again(guards.Draws.capture(self.layout.device))

    def inner(self, z: Tensor, v: Tensor, batch: Any) -> tuple[Tensor, Tensor, Tree]:
        """Return ∇_θ g, H v and (∂²g/∂θ∂λ)ᵀ v on a batch; one inner gradient and one product."""
        point = self._point(z, batch, None)
        self.cost += Cost(products=1)
        product, mixed = point.both(v, last=True)
        self.look_at(v, product)
        return point.residual(), product, mixed

    def directions(self, z: Tensor, v: Tensor, inner: Any, outer: Any, hparams: Tree | None = None) -> Directions:
        """Return all three directions; one inner gradient, one product for both of its uses, one outer gradient."""
        point = self._point(z, inner, hparams)
        self.cost += Cost(products=1)
        product, mixed = point.both(v, last=True)
        self.look_at(v, product)
        value, slope, direct = self.outer(z, outer, hparams)
        return Directions(point.residual(), product - slope, {k: direct[k] - m for k, m in mixed.items()}, value)
