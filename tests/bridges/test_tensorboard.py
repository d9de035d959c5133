"""What TensorBoard reads is what the run did."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.bridges.tensorboard import TensorBoard
from tests.bridges.tracked import SCALARS, STEPS, Recorder, cut_and_resumed, expected, fit

pytest.importorskip("tensorboard")


def read(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
        events.Reload()
    return events


def scalar(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def check(events: Any, *recorders: Recorder) -> None:
    assert set(events.Tags()["scalars"]) == SCALARS
    for name in SCALARS - {"seconds"}:
        found, wanted = scalar(events, name), expected(recorders, name)
        assert [step for step, _ in found] == [step for step, _ in wanted] == list(range(1, STEPS + 1))
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)  # float32
    assert all(0 < seconds < 60 for _, seconds in scalar(events, "seconds"))


def test_scalars_and_histograms_are_read_back(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(recorder, TensorBoard(tmp_path, every=4, settings={"comment": "first try"}))
    events = read(tmp_path)
    check(events, recorder)
    for name, tensor in (("x", "x"), ("y", "y")):
        histograms = events.Histograms(f"hparams/{name}")
        assert [event.step for event in histograms] == [1, 4, 8]
        for event in histograms:
            moved = recorder.seen[event.step].moved[tensor]
            value = event.histogram_value
            assert value.num == moved.numel()
            assert (value.min, value.max) == pytest.approx((float(moved.min()), float(moved.max())))
            assert value.sum == pytest.approx(float(moved.sum()))
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "algorithm = Implicit(" in text
    assert "hparams_entries = 5" in text
    assert "comment = first try" in text


def test_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    recorders = cut_and_resumed(TensorBoard(tmp_path / "log"), TensorBoard(tmp_path / "log"), tmp_path)
    check(read(tmp_path / "log"), *recorders)


def test_a_run_that_starts_anew_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    fit(TensorBoard(tmp_path), steps=12)
    recorder = Recorder()
    fit(recorder, TensorBoard(tmp_path))
    check(read(tmp_path), recorder)


def test_entries_that_are_not_finite_are_left_out_of_histograms(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    fit(tracker, steps=1)
    tracker._open(hg.Run(*_one()))
    tracker._log(2, {}, {"some": torch.tensor([1.0, float("nan"), float("inf")]), "none": torch.tensor([float("nan")])})
    tracker._writer.close()
    events = read(tmp_path)
    assert [event.histogram_value.num for event in events.Histograms("hparams/some")] == [1]
    assert "hparams/none" not in events.Tags()["histograms"]


def _one() -> tuple[Any, ...]:
    point = {"w": torch.zeros(1)}, {"x": torch.zeros(1)}
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: params["w"].square().sum(),
    )
    return problem, hg.Implicit(hg.CG()), *point, hg.outer.Torch(torch.optim.SGD, lr=0.1)
