"""Cost of one hypergradient: time over a hand-written loop and in plain training steps, and peak memory likewise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import plots
from benchmarks.problems import random_arrays
from benchmarks.sheets.sheet import COLUMNS, NOISY, Method, Options, Processes, Sheet, measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "mlp": ({"width": 1024, "batch": 128, "inputs": 784}, {"width": 8, "batch": 4, "inputs": 12}),
    "convnet": ({"width": 16, "batch": 32, "inputs": 28}, {"width": 2, "batch": 4, "inputs": 8}),
    "transformer": ({"width": 128, "batch": 8, "inputs": 32}, {"width": 8, "batch": 4, "inputs": 6}),
    "logistic": ({"width": 1, "batch": 200, "inputs": 64}, {"width": 1, "batch": 8, "inputs": 6}),
}
"""Sizes of each network, and those of a smoke run."""
LONG = ({"width": 192, "batch": 256, "inputs": 64}, {"width": 8, "batch": 4, "inputs": 12})
"""Sizes of the MLP that 200 steps are unrolled on."""
LIMITS = {"mlp": 1.03, "convnet": 1.03, "transformer": 1.03, "logistic": 1.1}
"""Bounds on the time over the hand-written loop."""
PENALTIES = 30.0, 300.0
"""Range of exp(λ): above the most negative curvature of each loss, so that every Hessian is positive definite."""
STEP = 0.002
"""Of the Neumann series and of unrolled descent: below 2 over the largest curvature, 300 + 121 of the ConvNet."""
CALLS = 10
"""Rounds of linear solves on the logistic regression for each round elsewhere: a call takes two milliseconds."""
PEERS = ("betty", "torchopt", "boat", "jaxopt")
CLOSE = 0.01
"""Relative difference from the hand-written answer up to which a peer counts as having done the same work."""
ABOUT = (
    "One log penalty for each weight, with exp(λ) spread from 30 to 300, which makes every Hessian positive definite "
    "at the random weights where the hypergradient is taken. Time and memory are over those of the hand-written loop "
    "of the same case; a plain step is forward, backward and SGD without the penalty. Apart: the penalty is given to "
    "the library, or taken out of the graph by hand, as a term of its own. Window: the last steps, which are "
    "differentiated. Recomputed: iterates are kept, graphs are built again step by step."
)


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    columns = COLUMNS | {"steps": ("plain steps", ".1f"), "seconds": ("CPU seconds", ".2g")}
    sheet = Sheet("cost", "Cost of one hypergradient", options, columns=columns, about=ABOUT)
    with Processes(options) as processes:
        for network, sizes in NETWORKS.items():
            arrays = definite(random_arrays(network, **sizes[options.smoke]))
            for terms in (2,) if options.smoke else (10, 20):
                for solver in ("neumann", "cg"):
                    implicit(sheet, processes, network, arrays, solver, terms)
            unrolled(sheet, processes, network, arrays)
        long(sheet, processes)
        if not options.smoke:
            compiled(sheet, processes)
    return sheet.save(finished=True)


def definite(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a problem with log penalties that make its Hessian positive definite."""
    rng = np.random.default_rng(1)
    low, high = np.log(PENALTIES)
    return {
        key: rng.uniform(low, high, value.shape).astype(value.dtype) if key.startswith("hparams.") else value
        for key, value in arrays.items()
    }


def implicit(
    sheet: Sheet, processes: Processes, network: str, arrays: Mapping[str, Any], solver: str, terms: int
) -> None:
    """Measure a linear solver on a network, and state what this library has to reach."""
    case, settings = f"{network}, {solver}, {terms} products", {"terms": terms, "step": STEP}
    methods = [
        Method("hand", "training step"),
        Method("hand", solver, settings),
        *([Method("hand", "neumann apart", settings)] if solver == "neumann" else []),
        Method("engine", solver, settings),
        Method("engine", f"{solver} apart", settings),
        *(Method(peer, solver, settings) for peer in PEERS),
    ]
    calls = CALLS if network == "logistic" and not sheet.options.smoke else 1
    repeats = calls * sheet.options.repeats
    _measure(sheet, processes, case, network, methods, arrays, base=f"hand/{solver}", repeats=repeats)
    row, apart = f"engine/{solver}", f"engine/{solver} apart"
    _claim(sheet, case, row, "time", LIMITS[network])
    _claim(sheet, case, row, "memory", 1.15)
    if network == "mlp":
        _claim(sheet, case, apart, "time", 0.87)
        _against_peers(sheet, case, apart)


