"""A journal file that several workers share and any of them may be killed at."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, final

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hypergrad.bridges.optuna.installed import retry_callback
from hypergrad.errors import InputError
from hypergrad.settings import check_number, check_numbers

HEARTBEAT = "hypergrad:heartbeat"
"""The system attribute of a running trial: when its worker was last seen, in seconds since 1970."""

LOG = logging.getLogger(__name__)
BLOCK = 65536

Callback = Callable[[Study, FrozenTrial], None]


@final
class HeartbeatJournal(JournalStorage, BaseHeartbeat):
    """Optuna's journal file with heartbeats: a trial whose worker was killed is run again by another one.

    Optuna gives heartbeats to databases only. Here each running trial notes every ``heartbeat_interval`` that its
    worker is alive; ``study.optimize`` and :func:`work` fail the trials that have been silent for ``grace_period``, and
    ``heartbeat_stale_trial_callback`` queues them again with the same parameters. A line that a killed worker left
    unfinished is taken away before the next one is written; without that no worker could read the file any more.

    The file may lie on a network drive that all workers see. Their clocks must agree to within the grace period.

    Args:
        path: of the journal, made where it is missing; the same file for every worker.
        heartbeat_interval: seconds between two signs of life, > 0.
        grace_period: silence after which a worker is taken for dead, in seconds, above ``heartbeat_interval``; by
            default twice that.
        heartbeat_stale_trial_callback: ``(study, trial)``, called with each trial that was failed; by default Optuna's
            ``RetryHeartbeatStaleTrialCallback(max_retry=3)``, which queues it again.

    Cost: a line of about 120 bytes for each sign of life.

    Raises:
        InputError: settings out of range, or a path that is a folder or lies in none.
        MissingDependencyError: Optuna is not installed.

    Example:
        >>> import optuna, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = optuna.create_study(storage=HeartbeatJournal(f"{folder}/study.log"))
        ...     study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        ...     print(len(study.trials))
        3
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        heartbeat_interval: float = 60,
        grace_period: float | None = None,
        heartbeat_stale_trial_callback: Callback | None = None,
    ) -> None:
        self.path = Path(path).absolute()  # the lock is a link to it, which a relative path would make a broken one
        self.heartbeat_interval, self.grace_period = heartbeat_interval, grace_period
        self.heartbeat_stale_trial_callback = heartbeat_stale_trial_callback or retry_callback()
        check_numbers(self, "heartbeat_interval", above=0)
        if grace_period is not None:
            check_number("HeartbeatJournal", "grace_period", grace_period, above=heartbeat_interval)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise InputError(
                passed=f"HeartbeatJournal({str(path)!r})",
                expected="a file in a folder that exists",
                do=f"create the folder: mkdir -p {self.path.parent}" if not self.path.is_dir() else "add a file name",
            )
        super().__init__(_WholeLines(str(self.path), JournalFileSymlinkLock(str(self.path))))

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that the worker of a trial is alive."""
        try:
            self.set_trial_system_attr(trial_id, HEARTBEAT, time.time())
        except UpdateFinishedTrialError:
            pass  # another worker took this one for dead
        except OSError as error:
            LOG.warning("no sign of life was written for trial id %d: %s", trial_id, error)

    def get_heartbeat_interval(self) -> Any:
        """Return the seconds between two signs of life."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> Callback | None:
        """Return what is called with a trial whose worker has died."""
        return self.heartbeat_stale_trial_callback

    def get_failed_trial_callback(self) -> Callback | None:
        """Return the same, under its name in Optuna 4."""
        return self.heartbeat_stale_trial_callback

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        grace = 2 * self.heartbeat_interval if self.grace_period is None else self.grace_period
        oldest = time.time() - grace
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if _seen(trial) < oldest]


@final
class _WholeLines(JournalFileBackend):
    """A journal file whose last line is whole before another is added."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines, all of them or none."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with Path(self._file_path).open("rb+") as file:
                end = _cut_unfinished(file)
                try:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:  # a full disk
                    os.ftruncate(file.fileno(), end)
                    raise
        finally:
            self._lock.release()


def _cut_unfinished(file: BinaryIO) -> int:
    """Cut off what follows the last end of a line; return the size, where the file then stands."""
    end = size = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        LOG.warning("%s: cut off %d bytes of a line that a killed worker left unfinished", file.name, size - end)
        file.truncate(end)
    return file.seek(end)


def _seen(trial: FrozenTrial) -> float:
    """Return when a running trial last gave a sign of life, which its start is too."""
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return max(begun, float(trial.system_attrs.get(HEARTBEAT, 0.0)))
