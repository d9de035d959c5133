"""The directory of a cleaning while it runs: whose it is, and what to go on from."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.callbacks import Callback, History, load_checkpoint
from hypergrad.cleaning.recipe import Outcome
from hypergrad.errors import DiskFullError, InputError
from hypergrad.files import write_whole

CHECKPOINT = "checkpoint.pt"
RESULTS = (
    *("weights.parquet", "weights.csv", "suspicious.csv", "cleaned_indices.npy"),
    *("previews.json", "report.html", "run.json", "hparams.jsonl", "history.jsonl", "result.json"),
)
"""Files of a cleaning beside its checkpoint; the last one says that the rest is complete."""
FORMAT = 1


@final
class Folder:
    """The directory of one cleaning.

    Args:
        out: the directory; ``None`` where nothing is written.
        identity: digest of the data and the settings.
        overwrite: whether files of an earlier cleaning may be replaced.
        resume: whether to go on from them.

    Attributes:
        resumed: whether there was something to go on from.
        seconds: that the runs before an interruption took.

    Raises:
        InputError: a directory with other files, or with a cleaning that is neither to be replaced nor resumed, or a
            checkpoint of other data or settings.
        DiskFullError: no space left.
    """

    def __init__(self, out: str | Path | None, identity: str, *, overwrite: bool, resume: bool) -> None:
        """Look at what is there."""
        self.path, self.identity = None if out is None else Path(out), identity
        self.outcomes: dict[int, Outcome] = {}
        self.resumed, self.seconds, self._began = False, 0.0, time.perf_counter()
        if self.path is None:
            if resume:
                raise InputError("clean(resume=True) without out", "the directory to go on in", "pass out=...")
            return
        there = _contents(self.path)
        if there and resume:
            self._resume(load_checkpoint(self.path))
        elif there and overwrite:
            self._clear()
        elif there:
            raise _occupied(self.path, there)
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._save()

    def done(self, seed: int) -> Outcome | None:
        """Return what a seed's run found, if it is over."""
        return self.outcomes.get(seed)

    def of_seed(self, seed: int) -> Path | None:
        """Return where the checkpoint of a seed's run goes."""
        return None if self.path is None else self.path / f"seed-{seed}"

    def history(self, seed: int, *, first: bool) -> list[Callback]:
        """Return what writes the history of a seed's run: that of the first one stands beside the results."""
        folder = self.of_seed(seed)
        if folder is None or self.path is None:
            return []
        return [History((self.path if first else folder) / "history.jsonl", lambda _: {"seed": seed})]

    def keep(self, seed: int, outcome: Outcome) -> None:
        """Save what a seed's run found; its own checkpoint is not needed any more."""
        self.outcomes[seed] = outcome
        if self.path is None:
            return
        with disk_errors(self.path):
            self._save()
            (self.path / f"seed-{seed}" / CHECKPOINT).unlink(missing_ok=True)

    def _save(self) -> None:
        assert self.path is not None
        now = time.perf_counter()
        state = {
            "format": FORMAT,
            "kind": "cleaning",
            "identity": self.identity,
            "seconds": self.seconds + now - self._began,
            "outcomes": {
                str(seed): {"score": one.score, **({} if one.labels is None else {"labels": one.labels})}
                for seed, one in self.outcomes.items()
            },
        }
        write_whole(self.path / CHECKPOINT, lambda path: torch.save(state, path))

    def _resume(self, state: Mapping[str, Any]) -> None:
        outcomes, seconds = state.get("outcomes"), state.get("seconds")
        if state.get("kind") != "cleaning" or not isinstance(outcomes, dict) or not isinstance(seconds, float):
            raise InputError(
                passed=f"{self.path}, whose {CHECKPOINT} is not of a cleaning",
                expected="the directory of an interrupted cleaning",
                do="check the path, or start without resume",
            )
        if state.get("identity") != self.identity:
            raise InputError(
                passed=f"{self.path}, which holds a cleaning of other data or with other settings",
                expected="the same data, model, algorithm and settings as before the interruption",
                do="pass what it was begun with, or start afresh in another directory",
            )
        self.outcomes = {int(seed): _outcome(self.path, entry) for seed, entry in outcomes.items()}
        self.resumed, self.seconds = True, seconds

    def _clear(self) -> None:
        """Remove what an earlier cleaning left; files of others stay."""
        assert self.path is not None
        for name in (CHECKPOINT, *RESULTS):
            (self.path / name).unlink(missing_ok=True)
        for folder in self.path.glob("seed-*"):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)


def _outcome(path: Path | None, entry: Any) -> Outcome:
    score, labels = (entry.get(name) if isinstance(entry, dict) else None for name in ("score", "labels"))
    if not isinstance(score, Tensor) or not (labels is None or isinstance(labels, Tensor)):
        raise InputError(f"{path}, whose {CHECKPOINT} is damaged", "an intact checkpoint", "start afresh elsewhere")
    return Outcome(score, labels)


def _contents(path: Path) -> list[str]:
    if path.exists() and not path.is_dir():
        raise InputError(f"out={path}, which is a file", "a directory, or a name that is free", "choose another out")
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []


def _occupied(path: Path, there: list[str]) -> InputError:
    finished = "result.json" in there and _is_cleaning(path / "result.json")
    if finished or CHECKPOINT in there:
        what = "a finished cleaning" if finished else "a cleaning that was interrupted"
        do = "pass resume=True to go on with it, overwrite=True to replace it, or another out"
    else:
        what = f"other files: {there[:5]}"
        do = "choose another out, or pass overwrite=True to write beside them"
    return InputError(f"out={path}, which holds {what}", "an empty directory, or a name that is free", do)


def _is_cleaning(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == "cleaning"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do where the disk is full or the directory cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                passed=f"{path}: {error.strerror}",
                expected="space for the files of this cleaning",
                do="make space and call clean again with resume=True: what is there is whole",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(
                passed=f"out={path}, which cannot be written to ({error.strerror})",
                expected="a directory with permission to write",
                do="choose another out",
            ) from error
        raise


def write(path: Path, function: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        DiskFullError: no space left.
    """
    with disk_errors(path):
        write_whole(path, function)
