"""What MLflow's own client reads from the store is what the run did."""

from __future__ import annotations

import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.bridges.mlflow import MLflow
from hypergrad.errors import TrackerWarning
from tests.bridges.tracked import SCALARS, STEPS, Crash, Recorder, cut_and_resumed, expected, fit

pytest.importorskip("mlflow")


def client(store: Path) -> Any:
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MlflowClient(tracking_uri=f"sqlite:///{store}")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all tables and no run; making these takes seconds."""
    store = tmp_path_factory.mktemp("mlflow") / "empty.db"
    client(store).search_experiments()
    return store


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "runs.db"))


def runs(store: Path, experiment: str = "hypergrad") -> list[Any]:
    reader = client(store)
    return list(reader.search_runs([reader.get_experiment_by_name(experiment).experiment_id]))


def metric(store: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    history = client(store).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def check(store: Path, run_id: str, *recorders: Recorder) -> None:
    names = set(client(store).get_run(run_id).data.metrics)
    assert {name for name in names if "/" not in name} == SCALARS
    for name in SCALARS - {"seconds"}:
        assert metric(store, run_id, name) == expected(recorders, name)
    assert [step for step, _ in metric(store, run_id, "outer_loss")] == list(range(1, STEPS + 1))


def test_params_metrics_and_artifacts_are_read_back(tmp_path: Path) -> None:
    store, recorder, history = tmp_path / "new" / "runs.db", Recorder(), tmp_path / "history.jsonl"
    tracker = MLflow(
        store, "mine", "first", every=4, settings={"comment": "x" * 900}, artifacts=[history, tmp_path / "missing"]
    )
    fitted = fit(recorder, hg.History(history), tracker)
    (run,) = runs(store, "mine")
    assert run.info.run_id == tracker.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    params = run.data.params
    assert params["algorithm"].startswith("Implicit(")
    assert params["outer"].startswith("Torch(")
    assert (params["hparams_entries"], params["params_entries"], params["seed"]) == ("5", "4", "0")
    assert params["comment"] == "x" * 500
    check(store, run.info.run_id, recorder)
    for what, number in (("min", "amin"), ("mean", "mean"), ("max", "amax")):
        found = metric(store, run.info.run_id, f"hparams/x/{what}")
        wanted = {step: float(getattr(recorder.seen[step].moved["x"], number)()) for step in (1, 4, 8)}
        assert dict(found) == pytest.approx(wanted)
    kept = {artifact.path for artifact in client(store).list_artifacts(run.info.run_id)}
    assert kept == {"hparams.npz", "history.jsonl"}
    folder = tmp_path / "new" / "runs-artifacts" / run.info.run_id / "artifacts"
    with np.load(folder / "hparams.npz", allow_pickle=False) as arrays:
        for name, value in fitted.hparams.items():
            assert np.array_equal(arrays[name], value.numpy())
    assert (folder / "history.jsonl").read_text() == history.read_text()


def test_a_resumed_run_is_the_same_run_without_a_step_twice(store: Path, tmp_path: Path) -> None:
    first, second = MLflow(store), MLflow(store)
    recorders = cut_and_resumed(first, second, tmp_path)
    assert first.run_id == second.run_id
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    check(store, run.info.run_id, *recorders)


def test_runs_of_one_store_stay_apart(store: Path) -> None:
    tracker = MLflow(store)
    fit(tracker, steps=2)
    first = tracker.run_id
    fit(tracker, steps=3)
    assert tracker.run_id != first
    assert [len(metric(store, run.info.run_id, "norm")) for run in runs(store)] == [3, 2]


def test_how_a_run_ended_is_its_status(store: Path) -> None:
    class ControlC(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(OSError, match="power"):
        fit(MLflow(store), Crash(2))
    with pytest.raises(KeyboardInterrupt):
        fit(MLflow(store), ControlC())
    assert [run.info.status for run in runs(store)] == ["KILLED", "FAILED"]


def test_a_store_that_lost_the_run_does_not_end_the_resumed_one(empty: Path, store: Path, tmp_path: Path) -> None:
    fit(MLflow(store), hg.Checkpoint(tmp_path), steps=2)
    other = shutil.copy(empty, tmp_path / "other.db")
    with pytest.warns(TrackerWarning, match="MLflow failed"):
        fitted = fit(MLflow(other), hg.Checkpoint(tmp_path), resume=tmp_path)
    assert fitted.steps == STEPS
