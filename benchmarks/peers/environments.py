"""One virtual environment for each peer, built from its pinned requirements and kept for the next time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = "requirements.sha256"


@final
class PeerError(RuntimeError):
    """A peer that does not install, crashes or answers too late; its text is the row's reason."""


@final
@dataclass(frozen=True)
class Peer:
    """A library that rows are written for.

    Attributes:
        name: of the module in ``benchmarks.rows``.
        requirements: name of the file with its pinned packages; ``None`` for this interpreter's own environment.
        options: of pip, for the second of the two installations (torch comes first).
    """

    name: str
    requirements: str | None = None
    options: tuple[str, ...] = ()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("hand"),
        Peer("engine"),
        # its newest release declares Python < 3.11 and runs on newer ones; pip would take the faulty 0.1.1 instead
        Peer("betty", "betty", ("--ignore-requires-python",)),
        Peer("torchopt", "torchopt"),
        Peer("boat", "boat"),
        Peer("higher", "higher"),
        Peer("curvlinops", "curvlinops"),
        Peer("jaxopt", "jax"),
        Peer("optimistix", "jax"),
        Peer("optuna", "optuna"),
    )
}
"""All peers; the first two are the hand-written loop that everything is measured against, and this library."""


def folder() -> Path:
    """Return where environments are kept: ``$HYPERGRAD_PEERS``, or a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HYPERGRAD_PEERS") or cache / "hypergrad-peers")


def interpreter(peer: Peer, *, build: bool = True, timeout: float = 1800.0) -> Path:
    """Return the Python that a peer's rows run with, and build its environment where there is none.

    Args:
        peer: the peer.
        build: whether to build; without it a missing environment is an error.
        timeout: seconds that the installation may take.

    Raises:
        PeerError: the environment is missing or cannot be built, with the last line of what pip said.
    """
    if peer.requirements is None:
        return Path(sys.executable)
    listed = REQUIREMENTS / f"{peer.requirements}.txt"
    wanted = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    place = folder() / peer.requirements
    python, stamp = place / "bin" / "python", place / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not build:
        raise PeerError(f"no environment at {place}: run once without --no-build")
    place.parent.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-m", "venv", "--clear", str(place)], timeout)
    # torch first: with it in place no package asks for another build of it
    torch = [line for line in listed.read_text().splitlines() if line.startswith("torch==")]
    for what in (torch, [*peer.options, "-r", str(listed)]):
        if what:
            _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what], timeout)
    stamp.write_text(wanted)
    return python


def _call(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise PeerError(f"not installed within {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise PeerError(f"not installed: {(errors or lines or ['no message'])[-1].strip()[:200]}")
