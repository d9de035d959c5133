"""Rows of no library, for tests: they run in processes of their own without torch, and fail in every way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COUNT = {"calls": 0}


def version() -> str:
    return "fake 1.0"


def fine(_problem: str, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    print("noise on standard output")
    answer = arrays["x"] * settings.get("scale", 1.0)

    def run() -> dict[str, Any]:
        print("more noise")
        _work(1)
        return {"answer": [answer], "counts": {"products": 2}}

    return run


def noisy(_problem: str, arrays: Mapping[str, Any], _settings: Mapping[str, Any]) -> Any:
    def run() -> dict[str, Any]:
        COUNT["calls"] += 1
        _work(1 if COUNT["calls"] % 2 else 30)
        return {"answer": [arrays["x"]]}

    return run


def raises(_problem: str, _arrays: Mapping[str, Any], _settings: Mapping[str, Any]) -> Any:
    def run() -> dict[str, Any]:
        raise ValueError("this | that\nand more")

    return run


def exits(_problem: str, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    marker = Path(settings["marker"])

    def run() -> dict[str, Any]:
        if not marker.exists():
            marker.touch()
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(3)
        return {"answer": [arrays["x"]]}

    return run


def silent(_problem: str, _arrays: Mapping[str, Any], _settings: Mapping[str, Any]) -> Any:
    def run() -> dict[str, Any]:
        time.sleep(600)
        return {}

    return run


def refuses(_problem: str, _arrays: Mapping[str, Any], _settings: Mapping[str, Any]) -> Any:
    raise RuntimeError("cannot do this problem")


def infinite(_problem: str, arrays: Mapping[str, Any], _settings: Mapping[str, Any]) -> Any:
    return lambda: {"answer": [arrays["x"] * np.nan], "counts": {"products": float("inf")}}


def _work(times: int) -> None:
    for _ in range(times):
        np.linalg.inv(np.eye(120))


ROWS = {
    "fine": fine,
    "noisy": noisy,
    "raises": raises,
    "exits": exits,
    "silent": silent,
    "refuses": refuses,
    "infinite": infinite,
}
