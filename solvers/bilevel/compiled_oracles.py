"""What an iteration of a single-loop method asks for as one compiled graph, checked before it is used."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.accumulated import Batches
from hypergrad.problem import Problem
from hypergrad.tree import Layout

Row = Tensor
"""All that a graph returns as one flat vector: several would each cost as much as a small product."""
MOST = 4
"""Kinds of batches, by their shapes, that are compiled; further ones are evaluated eagerly."""


@final
class Compiled:
    """One compiled function for each kind of batches of a problem.

    Every function is compared with the eager derivatives where it is first used. One that cannot be compiled or
    differs is not used any more.

    Attributes:
        left_out: why, in words; empty as long as all is well.
        reached: hyperparameters that some objective was seen to use.
    """

    def __init__(self, problem: Problem) -> None:
        """Start with nothing."""
        self.problem = problem
        self._functions: dict[Any, Callable[..., Row] | None] = {}
        self.left_out = ""
        self.reached: set[str] = set()

    def row(
        self,
        make: Callable[[], Callable[..., Row]],
        sizes: Mapping[str, int],
        arguments: tuple[Any, ...],
        eager: Callable[[], tuple[Row, bool]],
    ) -> Row:
        """Return what a function of tensors returns, compiled where that was seen to be right.

        Args:
            make: returns the function.
            sizes: how many entries of its value are compared, by what they are.
            arguments: of the function: two flat vectors, λ, both batches, and more.
            eager: returns the same without a compiler, and whether a module's buffers were used.
        """
        if self.left_out:
            return eager()[0]
        key = kind(arguments[3]), kind(arguments[4]), *sizes
        if key not in self._functions:
            return self._first(key, make, sizes, arguments, eager)
        function = self._functions[key]
        if function is None:
            return eager()[0]
        with torch.no_grad():
            return function(*arguments)

    def _first(
        self,
        key: Any,
        make: Callable[[], Callable[..., Row]],
        sizes: Mapping[str, int],
        arguments: tuple[Any, ...],
        eager: Callable[[], tuple[Row, bool]],
    ) -> Row:
        """Compile for one kind of batches, and compare."""
        expected, buffers = eager()
        if any(isinstance(part, Batches) for part in arguments[3:5]):
            return self._give_up("several outer batches are one (Accumulated)", expected)
        if buffers:
            return self._give_up("a module with buffers is called, which a compiled graph would change", expected)
        if len(self._functions) >= MOST:
            self._functions[key] = None
            return expected
        compiler: Any = torch.compile
        function = compiler(_with_own_code(make()), fullgraph=True, dynamic=False)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the compiler remarks about itself
                found = function(*arguments)
        except Exception as error:  # whatever the compiler raises is its own
            text = " ".join(str(error).split())
            return self._give_up(f"the objectives cannot be compiled ({type(error).__name__}: {text[:200]})", expected)
        fault = differing(found, expected, sizes)
        if fault:
            return self._give_up(
                f"compiled, {fault}: does a loss draw random numbers or read hparams itself?", expected
            )
        self._functions[key] = function
        return expected

    def _give_up(self, why: str, row: Row) -> Row:
        self.left_out = f"compile=True is left out: {why}; the iterations run eagerly"
        return row


def _with_own_code(function: Any) -> Any:
    """Return the same function on a copy of its code, to which alone the compiler's limit of recompilations applies."""
    code, closure = function.__code__.replace(), function.__closure__
    return types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)


def kind(batch: Any) -> Any:
    """Return what two batches share for which one compiled graph serves: structure, shapes and dtypes."""
    if isinstance(batch, Tensor):
        return batch.shape, batch.dtype
    if isinstance(batch, tuple | list):
        return type(batch), *map(kind, batch)
    if isinstance(batch, Mapping):
        return type(batch), *((key, kind(part)) for key, part in batch.items())
    return type(batch)


Pieces = tuple[Tensor, Tensor, list[Tensor], Tensor, list[Tensor], Tensor]


