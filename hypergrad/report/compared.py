"""Sections about a comparison of methods: tables at equal time and at equal work, and the best so far against cost."""

from __future__ import annotations

from statistics import median
from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Facts, Key, Notice, Section, Table, Text
from hypergrad.report.reading import listing, mapping, number, text_of
from hypergrad.report.svg import STYLES, Line, line_chart, spans_decades

MOST_METHODS, MOST_POINTS, MOST_TESTS = 40, 200, 4
CLOCKS = {"cpu": "seconds of CPU time", "wall": "seconds"}
Point = tuple[float, float, float, float]
Named = list[tuple[str, dict[str, Any]]]


def sections(found: dict[str, Any]) -> list[Section]:
    """Show the tables and the curves of a comparison."""
    known = methods(found)
    blocks: list[Block] = [Facts(_facts(found))]
    if not known:
        blocks.append(Notice("note", "No method has finished yet", "compare.json holds no methods."))
        return [Section("comparison", "The comparison", blocks)]
    measured = [(name, method) for name, method in known if method.get("status") != "infeasible"]
    measured.sort(key=lambda pair: _or_last(middle(pair[1].get("final_validation"))))
    blocks.append(_by_time(measured))
    remark = (
        "Lower is better. In brackets: the lowest and the highest of the seeds. The test was looked at once, at "
        "the end. "
        f"How many times sooner {known[0][0]} has the same value stands where it was measured."
    )
    blocks += [Text(remark), *_by_work(measured)]
    left_out = [
        [name, text_of(method.get("reason", ""), 300)] for name, method in known if (name, method) not in measured
    ]
    if left_out:
        blocks.append(Table("Not run", ["method", "why"], left_out))
    return [
        Section("comparison", "The comparison", blocks),
        Section("curves", "Best so far against cost", _curves(found)),
    ]


def keys(found: dict[str, Any]) -> list[Key]:
    """Return the three numbers that matter for a comparison."""
    values = ((middle(method.get("final_validation")), name) for name, method in methods(found))
    known = sorted((value, name) for value, name in values if value is not None)
    if not known:
        return []
    (best, name), others = known[0], known[1:]
    result = [Key("Best validation value", words.shown(best), name, "good")]
    if others:
        result.append(Key("Next best", words.shown(others[0][0]), others[0][1]))
    for test, value in _tests(dict(methods(found))[name]).items():
        if value is not None:
            return [*result, Key(f"Test{test and ': '}{test}", words.shown(value), f"{name}; looked at once")]
    return result


def methods(found: dict[str, Any]) -> Named:
    """Return the methods of a comparison by name."""
    entries = [entry for entry in listing(found.get("methods")) if isinstance(entry, dict)][:MOST_METHODS]
    return [(text_of(entry.get("name", f"method {place + 1}"), 60), entry) for place, entry in enumerate(entries)]


