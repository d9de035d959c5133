"""Cost of one hypergradient: time in plain training steps and relative to a hand-written loop, and peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import plots
from benchmarks.problems import random_arrays
from benchmarks.sheets.sheet import Method, Options, Processes, Sheet, measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = 0.1
NETWORKS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "mlp": ({"width": 1024, "batch": 128, "inputs": 784}, {"width": 8, "batch": 4, "inputs": 12}),
    "convnet": ({"width": 16, "batch": 64, "inputs": 28}, {"width": 2, "batch": 4, "inputs": 8}),
    "transformer": ({"width": 128, "batch": 32, "inputs": 32}, {"width": 8, "batch": 4, "inputs": 6}),
    "logistic": ({"width": 1, "batch": 200, "inputs": 64}, {"width": 1, "batch": 8, "inputs": 6}),
}
"""Sizes of each network, and those of a smoke run."""
LIMITS = {"mlp": 1.03, "convnet": 1.03, "transformer": 1.03, "logistic": 1.1}


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    sheet = Sheet("cost", "Cost of one hypergradient by Neumann and CG", options)
    with Processes(options) as processes:
        cases(sheet, processes)
    return sheet.save(finished=True)


def cases(sheet: Sheet, processes: Processes) -> None:
    """Measure network by network."""
    options = sheet.options
    for network, sizes in NETWORKS.items():
        arrays = random_arrays(network, **sizes[options.smoke])
        for name in arrays:
            if name.startswith("hparams."):
                arrays[name] = arrays[name] + 6.0  # λ = −1: the Hessian is positive definite
        for terms in (2,) if options.smoke else (10, 20):
            for solver in ("neumann", "cg"):
                case = f"{network}, {solver}, {terms} products"
                base = f"hand/{solver}"
                rows = measure(methods(solver, terms), network, arrays, processes, base=base)
                sheet.add(case, rows, entries=sum(a.size for key, a in arrays.items() if key.startswith("params.")))
                claims(sheet, case, network, solver)


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw the times of all cases."""
    plots.bars(result, figure)


def methods(solver: str, terms: int) -> list[Method]:
    """Return the rows of a case."""
    settings = {"terms": terms, "step": STEP}
    found = [
        Method("hand", "training step"),
        Method("hand", solver, settings),
        Method("engine", solver, settings),
        Method("engine", f"{solver} apart", settings),
        *(Method(peer, solver, settings) for peer in ("betty", "torchopt", "boat", "jaxopt")),
    ]
    if solver == "neumann":
        found.insert(2, Method("hand", "neumann apart", settings))
    return found


def claims(sheet: Sheet, case: str, network: str, solver: str) -> None:
    """State what this library has to reach in a case."""
    limit, row = LIMITS[network], f"engine/{solver}"
    sheet.claim(f"{case}: time over hand-written", sheet.value(case, row, "time"), limit, noisy=sheet.noisy(case, row))
    sheet.claim(f"{case}: memory over hand-written", sheet.value(case, row, "memory"), 1.15)
    if network == "mlp":
        apart = f"{row} apart"
        sheet.claim(
            f"{case}, penalty given apart: time over hand-written",
            sheet.value(case, apart, "time"),
            0.87,
            noisy=sheet.noisy(case, apart),
        )
