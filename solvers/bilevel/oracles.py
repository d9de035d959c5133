"""First and second derivatives of both objectives on minibatches, counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hypergrad import evaluation, guards, tree
from hypergrad.algorithm import Cost
from hypergrad.data import Fixed, Partitioned, Sampler
from hypergrad.errors import InputError
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.compiled_oracles import Compiled, one_point, several_moves
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


def flat(tensors: list[Tensor]) -> Tensor:
    """Return the entries of tensors that nothing else holds as one vector."""
    parts = [tree.dense(value).reshape(-1) for value in tensors]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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

    def __init__(self, problem: Problem, params: Tree, hparams: Tree, *, compile: bool = False) -> None:
        """Keep the problem and how its parameters lie in a flat vector."""
        self.problem, self.hparams, self.layout = problem, hparams, Layout.of(params)
        self.cost = Cost()
        self.reached: set[str] = set()
        self._looked: list[Tensor] = []
        self.compiled: Compiled | None = None
        if compile:
            self.compiled = problem.memo.get("single loop")
            if self.compiled is None:
                self.compiled = problem.memo["single loop"] = Compiled(problem)

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
        self._looked += [torch.dot(v, v), torch.dot(v, product), torch.dot(product, product)]

    def numbers(self, tensors: list[Tensor]) -> tuple[list[float], float]:
        """Return the norms of tensors, and the most negative curvature vᵀHv/‖v‖² that a product met clearly, or 0.

        One look at the device.
        """
        dense = [value.coalesce().values() if value.is_sparse else value for value in tensors]
        norms = torch._foreach_norm(dense)  # pyright: ignore[reportPrivateImportUsage]
        found = torch.stack([*norms, *self._looked]).tolist()
        looked, most = iter(found[len(norms) :]), 0.0
        for square, along, length in zip(looked, looked, looked, strict=True):
            if along < -1e-6 * math.sqrt(square * length):
                most = min(most, along / square)
        return found[: len(norms)], most

    def outer(self, z: Tensor, batch: Any, hparams: Tree | None = None) -> tuple[Tensor, Tensor, Tree]:
        """Return f, ∂f/∂θ flat, and ∂f/∂λ, zero where f does not use a hyperparameter; one outer gradient."""
        self.cost += Cost(outer_gradients=1)
        hparams = self.hparams if hparams is None else hparams
        found = self.problem.outer_gradients(self.layout.views(z), hparams, batch)
        self.reached |= set(found.hparams)
        direct = found.hparams
        if len(direct) < len(hparams):
            direct = {**tree.zeros_like(hparams), **direct}
        return found.value, self.layout.flatten(found.params), direct

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
        return self._all(z, v, batch, None)

    def _all(self, z: Tensor, v: Tensor, batch: Any, hparams: Tree | None) -> tuple[Tensor, Tensor, Tree]:
        problem, layout = self.problem, self.layout
        if problem.root or problem.penalty is not None:
            point = self._point(z, batch, hparams)
            self.cost += Cost(products=1)
            product, mixed = point.both(v, last=True)
            slope = point.residual()
        else:
            self.cost += Cost(inner_gradients=1, products=1)
            lam = self.hparams if hparams is None else tree.leaves(hparams)
            found = problem.inner_products(layout.views(z), lam, layout.views(v), batch)
            self.reached |= found.reached
            slope, product, mixed = flat(found.slopes), flat(found.products), found.mixed
        self.look_at(v, product)
        return slope, product, mixed

    def directions(
        self, z: Tensor, v: Tensor, inner: Any, outer: Any, hparams: Tree | None = None, *, rare: bool = False
    ) -> Directions:
        """Return all three directions; one inner gradient, one product for both of its uses, one outer gradient.

        Batches that are ``rare`` are not worth a compilation.
        """
        if self.compiled is not None and not rare:
            below, above, value = self.rows(z, v, inner, outer, hparams)
            (p, d), layout = (self.layout.size, self.outer_layout.size), self.outer_layout
            gradient, product, mixed_row = below.split((p, p, d))
            slope, direct_row = above.split((p, d))
            return Directions(gradient, product - slope, layout.views(direct_row - mixed_row), value)
        gradient, product, mixed = self._all(z, v, inner, hparams)
        value, slope, direct = self.outer(z, outer, hparams)
        return Directions(gradient, product - slope, {k: direct[k] - m for k, m in mixed.items()}, value)

    def rows(
        self, z: Tensor, v: Tensor, inner: Any, outer: Any, hparams: Tree | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (∇_θ g, H v, (∂²g/∂θ∂λ)ᵀ v) as one flat vector, (∂f/∂θ, ∂f/∂λ) as another, and f.

        One inner gradient, one product, one outer gradient.
        """
        if self.compiled is None:
            return self.inner_row(z, v, inner, hparams), *self.outer_row(z, outer, hparams)
        before, looked, (p, d) = self.cost, len(self._looked), (self.layout.size, self.outer_layout.size)

        def eager() -> tuple[Tensor, bool]:
            with evaluation.held() as held:
                below = self.inner_row(z, v, inner, hparams)
                above, value = self.outer_row(z, outer, hparams)
                used = held.used
            return torch.cat([below, above, torch.stack([value, *self._looked[looked:]])]), used

        sizes = {"the inner gradient": p, "H v": p, "the mixed product": d, "∂f/∂θ": p, "∂f/∂λ": d}
        arguments = z, v, [value.detach() for value in (hparams or self.hparams).values()], inner, outer
        row = self._run(one_point, sizes, arguments, eager, before + Cost(1, 1, 1), looked)
        below, above, tail = row.split((2 * p + d, p + d, 4))
        value, *seen = tail.unbind()
        self._looked += seen
        return below, above, value

    def _run(
        self,
        make: Callable[..., Any],
        sizes: dict[str, int],
        arguments: tuple[Any, ...],
        eager: Callable[[], tuple[Tensor, bool]],
        cost: Cost,
        looked: int,
    ) -> Tensor:
        """Return what a compiled function returns, and count as if it had been asked once."""
        compiled = self.compiled
        assert compiled is not None
        row = compiled.row(lambda: make(self.problem, self.layout, self.outer_layout), sizes, arguments, eager)
        self.cost = cost
        del self._looked[looked:]
        compiled.reached |= self.reached
        self.reached |= compiled.reached
        return row

    def moves(self, z: Tensor, q: Tensor, steps: list[tuple[float, float]]) -> tuple[Tensor, Tensor, Tree, Tensor]:
        """Return θ and q after several iterations of SOBA in one compiled graph, the last direction for λ, and f.

        Each takes 1 inner gradient, 1 product and 1 outer gradient.
        """
        before, looked, (p, d) = self.cost, len(self._looked), (self.layout.size, self.outer_layout.size)
        inner, outer = [], []
        for _ in steps:
            inner.append(self.problem.draw_inner())
            outer.append(self.problem.draw_outer())

        def eager() -> tuple[Tensor, bool]:
            with evaluation.held() as held:
                theta, v = z, q
                found: Any = None
                for (alpha, beta), below, above in zip(steps, inner, outer, strict=True):
                    found = self.directions(theta, v, below, above, rare=True)
                    theta, v = torch.sub(theta, found.params, alpha=alpha), torch.sub(v, found.linear, alpha=beta)
                used = held.used
            last = self.outer_layout.flatten(found.hparams).detach()
            return torch.cat([theta, v, last, torch.stack([found.value, *self._looked[looked:]])]), used

        sizes = {"θ after some iterations": p, "q after some iterations": p, "the direction for λ": d}
        lam = [value.detach() for value in self.hparams.values()]
        arguments = z, q, lam, inner, outer, torch.tensor(steps, dtype=z.dtype, device=z.device)
        count = len(steps)
        row = self._run(several_moves, sizes, arguments, eager, before + Cost(count, count, count), looked)
        z, q, last, value, seen = row.split((p, p, d, 1, 3 * count))
        self._looked += seen.unbind()
        return z, q, self.outer_layout.views(last), value.view(())

    def inner_row(self, z: Tensor, v: Tensor, batch: Any, hparams: Tree | None = None) -> Tensor:
        """Return ∇_θ g, H v and (∂²g/∂θ∂λ)ᵀ v on a batch as one flat vector; one inner gradient and one product."""
        slope, product, mixed = self._all(z, v, batch, hparams)
        return torch.cat([slope, product, self.outer_layout.flatten(mixed).detach()])

    def outer_row(self, z: Tensor, batch: Any, hparams: Tree | None = None) -> tuple[Tensor, Tensor]:
        """Return ∂f/∂θ and ∂f/∂λ as one flat vector, and f; one outer gradient."""
        value, slope, direct = self.outer(z, batch, hparams)
        return torch.cat([slope, self.outer_layout.flatten(direct).detach()]), value

    @cached_property
    def outer_layout(self) -> Layout:
        """How hyperparameters lie in a flat vector."""
        return Layout.of(self.hparams)
