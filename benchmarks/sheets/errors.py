"""Error against work: how far each library's hypergradient is from the exact one, over the products it spends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from benchmarks import plots
from benchmarks.exact import Exact, convnet, digits, logistic, made_up, ridge
from benchmarks.peers.environments import PeerError
from benchmarks.peers.process import Row
from benchmarks.sheets.sheet import Options, Processes, Sheet, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "engine/cg, default"
PLAIN = "engine/cg, no preconditioner"
SKETCH = "engine/cg, sketch"
PAID = 100
"""Products from which on the 20 of a sketch are paid back."""
ROUNDING = 1.05
"""Ratio of errors within which the same method with the same products differs by rounding."""
GRID = (10, 30, 100, 300, 1000)
LONG = 4.0
"""CPU seconds that a call may be expected to take; a row ends before."""
FLOOR = 1e-12
"""Errors below are rounding, and count as this much."""
REPEATS = 12
"""Hypergradients of the same point, for noise and for the drift of running statistics."""
COLUMNS = {
    **{f"at_{terms}": (f"{terms} products", ".1e") for terms in GRID},
    "seconds": ("CPU s at the most", ".3f"),
    "noise": ("noise over signal", ".1e"),
    "drift": ("drift of running statistics", ".1e"),
}
ABOUT = """\
Relative error of the hypergradient in float64 at the inner optimum, against dense solves (for the ConvNet with a
Hessian from autograd in float64), by the number of products with the inner Hessian that a method is given; one more
product, the mixed one, is everybody's, as is one for the residual of the start with TorchOpt, curvlinops and the JAX
libraries. Neumann's step is 1 / L. The default of ours is conjugate gradients with the penalty given apart, whose
diagonal preconditions: it is behind plain conjugate gradients in the first products where the penalties are not what
spreads the curvature. Noise over
signal is the standard deviation of twelve hypergradients of one point of a network with dropout 0.1 over their mean;
drift is how far they move the running statistics of BatchNorm, relative to their size. JAX draws from a key that its
user holds, and is left out there."""


@final
@dataclass(frozen=True)
class Line:
    """A method that is followed over numbers of products.

    Attributes:
        peer: whose environment it runs in.
        row: its name in the module.
        settings: of the row, besides ``terms``.
        label: what stands in the table.
        module: of ``benchmarks.rows``, by default the peer's name.
    """

    peer: str
    row: str
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    module: str = ""

    @property
    def name(self) -> str:
        """Return what stands in the table."""
        return self.label or f"{self.peer}/{self.row}"


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    sheet = Sheet("errors", "Error of the hypergradient against work", options, columns=COLUMNS, about=ABOUT)
    with Processes(options) as processes:
        for case, problem, build, grid in plan(options):
            try:
                exact = build()
            except Exception as error:
                sheet.add(case, {OURS: {"reason": f"{type(error).__name__}: {error}"}})
                continue
            with saved(exact.arrays) as data:
                for line in lines(options, exact.top):
                    sheet.add(case, {line.name: followed(processes, line, problem, exact, data, grid)})
            sheet.add(case, {}, condition=exact.condition)
            claims(sheet, case)
        stochastic(sheet, processes)
    return sheet.save(finished=True)


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw errors over products."""
    plots.curves(result, figure, x="work", y="errors")


def plan(options: Options) -> list[tuple[str, str, Callable[[], Exact], tuple[int, ...]]]:
    """Return the cases: name, problem of the rows, how it is made, and numbers of products."""
    if options.smoke:
        return [
            ("made up, spread penalties", "logistic", lambda: logistic("made up", "spread"), GRID[:2]),
            ("ridge", "ridge", lambda: ridge(small=True), GRID[:2]),
        ]
    return [
        ("digits, spread penalties", "logistic", lambda: logistic("digits", "spread"), GRID),
        ("digits, nearly equal penalties", "logistic", lambda: logistic("digits", "equal"), GRID),
        ("MNIST-5k, spread penalties", "logistic", lambda: logistic("mnist", "spread"), GRID[:4]),
        ("ridge", "ridge", ridge, GRID[:4]),
        ("ConvNet", "convnet", convnet, GRID[:3]),
    ]


def lines(options: Options, top: float) -> list[Line]:
    """Return the methods of a case."""
    step = {"step": 1 / top}
    found = [
        Line("hand", "cg"),
        Line("hand", "neumann", step),
        Line("engine", "implicit", {"apart": False}, PLAIN, "engine_exact"),
        Line("engine", "implicit", {"preconditioner": "penalty"}, OURS, "engine_exact"),
        Line("engine", "implicit", {"preconditioner": "nystrom"}, SKETCH, "engine_exact"),
        Line("engine", "implicit", {**step, "apart": False}, "engine/neumann", "engine_exact"),
        *(Line(peer, "cg", step) for peer in ("torchopt", "boat", "curvlinops", "betty", "jaxopt", "optimistix")),
        Line("torchopt", "normal cg"),
        *(Line(peer, "neumann", step) for peer in ("torchopt", "boat", "curvlinops", "betty", "jaxopt")),
    ]
    return [line for line in found if line.peer in options.peers]


def followed(
    processes: Processes, line: Line, problem: str, exact: Exact, data: Path, grid: tuple[int, ...]
) -> dict[str, Any]:
    """Return a method's errors and CPU seconds over numbers of products, as far as it goes."""
    found: dict[str, Any] = {"work": [], "errors": [], "cpu": []}
    for terms in grid:
        if found["cpu"] and found["cpu"][-1] * terms / found["work"][-1] > LONG:
            break
        settings = {**line.settings, "terms": terms}
        try:
            row = Row(processes.of(line.peer), line.name, line.module or line.peer, line.row, problem, data, settings)
        except PeerError as failure:
            return found | {"reason": str(failure)}
        try:
            row.run()
            seconds, error = row.run()["cpu"], exact.error(row.answer())
        except PeerError as failure:
            return found | {"reason": str(failure)}
        finally:
            with suppress(PeerError):
                row.forget()
        for key, value in (("work", terms), ("errors", error), ("cpu", seconds)):
            found[key].append(value)
        found |= {f"at_{terms}": error, "seconds": seconds, "version": row.version}
    return found