def pieces(problem: Problem, layout: Layout, outer_layout: Layout) -> Callable[..., Pieces]:
    """Return the function (θ, v, λ, inner batch, outer batch) → ∇_θ g, H v, (∂²g/∂θ∂λ)ᵀ v, ∂f/∂θ, ∂f/∂λ, f."""
    names = list(outer_layout.shapes)
    functions = problem.parts()
    inner, outer, penalty = functions["inner"], functions["outer"], functions.get("penalty")

    def call(function: Any, z: Tensor, lam: list[Tensor], batch: Any) -> Tensor:
        trees = layout.views(z), dict(zip(names, lam, strict=True))
        value: Tensor = function.function(*trees, batch) if function.takes_batch else function.function(*trees)
        return value.reshape(())

    def whole(z: Tensor, lam: list[Tensor], batch: Any) -> Tensor:
        value = call(inner, z, lam, batch)
        return value if penalty is None else value + call(penalty, z, lam, None)

    def found(z: Tensor, v: Tensor, lam: list[Tensor], inner_batch: Any, outer_batch: Any) -> Pieces:
        pulling: Any = torch.func.vjp(lambda z, lam: torch.func.grad(whole)(z, lam, inner_batch), z, lam)
        slope, pull = pulling
        product, mixed = pull(v)
        (outer_slope, direct), value = torch.func.grad_and_value(
            lambda z, lam: call(outer, z, lam, outer_batch), argnums=(0, 1)
        )(z, lam)
        return slope, product, mixed, outer_slope, direct, value

    return found


def one_point(problem: Problem, layout: Layout, outer_layout: Layout) -> Callable[..., Row]:
    """Return the function (θ, v, λ, inner batch, outer batch) → the derivatives as one vector."""
    derive = pieces(problem, layout, outer_layout)

    def row(z: Tensor, v: Tensor, lam: list[Tensor], inner: Any, outer: Any) -> Row:
        slope, product, mixed, outer_slope, direct, value = derive(z, v, lam, inner, outer)
        looked = torch.stack([value, torch.dot(v, v), torch.dot(v, product), torch.dot(product, product)])
        flat = [part.reshape(-1) for part in (*mixed, outer_slope, *direct)]
        return torch.cat([slope, product, *flat, looked])

    return row


def several_moves(problem: Problem, layout: Layout, outer_layout: Layout) -> Callable[..., Row]:
    """Return the function (θ, q, λ, inner batches, outer batches, steps) of several iterations of SOBA.

    It returns θ and q after them, the last direction for λ, f, and ‖q‖², qᵀHq, ‖Hq‖² of each, as one vector.
    """
    derive = pieces(problem, layout, outer_layout)

    def moved(z: Tensor, q: Tensor, lam: list[Tensor], inner: Any, outer: Any, steps: Tensor) -> Row:
        looked: list[Tensor] = []
        direct, mixed, value = lam, lam, steps[0, 0]  # of the last iteration; there is one at least
        for below, above, step in zip(inner, outer, steps.unbind(), strict=True):
            slope, product, mixed, outer_slope, direct, value = derive(z, q, lam, below, above)
            looked += [torch.dot(q, q), torch.dot(q, product), torch.dot(product, product)]
            z, q = z - step[0] * slope, q - step[1] * (product - outer_slope)
        last = [(d - m).reshape(-1) for d, m in zip(direct, mixed, strict=True)]
        return torch.cat([z, q, *last, torch.stack([value, *looked])])

    return moved


def differing(found: Row, expected: Row, sizes: Mapping[str, int]) -> str:
    """Return which part of two vectors differs by more than rounding, in words, or nothing."""
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    place = 0
    for name, size in sizes.items():
        one, other = found[place : place + size], expected[place : place + size]
        gap, length = torch.linalg.vector_norm(one - other), torch.linalg.vector_norm(other)
        if not bool(gap <= tolerance * torch.clamp(length, min=1e-3)):
            return f"{name} differs by {float(gap / length):.1e}"
        place += size
    return ""
