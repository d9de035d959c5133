"""Data sets that Hugging Face's `datasets` saved to disk, read as the Arrow files they are.

Only the files inside the folder are opened: neither scripts, nor pickles, nor addresses that a column names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hypergrad.cleaning.examples import Skipped
from hypergrad.cleaning.reading.arrays import Arrays
from hypergrad.cleaning.reading.images import Pictures, Shape
from hypergrad.cleaning.reading.labels import check_classes, named, printable
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Reading, check_unused, listed
from hypergrad.cleaning.reading.packages import require
from hypergrad.cleaning.reading.parquet import ArrowTable
from hypergrad.cleaning.reading.source import Source
from hypergrad.cleaning.reading.table import read_table
from hypergrad.errors import InputError, did_you_mean

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
MOST_BYTES = 2**26
"""Bytes of a file that describes a data set."""


def is_dataset(path: Path) -> bool:
    """Return whether a folder is what ``save_to_disk`` writes."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def read_dataset(path: Path, reading: Reading, plan: Any) -> Source:
    """Return the examples of a data set that was saved to disk.

    Raises:
        InputError: files outside of the folder, damaged files, several splits of which none is named, or what
            :func:`~hypergrad.cleaning.reading.table.read_table` does not take.
        MissingDependencyError: pyarrow is not installed.
    """
    arrow = require("pyarrow", "a saved data set")
    folder = _split(path, reading.split)
    types = _described(folder)
    named_label = next(iter([name for name, kind in types.items() if kind.get("_type") == "ClassLabel"]), None)
    reading = replace(reading, label=reading.label or named_label)
    coded = {name: _class_names(folder, kind) for name, kind in types.items() if kind.get("_type") == "ClassLabel"}
    with ExitStack() as stack:
        try:
            readers = [stack.enter_context(arrow.memory_map(str(file))) for file in _files(folder)]
            tables = [arrow.ipc.open_stream(file).read_all() for file in readers]
            if not tables:
                raise InputError(f"{folder} without a data file", "at least one", "save the data set again")
            whole = arrow.concat_tables(tables)
            whole.validate(full=True)
            table = ArrowTable.of(folder.name, whole.schema, whole.num_rows, _batches(whole), coded)
            pictures = [name for name, kind in types.items() if kind.get("_type") == "Image" and name in table.columns]
            if (
                pictures
                and reading.text is None
                and reading.features is None
                and (plan is None or isinstance(plan, Shape))
            ):
                return _pictures(table, whole, pictures[0], reading, plan)
            return read_table(table, reading, plan)
        except (arrow.ArrowException, OSError, UnicodeError) as error:
            raise InputError(
                passed=f"{folder}, whose data cannot be read: {str(error)[:200]}",
                expected="the files of datasets.Dataset.save_to_disk",
                do="save the data set again",
            ) from error


def _batches(whole: Any) -> Any:
    def batches(batch_size: int, columns: Sequence[str]) -> Iterator[Any]:
        yield from whole.select(list(columns)).to_batches(max_chunksize=batch_size)

    return batches


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            passed=f"{path}, which cannot be read: {str(error)[:200]}",
            expected="the description of a data set as JSON",
            do="save the data set again",
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}, which holds {type(found).__name__}", "a JSON object", "save the data set again")
    return found


def _inside(folder: Path, name: Any) -> Path:
    """Return the path of a file or folder that a description names, which has to lie in the folder."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")
    if not plain or (folder / name).resolve().parent != folder.resolve():
        raise InputError(
            passed=f"{folder}, whose description names {str(name)[:80]!r}, which is not a file in the folder",
            expected="files in the folder itself, and no links that lead out of it",
            do="do not use this folder unless you know where it comes from",
        )
    path: Path = folder / name
    return path


def _split(path: Path, wanted: str | None) -> Path:
    """Return the folder of a split."""
    if not (path / SPLITS).is_file():
        if wanted is not None and _json(path / STATE).get("_split") != wanted:
            raise InputError(
                passed=f"split={wanted!r} of {path}, which has no splits",
                expected="no split",
                do="leave it out",
            )
        return path
    names = _json(path / SPLITS).get("splits")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    chosen = wanted or (names[0] if len(names) == 1 else "train")
    if chosen not in names:
        raise InputError(
            passed=f"split={wanted!r} of {path}{did_you_mean(chosen, names)}",
            expected=f"one of its splits: {listed(names)}",
            do="pass split='…' (--split …)",
        )
    return _inside(path, chosen)


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the type of each column as the description gives it."""
    if not (folder / INFO).is_file():
        return {}
    found = _json(folder / INFO).get("features")
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)} if isinstance(found, dict) else {}


def _class_names(folder: Path, kind: dict[str, Any]) -> list[str]:
    names = kind.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            passed=f"{folder / INFO} with a ClassLabel without names",
            expected="the names of its classes",
            do="save the data set again",
        )
    return names


def _files(folder: Path) -> list[Path]:
    state = _json(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            passed=f"{folder}, which is saved as a selection of rows of another data set",
            expected="a data set with its own rows",
            do="call flatten_indices() before save_to_disk",
        )
    entries = state.get("_data_files")
    files = [
        _inside(folder, entry.get("filename") if isinstance(entry, dict) else entry)
        for entry in (entries if isinstance(entries, list) else [])
    ]
    check_fits(f"{folder}", sum(file.stat().st_size for file in files if file.is_file()), "keep fewer rows")
    return files


def _pictures(table: ArrowTable, whole: Any, column: str, reading: Reading, plan: Shape | None) -> Source:
    """Return the pictures of a column; only those whose bytes are in the data set."""
    check_unused(reading, Path(table.name), "truth")
    if reading.label is None or reading.label not in table.columns:
        raise InputError(
            passed=f"{table.name} with label={reading.label!r}",
            expected=f"one of its columns: {listed(table.columns)}",
            do="pass label='…' (--label …)",
        )
    chunks = [chunk for batch in table.chunks([reading.label]) for chunk in batch[reading.label]]
    names = table.coded.get(reading.label)
    labels = _looked_up(chunks, names) if names is not None else named(chunks)
    cells = whole.column(column).to_pylist()
    held: list[Any] = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    skipped = [
        Skipped(f"row {row}", "no label" if labels[row] is None else "no bytes: files and addresses are not opened")
        for row in range(len(cells))
        if labels[row] is None or not isinstance(held[row], bytes)
    ]
    usable = [row for row in range(len(cells)) if labels[row] is not None and isinstance(held[row], bytes)]
    found = Pictures.of([f"row {row}" for row in usable], [held[row] for row in usable], reading.size, plan)
    rows = [usable[place] for place in found.rows]
    kept = [str(labels[row]) for row in rows]
    if plan is None:
        check_classes(kept, reading.label)
    return Source(
        features=Arrays(found.pixels),
        labels=kept,
        index=np.array(rows, np.int64),
        kind="image",
        order=tuple(printable(name) for name in names or ()),
        plan=found.shape,
        skipped=(*skipped, *found.skipped),
        notes=found.notes,
    )


def _looked_up(values: Sequence[Any], names: list[str]) -> list[str | None]:
    return [printable(names[int(v)]) if v is not None and 0 <= int(v) < len(names) else None for v in values]
