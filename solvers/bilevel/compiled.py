"""The derivatives that an iteration of a single-loop method asks for, as one compiled graph, checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.accumulated import Batches
from hypergrad.problem import Problem
from hypergrad.tree import Layout, Tree

Row = Tensor
"""∇_θ g, H v, (∂²g/∂θ∂λ)ᵀ v, ∂f/∂θ, ∂f/∂λ, then f, ‖v‖², vᵀHv and ‖Hv‖², in one flat vector of 3p + 2d + 4 numbers."""
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
        z: Tensor,
        v: Tensor,
        hparams: Tree,
        batches: tuple[Any, Any],
        layouts: tuple[Layout, Layout],
        eager: Callable[[], tuple[Row, bool]],
    ) -> Row:
        """Return the derivatives at a point.

        Args:
            z: θ, flat.
            v: the vector of both products.
            hparams: λ.
            batches: the inner and the outer one.
            layouts: of θ and of λ.
            eager: returns the same without a compiler, and whether a module's buffers were used.
        """
        if self.left_out:
            return eager()[0]
        lam = [value.detach() for value in hparams.values()]
        key = kind(batches[0]), kind(batches[1])
        if key not in self._functions:
            return self._first(key, (z, v, lam, *batches), layouts, eager)
        function = self._functions[key]
        if function is None:
            return eager()[0]
        with torch.no_grad():
            return function(z, v, lam, *batches)

    def _first(
        self,
        key: Any,
        arguments: tuple[Any, ...],
        layouts: tuple[Layout, Layout],
        eager: Callable[[], tuple[Row, bool]],
    ) -> Row:
        """Compile for one kind of batches, and compare."""
        expected, buffers = eager()
        if any(isinstance(part, Batches) for part in arguments[3:]):
            return self._give_up("several outer batches are one (Accumulated)", expected)
        if buffers:
            return self._give_up("a module with buffers is called, which a compiled graph would change", expected)
        if len(self._functions) >= MOST:
            self._functions[key] = None
            return expected
        function = torch.compile(derivatives(self.problem, *layouts), fullgraph=True, dynamic=False)
        try:
            with torch.no_grad():
                found = function(*arguments)
        except Exception as error:  # whatever the compiler raises is its own
            text = next(iter(str(error).splitlines()), type(error).__name__)
            return self._give_up(f"the objectives cannot be compiled ({type(error).__name__}: {text[:200]})", expected)
        fault = differing(found, expected, *layouts)
        if fault:
            return self._give_up(
                f"compiled, {fault}: does a loss draw random numbers or read hparams itself?", expected
            )
        self._functions[key] = function
        return expected

    def _give_up(self, why: str, row: Row) -> Row:
        self.left_out = f"compile=True is left out: {why}; the iterations run eagerly"
        return row


def kind(batch: Any) -> Any:
    """Return what two batches share for which one compiled graph serves: structure, shapes and dtypes."""
    if isinstance(batch, Tensor):
        return batch.shape, batch.dtype
    if isinstance(batch, tuple | list):
        return type(batch), *map(kind, batch)
    if isinstance(batch, Mapping):
        return type(batch), *((key, kind(part)) for key, part in batch.items())
    return type(batch)


def derivatives(problem: Problem, layout: Layout, outer_layout: Layout) -> Callable[..., Row]:
    """Return the function (θ, v, λ, inner batch, outer batch) → :data:`Row` of pure torch operations."""
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

    def row(z: Tensor, v: Tensor, lam: list[Tensor], inner_batch: Any, outer_batch: Any) -> Row:
        slope, pull = torch.func.vjp(lambda z, lam: torch.func.grad(whole)(z, lam, inner_batch), z, lam)
        product, mixed = pull(v)
        (outer_slope, direct), value = torch.func.grad_and_value(
            lambda z, lam: call(outer, z, lam, outer_batch), argnums=(0, 1)
        )(z, lam)
        looked = torch.stack([value, torch.dot(v, v), torch.dot(v, product), torch.dot(product, product)])
        flat = [part.reshape(-1) for part in (*mixed, outer_slope, *direct)]
        return torch.cat([slope, product, *flat, looked])

    return row


def differing(found: Row, expected: Row, layout: Layout, outer_layout: Layout) -> str:
    """Return which part of two rows differs by more than rounding, in words, or nothing."""
    p, d = layout.size, outer_layout.size
    names = ("the inner gradient", "H v", "the mixed product", "the outer gradient in params", "that in hparams")
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    pieces = (row[: 3 * p + 2 * d].split((p, p, d, p, d)) for row in (found, expected))
    for name, one, other in zip(names, *pieces, strict=True):
        gap, size = torch.linalg.vector_norm(one - other), torch.linalg.vector_norm(other)
        if not bool(gap <= tolerance * torch.clamp(size, min=1e-3)):
            return f"{name} differs by {float(gap / size):.1e}"
    return ""
