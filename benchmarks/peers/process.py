"""Rows in processes of their own, asked in turn."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from benchmarks.peers.environments import PEERS, PeerError, interpreter

ROOT = Path(__file__).parents[2]


@final
class Process:
    """A peer's process, in its own environment; its rows share it.

    Args:
        peer: the peer's name.
        build: whether a missing environment may be built.
        timeout: seconds that one answer may take.
        device: ``cpu`` or ``cuda``, in the environment variable ``HYPERGRAD_BENCHMARK_DEVICE`` of the process.

    Raises:
        PeerError: the peer does not install.
    """

    def __init__(self, peer: str, *, build: bool = True, timeout: float = 600.0, device: str = "cpu") -> None:
        self.peer, self.timeout = peer, timeout
        self.rows = 0
        python = interpreter(PEERS[peer], build=build)
        self._noise = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), "-u", "-m", "benchmarks.peers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "HYPERGRAD_BENCHMARK_DEVICE": device,
            },
        )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the answer.

        Raises:
            PeerError: an error over there, no answer in time, or a process that ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise PeerError(self._end()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                self._process.kill()
                self._process.wait()
                raise PeerError(f"no answer within {self.timeout:.0f} s")
        text = self._process.stdout.readline()
        if not text:
            raise PeerError(self._end())
        reply: dict[str, Any] = json.loads(text)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def _end(self) -> str:
        status = self._process.wait()
        if self._noise.closed:
            return f"ended with status {status}: closed"
        self._noise.seek(0)
        lines = [line.strip() for line in self._noise.read().splitlines() if line.strip()]
        return f"ended with status {status}: {lines[-1][:200] if lines else 'without a word'}"

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._noise):
            if stream is not None and not stream.closed:
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@final
class Row:
    """One method of one peer on one problem.

    Args:
        process: the peer's process.
        name: what stands in the table.
        module: module of ``benchmarks.rows``.
        row: the method's name in that module.
        problem: name of the problem.
        data: npz file with the problem's arrays.
        settings: numbers and strings of the method.

    Attributes:
        version: what the peer says of itself.
        setup: CPU seconds of the preparation.

    Raises:
        PeerError: the peer cannot prepare the row, or crashed.
    """

    def __init__(
        self,
        process: Process,
        name: str,
        module: str,
        row: str,
        problem: str,
        data: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.name, self._process, self._place = name, process, process.rows
        process.rows += 1
        ready = self._ask("prepare", module=module, row=row, problem=problem, data=str(data), settings=dict(settings))
        self.version, self.setup = str(ready["version"]), float(ready["seconds"])

    def _ask(self, do: str, **message: Any) -> dict[str, Any]:
        return self._process.ask(do=do, id=self._place, **message)

    def run(self) -> dict[str, Any]:
        """Call the method once; return its CPU and wall seconds, and its counts."""
        return self._ask("run")

    def answer(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the hypergradient that the last call found, as one flat vector."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.npy"
            self._ask("answer", to=str(path))
            found: np.ndarray[Any, np.dtype[np.float64]] = np.load(path, allow_pickle=False)
        return found

    def peak(self) -> int | None:
        """Return the bytes that one call needs at its peak, where the peer's arrays can be watched."""
        found = self._ask("peak")["bytes"]
        return None if found is None else int(found)

    def forget(self) -> None:
        """Let the process free what the row holds."""
        self._ask("forget")


def take_turns(
    rows: list[Row], repeats: int, *, warm: bool = True
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Run every row once to warm up, then ``repeats`` times in turn, each round from another row on.

    Args:
        rows: prepared.
        repeats: rounds that are measured.
        warm: whether there is a first round that is not.

    Returns:
        The measurements of each row that answered every time, and the reason of each that did not.
    """
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    reasons: dict[str, str] = {}
    for turn in range(-1 if warm else 0, repeats):
        shift = max(turn, 0) % max(len(rows), 1)
        for row in rows[shift:] + rows[:shift]:
            if row.name in reasons:
                continue
            try:
                measured = row.run()
            except PeerError as error:
                reasons[row.name] = str(error)
                continue
            if turn >= 0:
                found[row.name].append(measured)
    return {name: runs for name, runs in found.items() if name not in reasons}, reasons
