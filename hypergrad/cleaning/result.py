"""The files of a finished cleaning."""

from __future__ import annotations

import base64
import csv
import dataclasses
import importlib.util
import json
import math
import platform
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hypergrad.cleaning.cleaned import Cleaned
from hypergrad.cleaning.folder import write
from hypergrad.cleaning.reading.labels import safe_cell
from hypergrad.version import __version__

PREVIEWS = 60
COLUMNS = 12
"""Numbers of an example that are shown where there is nothing better to show."""


def write_result(out: Path, cleaned: Cleaned) -> None:
    """Write all files, each whole or not at all; ``result.json`` comes last.

    Args:
        out: the directory.
        cleaned: what was found.

    Raises:
        DiskFullError: no space left.
    """
    table = columns(cleaned)
    if importlib.util.find_spec("pyarrow") is not None:
        write(out / "weights.parquet", lambda path: _write_parquet(path, table))
    else:
        write(out / "weights.csv", lambda path: _write_csv(path, table))
    names = [name for name in table if name not in ("suspicious", "wrong")]
    write(out / "suspicious.csv", lambda path: _write_csv(path, suspicious_rows(table, names)))
    write(out / "cleaned_indices.npy", lambda path: _write_array(path, cleaned.kept))
    write(out / "previews.json", lambda path: _write_json(path, previews(cleaned)))
    write(out / "result.json", lambda path: _write_json(path, summary(cleaned)))
    # report.html is made from these files


def columns(cleaned: Cleaned) -> dict[str, list[Any]]:
    """Return the table of all judged examples by column, in the order of the input."""
    names = cleaned.classes
    table: dict[str, list[Any]] = {
        "index": cleaned.index.tolist(),
        "given_label": [names[number] for number in cleaned.given.tolist()],
        "proposed_label": [names[number] for number in cleaned.proposed.tolist()],
        "weight": cleaned.weight.tolist(),
        "rank": cleaned.rank.tolist(),
        "stability": cleaned.stability.tolist(),
        "suspicious": cleaned.suspicious.tolist(),
    }
    if cleaned.source.truth is not None:
        table["wrong"] = (cleaned.source.truth != cleaned.source.labels).tolist()
    return table


def suspicious_rows(table: Mapping[str, list[Any]], names: list[str]) -> dict[str, list[Any]]:
    """Return some columns of the suspicious rows, the most suspicious first."""
    rows = [row for row, flagged in enumerate(table["suspicious"]) if flagged]
    rows.sort(key=table["rank"].__getitem__)
    return {name: [table[name][row] for row in rows] for name in names}


def summary(cleaned: Cleaned) -> dict[str, Any]:
    """Return what ``result.json`` holds: everything but the single examples."""
    trust = cleaned.trusted
    return {
        "kind": "cleaning",
        "input": cleaned.source.kind,
        "examples": len(cleaned.weight),
        "classes": list(cleaned.classes),
        "class_counts": _counts(cleaned),
        "suspicious": int(cleaned.suspicious.sum()),
        "threshold": cleaned.threshold,
        "kept": len(cleaned.kept),
        "seeds": [cleaned.settings.seed + number for number in range(cleaned.settings.seeds)],
        "settings": {**dataclasses.asdict(cleaned.settings), "algorithm": cleaned.algorithm},
        "trusted": {
            "examples": trust.examples,
            "noise_estimate": trust.noise_estimate,
            "interval": None if trust.interval is None else list(trust.interval),
            "train_estimate": trust.train_estimate,
            "noisy": trust.noisy,
            "note": trust.note,
        },
        "noise_estimate": cleaned.noise_estimate,
        "stability": cleaned.stability_report,
        "accuracy": cleaned.accuracy,
        "detection": cleaned.detection,
        "histogram": cleaned.histogram,
        "skipped": [{"index": one.place, "reason": one.reason} for one in cleaned.skipped],
        "notes": list(cleaned.notes),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "hypergrad": __version__,
        },
        "seconds": cleaned.seconds,
    }


def _counts(cleaned: Cleaned) -> list[dict[str, Any]]:
    """Return for each class how many examples it has, and how many of them are suspicious."""
    return [
        {
            "class": name,
            "examples": int((cleaned.given == number).sum()),
            "suspicious": int(((cleaned.given == number) & cleaned.suspicious).sum()),
        }
        for number, name in enumerate(cleaned.classes)
    ]


def previews(cleaned: Cleaned) -> list[dict[str, Any]]:
    """Return what a person would look at of the most suspicious examples, at most 60."""
    source, names = cleaned.source, cleaned.classes
    order = np.argsort(cleaned.rank, kind="stable")
    found = []
    for row in [int(row) for row in order if cleaned.suspicious[row]][:PREVIEWS]:
        shown = None if source.preview is None else source.preview(row)
        found.append(
            {
                "index": int(cleaned.index[row]),
                "given": names[cleaned.given[row]],
                "proposed": names[cleaned.proposed[row]],
                "weight": float(cleaned.weight[row]),
                "wrong": None if source.truth is None else bool(source.truth[row] != source.labels[row]),
                **(shown or preview_of(source.fetch(torch.tensor([row]))[0].detach().cpu().numpy())),
            }
        )
    return found


def preview_of(inputs: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return a picture of inputs that look like one, else their first numbers.

    Args:
        inputs: of one example.
    """
    shape = inputs.shape
    grey = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
    if grey and min(shape[-2:]) >= 4:
        return {"image": "data:image/png;base64," + base64.b64encode(png(inputs)).decode("ascii")}
    flat = inputs.reshape(-1)[:COLUMNS].tolist()
    return {"row": {str(place): round(value, 6) for place, value in enumerate(flat)}}


def png(picture: np.ndarray[Any, Any]) -> bytes:
    """Return a picture as a file in the format PNG, its values stretched to the whole range.

    Args:
        picture: of shape (height, width), (1, height, width) or (3, height, width).
    """
    layers = picture[None] if picture.ndim == 2 else picture
    values = layers.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    pixels = ((values - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8)
    height, width = pixels.shape[1:]
    lines = pixels.transpose(1, 2, 0).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if len(layers) == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _write_parquet(path: Path, table: Mapping[str, list[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(dict(table)), path)


def _write_csv(path: Path, table: Mapping[str, list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(_lines(table))


def _lines(table: Mapping[str, list[Any]]) -> Iterator[tuple[Any, ...]]:
    for line in zip(*table.values(), strict=True):
        yield tuple(safe_cell(cell) if isinstance(cell, str) else cell for cell in line)


def _write_array(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(_strict(value), indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
