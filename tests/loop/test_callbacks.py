"""Histories, progress bars, early stopping, and ends that always come."""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.errors import NonFiniteError, StationarityWarning
from hypergrad.tree import Tree
from tests.loop.common import LOOSE, LR, RESUMED, SGD, Recorder, inner, outer, plain, run, same, start, strict


def test_a_history_has_one_whole_json_line_a_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "history.jsonl"
    recorder = Recorder()
    run("adam", 4, hg.History(path, extra=lambda progress: {"decay": progress.moved["decay"].tolist()}), recorder)
    text = path.read_text()
    assert text.endswith("\n")
    lines = [strict(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, progress in zip(lines, recorder.seen, strict=True):
        assert line["outer_loss"] == progress.outer_loss
        assert line["norm"] == progress.norm
        assert line["decay"] == progress.moved["decay"].tolist()
        assert line["cost"]["inner_gradients"] == progress.report.cost.inner_gradients > 0
        assert line["status"] == "converged"
        assert line["inner_gradient_norm"] == progress.report.inner_gradient_norm
        assert line["step_seconds"] > 0
    assert lines == hg.read_history(path)


def test_what_is_not_known_is_null_in_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("unrolled-momentum", 1, hg.History(path))
    line = strict(path.read_text())
    assert line["residual"] is None
    assert line["implied_error"] is None


def test_nan_among_the_extra_values_is_null_in_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 1, hg.History(path, extra=lambda _: {"accuracy": math.nan, "per_class": [1.0, math.inf]}))
    line = strict(path.read_text())
    assert (line["accuracy"], line["per_class"]) == (None, [1.0, None])


def test_a_history_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    sizes: list[bytes] = []

    class Look(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            sizes.append(path.read_bytes())

    run("adam", 3, hg.History(path), Look(), hg.Checkpoint(tmp_path))
    run("adam", 5, hg.History(path), Look(), resume=tmp_path)
    assert len(sizes) == 5
    for earlier, later in itertools.pairwise(sizes):
        assert later.startswith(earlier)
        assert later.endswith(b"\n")
    assert [line["step"] for line in hg.read_history(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", ['{"step": 4, "outer_lo', "{", '{"step": 4, "outer_loss": 1.0}'])
def test_a_torn_last_line_is_ended_and_left_out(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 3, hg.History(path), hg.Checkpoint(tmp_path))
    whole = path.read_text()
    path.write_text(whole + torn)
    run("adam", 5, hg.History(path), resume=tmp_path)
    text = path.read_text()
    assert text.startswith(whole + torn + "\n")
    assert [strict(line)["step"] for line in text.removeprefix(whole + torn + "\n").splitlines()] == [4, 5]
    found = hg.read_history(path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert "norm" in found[3], "the later of two lines for a step counts"


def test_a_history_that_was_torn_is_read_without_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 2, hg.History(path))
    path.write_text(path.read_text() + '{"step": 3, "outer_lo')
    assert [line["step"] for line in hg.read_history(path)] == [1, 2]


def test_steps_done_again_after_a_crash_count_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 2, hg.Checkpoint(tmp_path))
    run("adam", 4, hg.History(path), resume=tmp_path)  # a crash loses steps 3 and 4, which were not saved
    run("adam", 5, hg.History(path), resume=tmp_path)
    assert len(path.read_text().splitlines()) == 5
    assert [line["step"] for line in hg.read_history(path)] == [3, 4, 5]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Four seconds pass at every look."""

    def __init__(self, first: float) -> None:
        self.now = first

    def monotonic(self) -> float:
        self.now += 4.0
        return self.now


def shown(
    stream: io.StringIO, steps: int, monkeypatch: pytest.MonkeyPatch, *callbacks: hg.Callback, style: Any = "auto"
) -> str:
    monkeypatch.setattr(hypergrad.callbacks, "time", Clock(1000.0))
    run("adam", steps, *callbacks, hg.ProgressBar(stream, interval=10.0, style=style))
    return stream.getvalue()


def test_a_progress_bar_in_a_file_writes_a_line_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), 9, monkeypatch).splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert "\r" not in "".join(lines)
    assert steps[-1] == 9
    assert 2 < len(steps) < 6
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(steps[:-1])), "3 steps are 12 seconds"


def test_a_progress_bar_says_where_it_is_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    lines = shown(io.StringIO(), 9, monkeypatch, recorder).splitlines()
    for line in lines:
        step = int(line.split()[1].split("/")[0])
        progress = recorder.seen[step - 1]
        assert line.startswith(f"step {step}/9 ")
        assert f"outer loss {progress.outer_loss:.5g}" in line
        assert f"hypergradient {progress.norm:.3g}" in line
        assert line.endswith(f"  0.25 steps/s  {4 * (9 - step)} s to go")


@pytest.mark.parametrize("missing", [False, True])
def test_a_progress_bar_on_a_terminal_rewrites_its_line_and_ends_it(
    missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    text = shown(Terminal(), 5, monkeypatch, style="auto" if missing else "line")
    assert text.count("\r") == 5
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = text.removesuffix("\n").split("\r")[1:]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert len({len(line) for line in lines}) == 1, "a shorter line must cover the longer one before it"


def test_a_progress_bar_in_a_file_shows_the_last_step_of_a_run_that_stops_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping = hg.EarlyStopping(patience=1, monitor=lambda progress: progress.step)
    lines = shown(io.StringIO(), 9, monkeypatch, stopping).splitlines()
    assert lines[-1].startswith("step 2/9")


def test_a_progress_bar_on_a_terminal_is_drawn_by_tqdm_with_rate_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    text = shown(Terminal(), 5, monkeypatch, recorder)
    last = recorder.seen[-1]
    assert "| 5/5 [" in text
    assert "steps/s" in text
    assert f"outer loss {last.outer_loss:.5g}, hypergradient {last.norm:.3g}" in text
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_the_bar_of_a_resumed_run_starts_where_the_run_does(tmp_path: Path) -> None:
    run("adam", 4, hg.Checkpoint(tmp_path))
    stream = Terminal()
    run("adam", 8, hg.ProgressBar(stream, style="bar"), resume=tmp_path)
    assert "| 4/8 [" in stream.getvalue()
    assert "| 8/8 [" in stream.getvalue()


def test_a_bar_starts_no_thread() -> None:
    before = threading.active_count()
    counts = []

    class Count(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            counts.append(threading.active_count())

    run("adam", 2, Count(), hg.ProgressBar(Terminal(), style="bar"))
    assert set(counts) == {before}


def test_a_bar_without_tqdm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(hg.errors.MissingDependencyError, match=r"hypergrad-engine\[cli\]"):
        run("adam", 2, hg.ProgressBar(io.StringIO(), style="bar"))


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_progress_bar_for_machines_writes_json_lines(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    lines = [json.loads(line) for line in shown(stream(), 9, monkeypatch, recorder, style="json").splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 7, 9], "3 steps are 12 seconds"
    for line in lines:
        progress = recorder.seen[line["step"] - 1]
        assert line == {
            "step": progress.step,
            "steps": 9,
            "outer_loss": progress.outer_loss,
            "norm": progress.norm,
            "rate": 0.25,
            "seconds_left": 4.0 * (9 - progress.step),
        }


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_silent_progress_bar_writes_nothing(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(stream(), 5, monkeypatch, style="none") == ""


def test_a_style_that_is_not_known_is_refused() -> None:
    with pytest.raises(hg.errors.InputError, match="did you mean 'json'"):
        hg.ProgressBar(style="jsno")  # type: ignore[arg-type]


def test_the_time_to_go_counts_the_steps_of_this_sitting_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("adam", 4, hg.Checkpoint(tmp_path))
    monkeypatch.setattr(hypergrad.callbacks, "time", Clock(1000.0))
    stream = io.StringIO()
    run("adam", 8, hg.ProgressBar(stream, interval=1.0), resume=tmp_path)
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()] == [
        "12 s to go",
        "8 s to go",
        "4 s to go",
        "0 s to go",
    ]


def stopped(values: list[float], **settings: Any) -> tuple[hg.Fitted, hg.EarlyStopping, Recorder]:
    stopping = hg.EarlyStopping(monitor=lambda progress: values[progress.step - 1], **settings)
    recorder = Recorder()
    return run("adam", len(values), stopping, recorder), stopping, recorder


def test_early_stopping_returns_the_best_step_and_says_why_it_stopped() -> None:
    fitted, stopping, recorder = stopped([5.0, 2.0, 3.0, 2.5, 4.0, 1.0], patience=3)
    assert fitted.steps == 5
    assert fitted.stopped == "no value below 2 (step 2) for 3 steps"
    assert stopping.best is not None
    assert stopping.best[:2] == (2.0, 2)
    best = recorder.seen[1]
    assert same(fitted.hparams, best.hparams), "the hyperparameters that the value belongs to, before their move"
    assert same(fitted.params, best.params)
    assert fitted.last is recorder.seen[-1]


def test_early_stopping_that_does_not_stop_returns_the_best_step_too() -> None:
    fitted, _, recorder = stopped([5.0, 2.0, 3.0, 4.0], patience=9)
    assert (fitted.steps, fitted.stopped) == (4, "steps")
    assert same(fitted.hparams, recorder.seen[1].hparams)


def test_a_value_has_to_fall_by_min_delta_to_count() -> None:
    fitted, stopping, _ = stopped([5.0, 4.95, 4.92, 4.85, 4.84], patience=2, min_delta=0.1)
    assert stopping.best is not None
    assert (fitted.steps, stopping.best[1]) == (3, 1)


def test_early_stopping_watches_the_outer_loss_by_default() -> None:
    stopping, recorder = hg.EarlyStopping(patience=100), Recorder()
    run("adam", 6, stopping, recorder)
    assert stopping.best is not None
    assert stopping.best[0] == min(progress.outer_loss for progress in recorder.seen)


def test_a_first_value_of_nan_is_no_best_value() -> None:
    fitted, stopping, recorder = stopped([math.nan, 3.0, 2.0, 4.0], patience=4)
    assert stopping.best is not None
    assert stopping.best[:2] == (2.0, 3)
    assert same(fitted.hparams, recorder.seen[2].hparams)


def test_the_best_of_an_earlier_fit_is_forgotten() -> None:
    values = iter([1.0, 2.0, 9.0, 8.0])
    stopping = hg.EarlyStopping(patience=9, monitor=lambda progress: next(values))
    trainer = hg.Trainer(*RESUMED["adam"](), [stopping])
    trainer.fit(*start(), 2)
    trainer.fit(*start(), 2)
    assert stopping.best is not None
    assert stopping.best[:2] == (8.0, 2)


class Boom(hg.Callback):
    """Raise in one of the hooks."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def start(self, run: hg.Run, steps: int) -> None:
        self._go("start")

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self._go("step")

    def end(self, run: hg.Run) -> None:
        self._go("end")

    def _go(self, hook: str) -> None:
        if hook == self.hook:
            raise RuntimeError(f"boom in {hook}")


@pytest.mark.parametrize("hook", ["start", "step", "end"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_callback_that_raises_does_not_take_the_end_from_the_others(place: str, hook: str) -> None:
    recorder = Recorder()
    callbacks = [Boom(hook), recorder] if place == "before" else [recorder, Boom(hook)]
    with pytest.raises(RuntimeError, match=f"boom in {hook}"):
        run("adam", 3, *callbacks)
    began = not (hook == "start" and place == "before")
    assert recorder.ended == int(began)


def test_the_end_comes_once_after_the_last_step_and_after_an_early_stop() -> None:
    recorder = Recorder()
    run("adam", 2, recorder)
    assert recorder.ended == 1
    run("adam", 9, recorder, hg.EarlyStopping(patience=1, monitor=lambda progress: progress.step))
    assert recorder.ended == 2


class Poisoned:
    """A sampler whose batch number ``bad``, counted from 1, is NaN; the others are 1."""

    def __init__(self, bad: int) -> None:
        self.bad, self.drawn = bad, 0

    def draw(self) -> float:
        self.drawn += 1
        return math.nan if self.drawn == self.bad else 1.0

    def full(self) -> float:
        return 1.0

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = state["drawn"]


def weighted(params: Tree, hparams: Tree, batch: float) -> Tensor:
    return batch * outer(params, hparams, None)


def test_nan_in_the_middle_leaves_the_steps_before_it_and_the_run_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    def trainer(bad: int, *callbacks: hg.Callback) -> hg.Trainer:
        problem = hg.Problem(lambda p, h: inner(p, h, None), weighted, outer_data=Poisoned(bad))
        move = hg.outer.Torch(torch.optim.Adam, lr=0.1)
        return hg.Trainer(problem, LOOSE, move, callbacks)

    recorder = Recorder()
    with pytest.raises(NonFiniteError):
        trainer(4, recorder, hg.History(path), hg.Checkpoint(tmp_path, every=2)).fit(*start(), 6)
    assert [progress.step for progress in recorder.seen] == [1, 2, 3]
    assert recorder.ended == 1
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert hg.load_checkpoint(tmp_path)["step_number"] == 3
    found = trainer(0, hg.History(path)).fit(*start(), 6, resume=tmp_path)
    assert same(found.hparams, trainer(0).fit(*start(), 6).hparams)
    assert [line["step"] for line in hg.read_history(path)] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_fails_leaves_the_run_and_its_batches_before_the_step() -> None:
    problem = hg.Problem(lambda p, h: inner(p, h, None), weighted, outer_data=Poisoned(3))
    made = hg.Run(problem, LOOSE, *start(), SGD)
    made.step()
    made.step()
    before = made.state_dict()
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            made.step()
        assert same(made.state_dict(), before)
    assert problem.outer_data is not None
    assert problem.outer_data.state_dict() == {"drawn": 2}


def test_a_failure_within_a_line_search_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    calls = itertools.count(1)

    def fails_late(params: Tree, hparams: Tree) -> Tensor:
        return outer(params, hparams, None) * (math.nan if next(calls) >= 8 else 1.0)

    problem = hg.Problem(lambda p, h: inner(p, h, None), fails_late)
    move = hg.outer.Torch(torch.optim.LBFGS, lr=0.3, max_iter=3, max_eval=3, tolerance_change=0.0)
    recorder = Recorder()
    with pytest.raises(NonFiniteError):  # in the second evaluation of the third step
        hg.Trainer(problem, LOOSE, move, [hg.Checkpoint(tmp_path), recorder], probe=False).fit(*start(), 6)
    assert len(recorder.seen) == 2
    assert hg.load_checkpoint(tmp_path)["step_number"] == 2
    healthy = hg.Problem(lambda p, h: inner(p, h, None), lambda p, h: outer(p, h, None))
    found = hg.Trainer(healthy, LOOSE, move).fit(*start(), 4, resume=tmp_path)
    assert same(found.hparams, hg.Trainer(healthy, LOOSE, move).fit(*start(), 4).hparams)


def test_hyperparameters_that_the_outer_move_threw_to_infinity_are_named_and_not_saved(tmp_path: Path) -> None:
    wild = hg.outer.Torch(torch.optim.SGD, partial(LR.LambdaLR, lr_lambda=lambda step: 1.0 if step < 2 else math.inf))
    recorder = Recorder()
    trainer = hg.Trainer(plain(), LOOSE, wild, [hg.Checkpoint(tmp_path), recorder])
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(*start(), 9)
    assert "hparams 'decay'" in caught.value.passed
    assert "step 3" in caught.value.passed
    assert len(recorder.seen) == 2
    assert all(bool(value.isfinite().all()) for value in hg.load_checkpoint(tmp_path)["hparams"].values())


def test_each_kind_of_warning_is_given_once_in_a_run() -> None:
    with pytest.warns(StationarityWarning) as caught:
        hg.Trainer(plain(), hg.Implicit(inner=hg.GradientDescent(lr=0.01, steps=1)), SGD).fit(*start(), 4)
    assert len(caught) == 1
