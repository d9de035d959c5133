"""Sections about a run of the engine: what and why, convergence, hyperparameters, linear solves, cost, environment."""

from __future__ import annotations

from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Facts, Key, Notice, Section, Table, Text
from hypergrad.report.reading import listing, mapping, number, text_of
from hypergrad.report.series import Steps
from hypergrad.report.svg import Line, line_chart, spans_decades

RUN_HINT = "The run was not recorded. Add callbacks=[hypergrad.report.Record(directory)] to the Trainer."
ORDERS = {0: "values only", 1: "first derivatives", 2: "second derivatives"}


def what_ran(run: dict[str, Any], result: dict[str, Any]) -> Section:
    """Say what ran and why that method."""
    chosen = mapping(result.get("settings")).get("algorithm")
    if not run and isinstance(chosen, str):
        why = Text("It is what the settings name or stand for; they are listed under the environment.")
        return Section("what", "What ran, and why", [Facts([("Algorithm", text_of(chosen, 400))]), why])
    if not run:
        notice = Notice("note", "What ran is not known", "There is no run.json that can be read.", RUN_HINT)
        return Section("what", "What ran, and why", [notice])
    algorithm = mapping(run.get("algorithm"))
    pairs = [("Algorithm", text_of(algorithm.get("name", words.UNKNOWN), 100))]
    pairs += [("Outer move", text_of(run["outer"], 300))] if run.get("outer") else []
    pairs += [
        (label, _sizes(run[key]))
        for key, label in (("hparams", "Hyperparameters λ"), ("params", "Parameters θ"))
        if listing(run.get(key))
    ]
    if isinstance(algorithm.get("order"), int):
        order = ORDERS.get(algorithm["order"], f"derivatives of order {algorithm['order']}")
        drawn = ", with random directions of its own" if algorithm.get("stochastic") is True else ""
        tends = "yes, as its tolerances go to zero" if algorithm.get("exact") is True else "no, or not promised"
        pairs += [("Uses", f"{order} of the training loss{drawn}"), ("Tends to the true hypergradient", tends)]
    for key, label in (("needs", "Needs"), ("cost", "Cost of a step")):
        pairs += [(label, text_of(algorithm[key], 300))] if isinstance(algorithm.get(key), str) else []
    blocks: list[Block] = [Facts(pairs)]
    if isinstance(algorithm.get("reason"), str):
        blocks += [
            Text("Why this method, as it was chosen automatically:"),
            Text(text_of(algorithm["reason"], 6000), lines=True),
        ]
    elif algorithm:
        blocks.append(
            Text(
                "Why this method: it was named in the call. The word “auto” in its place has one chosen, with reasons."
            )
        )
    if isinstance(algorithm.get("repr"), str):
        blocks += [Text("All its settings:"), Text(text_of(algorithm["repr"], 4000), lines=True)]
    return Section("what", "What ran, and why", blocks)


def convergence(steps: Steps) -> Section:
    """Show losses, hypergradient, residuals and inner stationarity over the steps."""
    blocks: list[Block] = []
    for name, title, hint in (
        (
            "outer_loss",
            "Outer loss",
            "What is minimised: the validation loss after training. It should fall and level off.",
        ),
        ("norm", "Norm of the hypergradient", "How much is left to gain. It falls towards zero near a minimum."),
        (
            "inner_gradient_norm",
            "Inner stationarity ‖∇g‖",
            "How far training is from its optimum; implicit formulas want it small.",
        ),
        (
            "residual",
            "Relative residual of the linear solves",
            "How exactly the linear systems were solved; lower is better.",
        ),
        (
            "implied_error",
            "Implied error of the outer loss",
            "How far the outer loss would move if training went on to its optimum.",
        ),
        *((name, name, "A value that the run recorded besides.") for name in steps.extra),
    ):
        points = steps.known(name)
        if points:
            values = [value for _, value in points]
            log = name not in ("outer_loss", *steps.extra) and spans_decades([value for value in values if value > 0])
            best = f"; lowest {words.shown(min(values))} at step {min(points, key=lambda point: point[1])[0]:,}"
            ends = f"From {words.shown(values[0])} to {words.shown(values[-1])}"
            summary = f"{ends} in {words.count(len(points), 'step')}{best}."
            line = Line(name, [(float(step), value) for step, value in points])
            unit = text_of(title, 60)
            blocks.append(
                line_chart(
                    f"run-{len(blocks)}",
                    unit,
                    summary,
                    [line],
                    x_name="outer step",
                    y_name=unit,
                    log=log,
                    hint=hint,
                )
            )
    if not blocks:
        blocks = [
            Notice(
                "note",
                "No steps yet",
                "There is no history.jsonl with a whole line.",
                'Add callbacks=[hypergrad.History("directory/history.jsonl")] to the Trainer.',
            )
        ]
    return Section("convergence", "Losses and convergence", blocks)


