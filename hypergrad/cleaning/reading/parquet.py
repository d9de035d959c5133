"""Parquet files, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from hypergrad.cleaning.reading.cells import LESS, Plan
from hypergrad.cleaning.reading.columns import Column, Numbers
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Reading, listed
from hypergrad.cleaning.reading.packages import require
from hypergrad.cleaning.reading.source import Source
from hypergrad.cleaning.reading.table import Chunk, read_table
from hypergrad.errors import InputError

CELLS = 200_000
MAGIC = b"PAR1"


def read_parquet(path: Path, reading: Reading, plan: Plan | None) -> Source:
    """Return the examples of a Parquet file.

    Raises:
        InputError: a file that is something else or damaged, or what
            :func:`~hypergrad.cleaning.reading.table.read_table` does not take.
        MissingDependencyError: pyarrow is not installed.
    """
    arrow = require("pyarrow", "a Parquet file")
    library = require("pyarrow.parquet", "a Parquet file")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise InputError(
                passed=f"{path.name}, which is no Parquet file",
                expected="a file that starts with PAR1",
                do="correct the end of its name",
            )
        try:
            opened = library.ParquetFile(file)
            size = sum(opened.metadata.row_group(n).total_byte_size for n in range(opened.metadata.num_row_groups))
            table = ArrowTable.of(path.name, opened.schema_arrow, opened.metadata.num_rows, opened.iter_batches)
            cells = 16.0 * table.rows * len(reading.features or table.columns)
            what = f"{path.name}, {table.rows:,} rows with {len(table.columns):,} columns"
            check_fits(what, cells if reading.text is None else 2.0 * size, LESS)
            return read_table(table, reading, plan)
        except (arrow.ArrowException, OSError, UnicodeError) as error:
            raise InputError(
                passed=f"{path.name}, which cannot be read: {str(error)[:200]}",
                expected="a whole Parquet file",
                do="write it again",
            ) from error


@final
@dataclass(frozen=True)
class ArrowTable:
    """A table in the memory format of Arrow.

    Attributes:
        name: what it is called in messages.
        columns: their names.
        rows: number of rows.
        batches: yields batches of rows, given ``batch_size=`` and ``columns=``.
        dates: columns of dates.
        nested: columns of lists, structures and bytes.
        coded: columns of numbers that stand for names, and these.
    """

    name: str
    columns: list[str]
    rows: int
    batches: Any
    dates: frozenset[str]
    nested: frozenset[str]
    coded: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, schema: Any, rows: int, batches: Any, coded: dict[str, list[str]] | None = None
    ) -> ArrowTable:
        """Look at the types of the columns."""
        columns = list(schema.names)
        twice = (
            sorted({column for column in columns if columns.count(column) > 1})
            if len(set(columns)) < len(columns)
            else []
        )
        if twice:
            raise InputError(
                passed=f"{name} with several columns of the same name: {listed(twice)}",
                expected="another name for each column",
                do="rename them",
            )
        if not rows:
            raise InputError(
                passed=f"{name} without a row",
                expected="at least one row for each class",
                do="check how the file was written",
            )
        kinds = {field.name: _kind(field.type) for field in schema}
        dates = frozenset(column for column, kind in kinds.items() if kind == "date")
        nested = frozenset(column for column, kind in kinds.items() if kind == "nested")
        return cls(name, columns, rows, batches, dates, nested, coded or {})

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the cells of some columns, a few thousand rows at a time."""
        if not columns:
            return
        for batch in self.batches(batch_size=max(1, CELLS // len(columns)), columns=list(columns)):
            yield {name: _cells(batch.column(place), name in self.coded) for place, name in enumerate(columns)}


def _kind(kind: Any) -> str:
    types = require("pyarrow", "a Parquet file").types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_temporal(kind):
        return "date"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        return "number"
    return "text" if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) else "nested"


def _cells(column: Any, coded: bool) -> Column:
    """Return the cells of a column: numbers as an array, NaN where one is missing, and all others as they are."""
    types = require("pyarrow", "a Parquet file").types
    numeric = types.is_integer(column.type) or types.is_floating(column.type) or types.is_decimal(column.type)
    if not numeric or coded:
        found: list[Any] = column.to_pylist()
        return found
    if column.null_count or types.is_decimal(column.type):
        return np.array([np.nan if value is None else float(value) for value in column.to_pylist()])
    values: Numbers = column.to_numpy().astype(np.float64)
    return values
