"""A trial that was interrupted, killed or cut off from its storage goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import hypergrad as hg
from hypergrad.bridges.optuna import StorageLostError, Tuning, load_best, retry
from hypergrad.bridges.optuna.stored import is_gone, worker
from hypergrad.errors import InputError
from tests.optuna.hybrid.common import Interrupting, attrs, fixed, journal, objective, run, study, tuned, with_callbacks

STEPS = 6


@pytest.fixture
def whole(tmp_path: Path) -> tuple[optuna.trial.FrozenTrial, dict[str, torch.Tensor]]:
    found = run(study(), function=with_callbacks(Interrupting(-1)), steps=STEPS, store=tmp_path / "whole")
    return found.trials[0], load_best(found, tmp_path / "whole").hparams


def same(found: optuna.Study, store: Path, whole: Any) -> None:
    trial, hparams = whole
    assert found.best_value == trial.value
    assert torch.equal(load_best(found, store).hparams["decay"], hparams["decay"])
    assert found.best_trial.intermediate_values == trial.intermediate_values
    assert attrs(found.best_trial)["passes"] == attrs(trial)["passes"]


def storage_of(kind: str, folder: Path) -> Any:
    if kind == "journal":
        return journal(folder / "journal.log")
    return f"sqlite:///{folder}/study.db" if kind == "sqlite" else None


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_ctrl_c_and_again(kind: str, tmp_path: Path, whole: Any) -> None:
    found, store = study(storage=storage_of(kind, tmp_path)), tmp_path / "store"
    function = with_callbacks(Interrupting(3))
    with pytest.raises(KeyboardInterrupt):
        run(found, trials=5, function=function, steps=STEPS, store=store)
    assert [trial.state.name for trial in found.trials] == ["FAIL"]
    assert attrs(found.trials[0])["stopped"] == "interrupted"
    assert attrs(found.trials[0])["checkpoint"]["step"] == 3
    assert retry(found) == [0]
    assert retry(found) == [], "once is enough"
    run(found, function=function, steps=STEPS, store=store)
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE"]
    assert attrs(found.trials[1])["resumed"] == "from step 3"
    same(found, store, whole)
    history = found.trials[1].system_attrs
    assert (history["failed_trial"], history["retry_history"]) == (0, [0])


def test_a_trial_is_retried_twice(tmp_path: Path, whole: Any) -> None:
    found, stops = study(), [Interrupting(2), Interrupting(4)]
    function = with_callbacks(*stops)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run(found, function=function, steps=STEPS, store=tmp_path)
        retry(found)
    run(found, function=function, steps=STEPS, store=tmp_path)
    assert found.trials[2].system_attrs["retry_history"] == [0, 1]
    same(found, tmp_path, whole)


def test_a_trial_without_a_checkpoint_begins_again_with_its_random_numbers() -> None:
    def random(trial: Any) -> Tuning:
        found = tuned(trial, callbacks=[stop])
        moved = {name: value + torch.randn(3, dtype=torch.float64) for name, value in found.start.items()}
        return dataclasses.replace(found, hparams=moved)

    stop = Interrupting(-1)
    whole = run(study(), function=random, steps=STEPS).trials[0]
    found, stop = study(), Interrupting(2)
    with pytest.raises(KeyboardInterrupt):
        run(found, function=random, steps=STEPS)
    assert retry(found) == [], "nothing to go on from, so it is asked for by its number"
    retry(found, 0)
    run(found, function=random, steps=STEPS)
    assert found.best_trial.number == 1
    assert found.best_trial.intermediate_values == whole.intermediate_values


def test_a_trial_may_go_on_for_more_steps(tmp_path: Path) -> None:
    found, function = study(), with_callbacks(Interrupting(2))
    longer = run(study(), function=with_callbacks(Interrupting(-1)), steps=9, store=tmp_path / "longer")
    with pytest.raises(KeyboardInterrupt):
        run(found, function=function, steps=4, store=tmp_path)
    retry(found)
    run(found, function=function, steps=9, store=tmp_path)
    assert found.best_value == longer.best_value


def test_a_torn_checkpoint_is_no_start(tmp_path: Path, whole: Any) -> None:
    found, function = study(), with_callbacks(Interrupting(3))
    with pytest.raises(KeyboardInterrupt):
        run(found, function=function, steps=STEPS, store=tmp_path)
    path = tmp_path / attrs(found.trials[0])["checkpoint"]["artifact"]
    path.write_bytes(path.read_bytes()[:-1])
    retry(found)
    run(found, function=function, steps=STEPS, store=tmp_path)
    assert "torn, or changed" in attrs(found.trials[1])["start"]
    assert attrs(found.trials[1])["start"].endswith("fresh: no trial is finished yet")
    same(found, tmp_path, whole)


def test_there_is_always_a_whole_checkpoint(tmp_path: Path) -> None:
    trial = run(study(), function=fixed, steps=5, store=tmp_path, checkpoint_every=1).trials[0]
    files = [path for path in tmp_path.iterdir() if path.name != attrs(trial)["tensors"]["artifact"]]
    assert len(files) == 2, "the last one and the one before it"
    steps = sorted(torch.load(path, weights_only=True)["step_number"] for path in files)
    assert steps == [4, 5]


def test_a_checkpoint_of_other_code_is_refused(tmp_path: Path) -> None:
    found = study()
    with pytest.raises(KeyboardInterrupt):
        run(found, function=with_callbacks(Interrupting(3)), steps=STEPS, store=tmp_path)
    retry(found)
    with pytest.raises(InputError, match="saved run"):
        run(found, function=fixed, steps=STEPS, store=tmp_path, outer=hg.outer.LBFGSB())


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_finished_or_waiting_is_not_retried(number: int, tmp_path: Path) -> None:
    found = run(study(), store=tmp_path)
    found.enqueue_trial({"degree": 1})
    assert retry(found) == []
    with pytest.raises(InputError, match=r"complete|waiting"):
        retry(found, number)
    with pytest.raises(InputError, match="without a number"):
        retry(found, checkpoint=tmp_path)


# Killed processes

WORKER = """
import os, signal, sys, warnings
from pathlib import Path
import optuna
import hypergrad as hg
from tests.optuna.hybrid.common import Interrupting, journal, run, study, with_callbacks

