"""Archives of arrays (.npz), opened as data: sizes are read before anything is unpacked, and no object is built."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.cleaning.reading.cells import Plan, left_out
from hypergrad.cleaning.reading.labels import check_classes, named
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Reading, check_unused, listed
from hypergrad.cleaning.reading.pictures import data_address
from hypergrad.cleaning.reading.source import Rows, Source
from hypergrad.errors import InputError, did_you_mean

Array = np.ndarray[Any, Any]
SHOWN = 20
"""Numbers of a preview."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


def read_npz(path: Path, reading: Reading, plan: Plan | tuple[int, ...] | None) -> Source:
    """Return the examples of an archive with the arrays X and y, and X_trusted and y_trusted where they exist.

    Raises:
        InputError: an archive that is damaged or crafted, that lacks an array, holds objects or more than memory, or
            arrays that are no features and labels.
    """
    check_unused(reading, path, "text", "split")
    names = (reading.features or ("X",))[0], reading.label or "y"
    with _opened(path) as archive:
        arrays = _Members.of(path, archive)
        source = _source(path, arrays.load(names[0]), arrays.load(names[1]), names, reading, plan)
        if reading.truth is not None:
            right = named(_flat(path, reading.truth, arrays.load(reading.truth), len(source)).tolist())
            source = replace(source, truth=[str(name) for name in _complete(path, right, reading.truth)])
        both = [f"{name}_trusted" for name in names]
        if plan is None and any(name in arrays.members for name in both):
            shape = source.plan
            trusted = _source(path, arrays.load(both[0]), arrays.load(both[1]), (both[0], both[1]), reading, shape)
            source = replace(source, trusted=trusted)
    return source


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            passed=f"{path.name}, which cannot be read as an archive of arrays: {str(error)[:200]}",
            expected="a whole file that numpy.savez or savez_compressed wrote",
            do="write it again; correct the end of its name if it is something else",
        ) from error


@final
@dataclass(frozen=True)
class _Members:
    """The arrays of an archive, none of which is unpacked before its size is known."""

    path: Path
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    @classmethod
    def of(cls, path: Path, archive: zipfile.ZipFile) -> _Members:
        listed_names = [info.filename for info in archive.infolist()]
        for name in listed_names:
            pure = PurePosixPath(name.replace("\\", "/"))
            if pure.is_absolute() or len(pure.parts) != 1 or ".." in pure.parts or ":" in name:
                raise InputError(
                    passed=f"{path.name} with a member named {name[:80]!r}, which leads out of the archive",
                    expected="arrays with plain names, such as X.npy",
                    do="do not use this file unless you know where it comes from",
                )
        if len(set(listed_names)) < len(listed_names):
            raise InputError(
                passed=f"{path.name} with two members of one name",
                expected="every array once",
                do="write it again with numpy.savez",
            )
        return cls(path, archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()})

    def load(self, name: str) -> Array:
        """Return an array."""
        if name not in self.members:
            raise InputError(
                passed=f"{self.path.name} without an array {name!r}{did_you_mean(name, self.members)}",
                expected=f"the arrays X and y, or others that are named; it holds {listed(self.members)}",
                do="name them with features=['…'] and label='…' (--features, --label)",
            )
        info = self.members[name]
        with self.archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        if dtype.hasobject or dtype.names is not None or dtype.kind in "cmMV":
            raise InputError(
                passed=f"{self.path.name}, whose array {name!r} holds {dtype}",
                expected="numbers, truth values or text: arrays of objects are pickles, which can run code",
                do="convert it, as in X.astype(numpy.float32) or y.astype(str), and save it again",
            )
        size = math.prod(shape) * dtype.itemsize
        check_fits(f"{self.path.name}, whose array {name!r} has the shape {shape}", 3 * size, "keep fewer rows")
        if not size <= info.file_size <= size + 2**16:
            raise InputError(
                passed=f"{self.path.name}, whose array {name!r} should hold {size:,} bytes and is said to hold "
                f"{info.file_size:,}",
                expected="an archive that says how large its arrays are",
                do="do not use this file unless you know where it comes from; write it again with numpy.savez",
            )
        with self.archive.open(info) as file:
            found: Array = np.lib.format.read_array(file, allow_pickle=False)
        return found


def _flat(path: Path, name: str, array: Array, rows: int) -> Array:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != rows:
        one_hot = array.ndim == 2 and len(array) == rows
        raise InputError(
            passed=f"{path.name}, whose array {name!r} has the shape {array.shape} for {rows:,} examples",
            expected=f"one class for each example: the shape ({rows},)",
            do="take y.argmax(axis=1) of labels that are one-hot" if one_hot else "save labels for the same rows",
        )
    return array


def _complete(path: Path, names: list[str | None], array: str) -> list[str | None]:
    missing = [row for row, name in enumerate(names) if name is None]
    if missing:
        raise InputError(
            passed=f"{path.name}, whose array {array!r} has no value in {len(missing):,} rows, first {missing[0]:,}",
            expected="a class for each example",
            do="leave these rows out",
        )
    return names


