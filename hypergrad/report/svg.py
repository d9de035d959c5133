"""Figures as SVG that a phone, a printer and a screen reader can use: text stays text, colours come from the page.

Elements are built as a tree, so that every name is escaped where it is written; series differ in dashes and in
lightness as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, final
from xml.etree import ElementTree

from hypergrad.report.blocks import Figure, Legend, Table
from hypergrad.report.reading import text_of
from hypergrad.report.words import shown

WIDTH, HEIGHT = 400.0, 250.0
TOP, RIGHT, BOTTOM = 30.0, 14.0, 46.0
LETTER = 8.6
"""About the width of a digit in figures on a phone, where letters are larger."""
MOST_POINTS, MOST_ROWS = 400, 25
FAR = 1e150
"""Numbers beyond this are drawn here."""
STYLES = 6
"""Series that can be told apart."""

Row = TypeVar("Row")
Points = Sequence[tuple[float, float]]


@final
@dataclass(frozen=True)
class Line:
    """A series.

    Attributes:
        name: what the legend says.
        points: (x, y).
        bands: pairs of lower and upper values at the same x, the widest first.
        style: colour and dashes, from 0.
        end: whether a dot marks the last point.
    """

    name: str
    points: Points
    bands: list[tuple[list[float], list[float]]] = field(default_factory=list)
    style: int = 0
    end: bool = True


@final
@dataclass(frozen=True)
class Scale:
    """From numbers to places along one axis."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        value = min(max(value, -FAR), FAR)
        if self.log:
            value = math.log10(max(value, 10.0**self.low))
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Return numbers to write at the axis."""
        if not self.log:
            return nice(self.low, self.high)
        low, high = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
        stride = max(1, math.ceil((high - low) / 4))
        return [10.0**power for power in range(low, high + 1, stride)]


def line_chart(
    key: str,
    title: str,
    summary: str,
    lines: list[Line],
    *,
    x_name: str,
    y_name: str,
    log: bool = False,
    x_log: bool = False,
    unit: tuple[float, float] | None = None,
    hint: str = "",
) -> Figure:
    """Return a figure of lines over steps or cost.

    Args:
        key: makes the ids of the figure's parts different from all others on the page.
        title: what it shows.
        summary: what it says, in a sentence.
        lines: the series, at least one point in all.
        x_name: the horizontal axis.
        y_name: the vertical axis.
        log: whether the vertical axis is logarithmic; numbers of zero and below stand at its foot.
        x_log: whether the horizontal axis is.
        unit: fixed limits of the vertical axis.
        hint: how to read it.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [value for line in lines for low, high in line.bands for value in (*low, *high)]
    log = log and any(y > 0 for y in ys)
    low, high = unit or _limits(ys, log)
    labels = [_tick(value, log) for value in Scale(low, high, 0, 1, log).ticks()]
    left = 10.0 + LETTER * max(map(len, labels), default=1)
    down = Scale(low, high, HEIGHT - BOTTOM, TOP, log)
    across = Scale(*_limits(xs, log=x_log, tight=True), left, WIDTH - RIGHT, x_log)
    root = _root(key, title, summary)
    whole = not x_log and all(x == int(x) for x in xs)
    _grid(root, across, down, x_name, f"{y_name} (logarithmic)" if log else y_name, log, whole=whole)
    for line in lines:
        _draw(root, line, across, down)
    legend = (
        [Legend(line.style % STYLES, line.name, "line" if len(line.points) > 1 else "dot") for line in lines]
        if len(lines) > 1
        else []
    )
    return Figure(title, summary, _text(root), legend, _line_data(title, lines, x_name, y_name), hint)


def histogram(
    key: str,
    title: str,
    summary: str,
    edges: list[float],
    groups: dict[str, list[float]],
    *,
    x_name: str,
    y_name: str,
    mark: float | None = None,
    hint: str = "",
) -> Figure:
    """Return a figure of counts in bins; the first group is filled, the others are hatched."""
    most = max((value for counts in groups.values() for value in counts), default=1.0) or 1.0
    down = Scale(0.0, most * 1.06, HEIGHT - BOTTOM, TOP)
    left = 10.0 + LETTER * max(len(_tick(value, log=False)) for value in down.ticks())
    across = Scale(edges[0], edges[-1], left, WIDTH - RIGHT)
    root = _root(key, title, summary)
    _grid(root, across, down, x_name, y_name, log=False, whole=False)
    for style, counts in enumerate(groups.values()):
        steps = [f"M{across(edges[0]):.1f} {down(0):.1f}"]
        for start, end, value in zip(edges, edges[1:], counts, strict=False):
            steps.append(f"V{down(value):.1f}" if start == edges[0] else f"L{across(start):.1f} {down(value):.1f}")
            steps.append(f"H{across(end):.1f}")
        path = " ".join([*steps, f"V{down(0):.1f}Z"])
        if style:
            _hatching(root, f"{key}-hatch{style}", style)
            _add(root, "path", d=path, fill=f"url(#{key}-hatch{style})")
        else:
            _add(root, "path", d=path, class_=f"fill{style}")
        _add(root, "path", d=path, class_=f"line style{style}")
    if mark is not None and edges[0] < mark < edges[-1]:
        _add(root, "line", class_="mark", x1=across(mark), x2=across(mark), y1=TOP, y2=HEIGHT - BOTTOM)
    bins = zip(edges, edges[1:], *groups.values(), strict=False)
    rows = [[f"{shown(a)} to {shown(b)}", *(shown(value) for value in counts)] for a, b, *counts in bins]
    data = Table(f"Data of “{title}”", [x_name, *groups], rows, folded=True)
    return Figure(title, summary, _text(root), [Legend(i, name, "area") for i, name in enumerate(groups)], data, hint)