class Killing(Interrupting):
    def act(self):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
if sys.argv[2] == "journal":
    storage = journal(folder / "journal.log")
else:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db", heartbeat_interval=1, grace_period=2)
found = study(storage=storage, study_name="killed", load_if_exists=True)
run(found, function=with_callbacks(Killing(4)), steps=6, store=folder / "store", checkpoint_every=1)
"""


def kill(folder: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_worker_on_a_journal_loses_nothing(tmp_path: Path, whole: Any) -> None:
    kill(tmp_path, "journal")
    found = study(storage=journal(tmp_path / "journal.log"), study_name="killed", load_if_exists=True)
    assert [trial.state.name for trial in found.trials] == ["RUNNING"]
    assert is_gone(found.trials[0].user_attrs)
    assert retry(found) == [0]
    run(found, function=with_callbacks(Interrupting(-1)), steps=STEPS, store=tmp_path / "store")
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE"]
    assert attrs(found.trials[1])["resumed"] == "from step 3"
    same(found, tmp_path / "store", whole)


@pytest.mark.slow
@pytest.mark.parametrize("inherit", [False, True])
def test_a_killed_worker_is_retried_by_its_heartbeat(inherit: bool, tmp_path: Path, whole: Any) -> None:
    kill(tmp_path, "sqlite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        retrying = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=inherit)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{tmp_path}/study.db",
            heartbeat_interval=1,
            grace_period=2,
            heartbeat_stale_trial_callback=retrying,
        )
    found = study(storage=storage, study_name="killed", load_if_exists=True)
    until = time.monotonic() + 60
    while not storage._get_stale_trial_ids(found._study_id):
        assert time.monotonic() < until
        time.sleep(0.2)
    run(found, function=with_callbacks(Interrupting(-1)), steps=STEPS, store=tmp_path / "store")
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE"]
    same(found, tmp_path / "store", whole)


def test_who_is_gone_is_known_on_this_machine_only() -> None:
    assert not is_gone({"hypergrad:worker": worker()}), "this process"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = {**worker(), "pid": process.pid}
    assert is_gone({"hypergrad:worker": gone})
    assert not is_gone({"hypergrad:worker": {**gone, "host": "elsewhere"}})
    assert not is_gone({"hypergrad:worker": {**gone, "pid": -1}})
    assert not is_gone({})


# A storage that goes away


class Away:
    """Makes calls of a method fail, some times or from a call on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, first: int, times: int) -> None:
        self.calls, self.first, self.times = 0, first, times
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.first <= self.calls < self.first + self.times:
                raise optuna.exceptions.StorageInternalError("the connection was closed")
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