def _source(
    path: Path, x: Array, y: Array, names: tuple[str, str], reading: Reading, plan: Plan | tuple[int, ...] | None
) -> Source:
    shape = tuple(x.shape[1:])
    if x.ndim < 2 or not len(x) or x.dtype.kind not in "biuf" or (plan is not None and shape != plan):
        like = "" if plan is None else f" with examples of the shape {plan}, as in the training part"
        raise InputError(
            passed=f"{path.name}, whose array {names[0]!r} of {x.dtype} has the shape {x.shape}",
            expected=f"numbers of the shape (examples, features) or (examples, …){like}",
            do="reshape it, as in X.reshape(len(X), -1)",
        )
    classes = _complete(path, named(_flat(path, names[1], y, len(x)).tolist()), names[1])
    if plan is None:
        check_classes([str(name) for name in classes], names[1])
    _check_finite(path, names[0], x, reading)
    pixels = x.dtype == np.uint8 and x.ndim in (3, 4)
    return Source(
        features=Arrays(_channels_first(x) if pixels else x, reading.impute),
        labels=[str(name) for name in classes],
        index=np.arange(len(x)),
        kind="image" if pixels else "tensor",
        plan=shape,
    )


def _check_finite(path: Path, name: str, x: Array, reading: Reading) -> None:
    if x.dtype.kind != "f":
        return
    flat = x.reshape(len(x), -1)
    for start in range(0, len(flat), 4096):
        part = flat[start : start + 4096]
        with np.errstate(over="ignore"):
            short = part.astype(np.float32)
        bad = np.isinf(short) if reading.impute else ~np.isfinite(short)
        if bad.any():
            row, column = (int(n) for n in np.argwhere(bad)[0])
            raise InputError(
                passed=f"{path.name}, whose array {name!r} holds {part[row, column]} in row {start + row:,}, "
                f"column {column:,}",
                expected="finite numbers below 3.4e38",
                do="correct them; missing values (NaN) are filled in with impute='median' (--impute median)",
            )


def _channels_first(x: Array) -> Array:
    """Return pictures of shape (n, channels, height, width)."""
    if x.ndim == 3:
        return x[:, None]
    return np.moveaxis(x, -1, 1) if x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3) else x


@final
@dataclass(frozen=True)
class Arrays:
    """An array of features or of pictures."""

    x: Array
    impute: str | None = None

    def fit(self, rows: Rows) -> tuple[Scaled, tuple[str, ...]]:
        """Return the encoder that these rows call for, and remarks on it."""
        check_fits(f"{len(self.x):,} examples of shape {self.x.shape[1:]}", 8 * self.x.size, "keep fewer rows")
        if self.x.dtype == np.uint8:
            return self._whole(rows)
        if self.x.ndim > 2:
            return Scaled(np.zeros(1), np.zeros(1), np.ones(1), None), ()
        fill, mean, scale = (np.empty(self.x.shape[1]) for _ in range(3))
        for column in range(self.x.shape[1]):
            cells = self.x[rows, column].astype(np.float64)
            holes = np.isnan(cells)
            fill[column] = self._fill(cells[~holes])
            cells[holes] = fill[column]
            mean[column], scale[column] = cells.mean(), cells.std()
        kept = np.flatnonzero(scale > 1e-9 * np.maximum(np.abs(mean), 1e-30))
        if not len(kept):
            raise InputError(
                passed="features that are all constant", expected="features that differ", do="check the array"
            )
        constant = sorted({*range(len(scale))} - {*kept.tolist()})
        remarks = (left_out("constant in the training part", [f"column {n}" for n in constant]),) if constant else ()
        return Scaled(fill[kept], mean[kept], scale[kept], kept), remarks

    def _whole(self, rows: Rows) -> tuple[Scaled, tuple[str, ...]]:
        """Scale bytes by one mean and one deviation for each channel of pictures, or for all columns together."""
        axes = (0, 2, 3) if self.x.ndim == 4 else tuple(range(self.x.ndim))
        mean: Any = 0.0
        square: Any = 0.0
        for start in range(0, len(rows), 1024):
            part = self.x[rows[start : start + 1024]].astype(np.float64)
            mean = mean + part.sum(axis=axes, keepdims=True)
            square = square + np.square(part).sum(axis=axes, keepdims=True)
        count = len(rows) * self.x[0].size / np.size(mean)
        mean /= count
        scale = np.sqrt(np.maximum(square / count - mean**2, 0))
        return Scaled(mean, mean, np.where(scale > 0, scale, 1.0), None), ()

    def _fill(self, present: Array) -> float:
        if not len(present):
            return 0.0
        if self.impute == "most-frequent":
            values, counts = np.unique(present, return_counts=True)
            return float(values[counts.argmax()])
        return float(np.median(present))

    def take(self, rows: Rows) -> Arrays:
        """Return the features of some rows."""
        return replace(self, x=self.x[rows])

    def show(self, row: int) -> dict[str, Any]:
        """Return the picture, or the first numbers of a row."""
        x = self.x[row]
        if x.dtype == np.uint8 and x.ndim == 3 and x.shape[0] in (1, 3):
            return {"image": data_address(x)}
        numbers = x.reshape(-1)[:SHOWN].tolist()
        return {
            "row": {
                f"column {place}": float(f"{value:.6g}") if math.isfinite(value) else None
                for place, value in enumerate(numbers)
            }
        }


@final
@dataclass(frozen=True)
class Scaled:
    """Encodes arrays: (x − mean) / scale, of some columns or of all."""

    fill: Array
    mean: Array
    scale: Array
    kept: Array | None

    def __call__(self, features: Arrays, rows: Rows) -> Tensor:
        """Return the inputs of some rows."""
        shape = features.x.shape[1:] if self.kept is None else (len(self.kept),)
        inputs = np.empty((len(rows), *shape), np.float32)
        for start in range(0, len(rows), 1024):
            part = features.x[rows[start : start + 1024]]
            part = (part if self.kept is None else part[:, self.kept]).astype(np.float64)
            part = np.where(np.isnan(part), self.fill, part)
            inputs[start : start + len(part)] = (part - self.mean) / self.scale
        return torch.from_numpy(inputs)
