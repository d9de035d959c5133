"""What the published experiments share: their size, their seeds, and one table of mean ± standard deviation."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from benchmarks.harness import write_json

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Options:
    """How large an experiment is.

    Attributes:
        size: ``"smoke"`` for seconds and no meaning, ``"default"`` for at most ten minutes on two cores, ``"full"`` for
            a size nearer to the paper's.
        seeds: one run each.
        out: JSON file for the table, or nothing.
    """

    size: Literal["smoke", "default", "full"]
    seeds: Sequence[int]
    out: Path | None = None

    def pick(self, *, smoke: T, default: T, full: T) -> T:
        """Return the value that belongs to the size."""
        return {"smoke": smoke, "default": default, "full": full}[self.size]


def read_options(description: str | None, arguments: Sequence[str] | None = None, *, seeds: int = 3) -> Options:
    """Read the command line that all experiments have.

    Args:
        description: docstring of the experiment's module.
        arguments: the command line; that of the process where it is missing.
        seeds: how many seeds are run unless ``--seeds`` says otherwise; a smoke run takes one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="a size nearer to the paper's; may take hours")
    size.add_argument("--smoke", action="store_true", help="seconds; shows that it runs, and nothing else")
    parser.add_argument("--seeds", type=int, default=None, help=f"number of seeds ({seeds})")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the table")
    given = parser.parse_args(arguments)
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds is {given.seeds}; expected at least 1")
    count = given.seeds or (1 if given.smoke else seeds)
    return Options("full" if given.full else "smoke" if given.smoke else "default", range(count), given.out)


@final
@dataclass
class Table:
    """Values by row, column and seed.

    Attributes:
        title: what is compared.
        data: which data it ran on, and which data of the paper they stand in for.
        columns: format of each column, such as ``".3f"``.
        cells: for each row, for each of its columns, one value a seed, in the order of the seeds.
    """

    title: str
    data: str
    columns: Mapping[str, str]
    cells: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, **values: float) -> None:
        """Add one seed's values to a row; a column may be left out."""
        for column, value in values.items():
            if column not in self.columns:
                raise KeyError(f"{column!r} is no column of {list(self.columns)}")
            self.cells.setdefault(row, {}).setdefault(column, []).append(float(value))

    def mean(self, row: str, column: str) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.cells[row][column])

    def text(self) -> str:
        """Return the table as text: mean ± standard deviation over seeds (of a sample: n - 1)."""
        heads = ["", *(name.replace("_", " ") for name in self.columns)]
        lines = [heads] + [
            [row, *(_cell(values.get(column), form) for column, form in self.columns.items())]
            for row, values in self.cells.items()
        ]
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        body = [
            "  ".join(
                entry.ljust(widths[0]) if place == 0 else entry.rjust(widths[place]) for place, entry in enumerate(line)
            )
            for line in lines
        ]
        seeds = max(len(values) for row in self.cells.values() for values in row.values())
        return "\n".join([self.title, f"Data: {self.data}", f"{seeds} seed(s), mean ± sd", "", *body])

    def finish(self, options: Options) -> dict[str, Any]:
        """Print the table, write it where asked for, and return it."""
        print(self.text())
        result = {"title": self.title, "data": self.data, "size": options.size, "cells": self.cells}
        if options.out is not None:
            write_json(options.out, result)
        return result


def _cell(values: Sequence[float] | None, form: str) -> str:
    if not values:
        return "-"
    if not all(map(math.isfinite, values)):
        return f"diverged {sum(not math.isfinite(value) for value in values)}/{len(values)}"
    middle = format(statistics.fmean(values), form)
    return middle if len(values) == 1 else f"{middle} ± {format(statistics.stdev(values), form)}"
