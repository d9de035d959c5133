"""Files of a run's directory, which nobody vouches for: regular files inside it, of bounded size, plain JSON."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from hypergrad.errors import InputError

MOST_JSON, MOST_LINES, LONGEST_LINE = 2**25, 2**26, 2**20
"""Largest JSON file, most of a file of lines, and longest line that are read, in bytes."""
KNOWN = (
    *("run.json", "result.json", "history.jsonl", "hparams.jsonl", "previews.json", "suspicious.csv"),
    *("compare.json", "weights.npz"),
)
"""What a report is made of; nothing else in a directory is opened."""


@final
class Folder:
    """The files of one run.

    Args:
        directory: the run's directory.

    Raises:
        InputError: no such directory, a file, or a directory without anything that a report is made of.

    Attributes:
        problems: what could not be read, in sentences.
        read: names of the files that were.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Look whether there is something to read."""
        self.path = Path(directory)
        self.problems: list[str] = []
        self.read: list[str] = []
        self._check()

    def _check(self) -> None:
        expected = f"a directory with one of {', '.join(KNOWN[:4])}, compare.json"
        if not self.path.exists():
            raise InputError(f"{self.path}, which does not exist", expected, "check the path")
        if not self.path.is_dir():
            do = f"pass the directory that holds it: {self.path.parent}"
            raise InputError(f"{self.path}, which is a file", expected, do)
        try:
            found = {entry.name for entry in os.scandir(self.path)}
        except OSError as error:
            do = "check its permissions"
            raise InputError(f"{self.path}, which cannot be read ({error.strerror})", expected, do) from error
        if not found & set(KNOWN):
            raise InputError(
                passed=f"{self.path}, which holds {'nothing of a run' if found else 'nothing'}",
                expected=expected,
                do="write one with callbacks=[hypergrad.report.Record(directory), "
                'hypergrad.History("directory/history.jsonl")], or with hypergrad demo, clean or compare',
            )

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when a file changes."""
        found = []
        for name in KNOWN:
            if (status := self._status(name)) is not None:
                found.append((name, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def written(self) -> float:
        """Return when a file was last written, in seconds since 1970; 0 if there is none."""
        return max((nanoseconds / 1e9 for _, _, nanoseconds in self.stamp()), default=0.0)

    def value(self, name: str, kind: type = dict) -> Any:
        """Return what a JSON file holds, or ``None`` with a problem."""
        content = self.content(name, MOST_JSON)
        if content is None:
            return None
        try:
            value = json.loads(content, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            self._problem(name, f"is not JSON ({type(error).__name__}); write it again, or restore a copy")
            return None
        if not isinstance(value, kind):
            self._problem(name, f"holds a {type(value).__name__} in the place of a {kind.__name__}")
            return None
        self.read.append(name)
        return value

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file of lines; torn lines are left out, and the middle of a huge file."""
        if not self._usable(name):
            return
        self.read.append(name)
        torn = 0
        try:
            for text in self._texts(name):
                value = _object(text)
                if value is None:
                    torn += 1
                else:
                    yield value
        except OSError as error:
            self._problem(name, f"cannot be read ({error.strerror})")
        if torn:
            self._problem(
                name, f"has {torn} torn or wrong line{'s' * (torn > 1)}, which {'were' if torn > 1 else 'was'} left out"
            )

    def content(self, name: str, most: int) -> bytes | None:
        """Return the content of a file, or ``None`` with a problem."""
        if not self._usable(name):
            return None
        try:
            with (self.path / name).open("rb") as file:
                content = file.read(most + 1)
        except OSError as error:
            self._problem(name, f"cannot be read ({error.strerror})")
            return None
        if len(content) > most:
            self._problem(name, f"is larger than {most / 2**20:.0f} MiB and was not read")
            return None
        return content

    def _texts(self, name: str) -> Iterator[bytes]:
        with (self.path / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            halves = [(0, MOST_LINES // 2), (size - MOST_LINES // 2, size)] if size > MOST_LINES else [(0, size)]
            if len(halves) > 1:
                self._problem(name, f"is larger than {MOST_LINES / 2**20:.0f} MiB; its middle was left out")
            for first, last in halves:
                file.seek(first)
                if first:
                    file.readline(LONGEST_LINE)
                while file.tell() < last and (text := file.readline(LONGEST_LINE)):
                    if text.strip():
                        yield text

    def _usable(self, name: str) -> bool:
        """Whether a file is there; one that is no regular file inside the directory is a problem."""
        path = self.path / name
        if not path.is_symlink() and not path.exists():
            return False
        if self._status(name) is None:
            self._problem(name, "is no regular file inside the directory and was not opened")
            return False
        return True

    def _status(self, name: str) -> os.stat_result | None:
        """Return the status of a regular file whose real place is inside the directory."""
        try:
            place = (self.path / name).resolve(strict=True)
            status = place.stat()
        except (OSError, RuntimeError):
            return None
        inside = place.is_relative_to(self.path.resolve())
        return status if inside and stat.S_ISREG(status.st_mode) else None

    def _problem(self, name: str, text: str) -> None:
        self.problems.append(f"{name} {text}")


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: Any) -> float | None:
    """Return a finite number as it is, and ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text_of(value: Any, most: int = 200) -> str:
    """Return what to show of a value: without control characters, and cut where it is too long."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = shown[: 2 * most]
    plain = "".join(character if _harmless(character) else "\N{REPLACEMENT CHARACTER}" for character in shown)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _harmless(character: str) -> bool:
    code = ord(character)
    if code in (0x9, 0xA, 0xD):
        return True
    directions = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return code >= 0x20 and not 0x7F <= code <= 0x9F and not directions and not 0xD800 <= code <= 0xDFFF


def mapping(value: Any) -> dict[str, Any]:
    """Return a dict as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []
