"""The section about cost: what the steps took, beside what was forecast."""

from __future__ import annotations

from typing import Any

from hypergrad.report import words
from hypergrad.report.blocks import Block, Notice, Section, Table, Text
from hypergrad.report.reading import mapping, number
from hypergrad.report.series import PASSES, Steps
from hypergrad.report.svg import Line, line_chart, spans_decades

PASS_NAMES = {
    "inner_gradients": "inner gradients",
    "products": "Hessian products",
    "outer_gradients": "outer gradients",
    "outer_values": "outer values",
}


def cost(steps: Steps, run: dict[str, Any]) -> Section:
    """Compare what the steps took with the forecast."""
    if not steps.step:
        return Section(
            "cost", "Cost against forecast", [Notice("note", "No steps yet", "Nothing was spent that is known of.")]
        )
    forecast = mapping(run.get("forecast"))
    blocks: list[Block] = [_table(steps, forecast), Text(_remark(forecast))]
    wanted, points = (
        number(forecast.get("seconds")),
        [(float(step), value) for step, value in steps.known("step_seconds")],
    )
    if points:
        lines = [Line("measured", points)]
        if wanted is not None:
            lines.append(Line("forecast", [(points[0][0], wanted), (points[-1][0], wanted)], style=1))
        summary = (
            f"Median {words.seconds(steps.middle('step_seconds'))} a step, "
            f"{words.seconds(steps.total('step_seconds'))} in all."
        )
        log = spans_decades([value for _, value in points])
        blocks.append(
            line_chart(
                "cost-seconds",
                "Seconds of each step",
                summary,
                lines,
                x_name="outer step",
                y_name="seconds",
                log=log,
                hint="The first step is often slower: it loads and looks. Peaks are line searches or a busy machine.",
            )
        )
    return Section("cost", "Cost against forecast", blocks)


def _table(steps: Steps, forecast: dict[str, Any]) -> Table:
    expected, bound = mapping(forecast.get("cost")), forecast.get("bound") is True
    made, at_most = len(steps.step), "at most " if bound else ""
    rows = []
    for name in PASSES:
        known = [value for value in steps.passes.get(name, []) if value is not None]
        each = number(expected.get(name))
        if not known and each is None:
            continue
        mean = sum(known) / len(known) if known else None
        rows.append(
            [
                PASS_NAMES[name],
                words.UNKNOWN if each is None else f"{at_most}{words.shown(each)}",
                words.shown(mean, 3),
                words.shown(sum(known)),
                _ratio(mean, each),
            ]
        )
    taken, wanted = steps.middle("step_seconds"), number(forecast.get("seconds"))
    rows.append(
        [
            "seconds",
            words.seconds(wanted),
            words.seconds(taken),
            words.seconds(steps.total("step_seconds")),
            _ratio(taken, wanted),
        ]
    )
    peak = max((value for _, value in steps.known("peak_bytes")), default=None)
    rows.append(["peak memory", words.size(number(forecast.get("bytes"))), "", words.size(peak), ""])
    header = ["", "forecast a step", "measured a step", "in all", "of forecast"]
    return Table(f"Passes, time and memory of {words.count(made, 'step')}", header, rows)


def _remark(forecast: dict[str, Any]) -> str:
    remark = (
        "Seconds a step are the median. The forecast of memory is what a step adds; the measured peak is that of the "
        "whole process, or of the device's allocator."
    )
    if forecast.get("bound") is True:
        remark += (
            " The forecast is the bound that the algorithm states for its first step; later steps may not need it."
        )
    if not forecast:
        remark += " No forecast was made: pass choice=hypergrad.choose(...) to Record."
    elif number(forecast.get("seconds")) is None:
        remark += " The forecast has no seconds: pass choice=hypergrad.choose(...) to Record for those."
    return remark


def _ratio(measured: float | None, forecast: float | None) -> str:
    if measured is None or not forecast:
        return ""
    return "under 1 %" if 0 < measured < 0.01 * forecast else words.percent(measured / forecast, 0)
