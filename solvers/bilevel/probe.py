"""What can be seen of a problem at one point: how flat it is there, its curvature, and what a pass holds and takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.linear import Operator
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.known_response import is_known
from hypergrad.solvers.linear.krylov import Curvature, curvature
from hypergrad.solvers.linear.preconditioners import PenaltyDiagonal
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Tree

R = TypeVar("R")
STEPS = 20
"""Products that are spent on looking at the curvature."""


@final
@dataclass(frozen=True)
class Times:
    """Seconds of one pass of each kind; NaN where not measured."""

    training: float = math.nan
    gradient: float = math.nan
    product: float = math.nan
    outer: float = math.nan


@final
@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        gap: ‖∇_θ g‖.
        change: how far the outer loss would still move if training went on to its optimum, |⟨H⁻¹∇f, ∇g⟩|, relative
            to max(|f|, ‖∂f/∂θ‖ ‖θ‖ / 10); NaN where the curvature was not looked at.
        curvature: of the symmetric inner Hessian as ∂f/∂θ sees it, or ``None``.
        symmetric: whether the inner problem has an objective.
        size: entries of θ.
        vector: bytes of θ.
        graph: bytes that the graph of the inner gradient holds.
        preconditioned: whether the curvature is that of the preconditioned Hessian.
        times: seconds of passes.
        cost: passes made.
    """

    gap: float
    change: float
    curvature: Curvature | None
    symmetric: bool
    size: int
    vector: int
    graph: int
    preconditioned: bool
    times: Times
    cost: Cost


def probe(problem: Problem, params: Tree, hparams: Tree, *, bend: bool, measure: bool) -> Probe:
    """Look at the problem at one point; random numbers and batches are put back.

    Args:
        problem: the problem.
        params: θ.
        hparams: λ.
        bend: whether to look at the curvature, which takes products.
        measure: whether to make each pass once more for its time.
    """
    device = tree.device_of(params)
    draws = guards.Draws.capture(device, problem.inner_data, problem.outer_data)
    with guards.again(draws), guards.pinned_rng(device):
        batch, outer_batch = problem.draw_inner(), problem.draw_outer()
        held = _Held()
        with held:
            point = problem.linearise(params, hparams, batch)
        outer = problem.outer_gradients(params, hparams, outer_batch)
        gap = float(point.length())
        check_finite("the inner gradient of params", {"": torch.tensor(gap)}, when="where the problem was looked at")
        b, loss = point.layout.flatten(outer.params), float(outer.value)
        seen, seconds, change = None, math.nan, math.nan
        if bend and point.symmetric and not is_known(problem) and bool(b.any()):
            seen, seconds = _timed(lambda: _bend(point, b), device)
            far = float(torch.linalg.vector_norm(b) * tree.norm(params))
            change = abs(float(point.slope(seen.solution))) / max(abs(loss), 0.1 * far, torch.finfo(b.dtype).tiny)
        made = 0 if seen is None else seen.products
        cost = Cost(inner_gradients=1, products=made, outer_gradients=1)
        times = Times()
        if measure:
            product = seconds / made if made else _timed(lambda: point.hvp(b), device)[1]
            leaves = tree.leaves(params)
            times = Times(
                training=_timed(lambda: problem.residual(leaves, tree.detached(hparams), batch), device)[1],
                gradient=_timed(lambda: problem.linearise(params, hparams, batch), device)[1],
                product=product,
                outer=_timed(lambda: problem.outer_gradients(params, hparams, outer_batch), device)[1],
            )
            cost += Cost(inner_gradients=2, products=0 if made else 1, outer_gradients=1)
    return Probe(
        gap=gap,
        change=change,
        curvature=seen,
        symmetric=point.symmetric,
        size=point.layout.size,
        vector=b.numel() * b.element_size(),
        graph=held.bytes,
        preconditioned=seen is not None and point.diagonal is not None,
        times=times,
        cost=cost,
    )


def _bend(point: Stationarity, b: Tensor) -> Curvature:
    operator = Operator.of(point)
    inverse, _ = PenaltyDiagonal().build(operator, {})
    spent = operator.products
    seen = curvature(operator, b, STEPS, inverse)
    return Curvature(seen.top, seen.bottom, seen.residuals, seen.solution, seen.products + spent)


def _timed(function: Callable[[], R], device: torch.device) -> tuple[R, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


class _Held:
    """Counts the bytes that graphs recorded inside hold, each storage once.

    Attributes:
        bytes: the count.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: dict[int, Tensor] = {}
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    def _pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen[storage.data_ptr()] = value  # held, so that no other storage comes to lie there
            self.bytes += storage.nbytes()
        return value

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._hooks.__exit__(*failure)
        self._seen.clear()
