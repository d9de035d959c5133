"""The process that a peer's rows run in: reads JSON lines from standard input, answers with JSON lines.

It runs in the peer's environment, so it imports nothing but the standard library and numpy, and the rows' modules.

    {"do": "prepare", "id": 0, "module": "hand", "row": "cg", "problem": "…", "settings": {…}, "data": "….npz"}
    {"do": "run", "id": 0}                 -> CPU and wall seconds of one call, and what it counted
    {"do": "answer", "id": 0, "to": "…"}   -> the last call's hypergradient, one flat vector, as an .npy file
    {"do": "peak", "id": 0}                -> peak bytes of one call above the level before it, where the row can tell
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np


class Prepared:
    """One row under way."""

    def __init__(self, message: dict[str, Any]) -> None:
        """Build the row's function; what it costs to set up is told apart."""
        began = time.process_time()
        self.module = importlib.import_module(f"benchmarks.rows.{message['module']}")
        with np.load(message["data"], allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        build = self.module.ROWS.get(message["row"])
        if build is None:
            raise KeyError(f"{message['module']} has no row {message['row']!r}: {', '.join(self.module.ROWS)}")
        self.call: Callable[[], Any] = build(message["problem"], arrays, message["settings"])
        self.last: Any = None
        self.about = {"seconds": time.process_time() - began, "version": self.module.version()}
        self._wait: Callable[[], None] = getattr(self.module, "synchronize", lambda: None)

    def measure(self) -> dict[str, Any]:
        """Call it once."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        self.last = self.call()
        self._wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"cpu": cpu, "wall": wall, **self.last.get("counts", {})}

    def answer(self, to: str) -> dict[str, Any]:
        """Save the last answer."""
        parts = [np.asarray(part, dtype=np.float64).ravel() for part in self.last["answer"]]
        vector = np.concatenate([np.empty(0), *parts])
        np.save(to, vector)
        return {"entries": len(vector)}

    def peak(self) -> dict[str, Any]:
        """Return what one call needs at its peak, or ``None`` where the peer's memory cannot be watched."""
        measure = getattr(self.module, "peak_bytes", None)
        return {"bytes": None if measure is None else measure(self.call)}


def _reply(message: dict[str, Any], rows: dict[int, Prepared]) -> dict[str, Any]:
    do, place = message["do"], message["id"]
    if do == "prepare":
        rows[place] = Prepared(message)
        return rows[place].about
    if do == "forget":
        rows.pop(place, None)
        return {}
    if do == "answer":
        return rows[place].answer(message["to"])
    return rows[place].measure() if do == "run" else rows[place].peak()


def main() -> None:
    """Answer until there is nothing more to read."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints goes where errors go
    rows: dict[int, Prepared] = {}
    for text in sys.stdin:
        message = json.loads(text)
        try:
            reply = _reply(message, rows)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
