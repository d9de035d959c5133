"""CSV files, read in pieces, with every row looked at."""

from __future__ import annotations

import codecs
import csv
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO, final

from hypergrad.cleaning.reading.cells import LESS, Plan
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Reading, listed
from hypergrad.cleaning.reading.source import Source
from hypergrad.cleaning.reading.table import Chunk, read_table
from hypergrad.errors import InputError, did_you_mean

CELLS = 200_000
"""Cells that are held at a time."""
MOST_CHARACTERS = 2**24
"""Characters that a line stays below."""
SAMPLE = 2**20
"""Bytes from which the number of rows is estimated."""
SEPARATORS = ",;\t|"
MAGIC = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive, as .npz and .xlsx files are",
    b"\x1f\x8b": "compressed with gzip",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"%PDF": "a PDF",
    b"\x80\x04\x95": "a Python pickle",
}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_csv(path: Path, reading: Reading, plan: Plan | None) -> Source:
    """Return the examples of a CSV file.

    Raises:
        InputError: a file that is something else, rows of different lengths, or what
            :func:`~hypergrad.cleaning.reading.table.read_table` does not take.
    """
    table = Csv.open(path, reading)
    return read_table(table, reading, plan)


@final
@dataclass
class Csv:
    """A CSV file.

    Attributes:
        path: of the file.
        columns: their names.
        encoding: of the file.
        separator: between cells.
        dates: no column; CSV files do not tell.
        nested: no column.
        counted: number of rows, −1 until all of them were seen.
    """

    path: Path
    columns: list[str]
    encoding: str
    separator: str
    dates: frozenset[str] = frozenset()
    nested: frozenset[str] = frozenset()
    counted: int = -1

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def coded(self) -> dict[str, list[str]]:
        """Columns of numbers that stand for names: none."""
        return {}

    @classmethod
    def open(cls, path: Path, reading: Reading) -> Csv:
        """Look at a file: its encoding, separator and columns, and the length of every row."""
        with path.open("rb") as file:
            start = file.read(SAMPLE)
        encoding = _encoding(path, start, reading.encoding)
        first = _first_line(path, start, encoding)
        separator = reading.separator or _separator(first, path)
        table = cls(path, [], encoding, separator)
        with table._records() as records:
            table.columns = _columns(path, next(records))
        _check_estimate(path, start, reading, len(table.columns))
        return table

    @property
    def rows(self) -> int:
        """Number of rows; every row is looked at to count them, unless that was done before."""
        if self.counted < 0:
            with self._records() as records:
                self._count(sum(1 for _ in records) - 1)
        return self.counted

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the cells of some columns, a few thousand rows at a time."""
        place = {name: number for number, name in enumerate(self.columns)}
        counted = 0
        with self._records() as records:
            next(records)
            while rows := list(islice(records, max(1, CELLS // len(self.columns)))):
                counted += len(rows)
                cells = list(zip(*rows, strict=True))
                yield {name: cells[place[name]] for name in columns}
        if self.counted < 0:
            self._count(counted)

    def _count(self, rows: int) -> None:
        if not rows:
            raise InputError(
                passed=f"{self.name} with a header and no row",
                expected="at least one row for each class",
                do="check how the file was written",
            )
        self.counted = rows

    @contextmanager
    def _records(self) -> Iterator[Iterator[list[str]]]:
        with self.path.open(encoding=self.encoding, newline="") as file:
            yield self._checked(file)

    def _checked(self, file: TextIO) -> Iterator[list[str]]:
        reader = csv.reader(self._lines(file), delimiter=self.separator, strict=True)
        try:
            for record in reader:
                if not record:
                    continue  # an empty line
                if self.columns and len(record) != len(self.columns):
                    raise InputError(
                        passed=f"{self.name}, line {reader.line_num:,}, with {len(record)} cells: {listed(record, 5)}",
                        expected=f"{len(self.columns)} cells, as in the first line",
                        do="correct the line: cells that hold the separator stand in double quotes "
                        f"(separator: {self.separator!r})",
                    )
                yield record
        except csv.Error as error:
            raise InputError(
                passed=f"{self.name}, at line {reader.line_num:,}: {error}",
                expected="cells of a CSV file, with every double quote closed",
                do="look for a double quote that is not closed, or for lines that are no table",
            ) from error
        except UnicodeError as error:
            raise _undecodable(self.path, self.encoding, error, f" after line {reader.line_num:,}") from error

    def _lines(self, file: TextIO) -> Iterator[str]:
        """Yield lines, none of which takes all memory."""
        while line := file.readline(MOST_CHARACTERS):
            if len(line) == MOST_CHARACTERS:
                raise InputError(
                    passed=f"{self.name} with a line of {MOST_CHARACTERS:,} characters or more",
                    expected="lines that hold one row each",
                    do="check whether the file is a table, and whether it has line ends",
                )
            yield line


def _undecodable(path: Path, encoding: str, error: UnicodeError, where: str = "") -> InputError:
    return InputError(
        passed=f"{path.name}, which is not {encoding}{where} ({error})"[:400],
        expected="text in the encoding that is named, UTF-8 by default",
        do="pass encoding='…' (--encoding …), such as cp1252 or latin-1 for files from Windows",
    )


def _encoding(path: Path, start: bytes, wanted: str | None) -> str:
    if not start.strip():
        raise InputError(
            passed=f"{path.name}, which is empty", expected="a table with a header", do="check how it was written"
        )
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise InputError(
                passed=f"{path.name}, which is {what} and no CSV file",
                expected="a text file of rows and cells",
                do="correct the end of its name, or unpack or convert it first",
            )
    if wanted is not None:
        try:
            known = codecs.lookup(wanted)
        except (LookupError, ValueError):
            known = None
        if known is None or not getattr(known, "_is_text_encoding", True):
            near = did_you_mean(wanted.lower(), ["utf-8", "utf-16", "latin-1", "cp1252", "cp1250", "gb18030"])
            raise InputError(
                passed=f"encoding={wanted!r}{near}", expected="an encoding of text", do="pass one such as cp1252"
            ) from None
        return "utf-8-sig" if known.name == "utf-8" else wanted
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    if b"\0" in start:
        raise InputError(
            passed=f"{path.name}, which holds bytes that no text has (NUL)",
            expected="a text file of rows and cells",
            do="pass encoding='utf-16' (--encoding utf-16) if it is one of these, or check what the file is",
        )
    return "utf-8-sig"


def _first_line(path: Path, start: bytes, encoding: str) -> str:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return next((line for line in decoder.decode(start).splitlines() if line.strip()), "")
    except UnicodeError as error:
        raise _undecodable(path, encoding, error) from error


def _separator(line: str, path: Path) -> str:
    """Return the separator that cuts the first line into most cells; one column needs none."""
    try:
        cells = {sign: len(next(csv.reader([line], delimiter=sign), [])) for sign in SEPARATORS}
    except csv.Error:
        cells = {}
    best = max(cells, key=lambda sign: cells[sign], default=",")
    return "\t" if path.suffix.lower() == ".tsv" else best


def _columns(path: Path, header: list[str]) -> list[str]:
    names = [name.strip() or f"(column {place})" for place, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(
            passed=f"{path.name} with several columns of the same name: {listed(twice)}",
            expected="a first line with another name for each column",
            do="rename them; a file without a header needs one",
        )
    return names


def _check_estimate(path: Path, start: bytes, reading: Reading, columns: int) -> None:
    """Refuse a file that memory cannot hold before all of it is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(passed=f"{path}, which is no file", expected="a file", do="write it to the disk first")
    lines = max(start.count(b"\n"), 1)
    rows = status.st_size / len(start) * lines
    used = len(reading.features or range(columns))
    if status.st_size <= SAMPLE:
        return
    needed = 16 * rows * used if reading.text is None else 2.0 * status.st_size
    what = f"{path.name}, {status.st_size / 2**30:,.2f} GiB with about {rows:,.0f} rows and {columns:,} columns"
    check_fits(what, needed, LESS if reading.text is None else "read a part of the rows")
