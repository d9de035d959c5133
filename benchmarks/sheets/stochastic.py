"""Stochastic single-loop methods: how far they get, what a step costs, and when L-BFGS-B is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import hypergrad as hg
from benchmarks import plots
from benchmarks.finite_sums import BATCH, LOGISTIC, QUADRATIC, Arrays, logistic, quadratic
from benchmarks.sheets.sheet import Method, Options, Processes, Sheet, measure
from benchmarks.single_loop import RATIOS, STEPS, Curve, Recipe, Task, best_known, exact, follow, recipes, tune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = 12.0
"""Bound of |λ| on the logistic problem."""
SMALL: dict[str, int] = {**QUADRATIC, "n": 4096}
"""Size of the quadratic with 30 parameters."""
ABOUT = f"""‖∇F‖² (from a closed form, or Newton's method, off the clock) after CPU seconds of one thread, and after
calls: evaluations of an objective with its gradient, in batches of {BATCH} examples, some with one product. Steps of θ
(at the beginning) are from {STEPS}, steps of λ over them from {RATIOS}, chosen for each method by the ‖∇F‖²
(logistic: F) that it reaches in a part of the time; both fall as in the method's paper. Quadratics: n examples with
Hessians aaᵀ, spectrum of the mean from 0.1 to 1, mixed derivatives of rank one. Logistic: 22 features of standard
deviations 0.1 to 1, every second true weight 0, one training label in ten turned over, one log penalty a feature, sizes
of ijcnn1 rounded to whole batches. Costs of a step: batches are drawn and gathered in every row; "gradients" evaluates
what the method asks for by torch.autograd alone; JAX makes all steps in one jitted scan, or one jitted call each."""
COLUMNS = {
    "reached": ("‖∇F‖² reached", ".1e"),
    "hit": ("seconds to 1e-9", ".2f"),
    "gap_hit": ("seconds to F − F* = 1e-5", ".2f"),
    "alpha": ("step", "g"),
    "ratio": ("step of λ over it", "g"),
    "total_calls": ("calls", "d"),
    "time": ("time", ".2f"),
    "spread": ("spread", ".0%"),
    "microseconds": ("µs a step", ".0f"),
    "error": ("difference", ".1e"),
}


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    sheet = Sheet("stochastic", "Stochastic single-loop methods", options, columns=COLUMNS, about=ABOUT)
    smoke = options.smoke
    small, large = (dict(QUADRATIC, n=256, m=128, d=3) if smoke else sizes for sizes in (SMALL, QUADRATIC))
    sizes = {"n": 256, "m": 128, "p": 4} if smoke else LOGISTIC
    with Processes(options) as processes:
        costs(sheet, processes, quadratic(6 if smoke else 100, **large), logistic(**sizes))
    task = Task("quadratic", quadratic(4 if smoke else 30, **small))
    case = f"quadratic, p = 30, n = {SMALL['n']}"
    settings = race(sheet, case, task, *((0.005, 0.02) if smoke else (0.25, 3.5)), None)
    best = {name: sheet.value(case, name, "reached") for name in settings}
    for name in ("SABA", "SRBA"):
        sheet.claim(f"p = 30: ‖∇F‖² that {name} reaches", best[name], 1e-9)
    truncated = [best.get(name) for name, recipe in recipes(1).items() if recipe.truncated]
    least = min(value for value in truncated if value is not None)
    sheet.claim("p = 30: least ‖∇F‖² of methods with a truncated Neumann series", least, 1e-9, at_most=False)
    task = Task("quadratic", quadratic(6 if smoke else 100, **large))
    race(
        sheet,
        f"quadratic, p = 100, n = {QUADRATIC['n']}, steps as tuned for p = 30",
        task,
        0.0,
        0.02 if smoke else 2.0,
        settings,
    )
    accurate(sheet, Task("logistic", logistic(**sizes), LIMIT))
    return sheet.save(finished=True)


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw ‖∇F‖² over CPU seconds."""
    shown = {
        case: entry for case, entry in result["cases"].items() if any("cpu" in row for row in entry["rows"].values())
    }
    plots.curves({**result, "cases": shown}, figure, x="cpu", y="gradient")


def race(
    sheet: Sheet, case: str, task: Task, trial: float, budget: float, settings: dict[str, tuple[float, float]] | None
) -> dict[str, tuple[float, float]]:
    """Tune every method, unless its settings are given, run it, and return its settings."""
    chosen = dict(settings or {})
    found = recipes(task.batches)
    for name in [*list(found)[:3], "StocBiO"] if sheet.options.smoke else found:
        recipe: Recipe = found[name]
        if settings is None:
            chosen[name] = tune(task, recipe, trial, "gradient")
        curve = follow(task, recipe, *chosen[name], budget)
        sheet.add(case, {name: entry(curve, chosen[name])}, trial_seconds=trial, budget_seconds=budget)
    return chosen


def entry(curve: Curve, setting: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return the row of a run."""
    row = {**curve.row(), "hit": curve.first("gradient", 1e-9), "gap_hit": None}
    return row if setting is None else {**row, "alpha": setting[0], "ratio": setting[1]}


def accurate(sheet: Sheet, task: Task) -> None:
    """Run L-BFGS-B on the accurate oracle and every stochastic method on the logistic problem."""
    smoke, case = sheet.options.smoke, "logistic, 22 features"
    best = best_known(task, LIMIT)
    algorithm = hg.Implicit(hg.Dense(), inner=hg.Newton(tolerance=1e-8))
    curve = exact(task, algorithm, 5 if smoke else 60)
    ours = curve.first("gap", 1e-5)
    name = "L-BFGS-B, Newton, Dense"
    sheet.add(case, {name: {**entry(curve), "gap_hit": ours}}, best_value=best)
    budget = 0.02 if smoke else min(max(1.2 * (ours or curve.cpu[-1]), 1.0), 5.0)
    first: list[float] = []
    found = recipes(task.batches)
    for method in list(found)[:2] if smoke else found:
        setting = tune(task, found[method], 0.005 if smoke else 0.1, "gap")
        stochastic = follow(task, found[method], *setting, budget)
        hit = stochastic.first("gap", 1e-5)
        first += [] if hit is None else [hit]
        sheet.add(case, {method: {**entry(stochastic, setting), "gap_hit": hit}}, budget_seconds=budget)
    soonest = min(first, default=budget)
    text = "22 features: seconds of L-BFGS-B to F − F* = 1e-5 over those of the soonest stochastic method"
    sheet.claim(
        text if first else f"{text} (none is there after {budget:.1f} s)", None if ours is None else ours / soonest, 1.0
    )


def costs(sheet: Sheet, processes: Processes, large: Arrays, small: Arrays) -> None:
    """Measure what a step costs."""
    smoke = sheet.options.smoke
    steps = 3 if smoke else 200
    case = "cost of a step, quadratic, p = 100"
    for base, names in (("gradients", ("SOBA", "SABA", "SOBA in a Run")), ("gradients at two points", ("SRBA",))):
        settings: dict[str, Any] = {"steps": steps, "step": 1e-3}
        if names == ("SRBA",):
            settings["period"] = 10**9
        methods = [Method("hand", base, module="single_loop_hand", label=f"hand/{base}")]
        methods += [Method("engine", name, settings, module="single_loop_engine") for name in names]
        rows = measure(
            methods,
            "quadratic",
            {**large, **chosen(large, steps)},
            processes,
            base=f"hand/{base}",
            memory=False,
            compare=False,
        )
        sheet.add(case, {name: per_step(row, steps) for name, row in rows.items()})
    for name in ("SOBA", "SABA", "SRBA"):
        row = f"engine/{name}"
        text = f"p = 100: time of a step of {name} over its gradients alone"
        sheet.claim(text, sheet.value(case, row, "time"), 1.5, noisy=sheet.noisy(case, row))
    for name, iterations in (("SOBA", 1), ("SOBA", 8), ("SABA", 1)):
        against_jax(sheet, processes, small, name, iterations)


def against_jax(sheet: Sheet, processes: Processes, arrays: Arrays, name: str, iterations: int) -> None:
    """Measure an iteration on 22 features, with so many of them for each move of λ, over the same in JAX."""
    smoke, jax = sheet.options.smoke, "jaxopt" in sheet.options.peers
    steps = 3 if smoke else 200 // iterations
    case = f"cost of an iteration, 22 features, {name}, {iterations} for each move of λ"
    settings = {"steps": steps, "step": 1e-3, "iterations": iterations}
    methods = [Method("hand", "gradients", module="single_loop_hand")] if iterations == 1 else []
    ours = [name] if smoke else [name, f"{name} compiled"]
    methods += [Method("engine", row, settings, module="single_loop_engine") for row in ours]
    others = (name, f"{name}, a call a step") if name == "SOBA" else (name,)
    methods += [Method("jaxopt", row, settings, f"jax/{row}", "single_loop_jax") for row in others]
    base = f"jax/{name}" if jax else methods[0].name
    given = {**arrays, **chosen(arrays, steps * iterations, name)}
    rows = measure(methods, "logistic", given, processes, base=base, memory=False, compare=jax)
    sheet.add(case, {key: per_step(row, steps * iterations) for key, row in rows.items()})
    row = f"engine/{name} compiled"
    text = f"22 features: time of a compiled iteration of {name} over jitted JAX, {iterations} for each move of λ"
    sheet.claim(text, sheet.value(case, row, "time") if jax else None, 5.0, noisy=sheet.noisy(case, row))


def per_step(row: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return a row with its microseconds a step."""
    return row if "reason" in row else {**row, "microseconds": 1e6 * row["seconds"] / steps}


def chosen(arrays: Arrays, count: int, name: str = "SOBA") -> Arrays:
    """Return the rows of every batch, and the batches that the engine sees, for rows that do not draw themselves."""
    found: Arrays = {}
    rows = {"i": next(len(arrays[key]) for key in ("a", "x") if key in arrays)}
    rows["j"] = next(len(arrays[key]) for key in ("a_valid", "x_valid") if key in arrays)
    partitions = [
        hg.Partition(torch.arange(size), batch_size=BATCH, seed=seed) for seed, size in enumerate(rows.values())
    ]
    places: list[list[int]] = [[], []]
    for place, partition in enumerate(partitions):
        orders = [partition.batch(k)[0] for k in range(partition.batches)]
        found[f"batches_{'ij'[place]}"] = torch.stack(orders).numpy()
        where = {int(order[0]): k for k, order in enumerate(orders)}
        if name == "SOBA":
            places[place] = [where[int(partition.draw()[0][0])] for _ in range(count)]
    if name == "SABA":  # as it chooses: from iteration 1 on, after the tables were filled
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(partition.batches, (256,), generator=generator).tolist() for partition in partitions]
        places = [list_[1 : count + 1] for list_ in drawn]
    return {**found, **{f"places_{key}": np.array(values) for key, values in zip("ij", places, strict=True)}}