def nice(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two limits, ``most`` of them or about half as many."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(step * power for step in (1, 2, 2.5, 5, 10, 20) if step * power >= rough)
    first = math.ceil(low / stride - 1e-9)
    return [
        round(index * stride, 12 - math.floor(math.log10(stride)))
        for index in range(first, first + 3 * most)
        if index * stride <= high + 1e-9 * stride
    ]


def spans_decades(values: list[float]) -> bool:
    """Whether a logarithmic axis is the better one."""
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return fewer points: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    found: list[tuple[float, float]] = []
    stretches = max(1, most // 2)
    for place in range(stretches):
        stretch = points[place * len(points) // stretches : (place + 1) * len(points) // stretches]
        found += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return sorted({points[0], *found, points[-1]})


def some_rows(rows: list[Row], most: int = MOST_ROWS) -> list[Row]:
    """Return evenly spaced rows, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def _limits(values: Sequence[float], log: bool, *, tight: bool = False) -> tuple[float, float]:
    """Return limits with some room; of a logarithmic axis the exponents."""
    values = [min(max(value, -FAR), FAR) for value in values]
    if log:
        positive = [max(value, 1 / FAR) for value in values if value > 0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        if math.floor(high + 1e-9) - math.ceil(low - 1e-9) < 1:
            return math.floor(low - 1e-9), math.ceil(high + 1e-9)
    else:
        low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.0 if tight else 0.05 * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 if tight or log else 0.05 * abs(high) or 1.0
    return low - room, high + room


def _grid(
    root: ElementTree.Element, across: Scale, down: Scale, x_name: str, y_name: str, log: bool, *, whole: bool
) -> None:
    foot = HEIGHT - BOTTOM
    for value in down.ticks():
        place = down(value)
        _add(root, "line", class_="grid", x1=across.first, x2=WIDTH - RIGHT, y1=place, y2=place)
        _add(root, "text", _tick(value, log), class_="tick end", x=across.first - 6, y=place + 4)
    free = 0.0
    for value in across.ticks():
        label = _tick(value, across.log)
        half = LETTER * len(label) / 2
        place = min(across(value), WIDTH - half)
        if place - half < free or (whole and value != int(value)):
            continue
        free = place + half + 4
        _add(root, "text", label, class_="tick middle", x=place, y=foot + 17)
    _add(root, "line", class_="axis", x1=across.first, x2=WIDTH - RIGHT, y1=foot, y2=foot)
    _add(root, "text", y_name, class_="label", x=2, y=15)
    x_name = f"{x_name} (logarithmic)" if across.log else x_name
    _add(root, "text", x_name, class_="label end", x=WIDTH - RIGHT, y=HEIGHT - 6)


def _draw(root: ElementTree.Element, line: Line, across: Scale, down: Scale) -> None:
    style = line.style % STYLES
    for low, high in line.bands:
        xs = [x for x, _ in line.points]
        there = [f"{across(x):.1f} {down(y):.1f}" for x, y in zip(xs, high, strict=True)]
        back = [f"{across(x):.1f} {down(y):.1f}" for x, y in zip(reversed(xs), reversed(low), strict=True)]
        _add(root, "path", d=f"M{' L'.join(there + back)}Z", class_=f"band fill{style}")
    points = [(across(x), down(y)) for x, y in thinned(line.points)]
    if len(points) > 1:
        _add(root, "path", d="M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=f"line style{style}")
    for x, y in points if len(points) <= 12 else points[-1:] if line.end else []:
        _add(root, "circle", class_=f"dot fill{style}", cx=x, cy=y, r=3)


def _line_data(title: str, lines: list[Line], x_name: str, y_name: str) -> Table:
    caption = f"Data of “{title}”"
    header = [x_name, *(line.name for line in lines)] if len(lines) > 1 else [x_name, y_name]
    columns: list[dict[float, str]] = []
    for line in lines:
        columns.append({x: shown(y) for x, y in line.points})
    for line in lines:
        if line.bands:
            header.append(f"range of {line.name}" if len(lines) > 1 else "range")
            ranges = zip(line.points, *line.bands[0], strict=True)
            columns.append({x: f"{shown(low)} to {shown(high)}" for (x, _), low, high in ranges})
    xs = some_rows(sorted({x for column in columns for x in column}))
    return Table(caption, header, [[shown(x), *(column.get(x, "") for column in columns)] for x in xs], folded=True)


def _tick(value: float, log: bool) -> str:
    if log:
        power = round(math.log10(value))
        return shown(value) if -3 <= power <= 4 else shown(value, 1).removeprefix("1 × ")
    return shown(value, 4)


def _root(key: str, title: str, summary: str) -> ElementTree.Element:
    root = ElementTree.Element("svg", {"class": "chart", "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}", "role": "img"})
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    _add(root, "title", title, id=f"{key}-title")
    _add(root, "desc", summary, id=f"{key}-desc")
    return root


def _hatching(root: ElementTree.Element, key: str, style: int) -> None:
    pattern = _add(root, "pattern", id=key, width=6, height=6, patternUnits="userSpaceOnUse")
    pattern.set("patternTransform", "rotate(45)")
    _add(pattern, "line", class_=f"hatch style{style}", x1=0, x2=0, y1=0, y2=6)


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: object) -> ElementTree.Element:
    named = {
        name.removesuffix("_"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    element = ElementTree.SubElement(parent, tag, named)
    if text:
        element.text = text_of(text, 400)
    return element


def _text(root: ElementTree.Element) -> str:
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
