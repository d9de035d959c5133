"""Sections about a comparison of methods: the table, and the best so far against the cost."""

from __future__ import annotations

from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Facts, Key, Notice, Section, Table, Text
from hypergrad.report.reading import listing, mapping, number, text_of
from hypergrad.report.svg import STYLES, Line, line_chart, spans_decades

MOST_METHODS, MOST_POINTS = 40, 400
KNOWN = ("name", "seeds", "curve", "final_validation", "test")
Point = tuple[float, float, float, float]


def sections(found: dict[str, Any]) -> list[Section]:
    """Show the table and the curves of a comparison."""
    blocks: list[Block] = []
    pairs = [
        (label, text_of(found[key], 400)) for key, label in (("task", "Task"), ("budget", "Budget")) if key in found
    ]
    optuna = mapping(found.get("versions")).get("optuna")
    pairs += [("Optuna", f"version {text_of(optuna, 40)}")] if optuna is not None else []
    blocks += [Facts(pairs)] if pairs else []
    known = methods(found)
    if not known:
        blocks.append(Notice("note", "No method has finished yet", "compare.json holds no methods."))
        return [Section("comparison", "The comparison", blocks)]
    rows = []
    for name, method in known:
        seeds, spread = _seeds(method.get("seeds")), _spread(method.get("final_validation"))
        cost = [point[0] for point in curve(method)]
        rows.append([name, seeds, spread, _spread(method.get("test")), words.shown(max(cost)) if cost else ""])
    rows.sort(key=lambda row: _final_of(known, row[0]))
    blocks.append(
        Table("Methods, best validation value first", ["method", "seeds", "validation", "test", "cost"], rows)
    )
    remark = (
        "Lower is better. Every method had the same budget; the test value was looked at once, at the end. In "
        "brackets: "
        "the lowest and the highest of the seeds."
    )
    blocks.append(Text(remark))
    blocks += _others(known)
    return [
        Section("comparison", "The comparison", blocks),
        Section("curves", "Best so far against cost", _curves(found, known)),
    ]


def keys(found: dict[str, Any]) -> list[Key]:
    """Return the three numbers that matter for a comparison."""
    ranked = sorted(
        ((middle(method.get("final_validation")), name) for name, method in methods(found)),
        key=lambda pair: pair[0] if pair[0] is not None else float("inf"),
    )
    known = [(value, name) for value, name in ranked if value is not None]
    if not known:
        return []
    (best, name), others = known[0], known[1:]
    result = [Key("Best method", name, f"validation {words.shown(best)}", "good")]
    if others:
        result.append(Key("Next best", others[0][1], f"validation {words.shown(others[0][0])}"))
    test = middle(dict(methods(found))[name].get("test"))
    if test is not None:
        result.append(Key("Test, once", words.shown(test), f"of {name}"))
    return result


def methods(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods of a comparison by name."""
    entries = [entry for entry in listing(found.get("methods")) if isinstance(entry, dict)]
    return [
        (text_of(entry.get("name", f"method {place + 1}"), 60), entry)
        for place, entry in enumerate(entries[:MOST_METHODS])
    ]


def curve(method: dict[str, Any]) -> list[Point]:
    """Return (cost, median, low, high) of the best so far, by cost."""
    points: list[Point] = []
    for row in listing(method.get("curve")):
        values = [number(value) for value in listing(row)[:4]]
        if len(values) >= 2 and values[0] is not None and values[1] is not None:
            low, high = (values[2], values[3]) if len(values) == 4 else (None, None)
            points.append(
                (values[0], values[1], values[1] if low is None else low, values[1] if high is None else high)
            )
    points.sort()
    if len(points) > MOST_POINTS:
        points = [points[round(k * (len(points) - 1) / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]
    return points


def middle(value: Any) -> float | None:
    """Return the median of what a method reached, however it was written: a number, a list of seeds, or a dict."""
    if isinstance(value, dict):
        return next(
            (found for key in ("median", "mean", "value") if (found := number(value.get(key))) is not None), None
        )
    if isinstance(value, list):
        known = sorted(found for entry in value if (found := number(entry)) is not None)
        return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else None
    return number(value)


def _curves(found: dict[str, Any], known: list[tuple[str, dict[str, Any]]]) -> list[Block]:
    drawn = [(name, points) for name, method in known if (points := curve(method))]
    if not drawn:
        return [Notice("note", "No curves", "compare.json holds no curves.")]
    blocks: list[Block] = []
    log = spans_decades([value for _, points in drawn for point in points for value in point[1:]])
    unit = text_of(found.get("cost_unit", "cost"), 40)
    for start in range(0, len(drawn), STYLES):
        group = drawn[start : start + STYLES]
        lines = [
            Line(
                name, [(x, y) for x, y, _, _ in points], [([p[2] for p in points], [p[3] for p in points])], style=place
            )
            for place, (name, points) in enumerate(group)
        ]
        best = min(group, key=lambda pair: pair[1][-1][1])
        summary = (
            f"{best[0]} ends lowest, at {words.shown(best[1][-1][1])}, among {', '.join(name for name, _ in group)}."
        )
        title = "Best validation value so far" + (
            f", methods {start + 1} to {start + len(group)}" if len(drawn) > STYLES else ""
        )
        blocks.append(
            line_chart(
                f"curves-{start}",
                title,
                summary,
                lines,
                x_name=unit,
                y_name="best so far",
                log=log,
                hint="The line is the median of the seeds, the band their spread. Left and low is better.",
            )
        )
    return blocks


def _others(known: list[tuple[str, dict[str, Any]]]) -> list[Block]:
    """Return what else is known of the methods, as numbers and words."""
    names = dict.fromkeys(
        key
        for _, method in known
        for key, value in method.items()
        if key not in KNOWN and isinstance(value, str | int | float | bool)
    )
    header = list(names)[:6]
    if not header:
        return []
    rows = [[name, *(_plain(method.get(key)) for key in header)] for name, method in known]
    return [
        Table(
            "What else was recorded of the methods",
            ["method", *(text_of(key, 40) for key in header)],
            rows,
            folded=True,
        )
    ]


def _plain(value: Any) -> str:
    found = number(value)
    return words.shown(found) if found is not None else "" if value is None else text_of(value, 120)


def _seeds(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else words.shown(number(value))


def _final_of(known: list[tuple[str, dict[str, Any]]], name: str) -> float:
    value = middle(dict(known)[name].get("final_validation"))
    return float("inf") if value is None else value


def _spread(value: Any) -> str:
    """Return the median with the range."""
    at = middle(value)
    if at is None:
        return words.UNKNOWN
    ends: tuple[float | None, float | None] = (None, None)
    if isinstance(value, dict):
        ends = (number(value.get("low", value.get("min"))), number(value.get("high", value.get("max"))))
    elif isinstance(value, list):
        known = [found for entry in value if (found := number(entry)) is not None]
        ends = (min(known), max(known)) if len(known) > 1 else ends
    return words.shown(at) if None in ends else f"{words.shown(at)} ({words.shown(ends[0])} to {words.shown(ends[1])})"
