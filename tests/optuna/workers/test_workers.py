"""Real processes on one study, and what becomes of the trial of one that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from hypergrad.bridges.optuna import HeartbeatJournal, queue, shared_storage, work
from hypergrad.bridges.optuna.installed import retry_callback
from hypergrad.errors import InputError
from tests.optuna.workers.program import hybrid, open_storage
from tests.postgres import Postgres, postgres

ROOT = Path(__file__).parents[3]
__all__ = ["postgres"]


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.optuna.workers.program", *words]
    return subprocess.Popen(command, cwd=ROOT)


def wait_for(log: Path, word: str, times: int, processes: list[subprocess.Popen[bytes]], seconds: float = 240) -> None:
    """Wait until a word begins so many lines of the log."""
    until = time.monotonic() + seconds
    while not (log.exists() and log.read_text().count(word) >= times):
        assert time.monotonic() < until, log.read_text() if log.exists() else "no worker has begun"
        assert all(process.poll() is None for process in processes), "a worker is gone"
        time.sleep(0.05)


def noted(log: Path, word: str) -> list[int]:
    """Return the numbers of the trials that a word was noted for."""
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(word)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_two_workers_one_of_them_killed_and_no_trial_lost_or_doubled(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, opened: Callable[[str], BaseStorage]
) -> None:
    storage = str(tmp_path / "study.log") if kind == "journal" else request.getfixturevalue("postgres").url
    log = tmp_path / "trials.log"
    study = optuna.create_study(study_name="queue", storage=opened(storage))
    assert queue(study, 40) == 40
    victim, other = workers = [start(storage, "queue", str(log), *words) for words in (["victim"], [])]
    try:
        wait_for(log, "here", 1, workers)
        wait_for(log, "end", 15, workers)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(60) == -signal.SIGKILL
        assert other.wait(240) == 0
    finally:
        for process in workers:
            process.kill()
            process.wait()
    trials = study.get_trials()
    states = Counter(trial.state for trial in trials)
    assert states == {TrialState.COMPLETE: 40, TrialState.FAIL: 1}
    (killed,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    assert [killed.number] == noted(log, "here")
    (again,) = (trial for trial in trials if trial.system_attrs.get("retry_history"))
    assert again.system_attrs["retry_history"] == [killed.number]
    assert (again.params, again.number) == (killed.params, 40)
    complete = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(noted(log, "end")) == complete  # each once, by one worker
    assert sorted(noted(log, "begin")) == list(range(41))
    assert len({line.split()[2] for line in log.read_text().splitlines() if line.startswith("end")}) == 2
    assert noted(log, "total") == [40 - 4]  # the victim ended four before its fifth
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            assert trial.value == pytest.approx(sum((trial.params[f"x{i}"] - i) ** 2 for i in range(5)))
    assert study.best_value < 1e-9


@pytest.mark.slow
def test_a_hybrid_trial_of_a_killed_worker_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    log, storage = tmp_path / "trials.log", str(tmp_path / "study.log")
    study = optuna.create_study(study_name="hybrid", storage=open_storage(storage))
    queue(study, 6)
    victim, other = workers = [start(storage, "hybrid", str(log), *words) for words in (["victim"], [])]
    try:
        wait_for(log, "here", 1, [victim])
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert other.wait(240) == 0
    finally:
        for process in workers:
            process.kill()
            process.wait()
    trials = study.get_trials()
    states = Counter(trial.state for trial in trials)
    assert states == {TrialState.COMPLETE: 6, TrialState.FAIL: 1}
    (killed,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    (again,) = (trial for trial in trials if trial.system_attrs.get("retry_history"))
    assert again.system_attrs["retry_history"] == [killed.number]
    assert again.user_attrs["hypergrad:resumed"] == "from step 2"
    whole = optuna.create_study()
    whole.enqueue_trial(again.params)
    whole.optimize(hybrid(tmp_path / "whole", lambda step: None), n_trials=1)
    assert again.value == whole.best_value


@pytest.mark.slow
def test_the_script_of_the_docs_runs_each_trial_once_in_two_workers(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "optuna.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```py\n(# tune\.py\n.*?)```", page, re.DOTALL)
    (shell,) = re.findall(r"```bash\n(python tune\.py queue\n.*?)```", page, re.DOTALL)
    (tmp_path / "tune.py").write_text(script, encoding="utf-8")
    programs = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euc", shell], cwd=tmp_path, env=os.environ | programs, check=True, timeout=240)
    study = optuna.load_study(study_name="mine", storage=open_storage(str(tmp_path / "study.log")))
    assert Counter(trial.state for trial in study.trials) == {TrialState.COMPLETE: 40}
    assert len({trial.params["x"] for trial in study.trials}) == 40


@pytest.mark.slow
def test_a_database_that_stops_for_a_while_loses_no_trial(
    tmp_path: Path, postgres: Postgres, opened: Callable[[str], BaseStorage]
) -> None:
    log = tmp_path / "trials.log"
    study = optuna.create_study(study_name="gone", storage=opened(postgres.url))
    queue(study, 20)
    worker = start(postgres.url, "gone", str(log))
    try:
        wait_for(log, "end", 5, [worker])
        postgres.stop()
        time.sleep(1.5)
        assert worker.poll() is None
        postgres.start()
        assert worker.wait(240) == 0
    finally:
        worker.kill()
        worker.wait()
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 20
    replaced = [number for trial in trials for number in trial.system_attrs.get("retry_history", [])]
    assert {trial.number for trial in trials} - {trial.number for trial in complete} == set(replaced)


@pytest.fixture
def opened() -> Iterator[Callable[[str], BaseStorage]]:
    """Open storages, and close their connections in the end."""
    storages = []

    def open_it(place: str) -> BaseStorage:
        storages.append(open_storage(place))
        return storages[-1]

    yield open_it
    for storage in storages:
        backend = getattr(storage, "_backend", None)
        if isinstance(backend, RDBStorage):
            backend.engine.dispose()
        elif isinstance(storage, RDBStorage):
            storage.engine.dispose()


@pytest.mark.slow
def test_a_hybrid_trial_waits_for_a_database_that_stops_for_a_while(tmp_path: Path, postgres: Postgres) -> None:
    starting = threading.Timer(1.0, postgres.start)

    def stop(step: int) -> None:
        if step == 2:
            postgres.stop()
            starting.start()

    storage = shared_storage(postgres.url)
    study = optuna.create_study(study_name="waits", storage=storage)
    objective = hybrid(tmp_path / "store", stop)
    objective.retries, objective.wait = 8, 0.3
    study.optimize(objective, n_trials=1)
    starting.join()
    whole = optuna.create_study()
    whole.enqueue_trial(study.best_params)
    whole.optimize(hybrid(tmp_path / "whole", lambda step: None), n_trials=1)
    assert study.best_value == whole.best_value
    assert study.best_trial.intermediate_values == whole.best_trial.intermediate_values
    assert isinstance(storage, RDBStorage)
    storage.engine.dispose()


def journal(tmp_path: Path, **settings: Any) -> HeartbeatJournal:
    return HeartbeatJournal(tmp_path / "study.log", **settings)


def silent(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """Begin a trial as a worker would that was killed at once."""
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    assert trial.state == TrialState.RUNNING
    return trial


def test_a_journal_runs_the_trial_of_a_silent_worker_again(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path, heartbeat_interval=0.05, grace_period=0.1))
    killed = silent(study)
    time.sleep(0.2)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].system_attrs["retry_history"] == [killed.number]


def test_a_journal_leaves_a_worker_alone_that_gives_signs_of_life(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path, heartbeat_interval=0.05, grace_period=2.0))
    other = optuna.load_study(study_name=study.study_name, storage=journal(tmp_path, heartbeat_interval=0.05))

    def objective(trial: optuna.Trial) -> float:
        time.sleep(0.5)
        with pytest.warns(UserWarning, match="Heartbeat of storage"):
            inner = other.ask()
        other.tell(inner, 1.0)
        optuna.storages.fail_stale_trials(other)
        return 0.0

    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.optimize(objective, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE]
    beats = (tmp_path / "study.log").read_text().count("hypergrad:heartbeat")
    assert beats >= 3


def test_an_old_sign_of_life_does_not_make_a_retried_trial_stale(tmp_path: Path) -> None:
    storage = journal(tmp_path, heartbeat_interval=0.05, grace_period=0.2)
    study = optuna.create_study(storage=storage)
    killed = silent(study)
    storage.record_heartbeat(killed._trial_id)
    time.sleep(0.3)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        optuna.storages.fail_stale_trials(study)
    assert study.trials[1].system_attrs["hypergrad:heartbeat"] == study.trials[0].system_attrs["hypergrad:heartbeat"]
    with pytest.warns(UserWarning, match="Heartbeat of storage"):
        study.ask()
    assert storage._get_stale_trial_ids(study._study_id) == []
    storage.record_heartbeat(killed._trial_id)  # of one that was failed meanwhile: no error


@pytest.mark.parametrize("rest", [b'{"op_code":4,"worker_id":"a', b"x" * 200_000])
def test_a_line_that_a_killed_worker_left_unfinished_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "study.log"
    study = optuna.create_study(storage=journal(tmp_path))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with path.open("ab") as file:
        file.write(rest)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    again = optuna.load_study(study_name=study.study_name, storage=journal(tmp_path))
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    assert len(again.trials) == 3
    assert rest not in path.read_bytes()


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.log"
    study = optuna.create_study(storage=journal(tmp_path))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        study.set_user_attr("a", 1)
    assert path.read_bytes() == before
    monkeypatch.undo()
    study.set_user_attr("a", 2)
    assert optuna.load_study(study_name=study.study_name, storage=journal(tmp_path)).user_attrs == {"a": 2}


def test_a_relative_path_locks_the_file_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = HeartbeatJournal("folder/study.log")
    lock = storage._backend._lock  # type: ignore[attr-defined]
    lock.acquire()
    assert (tmp_path / "folder" / "study.log.lock").resolve() == tmp_path / "folder" / "study.log"
    lock.release()


def test_the_queue_counts_what_is_there(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path))
    assert queue(study, 3) == 3
    assert work(study, lambda trial: trial.suggest_float("x", 0, 1)) == 3
    assert queue(study, 3) == 0
    assert queue(study, 5) == 2
    assert len(study.trials) == 5


def test_a_failed_trial_does_not_end_the_work_where_its_error_is_caught(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path))
    queue(study, 3)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise FloatingPointError
        return 1.0

    assert work(study, objective, catch=FloatingPointError) == 3
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    queue(study, 3)
    assert len(study.trials) == 4
    with pytest.raises(FloatingPointError):
        work(study, lambda trial: objective(study.trials[1]))  # type: ignore[arg-type]


def test_a_callback_stops_a_worker(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path))
    queue(study, 5)
    assert work(study, lambda trial: 1.0, callbacks=[lambda study, trial: study.stop()]) == 1
    assert work(study, lambda trial: 1.0) == 4


def test_a_storage_that_goes_away_inside_an_objective_brings_the_trial_back(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path, heartbeat_interval=0.05, grace_period=0.3))
    queue(study, 2)
    troubles = [StorageInternalError("gone")]

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if troubles:
            raise troubles.pop()
        return x

    assert work(study, objective, poll=0.05) == 2
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[2].params == study.trials[0].params


@pytest.mark.parametrize("reports", [False, True])
def test_a_worker_that_was_taken_for_dead_leaves_its_trial_to_the_other(tmp_path: Path, reports: bool) -> None:
    study = optuna.create_study(storage=journal(tmp_path))
    queue(study, 2)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 0:  # what another worker does after the grace period
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            retry_callback()(study, study.trials[0])
            if reports:
                trial.report(1.0, 0)
        return x

    assert work(study, objective, poll=0.01) == 2
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[2].params == study.trials[0].params


def test_a_storage_that_goes_away_while_a_trial_is_ended_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = journal(tmp_path, heartbeat_interval=0.05, grace_period=0.3)
    study = optuna.create_study(storage=storage)
    queue(study, 2)
    get, end, calls = storage.get_trial, storage.set_trial_state_values, Counter[str]()

    def away(trial_id: int, state: TrialState, values: Any = None) -> bool:
        calls["end"] += state == TrialState.COMPLETE
        if calls["end"] == 1 and state == TrialState.COMPLETE:
            monkeypatch.setattr(storage, "get_trial", away_too)
            raise StorageInternalError("gone")
        return end(trial_id, state, values)

    def away_too(trial_id: int) -> Any:
        monkeypatch.setattr(storage, "get_trial", get)
        raise StorageInternalError("gone")

    monkeypatch.setattr(storage, "set_trial_state_values", away)
    assert work(study, lambda trial: trial.suggest_float("x", 0, 1), poll=0.05) == 2
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]

    def mistaken(trial: optuna.Trial) -> float:
        raise UnboundLocalError("a mistake")

    queue(study, 3)
    with pytest.raises(UnboundLocalError, match="a mistake"):
        work(study, mistaken)


def test_a_storage_that_stays_away_ends_the_work_with_its_error(tmp_path: Path) -> None:
    study = optuna.create_study(storage=journal(tmp_path, heartbeat_interval=0.05, grace_period=30))
    queue(study, 50)

    def objective(trial: optuna.Trial) -> float:
        raise StorageInternalError("gone")

    with pytest.raises(StorageInternalError, match="gone"):
        work(study, objective, poll=0.02, patience=0.1)
    assert "FAIL" not in {trial.state.name for trial in study.trials}


def test_a_storage_that_would_lose_the_trial_of_a_killed_worker_is_refused(tmp_path: Path) -> None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        without = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/a.db", heartbeat_interval=60)
    for storage in (None, without):
        study = optuna.create_study(storage=storage)
        queue(study, 1)
        with pytest.raises(InputError, match="Storage without heartbeats that queue a trial again"):
            work(study, lambda trial: 1.0)
        assert study.trials[0].state == TrialState.WAITING


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (HeartbeatJournal, "add a file name"),
        (lambda path: HeartbeatJournal(path / "none" / "study.log"), "mkdir -p"),
        (lambda path: HeartbeatJournal(path / "study.log", heartbeat_interval=0), "heartbeat_interval > 0"),
        (lambda path: HeartbeatJournal(path / "study.log", grace_period=60), "grace_period > 60"),
        (lambda path: shared_storage(path / "a", heartbeat_interval=0), "heartbeat_interval > 0"),
        (lambda path: shared_storage("sqlite://", grace_period=60), "grace_period > 60"),
        (lambda path: shared_storage(path / "a", max_retry=-1), "max_retry >= 0"),
        (lambda path: queue(optuna.create_study(), 0), "trials > 0"),
        (lambda path: work(optuna.create_study(storage=HeartbeatJournal(path / "a")), print, poll=0), "poll > 0"),
        (
            lambda path: work(optuna.create_study(storage=HeartbeatJournal(path / "a")), print, patience=-1),
            "patience >=",
        ),
    ],
)
def test_wrong_settings_are_refused(wrong: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        wrong(tmp_path)