def curve(rows: Any) -> list[Point]:
    """Return (cost, median, low, high) of the best so far, by cost."""
    points: dict[float, Point] = {}
    for row in listing(rows):
        values = [number(value) for value in listing(row)[:4]]
        if len(values) >= 2 and values[0] is not None and values[1] is not None:
            low, high = (values[2], values[3]) if len(values) == 4 else (None, None)
            ends = (values[1] if low is None else low, values[1] if high is None else high)
            points[values[0]] = (values[0], values[1], *ends)
    found = [points[cost] for cost in sorted(points)]
    if len(found) > MOST_POINTS:
        found = [found[round(k * (len(found) - 1) / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]
    return found


def middle(value: Any) -> float | None:
    """Return the median of what a method reached: a number, or a list with one for each seed."""
    if isinstance(value, list):
        known = [found for entry in value if (found := number(entry)) is not None]
        return median(known) if known else None
    return number(value)


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [
        (label, text_of(found[key], 400))
        for key, label in (("title", "Task"), ("task", "Name"), ("note", "Note"))
        if found.get(key)
    ]
    if (size := number(found.get("hyperparameters"))) is not None:
        pairs.append(("Hyperparameters", words.shown(size)))
    budget = mapping(found.get("budget"))
    if budget:
        pairs.append(
            ("Budget of a run", ", ".join(f"{text_of(k, 40)} {_plain(v)}" for k, v in list(budget.items())[:8]))
        )
    elif found.get("budget"):
        pairs.append(("Budget of a run", text_of(found["budget"], 200)))
    optuna = mapping(found.get("versions")).get("optuna")
    return pairs + ([("Optuna", f"version {text_of(optuna, 40)}")] if optuna is not None else [])


def _by_time(measured: Named) -> Table:
    tests = list(dict.fromkeys(name for _, method in measured for name in _tests(method)))[:MOST_TESTS]
    extra = {
        key: label
        for key, label in (
            ("dimensions", "numbers"),
            ("evaluations", "trials"),
            ("ours_times_faster", "times ours is sooner"),
        )
        if any(number(method.get(key)) is not None for _, method in measured)
    }
    rows = []
    for name, method in measured:
        bands = mapping(method.get("test_band"))
        values = [_spread(value, bands.get(test)) for test in tests for value in [_tests(method).get(test)]]
        more = [words.shown(at, 3) if (at := number(method.get(key))) is not None else "" for key in extra]
        validation = _spread(method.get("final_validation"), method.get("final_validation_band"))
        rows.append([name, _seeds(method.get("seeds")), validation, *values, *more])
    header = [
        "method",
        "seeds",
        "validation",
        *(f"test {text_of(test, 40)}".strip() for test in tests),
        *extra.values(),
    ]
    return Table("Methods at equal time, best validation value first", header, rows)


def _by_work(measured: Named) -> list[Block]:
    rows = []
    for name, method in measured:
        values = listing(method.get("validation_at_work"))
        if values:
            at = number(method.get("seconds_at_work"))
            rows.append(
                [name, _spread(values[0], values[1:]), "budget not reached" if at is None else words.seconds(at)]
            )
    return [Table("The same methods at equal work", ["method", "validation", "time"], rows)] if rows else []


def _curves(found: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    clock = CLOCKS.get(str(mapping(found.get("budget")).get("clock")), "cost")
    for key, unit in (("curve", clock), ("curve_work", "passes")):
        drawn = [(name, points) for name, method in methods(found) if (points := curve(method.get(key)))]
        if drawn:
            step = STYLES - 1
            for start in range(0, max(1, len(drawn) - 1), step):
                group = [drawn[0], *drawn[1 + start : 1 + start + step]]
                part = f", {start + 1} to {start + len(group) - 1}" if len(drawn) > STYLES else ""
                blocks.append(_panel(f"{key.replace('_', '-')}-{start}", f"Against {unit}{part}", unit, group))
    return blocks or [Notice("note", "No curves", "compare.json holds no curves.")]


def _panel(key: str, title: str, unit: str, group: list[tuple[str, list[Point]]]) -> Block:
    """Return one figure: the first method, which all figures show, and some others."""
    lines = [
        Line(name, [(x, y) for x, y, _, _ in points], [([p[2] for p in points], [p[3] for p in points])], style=place)
        for place, (name, points) in enumerate(group)
    ]
    values = [value for _, points in group for point in points for value in point[1:]]
    costs = [point[0] for _, points in group for point in points]
    name, points = min(group, key=lambda pair: pair[1][-1][1])
    others = ", ".join(other for other, _ in group if other != name)
    summary = f"{name} ends lowest, at {words.shown(points[-1][1])}" + (f"; beside it: {others}." if others else ".")
    hint = "The line is the median of the seeds, the band their range. Left and low is better."
    return line_chart(
        key, title, summary, lines, x_name=unit, y_name="best validation value so far", hint=hint,
        log=spans_decades(values), x_log=spans_decades(costs),
    )  # fmt: skip


def _tests(method: dict[str, Any]) -> dict[str, float | None]:
    test = method.get("test")
    if isinstance(test, dict):
        return {name: number(value) for name, value in list(test.items())[:MOST_TESTS]}
    return {} if test is None else {"": middle(test)}


def _plain(value: Any) -> str:
    found = number(value)
    return words.shown(found) if found is not None else text_of(value, 120)


def _seeds(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else words.shown(number(value))


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _spread(value: Any, band: Any = None) -> str:
    """Return the median with the range, which is that of the values where it is not given."""
    at = middle(value)
    if at is None:
        return words.UNKNOWN
    ends = [number(end) for end in listing(band)]
    if isinstance(value, list) and not ends:
        known = [found for entry in value if (found := number(entry)) is not None]
        ends = [min(known), max(known)]
    if len(ends) != 2 or None in ends or ends[0] == ends[1]:
        return words.shown(at)
    return f"{words.shown(at)} ({words.shown(ends[0])} to {words.shown(ends[1])})"
