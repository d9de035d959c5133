"""What can be seen of a problem at one point: how flat it is there, its curvature, and what a pass holds and takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

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

STEPS = 20
"""Products that are spent on looking at the curvature."""
REPEATS = 3
"""How often a pass is timed."""


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
        with guards.pinned_rng(device), held:
            point = problem.linearise(params, hparams, batch)
        again = _Held()
        with guards.pinned_rng(device), again:
            twin = problem.linearise(params, hparams, batch)  # what lies where it lay is data, and no graph's own
        graph = held.beside(again)
        del twin
        outer = problem.outer_gradients(params, hparams, outer_batch)
        gap = float(point.length())
        check_finite("the inner gradient of params", {"": torch.tensor(gap)}, when="where the problem was looked at")
        b, loss = point.layout.flatten(outer.params), float(outer.value)
        seen, change = None, math.nan
        if bend and point.symmetric and not is_known(problem) and bool(b.any()):
            seen = _bend(point, b)
            far = float(torch.linalg.vector_norm(b) * tree.norm(params))
            change = abs(float(point.slope(seen.solution))) / max(abs(loss), 0.1 * far, torch.finfo(b.dtype).tiny)
        made = 0 if seen is None else seen.products
        cost = Cost(inner_gradients=2, products=made, outer_gradients=1)
        times = Times()
        if measure:
            leaves, values = tree.leaves(params), tree.detached(hparams)
            times = Times(
                training=timed(lambda: problem.residual(leaves, values, batch), device),
                gradient=timed(lambda: problem.linearise(params, hparams, batch), device),
                product=timed(lambda: point.hvp(b), device),
                outer=timed(lambda: problem.outer_gradients(params, hparams, outer_batch), device),
            )
            cost += Cost(inner_gradients=2 * REPEATS, products=REPEATS, outer_gradients=REPEATS)
    return Probe(
        gap=gap,
        change=change,
        curvature=seen,
        symmetric=point.symmetric,
        size=point.layout.size,
        vector=b.numel() * b.element_size(),
        graph=graph,
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


def timed(function: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Return the least time of some calls, in wall seconds of a machine that has nothing else to do.

    On the CPU a call on one thread that had to wait for other processes took more wall seconds than CPU seconds, and
    one on many threads more CPU seconds than wall seconds: the lesser of both is taken.
    """
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start, busy = time.perf_counter(), time.process_time()
        function()
        _wait(device)
        wall, busy = time.perf_counter() - start, time.process_time() - busy
        seconds.append(min(wall, busy) if device.type == "cpu" else wall)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Held:
    """Notes the storages that graphs recorded inside hold."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    def _pack(self, value: Tensor) -> Tensor:
        self._seen.setdefault(value.untyped_storage().data_ptr(), value)  # held: nothing else comes to lie there
        return value

    def beside(self, other: _Held) -> int:
        """Return the bytes of those that the other one does not hold, too; both forget them."""
        own = [value for place, value in self._seen.items() if place not in other._seen]
        self._seen, other._seen = {}, {}
        return sum(value.untyped_storage().nbytes() for value in own)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._hooks.__exit__(*failure)
