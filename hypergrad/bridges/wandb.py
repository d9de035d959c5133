"""Weights & Biases, offline: the numbers of every step and histograms of the hyperparameters, in a folder."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, final

from hypergrad.bridges.tracking import Identified, finite, settings
from hypergrad.run import Run
from hypergrad.settings import check_choice
from hypergrad.tree import Tree

HEADER = 7
BLOCK = 2**15
"""Bytes: of a file's header and of a record's, and of a block of a file that W&B writes."""
LONGEST_WAIT = 20.0
"""Seconds."""
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of records: those that do not fit into what is left of a block are cut into parts."""


@final
class WandB(Identified):
    """Write a run for Weights & Biases (extra ``wandb``), offline unless asked: nothing is sent.

    The run lies in ``folder/wandb/offline-run-…``; ``wandb sync`` of that folder uploads it, when you want it. Numbers
    of every step are outer_loss, norm (of the hypergradient), residual, inner_gradient_norm and implied_error where
    they are known, inner_gradients, products, outer_gradients (passes of the step) and seconds; now and then
    histograms ``hparams/NAME``. The configuration is what the run was made of.

    A resumed run goes on under the same W&B name, which its checkpoint holds, in a second folder, as W&B does offline;
    steps that stand in the first one are not written again. A failure is a
    :class:`~hypergrad.errors.TrackerWarning`, once, and the run goes on.

    Args:
        folder: where, made if it does not exist.
        project: name of the project.
        name: name of the run; W&B makes one up by default.
        mode: ``"offline"``; ``"online"`` sends everything to W&B's servers as the run goes on.
        every: steps between two histograms, at least 1.
        settings: more settings to write down, by name.

    Raises:
        MissingDependencyError: wandb is not installed, when a run starts.

    Attributes:
        run_id: W&B's name of the run; ``None`` before its first step.

    Example:
        >>> import hypergrad as hg
        >>> from hypergrad.bridges.wandb import WandB
        >>> callbacks = [WandB("runs/first"), hg.Checkpoint("runs/first")]
    """

    package = "wandb"
    extra = "wandb"

    def __init__(
        self,
        folder: str | os.PathLike[str] = ".",
        project: str = "hypergrad",
        name: str | None = None,
        *,
        mode: Literal["offline", "online"] = "offline",
        every: int = 10,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the settings."""
        super().__init__(every)
        self.folder, self.project, self.name = Path(folder), project, name
        self.mode: Literal["offline", "online"] = mode
        check_choice(self, "mode", ("offline", "online"))
        self.settings = dict(settings or {})
        self._run: Any = None
        self._written = 0

    def _before_import(self) -> None:
        if "wandb" not in sys.modules and self.mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

    def _open(self, run: Run) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self.run_id is not None
        self.run_id = self.run_id or secrets.token_hex(4)
        self._written = max(map(last_step, self._files()), default=0) if resumed else 0
        self._run = wandb.init(
            dir=str(self.folder),
            project=self.project,
            name=self.name,
            id=self.run_id,
            mode=self.mode,
            resume="allow" if resumed else None,
            reinit="create_new",  # a run of the user's own stays what it is
            config=settings(run, self.settings),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True
            ),
        )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"wandb/*run-*-{self.run_id}/run-{self.run_id}.wandb"))

    def _log(self, step: int, values: Mapping[str, float], hparams: Tree | None) -> None:
        import wandb

        if step <= self._written:
            return
        found: dict[str, Any] = dict(values)
        for name, tensor in (hparams or {}).items():
            entries = finite(tensor)
            if entries.numel():
                found[f"hparams/{name}"] = wandb.Histogram(entries.tolist())
        self._run.log(found, step=step, commit=True)
        self._written = step

    def _close(self, run: Run, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)
        self._run = None
        if self.mode == "offline" and self._files():
            _wait_for(self._files()[-1])


def _wait_for(path: Path) -> None:
    """Wait until W&B's own process has written the end of a file: ``finish`` comes back before that."""
    deadline = time.monotonic() + LONGEST_WAIT
    while not ended(path) and time.monotonic() < deadline:
        time.sleep(0.05)


def ended(path: Path) -> bool:
    """Return whether a file that W&B wrote holds the end of its run.

    Args:
        path: the file.
    """
    return any(record.WhichOneof("record_type") == "exit" for record in parsed(path))


def parsed(path: Path) -> Iterator[Any]:
    """Return the records of a file that W&B wrote as its own messages.

    Args:
        path: the file, ``run-….wandb``; its end may be missing.
    """
    from wandb.proto import wandb_internal_pb2

    kind: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
    return map(kind.FromString, records(path.read_bytes()))


def last_step(path: Path) -> int:
    """Return the last step in a file that W&B wrote, 0 where there is none.

    Args:
        path: the file, ``run-….wandb``; its end may be missing.
    """
    steps = (record.history.step.num for record in parsed(path) if record.WhichOneof("record_type") == "history")
    return max(steps, default=0)


def records(content: bytes) -> Iterator[bytes]:
    """Return the records of a file that W&B wrote, up to the first that is not whole.

    The form is that of LevelDB's log: blocks of 32 KiB with records of checksum (4 bytes), length (2), kind (1).

    Args:
        content: what the file holds.
    """
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # too little for a record's header: the next one starts in the next block
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind, end = content[place + 6], place + HEADER + length
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or length > left - HEADER or end > len(content):
            return
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + content[place + HEADER : end]
        if kind in (WHOLE, LAST):
            yield parts
        place = end
