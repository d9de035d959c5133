"""No tracker can end a run, and none is needed."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.bridges.mlflow import MLflow
from hypergrad.bridges.tensorboard import TensorBoard
from hypergrad.bridges.tracking import PATIENCE, Tracker, scalars
from hypergrad.bridges.wandb import WandB
from hypergrad.errors import InputError, MissingDependencyError, TrackerWarning
from tests.bridges.tracked import STEPS, Recorder, fit

MAKE: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": lambda folder: MLflow(folder / "runs.db"),
    "wandb": WandB,
}


class Broken(Tracker):
    """Fails where it is told to."""

    package = "json"

    def __init__(self, opens: bool, bad: set[int], closes: bool = True) -> None:
        super().__init__(1)
        self.opens, self.bad, self.closes = opens, bad, closes
        self.tried: list[int] = []
        self.kept: list[int] = []

    def _open(self, run: hg.Run) -> None:
        self.tried.append(0)
        if not self.opens:
            raise ConnectionError("the server is away")

    def _log(self, step: int, values: Mapping[str, float], hparams: Any) -> None:
        self.tried.append(step)
        if step in self.bad:
            raise OSError("disk full")
        self.kept.append(step)

    def _close(self, run: hg.Run, error: BaseException | None) -> None:
        if not self.closes:
            raise OSError("disk full")


def warned(tracker: Tracker) -> list[str]:
    plain = fit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = fit(tracker)
    assert fitted.steps == STEPS
    for name, value in plain.hparams.items():
        assert torch.equal(fitted.hparams[name], value)
    assert all(one.category is TrackerWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_tracker_that_fails_now_and_then_warns_once_and_misses_these_steps_only() -> None:
    tracker = Broken(opens=True, bad={2, 3, 6})
    texts = warned(tracker)
    assert len(texts) == 1
    assert "Broken failed and the run goes on without it: OSError: disk full" in texts[0]
    assert tracker.kept == [1, 4, 5, 7, 8, 9]


def test_a_tracker_that_always_fails_is_left_alone() -> None:
    tracker = Broken(opens=True, bad=set(range(3, 99)))
    assert len(warned(tracker)) == 1
    assert tracker.tried[1:] == list(range(1, 3 + PATIENCE))


def test_a_tracker_that_cannot_open_is_left_alone() -> None:
    tracker = Broken(opens=False, bad=set())
    assert len(warned(tracker)) == 1
    assert tracker.tried == [0] * PATIENCE


def test_a_tracker_that_cannot_close_warns() -> None:
    assert len(warned(Broken(opens=True, bad=set(), closes=False))) == 1


@pytest.mark.parametrize("name", MAKE)
def test_a_folder_that_cannot_be_written_does_not_end_the_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    (tmp_path / "file").write_text("no folder")
    assert len(warned(MAKE[name](tmp_path / "file" / "below"))) == 1


@pytest.mark.parametrize("name", MAKE)
def test_without_the_package_the_way_to_install_it_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "hypergrad-engine\[{name}\]"'):
        fit(MAKE[name](tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [TensorBoard, MLflow, WandB])
@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_steps_between_two_looks_are_a_whole_number(kind: Any, every: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every="):
        kind(tmp_path, every=every)


def test_a_mode_of_wandb_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'offline'"):
        WandB(mode="offlin")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [MLflow, WandB])
def test_a_checkpoint_of_another_tracker_is_refused(kind: Any, tmp_path: Path) -> None:
    run: Any = None
    with pytest.raises(InputError, match="run_id"):
        kind(tmp_path).load_state_dict({"run_id": 3}, run)


def test_numbers_that_are_not_known_are_left_out_and_a_loss_is_not() -> None:
    recorder = Recorder()
    fit(recorder, steps=1)
    progress: Any = recorder.seen[1]
    known = scalars(progress)
    assert known["products"] == progress.cost.products > 0
    object.__setattr__(progress.report, "residual", math.nan)
    object.__setattr__(progress, "outer_loss", math.nan)
    assert "residual" not in scalars(progress)
    assert math.isnan(scalars(progress)["outer_loss"])