def unrolled(sheet: Sheet, processes: Processes, network: str, arrays: Mapping[str, Any]) -> None:
    """Measure back-propagation through training: all steps, the last ones, and recomputed."""
    full = {"steps": 4 if sheet.options.smoke else 20, "lr": STEP}
    window = {**full, "window": full["steps"] // 4}
    methods = [
        Method("hand", "training step"),
        Method("hand", "unrolled", full),
        Method("engine", "unrolled", full),
        Method("engine", "unrolled recomputed", {**full, "keep": "iterates"}, "engine/unrolled, recomputed"),
        Method("hand", "unrolled", window, "hand/unrolled, window"),
        Method("engine", "unrolled", window, "engine/unrolled, window"),
        *(Method(peer, "unrolled", full) for peer in (*PEERS, "higher")),
    ]
    case = f"{network}, unrolled, {full['steps']} steps"
    _measure(sheet, processes, case, network, methods, arrays, base="hand/unrolled")


def long(sheet: Sheet, processes: Processes) -> None:
    """Measure what recomputation saves over many steps."""
    settings = {"steps": 8 if sheet.options.smoke else 200, "lr": STEP}
    methods = [
        Method("engine", "unrolled", settings),
        *(
            Method("engine", "unrolled recomputed", {**settings, "keep": keep}, f"engine/unrolled, {keep}")
            for keep in ("iterates", "sqrt")
        ),
    ]
    case = f"small mlp, unrolled, {settings['steps']} steps"
    arrays = definite(random_arrays("mlp", **LONG[sheet.options.smoke]))
    repeats = -(-sheet.options.repeats // 2)
    _measure(sheet, processes, case, "mlp", methods, arrays, base="engine/unrolled", repeats=repeats)
    _claim(sheet, case, "engine/unrolled, iterates", "memory", 0.2, over="the whole graph")
    _claim(sheet, case, "engine/unrolled, iterates", "time", 1.5, over="the whole graph")


def compiled(sheet: Sheet, processes: Processes) -> None:
    """Measure compiled hypergradients, last of all: once the compiler is loaded, eager ones have to hold it off."""
    arrays, settings = definite(random_arrays("logistic", **NETWORKS["logistic"][0])), {"terms": 10, "step": STEP}
    for solver in ("neumann", "cg"):
        case, ours, other = (
            f"logistic, {solver}, 10 products, compiled",
            f"engine/{solver} compiled",
            f"jaxopt/{solver}",
        )
        methods = [Method(peer, solver, settings) for peer in ("hand", "jaxopt")]
        methods.append(Method("engine", f"{solver} compiled", settings))
        repeats = CALLS * sheet.options.repeats
        _measure(sheet, processes, case, "logistic", methods, arrays, base=f"hand/{solver}", repeats=repeats)
        own, jitted = sheet.value(case, ours, "time"), sheet.value(case, other, "time")
        sheet.claim(
            f"{case}: time over {other}",
            None if own is None or jitted is None else own / jitted,
            1.2,
            noisy=sheet.noisy(case, ours) or sheet.noisy(case, other),
        )


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw the times of all cases."""
    figure.set_size_inches(14, 12)
    plots.bars(result, figure)


def _measure(
    sheet: Sheet,
    processes: Processes,
    case: str,
    network: str,
    methods: list[Method],
    arrays: Mapping[str, Any],
    *,
    base: str,
    repeats: int | None = None,
) -> None:
    rows = measure(methods, network, arrays, processes, base=base, repeats=repeats or sheet.options.repeats)
    plain = rows.get("hand/training step", {}).get("seconds")
    for row in rows.values():
        if plain and "seconds" in row:
            row["steps"] = row["seconds"] / plain
    sheet.add(case, rows, entries=sum(a.size for key, a in arrays.items() if key.startswith("params.")))


def _claim(sheet: Sheet, case: str, row: str, key: str, limit: float, over: str = "hand-written") -> None:
    """State a bound on a row's time or memory."""
    noisy = key == "time" and sheet.noisy(case, row)
    sheet.claim(f"{case}, {row}: {key} over {over}", sheet.value(case, row, key), limit, noisy=noisy)


def _against_peers(sheet: Sheet, case: str, row: str) -> None:
    """State how much faster a row is than the fastest peer that gives the same answer."""
    found = sheet.cases[case]["rows"]
    rows = [entry for name, entry in found.items() if name.partition("/")[0] in PEERS and "time" in entry]
    peers = [entry for entry in rows if entry.get("error", 0.0) <= CLOSE]
    own = found.get(row, {}).get("time")
    fastest = min(peers, key=lambda entry: float(entry["time"]), default=None)
    sheet.claim(
        f"{case}, {row}: the fastest peer's time over it",
        None if own is None or fastest is None else fastest["time"] / own,
        1.15,
        at_most=False,
        noisy=sheet.noisy(case, row) or (fastest is not None and fastest["spread"] > NOISY),
    )
