"""Several processes on one study: a queue of trials, each run once, whichever worker is killed."""

from __future__ import annotations

import inspect
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hypergrad.bridges.optuna.installed import retry_callback
from hypergrad.bridges.optuna.journal import HeartbeatJournal
from hypergrad.bridges.optuna.trials import StorageLostError
from hypergrad.errors import InputError
from hypergrad.settings import check_count, check_number

LOG = logging.getLogger(__name__)
QUEUED = (TrialState.WAITING, TrialState.RUNNING)
CALLBACKS = ("heartbeat_stale_trial_callback", "failed_trial_callback")
"""What ``RDBStorage`` calls its callback, now and before Optuna 4.9."""

Callback = Callable[[Study, FrozenTrial], None]


def shared_storage(
    place: str | os.PathLike[str],
    *,
    heartbeat_interval: int = 60,
    grace_period: int | None = None,
    max_retry: int = 3,
) -> BaseStorage:
    """Open a storage that several workers share and that runs the trial of a killed one again.

    Args:
        place: the path of a journal file, or the URL of a database: ``postgresql+psycopg://user@host/base``.
        heartbeat_interval: seconds between two signs of life of a running trial, ≥ 1.
        grace_period: silence after which its worker is taken for dead, in seconds, above ``heartbeat_interval``; by
            default twice that.
        max_retry: how often a trial is run again, ≥ 0.

    Returns:
        A :class:`HeartbeatJournal`, or Optuna's ``RDBStorage``, which sees when a connection is gone.

    Raises:
        InputError: settings out of range, or a folder that does not exist.
        MissingDependencyError: Optuna is not installed.
    """
    for name, value in (("heartbeat_interval", heartbeat_interval), ("grace_period", grace_period)):
        if value is not None:
            check_count("shared_storage", name, value)
    check_count("shared_storage", "max_retry", max_retry, least=0)
    if grace_period is not None:
        check_number("shared_storage", "grace_period", grace_period, above=heartbeat_interval)
    callback = retry_callback(max_retry)
    times: Any = {"heartbeat_interval": heartbeat_interval, "grace_period": grace_period}
    if "://" not in os.fspath(place):
        return HeartbeatJournal(place, heartbeat_stale_trial_callback=callback, **times)
    name = next(name for name in CALLBACKS if name in inspect.signature(RDBStorage).parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are, since Optuna 2.9
        return RDBStorage(os.fspath(place), engine_kwargs={"pool_pre_ping": True}, **times, **{name: callback})


def queue(study: Study, trials: int) -> int:
    """Queue what a study lacks of a number of trials, for :func:`work`; their parameters are proposed when they run.

    Call it from one process, once or again: it counts the trials that are complete, pruned, running or queued.

    Args:
        study: the study.
        trials: how many there shall be, ≥ 1.

    Returns:
        How many were queued.

    Raises:
        InputError: no whole number of at least 1.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> queue(study, 5), queue(study, 8), queue(study, 8)
        (5, 3, 0)
    """
    check_count("queue", "trials", trials)
    there = sum(trial.state != TrialState.FAIL for trial in study.get_trials(deepcopy=False))
    for _ in range(trials - there):
        study.enqueue_trial({})
    return max(0, trials - there)


def work(
    study: Study,
    objective: Callable[[Trial], Any],
    *,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    callbacks: Iterable[Callback] | None = None,
    poll: float = 1.0,
    patience: float = 600.0,
) -> int:
    """Run the queued trials of a study until none is left, beside any number of other workers.

    Every process calls it with the same study. A queued trial goes to one worker. When the queue is empty the worker
    waits for the trials of the others: one whose worker is killed is queued again by the storage's callback after its
    grace period, and run by whoever is left, so that no trial is lost or run to its end twice. A storage that does not
    answer is asked again; the trial that it broke off in is left behind and comes back in the same way.

    Args:
        study: a study whose storage has heartbeats and queues stale trials again: see :func:`shared_storage`.
        objective: as for ``study.optimize``; a :class:`HybridObjective` goes on from its last checkpoint when its trial
            comes back.
        catch: exceptions after which the study goes on, as for ``study.optimize``: such a trial has failed for good.
        callbacks: called after each trial, as for ``study.optimize``; ``study.stop()`` ends this worker.
        poll: seconds between two looks at what the other workers are doing, > 0.
        patience: seconds for which a storage that does not answer is asked again, ≥ 0.

    Returns:
        How many trials this worker ended.

    Raises:
        InputError: a storage that would lose the trial of a killed worker, or numbers out of range.
        StorageInternalError: Optuna's, where the storage stays away, or
        StorageLostError: that of a :class:`HybridObjective`.
    """
    storage = study._storage
    if not (
        isinstance(storage, BaseHeartbeat)
        and is_heartbeat_enabled(storage)
        and storage.get_heartbeat_stale_trial_callback() is not None
    ):
        raise InputError(
            passed=f"work with {type(storage).__name__} without heartbeats that queue a trial again",
            expected="a storage that notices a killed worker, so that its trial is not lost",
            do="open it with hypergrad.bridges.optuna.shared_storage(path or URL)",
        )
    check_number("work", "poll", poll, above=0)
    check_number("work", "patience", patience, least=0)
    return _Worker(study, objective, poll, patience).run(catch, list(callbacks or ()))


@final
class _Worker:
    """One process's share of the queue."""

    def __init__(self, study: Study, objective: Callable[[Trial], Any], poll: float, patience: float) -> None:
        self.study, self.objective, self.poll, self.patience = study, objective, poll, patience
        self.ended = 0
        self.lost = 0.0  # when the storage was first found away, in time.monotonic()

    def run(self, catch: Any, callbacks: list[Callback]) -> int:
        study = self.study
        queued = self._patiently(lambda: _Queue(study.study_name, study._storage, study.sampler, study.pruner))
        while True:
            try:
                queued.optimize(self._objective, catch=catch, callbacks=[self._count, *callbacks])
            except _EmptyError:
                if not self._patiently(self._anything_left):
                    return self.ended
            except (_AwayError, StorageInternalError) as error:
                self._wait(error)
            except UnboundLocalError as error:  # Optuna 5.0.0's, when the storage goes away while a trial is ended
                self._wait(_storage_error(error))
            except _TakenError:
                LOG.warning("a trial was taken over: this worker gave no sign of life for too long; its value is left")
            else:
                return self.ended  # a callback stopped the study
            time.sleep(self.poll)

    def _objective(self, trial: Trial) -> Any:
        try:
            value = self.objective(trial)
            state = self.study._storage.get_trial(trial._trial_id).state
        except (StorageInternalError, StorageLostError) as error:
            raise _AwayError from error
        except UpdateFinishedTrialError as error:
            raise _TakenError from error
        if state.is_finished():
            raise _TakenError
        return value

    def _count(self, study: Study, trial: FrozenTrial) -> None:
        self.ended += 1
        self.lost = 0.0

    def _anything_left(self) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self.study)
        left = bool(self.study.get_trials(deepcopy=False, states=QUEUED))
        self.lost = 0.0
        return left

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns, and repeat it while the storage is away."""
        while True:
            try:
                return call()
            except StorageInternalError as error:
                self._wait(error)

    def _wait(self, error: BaseException) -> None:
        """Sleep, or raise where the storage has been away for too long."""
        now = time.monotonic()
        self.lost = self.lost or now
        cause = error.__cause__ if isinstance(error, _AwayError) else error
        if now - self.lost > self.patience:
            assert cause is not None
            raise cause
        LOG.warning("the storage does not answer, asked again in %g s: %s", self.poll, cause)
        time.sleep(self.poll)


def _storage_error(error: BaseException) -> StorageInternalError:
    """Return the storage's error in whose wake another was raised, or raise that other one."""
    before = error.__context__
    while before is not None and not isinstance(before, StorageInternalError):
        before = before.__context__
    if before is None:
        raise error
    return before


@final
class _Queue(Study):
    """A study that runs queued trials only."""

    def _pop_waiting_trial_id(self) -> int:
        found = super()._pop_waiting_trial_id()
        if found is None:
            raise _EmptyError
        return found


class _EmptyError(Exception):
    """No trial is queued."""


class _TakenError(BaseException):
    """Another worker failed the trial, and it runs again elsewhere. No Exception, since it cannot be ended again."""


class _AwayError(BaseException):
    """The storage went away inside an objective. No Exception: Optuna would end the trial, which shall come back."""
