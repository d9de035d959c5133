"""The history of a run as columns of numbers, whatever its lines hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, final

from hypergrad.report.reading import Folder, mapping, number, text_of

PASSES = ("inner_gradients", "products", "outer_gradients", "outer_values")
NUMBERS = ("outer_loss", "norm", "residual", "inner_gradient_norm", "implied_error", "step_seconds", "peak_bytes")
OTHER = {*NUMBERS, "seed", "step", "cost", "step_cost", "seconds", "status", "negative_curvature", "notes"}
MOST_EXTRA = 6
MOST_TENSORS = 200

Column = list[float | None]


@final
@dataclass
class Note:
    """A warning of a run.

    Attributes:
        kind: its kind, as in :class:`~hypergrad.Report`.
        text: what it said last.
        steps: steps that gave it.
        first: the first of them.
        last: the last of them.
    """

    kind: str
    text: str
    steps: int
    first: int
    last: int


@final
@dataclass
class Steps:
    """The steps of a run.

    Attributes:
        step: their numbers.
        columns: one number a step under each name, ``None`` where it is not known.
        passes: passes of each step, by kind.
        statuses: how many steps ended in each status.
        bent: how many steps met negative curvature.
        notes: the warnings by kind.
        extra: names of columns that the user added.
    """

    step: list[int] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)
    passes: dict[str, Column] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    bent: int = 0
    notes: dict[str, Note] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)

    def known(self, name: str) -> list[tuple[int, float]]:
        """Return the steps at which a column is known, with its values."""
        pairs = zip(self.step, self.columns.get(name, []), strict=False)
        return [(step, value) for step, value in pairs if value is not None]

    def total(self, name: str) -> float:
        """Return the sum of a column."""
        return sum(value for _, value in self.known(name))

    def middle(self, name: str) -> float | None:
        """Return the median of a column, ``None`` where nothing is known."""
        values = [value for _, value in self.known(name)]
        return median(values) if values else None


def read_steps(folder: Folder) -> Steps:
    """Return the steps in ``history.jsonl``: where a run went back, what it did then."""
    lines: dict[int, dict[str, Any]] = {}
    for line in folder.lines("history.jsonl"):
        step = number(line.get("step"))
        if step is None or step != int(step) or step < 0:
            continue
        _put(lines, int(step), line)
    return columns(lines.items())


def _put(lines: dict[int, dict[str, Any]], step: int, line: dict[str, Any]) -> None:
    """Add a line; what stands at its step or behind was before a run went back to a checkpoint, or to its start."""
    while lines and next(reversed(lines)) >= step:
        lines.popitem()
    lines[step] = line


def columns(lines: Iterable[tuple[int, dict[str, Any]]]) -> Steps:
    """Return numbered lines as columns."""
    found = Steps()
    lines = list(lines)
    seen = dict.fromkeys(key for _, line in lines for key, value in line.items() if number(value) is not None)
    found.extra = [key for key in seen if key not in OTHER][:MOST_EXTRA]
    found.columns = {name: [] for name in (*NUMBERS, *found.extra)}
    found.passes = {name: [] for name in PASSES}
    for step, line in lines:
        found.step.append(step)
        for name, column in found.columns.items():
            column.append(number(line.get(name)))
        cost = mapping(line.get("step_cost")) or mapping(line.get("cost"))
        for name, column in found.passes.items():
            column.append(number(cost.get(name)))
        _judge(found, step, line)
    return found


def _judge(found: Steps, step: int, line: dict[str, Any]) -> None:
    if "status" in line:
        status = text_of(line["status"], 60)
        found.statuses[status] = found.statuses.get(status, 0) + 1
    found.bent += line.get("negative_curvature") is True
    for name, text in mapping(line.get("notes")).items():
        kind = text_of(name, 60)
        note = found.notes.setdefault(kind, Note(kind, "", 0, step, step))
        note.text, note.last, note.steps = text_of(text, 2000), step, note.steps + 1


@final
@dataclass
class Tensors:
    """How hyperparameters move.

    Attributes:
        step: the steps that were recorded.
        quantiles: for each tensor one list of eleven numbers a step, ``None`` where it is not known.
        last: the last entry of each tensor.
    """

    step: list[int] = field(default_factory=list)
    quantiles: dict[str, list[list[float] | None]] = field(default_factory=dict)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_tensors(folder: Folder) -> Tensors:
    """Return what ``hparams.jsonl`` holds; of a step written twice the last."""
    lines: dict[int, dict[str, Any]] = {}
    for line in folder.lines("hparams.jsonl"):
        step = number(line.get("step"))
        if step is not None and step == int(step) and isinstance(line.get("tensors"), dict):
            _put(lines, int(step), line["tensors"])
    found = Tensors(step=list(lines))
    for step in found.step:
        for name, tensor in list(lines[step].items())[:MOST_TENSORS]:
            if isinstance(tensor, dict):
                found.last[name] = tensor
    for name in found.last:
        found.quantiles[name] = [_quantiles(lines[step].get(name)) for step in found.step]
    return found


def _quantiles(tensor: Any) -> list[float] | None:
    values = mapping(tensor).get("quantiles")
    if not isinstance(values, list) or len(values) != 11:
        return None
    known = [value for entry in values if (value := number(entry)) is not None]
    return known if len(known) == 11 else None
