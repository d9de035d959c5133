"""The process that a peer's row runs in: reads JSON lines from standard input, answers with JSON lines.

It runs in the peer's environment, so it imports nothing but the standard library and numpy, and the row's module.

    {"do": "prepare", "module": "hand", "row": "neumann", "problem": "…", "settings": {…}, "data": "arrays.npz"}
    {"do": "run"}                 -> CPU and wall seconds of one call, and what it counted
    {"do": "answer", "to": "…"}   -> the last call's hypergradient, one flat vector, as an .npy file
    {"do": "peak"}                -> peak bytes of one call above the level before it, where the row can tell
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np


class Session:
    """One row under way."""

    def __init__(self) -> None:
        self.run: Callable[[], Any] | None = None
        self.last: Any = None
        self.module: Any = None

    def prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """Build the row's function; what it costs to set up is told apart."""
        began = time.process_time()
        self.module = importlib.import_module(f"benchmarks.rows.{message['module']}")
        with np.load(message["data"], allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        self.run = self.module.ROWS[message["row"]](message["problem"], arrays, message["settings"])
        return {"seconds": time.process_time() - began, "version": self.module.version()}

    def measure(self) -> dict[str, Any]:
        """Call it once."""
        assert self.run is not None
        wall, cpu = time.perf_counter(), time.process_time()
        self.last = self.run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"cpu": cpu, "wall": wall, **self.last.get("counts", {})}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Save the last answer."""
        parts = [np.asarray(part, dtype=np.float64).ravel() for part in self.last["answer"]]
        vector = np.concatenate([np.empty(0), *parts])
        np.save(message["to"], vector)
        return {"entries": len(vector)}

    def peak(self) -> dict[str, Any]:
        """Return what one call needs at its peak."""
        measure = getattr(self.module, "peak_bytes", None)
        if measure is None:
            return {"bytes": None, "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        return {"bytes": measure(self.run)}


def main() -> None:
    """Answer until there is nothing more to read."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints goes where errors go
    session = Session()
    for text in sys.stdin:
        message = json.loads(text)
        try:
            do = message["do"]
            if do == "run":
                reply = session.measure()
            elif do == "peak":
                reply = session.peak()
            else:
                reply = {"prepare": session.prepare, "answer": session.answer}[do](message)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