def claims(sheet: Sheet, case: str) -> None:
    """State how ours compares at equal products, and how exact it gets."""
    rows = sheet.cases[case]["rows"]
    peers = {name: row for name, row in rows.items() if name.partition("/")[0] not in ("engine", "hand")}
    for ours, theirs in (("cg", PLAIN), ("neumann", "engine/neumann")):
        same = {name: row for name, row in peers.items() if name.endswith(f"/{ours}")}
        text = f"{case}: error of our {ours} over the best peer's at equal products, at worst"
        sheet.claim(text, worst_ratio(rows.get(theirs, {}), same), ROUNDING)
    text = f"{case}: error of our cg with a sketch over the best peer's, from {PAID} products on, at worst"
    sheet.claim(text, worst_ratio(rows.get(SKETCH, {}), peers, PAID), 1.0)
    if case.startswith(("digits", "MNIST")):
        least = min(rows.get(SKETCH, {}).get("errors") or [math.inf])
        sheet.claim(f"{case}: least error of our cg", least if math.isfinite(least) else None, 1e-10)


def worst_ratio(ours: dict[str, Any], peers: dict[str, dict[str, Any]], start: int = 0) -> float | None:
    """Return the largest ratio of our error to the least of the peers' with as many products.

    Args:
        ours: the row.
        peers: the others' rows.
        start: least number of products that counts.
    """
    found = []
    for terms, error in zip(ours.get("work", []), ours.get("errors", []), strict=True):
        others = [row[f"at_{terms}"] for row in peers.values() if row.get(f"at_{terms}") is not None]
        if others and terms >= start:
            found.append(max(error, FLOOR) / max(min(others), FLOOR))
    return max(found, default=None)


def stochastic(sheet: Sheet, processes: Processes) -> None:
    """Measure the noise under dropout, and the drift of BatchNorm's running statistics."""
    arrays = hidden_layer(made_up(inputs=8) if sheet.options.smoke else digits(train=128, valid=128))
    terms = {"terms": 10, "step": 0.5}
    found = [
        Line("engine", "implicit", {**terms, "apart": False}, "engine/neumann", "engine_exact"),
        Line("engine", "implicit", {"terms": 10}, "engine/cg", "engine_exact"),
        Line("hand", "neumann", terms),
        Line("betty", "darts"),
        *(Line(peer, row, terms) for row in ("neumann", "cg") for peer in ("betty", "torchopt", "boat", "curvlinops")),
    ]
    rows = [line for line in found if line.peer in sheet.options.peers]
    with saved(arrays) as data:
        for line in rows:
            sheet.add("dropout 0.1", {line.name: noise(processes, line, data)})
            sheet.add("BatchNorm", {line.name: drift(processes, line, data)})
    for case, key in (("dropout 0.1", "noise"), ("BatchNorm", "drift")):
        for name in ("engine/neumann", "engine/cg"):
            sheet.claim(f"{case}: {key} of {name}", sheet.value(case, name, key), 0.0)


def hidden_layer(data: dict[str, Any], units: int = 32) -> dict[str, Any]:
    """Return a network with one hidden layer at random weights, with penalties that make its Hessian regular."""
    rng = np.random.default_rng(0)
    inputs, classes = data["x"].shape[1], int(data["y"].max()) + 1
    arrays = dict(data)
    for name, shape in (("weight0", (units, inputs)), ("weight1", (classes, units))):
        arrays[f"params.{name}"] = rng.standard_normal(shape) / math.sqrt(shape[1])
        arrays[f"hparams.{name}"] = np.zeros(shape)
    return arrays


def noise(processes: Processes, line: Line, data: Path) -> dict[str, Any]:
    """Return the standard deviation of repeated hypergradients over their mean."""
    try:
        row = Row(
            processes.of(line.peer), line.name, line.module or line.peer, line.row, "dropout", data, line.settings
        )
        answers = []
        for _ in range(REPEATS):
            row.run()
            answers.append(row.answer())
    except PeerError as error:
        return {"reason": str(error)}
    return {"noise": noise_over_signal(answers), "version": row.version}


def noise_over_signal(answers: list[np.ndarray[Any, Any]]) -> float:
    """Return the standard deviation of vectors over the length of their mean; exactly 0 where all are the same."""
    pairs = [np.linalg.norm(a - b) ** 2 / 2 for a, b in itertools.combinations(answers, 2)]
    return math.sqrt(float(np.mean(pairs))) / float(np.linalg.norm(np.mean(answers, axis=0)))


def drift(processes: Processes, line: Line, data: Path) -> dict[str, Any]:
    """Return how far repeated hypergradients move the running statistics, relative to their size."""
    try:
        process = processes.of(line.peer)
        module = line.module or line.peer
        row = Row(process, line.name, module, line.row, "batchnorm", data, line.settings)
        watch = Row(process, "statistics", "norms", "statistics", "batchnorm", data, {})
        watch.run()
        before = watch.answer()
        for _ in range(REPEATS):
            row.run()
        watch.run()
    except PeerError as error:
        return {"reason": str(error)}
    moved = np.linalg.norm(watch.answer() - before) / np.linalg.norm(before)
    return {"drift": float(moved), "version": row.version}