def test_a_storage_that_comes_back_is_waited_for(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    found = study()
    Away(monkeypatch, found._storage, "set_trial_intermediate_value", 2, 3)
    run(found, function=with_callbacks(Interrupting(-1)), steps=STEPS, store=tmp_path, wait=0.5)
    assert slept == [0.5, 1.0, 2.0]
    same(found, tmp_path, whole)


def test_a_storage_may_be_away_while_a_trial_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study()
    Away(monkeypatch, found._storage, "set_trial_param", 1, 2)
    run(found, function=fixed)
    assert found.best_trial.params.keys() == {"unused"}


@pytest.mark.parametrize(
    ("method", "first"), [("set_trial_intermediate_value", 4), ("set_trial_user_attr", 8), ("get_all_trials", 5)]
)
def test_a_lost_storage_leaves_a_checkpoint_and_says_where(
    method: str, first: int, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    found, store, rescue = study(), tmp_path / "store", tmp_path / "rescue"
    if method == "get_all_trials":
        found.pruner = optuna.pruners.MedianPruner(n_startup_trials=0)
    away = Away(monkeypatch, found._storage, method, first, 3)
    function = with_callbacks(Interrupting(-1))
    with pytest.raises(StorageLostError, match=r"failed 3 times .*the connection was closed") as caught:
        run(found, function=function, steps=STEPS, store=store, retries=2, rescue=rescue)
    assert away.calls >= first + 2
    folder = caught.value.checkpoint
    assert folder is not None
    assert Path(folder).parent == rescue
    assert folder in str(caught.value)
    assert folder in caplog.text, "Optuna may raise something else when it asks the same storage"
    assert hg.load_checkpoint(folder)["step_number"] >= 1
    found.pruner = optuna.pruners.NopPruner()
    assert retry(found, 0, checkpoint=folder) == [0]
    run(found, function=function, steps=STEPS, store=store)
    assert attrs(found.best_trial)["resumed"] == f"from {folder}"
    same(found, store, whole)


def test_a_full_disk_is_no_end(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(optuna.artifacts.FileSystemArtifactStore):
        full = True

        def write(self, artifact_id: str, content_body: Any) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(artifact_id, content_body)

    store, found = Full(tmp_path), study()
    function = with_callbacks(Interrupting(-1))
    with pytest.raises(StorageLostError, match="No space left on device") as caught:
        run(found, function=function, steps=STEPS, store=store, checkpoint_every=3, retries=1)
    assert caught.value.checkpoint is not None
    assert hg.load_checkpoint(caught.value.checkpoint)["step_number"] == 3
    store.full = False
    retry(found, 0, checkpoint=caught.value.checkpoint)
    run(found, function=function, steps=STEPS, store=store)
    same(found, tmp_path, whole)


def test_a_storage_that_is_lost_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study()
    Away(monkeypatch, found._storage, "set_trial_user_attr", 1, 2)
    with pytest.raises(StorageLostError, match="nothing was saved on this machine") as caught:
        run(found, function=fixed, retries=1)
    assert caught.value.checkpoint is None
    retry(found, 0)
    assert run(found, function=fixed).best_trial.number == 1


def test_a_trial_that_was_ended_elsewhere_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study()

    class Ending(Interrupting):
        def act(self) -> None:
            found.tell(0, state=optuna.trial.TrialState.FAIL)

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        objective(with_callbacks(Ending(2)), steps=STEPS)(found.ask())


def test_an_error_of_ones_own_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study()

    def wrong(*args: Any, **kwargs: Any) -> None:
        raise TypeError("wrong")

    monkeypatch.setattr(found._storage, "set_trial_intermediate_value", wrong)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(TypeError, match="wrong"):
        found.optimize(objective(fixed, store=tmp_path), n_trials=1)


def test_the_temporary_folder_is_used_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = study()
    Away(monkeypatch, found._storage, "set_trial_intermediate_value", 1, 1)
    with pytest.raises(StorageLostError) as caught:
        run(found, function=fixed, retries=0)
    assert caught.value.checkpoint is not None
    assert Path(caught.value.checkpoint).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [Path(caught.value.checkpoint).name]
    assert [path.name for path in Path(caught.value.checkpoint).iterdir()] == ["checkpoint.pt"]