def health(steps: Steps) -> Section:
    """Say how the linear solves went, in plain words."""
    blocks: list[Block] = []
    total = sum(steps.statuses.values())
    if not total:
        blocks.append(Notice("note", "Nothing to judge", "No step has reported a status yet."))
        return Section("health", "Health of the linear solver", blocks)
    good = sum(steps.statuses.get(status, 0) for status in words.GOOD_STATUSES)
    if good == total and not steps.bent and not steps.notes:
        blocks.append(
            Notice(
                "good", "No complaints", f"All {words.count(total, 'step')} ended as they should, without a warning."
            )
        )
    rows = []
    for status, times in sorted(steps.statuses.items(), key=lambda item: -item[1]):
        meaning = words.STATUSES.get(status, "As the outer move or the parts of the algorithm say it.")
        rows.append([status.replace("_", " "), f"{times:,}", words.percent(times / total), meaning])
    blocks.append(Table("How the steps ended", ["status", "steps", "share", "meaning"], rows))
    worst = max((value for _, value in steps.known("residual")), default=None)
    spent = [int(value) for value in steps.passes.get("products", []) if value is not None]
    pairs = [("Worst relative residual", "no linear solve reported one" if worst is None else words.shown(worst, 3))]
    pairs.append(("Steps with negative curvature", f"{steps.bent:,} of {total:,}"))
    if spent:
        pairs.append(("Hessian products", f"{sum(spent):,} in all, at most {max(spent):,} in a step"))
    blocks.append(Facts(pairs))
    points = [
        (float(step), value)
        for step, value in zip(steps.step, steps.passes.get("products", []), strict=False)
        if value is not None
    ]
    if any(value for _, value in points):
        low, high = (words.shown(end(value for _, value in points)) for end in (min, max))
        summary = f"From {low} to {high} products a step."
        hint = (
            "Each product is one pass through the graph of the training gradient. "
            "A rising line means that the systems get harder."
        )
        blocks.append(
            line_chart(
                "health-products",
                "Hessian products of each step",
                summary,
                [Line("products", points)],
                x_name="outer step",
                y_name="products",
                hint=hint,
            )
        )
    blocks += warnings(steps)
    return Section("health", "Health of the linear solver", blocks)


def warnings(steps: Steps) -> list[Block]:
    """Return the warnings of a run in plain words, each with a remedy."""
    found: list[Block] = []
    for note in sorted(steps.notes.values(), key=lambda note: -note.steps):
        title, meaning, remedy = words.REMEDIES.get(note.kind, (note.kind, "", ""))
        times = f"{words.count(note.steps, 'step')}, first {note.first:,}, last {note.last:,}"
        found.append(
            Notice(
                "warning",
                f"{title} ({times})",
                " ".join(part for part in (meaning, f"Last said: {note.text}") if part),
                remedy,
            )
        )
    return found


def environment(run: dict[str, Any], result: dict[str, Any]) -> Section:
    """Say where it ran, with which versions, seeds and settings."""
    blocks: list[Block] = []
    seeds = run.get("seed", result.get("seed", result.get("seeds")))
    pairs = [("Seeds" if isinstance(seeds, list) else "Seed", text_of(seeds, 200))] if seeds is not None else []
    pairs += [
        (label, words.moment(run[key])) for key, label in (("began", "Began"), ("ended", "Ended")) if run.get(key)
    ]
    if pairs:
        blocks.append(Facts(pairs))
    for label, key in (("Versions", "versions"), ("Machine", "machine"), ("Settings", "settings")):
        found = mapping(run.get(key)) or mapping(result.get(key))
        if found:
            rows = [[text_of(name, 80), text_of(value, 400)] for name, value in list(found.items())[:80]]
            blocks.append(Table(label, ["name", "value"], rows))
    if not blocks:
        blocks = [Notice("note", "Not recorded", "Neither run.json nor result.json says where this ran.", RUN_HINT)]
    return Section("environment", "Environment, seeds and settings", blocks)


def keys(steps: Steps) -> list[Key]:
    """Return the three numbers that matter for a run."""
    losses, norms = steps.known("outer_loss"), steps.known("norm")
    found = []
    if losses:
        first, (at, best), last = losses[0][1], min(losses, key=lambda pair: pair[1]), losses[-1][1]
        gain = f"{words.shown(first)} at the start" + (
            f", lowest {words.shown(best)} at step {at:,}" if best < last else ""
        )
        found.append(Key("Outer loss", words.shown(last), gain, "good" if last < first else "note"))
    if norms:
        found.append(
            Key("Hypergradient norm", words.shown(norms[-1][1], 3), f"{words.shown(norms[0][1], 3)} at the start")
        )
    total = sum(steps.statuses.values())
    if total:
        good = sum(steps.statuses.get(status, 0) for status in words.GOOD_STATUSES)
        remark = words.count(len(steps.notes), "kind") + " of warnings" if steps.notes else "no warnings"
        found.append(
            Key(
                "Steps that ended as planned",
                f"{good:,} of {total:,}",
                remark,
                "good" if good == total and not steps.notes else "warning",
            )
        )
    return found


def _sizes(tensors: Any) -> str:
    known = [tensor for tensor in listing(tensors) if isinstance(tensor, dict)]
    total = int(sum(number(tensor.get("entries")) or 0 for tensor in known))
    shown = ", ".join(f"{text_of(tensor.get('name', '?'), 60)} {_shape(tensor.get('shape'))}" for tensor in known[:12])
    more = f", and {len(known) - 12} more" if len(known) > 12 else ""
    return f"{words.count(total, 'number')} in {words.count(len(known), 'tensor')}: {shown}{more}"


def _shape(shape: Any) -> str:
    lengths = [text_of(length, 20) for length in listing(shape)[:8]]
    return f"({' × '.join(lengths)})" if lengths else "(one number)"
