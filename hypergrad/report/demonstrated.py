"""The demo's files, as far as they differ from those of the cleaning pipeline."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from hypergrad.report.reading import Folder, mapping, number

MOST_ARRAYS = 2**28
THRESHOLD = 0.5
BINS = 40
Array = np.ndarray[Any, np.dtype[Any]]


def is_demo(result: dict[str, Any]) -> bool:
    """Whether a result is the demo's."""
    return "kind" not in result and {"model", "data", "auc", "accuracy"} <= result.keys()


def as_cleaning(folder: Folder, result: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's result in the form of the cleaning pipeline's, with what ``weights.npz`` adds to it."""
    names = ("precision", "recall", "f1", "auc")
    found: dict[str, Any] = {
        "kind": "cleaning",
        "input": f"demo: {result.get('data')}, {result.get('model')} model, half of the labels wrong on purpose",
        "accuracy": mapping(result.get("accuracy")),
        "detection": {name: number(result.get(name)) for name in names},
        "trusted": {"examples": 1000, "noise_estimate": 0.0, "note": "The demo's validation labels are right."},
        "threshold": THRESHOLD,
        **{name: result[name] for name in ("seed", "versions", "seconds") if name in result},
    }
    arrays = _arrays(folder)
    if arrays is not None:
        weight, wrong = arrays
        edges = np.linspace(0, 1, BINS + 1)
        counts = {
            name: np.histogram(weight[rows], edges)[0].tolist() for name, rows in (("right", ~wrong), ("wrong", wrong))
        }
        found |= {"examples": len(weight), "suspicious": int((weight < THRESHOLD).sum())}
        found["histogram"] = {"edges": edges.tolist(), **counts}
        found["detection"]["curve"] = _curve(weight, wrong)
    return found


def _arrays(folder: Folder) -> tuple[Array, Array] | None:
    content = folder.content("weights.npz", MOST_ARRAYS)
    if content is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_ARRAYS:
                raise ValueError("too large")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            weight, wrong = arrays["weight"].astype(np.float64), arrays["corrupted"].astype(bool)
        if weight.ndim != 1 or weight.shape != wrong.shape or not np.isfinite(weight).all():
            raise ValueError("no row of weights")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        folder.problems.append(f"weights.npz is not what the demo writes ({error})")
        return None
    folder.read.append("weights.npz")
    return weight, wrong


def _curve(weight: Array, wrong: Array) -> list[list[float]]:
    """Return recall and precision when the k lightest examples are suspects, for every k."""
    if not wrong.any():
        return []
    hits = np.cumsum(wrong[np.argsort(weight, kind="stable")])
    places = np.unique(np.linspace(1, len(weight), 200).astype(int))
    return [[float(hits[k - 1] / wrong.sum()), float(hits[k - 1] / k)] for k in places]
