"""Measure alternatives side by side: alternating runs, medians, ratios.

Times are CPU seconds on one thread, since wall time on a shared machine says little; memory is the peak of the
allocator's live bytes above the level at entry.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """CPU seconds of repeated runs."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Return the interquartile range over the median."""
        quartiles = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [0.0, 0.0, 0.0]
        return (quartiles[2] - quartiles[0]) / self.median


def alternate(rows: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Run every row once to warm up, then ``repeats`` times in turn, each round from another row on."""
    names = list(rows)
    for name in names:
        rows[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.process_time()
            rows[name]()
            seconds[name].append(time.process_time() - start)
    return {name: Timing(times) for name, times in seconds.items()}


def ratio(timings: Mapping[str, Timing], name: str, base: str) -> float:
    """Return the median over rounds of one row's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(timings[name].seconds, timings[base].seconds, strict=True))


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with the versions behind it, whole or not at all; a number that is not finite becomes null."""
    temporary = path.with_suffix(".tmp")
    text = json.dumps(_finite({"torch": torch.__version__, **result}), indent=2, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
