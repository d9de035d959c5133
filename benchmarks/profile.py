"""Where the time of one hypergradient goes, and how far it is from what a hand-written loop would take.

Run ``python -m benchmarks.profile`` (two minutes), or with ``--networks logistic``. The networks and their sizes are
those of the sheet ``cost``. Shares are of CPU seconds on one thread, medians over rounds in turn with the hand-written
loops; what a part calls counts for that part only if it is no part itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as recorded

from benchmarks.problems import random_arrays
from benchmarks.rows import engine, hand
from benchmarks.sheets.cost import NETWORKS, STEP, definite
from hypergrad import guards, stationarity
from hypergrad.linear import LinearSolver
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel import implicit
from hypergrad.solvers.bilevel.implicit import Implicit
from hypergrad.solvers.bilevel.point import Point
from hypergrad.solvers.bilevel.reverse import GraphWindow
from hypergrad.solvers.bilevel.unrolled import Unrolled

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "products": ((stationarity, "pulled_back"), (GraphWindow, "pullback")),
    "vectors": ((LinearSolver, "solve_flat"),),
    "set-up": ((Problem, "outer_gradients"), (Problem, "linearise"), (GraphWindow, "__init__")),
    "checks": (
        (Point, "check"),
        (Point, "check_solution"),
        (stationarity.Stationarity, "slope"),
        (implicit, "check_finite"),
        (guards, "inspect_graph"),
    ),
    "report": ((Implicit, "_report"),),
    "guards and the rest": ((Implicit, "step"), (Unrolled, "step")),
}
"""Parts of a hypergradient, and the functions that each is made of."""
MULTIPLICATIONS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_convolution", "aten::convolution_backward")
"""Kernels that a processor spends its arithmetic in."""


class Clock:
    """CPU seconds by part; while a part calls another one its own time stands still."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        def call(*args: Any, **options: Any) -> Any:
            self._turn()
            self._running.append(part)
            try:
                return function(*args, **options)
            finally:
                self._turn()
                self._running.pop()

        return call

    def _turn(self) -> None:
        now = time.process_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@contextmanager
def watched() -> Iterator[Clock]:
    """A block in which the parts of every hypergradient are timed."""
    clock = Clock()
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        yield clock


def multiplications(function: Callable[[], Any]) -> int:
    """Return how many matrix multiplications and convolutions a call makes."""
    function()
    with recorded(activities=[ProfilerActivity.CPU]) as found:
        function()
    return sum(event.count for event in found.key_averages() if event.key in MULTIPLICATIONS)


def profiled(
    network: str, arrays: Mapping[str, Any], row: str, limit: str, settings: Mapping[str, Any], repeats: int
) -> dict[str, Any]:
    """Return where the time of a row goes, and its ratio to the hand-written row and to the one that is the limit."""
    ours = engine.ROWS[row](network, arrays, settings)
    others = {name: hand.ROWS[name](network, arrays, settings) for name in {row.removesuffix(" apart"), limit}}
    plain = hand.ROWS["training step"](network, arrays, {})
    calls = {"ours": ours, **others}
    shares: list[dict[str, float]] = []
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
        with watched() as clock:
            ours()
        total = sum(clock.seconds.values())
        if turn >= 0:
            shares.append({part: clock.seconds[part] / total for part in PARTS})
    length = "terms" if "terms" in settings else "steps"
    longer = engine.ROWS[row](network, arrays, {**settings, length: settings[length] + 1})
    return {
        "seconds": statistics.median(seconds["ours"]),
        "shares": {part: statistics.median(share[part] for share in shares) for part in PARTS},
        "over hand": _ratio(seconds["ours"], seconds[row.removesuffix(" apart")]),
        "over limit": _ratio(seconds["ours"], seconds[limit]),
        "multiplications": multiplications(longer) - multiplications(ours),
        "multiplications of a step": multiplications(plain),
    }


def _ratio(values: Sequence[float], units: Sequence[float]) -> float:
    return statistics.median(value / unit for value, unit in zip(values, units, strict=True))


def main(
    networks: Sequence[str] = tuple(NETWORKS), terms: int = 10, repeats: int = 7, *, smoke: bool = False
) -> dict[str, dict[str, Any]]:
    """Profile Neumann, CG and unrolling on each network, print a table and return its figures.

    Args:
        networks: of the sheet ``cost``.
        terms: products of a linear solve, and steps that are unrolled.
        repeats: rounds, ten times as many on the logistic regression.
        smoke: whether the networks are tiny.
    """
    torch.set_num_threads(1)
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "neumann": ("neumann apart", {"terms": terms, "step": STEP}),
        "neumann apart": ("neumann apart", {"terms": terms, "step": STEP}),
        "cg": ("cg", {"terms": terms}),
        "unrolled": ("unrolled", {"steps": terms, "lr": STEP}),
    }
    print(f"| network, row | ms | {' | '.join(PARTS)} | over hand | over the limit | multiplications |")
    print("|---" * (len(PARTS) + 5) + "|")
    result = {}
    for network in networks:
        arrays = definite(random_arrays(network, **NETWORKS[network][smoke]))
        for row, (limit, settings) in rows.items():
            found = profiled(network, arrays, row, limit, settings, repeats * (10 if network == "logistic" else 1))
            result[f"{network}, {row}"] = found
            shares = " | ".join(f"{share:.1%}" for share in found["shares"].values())
            print(
                f"| {network}, {row} | {found['seconds'] * 1e3:.3g} | {shares} | {found['over hand']:.2f} "
                f"| {found['over limit']:.2f} | {found['multiplications']} : "
                f"{found['multiplications of a step']} |",
                flush=True,
            )
    return result


if __name__ == "__main__":
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    line.add_argument("--terms", type=int, default=10, help="products of a linear solve, steps unrolled (10)")
    line.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    given = line.parse_args()
    main(given.networks, given.terms, given.repeats)
