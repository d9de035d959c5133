"""Ctrl-C loses nothing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.tree import Tree
from tests.loop.common import LOOSE, Recorder, X, Y, inner, outer, run, same, start, strict


class Interrupting:
    """The inner objective, which sends the process SIGINT at one of its calls."""

    def __init__(self, call: int, times: int = 1) -> None:
        self.calls, self.call, self.times = 0, call, times

    def __call__(self, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return inner(params, hparams, batch)


CALLS = 7  # of the inner objective in one outer step


def interrupted(objective: Any, directory: Path, *callbacks: hg.Callback, resume: Path | None = None) -> hg.Fitted:
    problem = hg.Problem(objective, outer, inner_data=hg.TensorSampler(X, Y, batch_size=4))
    saving = hg.Checkpoint(directory, every=100)
    return hg.Trainer(problem, LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1), [saving, *callbacks]).fit(
        *start(), 6, resume=resume
    )


@pytest.mark.parametrize(("times", "made"), [(1, 3), (2, 2)], ids=["once", "twice"])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_run_goes_on(times: int, made: int, tmp_path: Path) -> None:
    expected = interrupted(inner, tmp_path / "whole")
    objective, recorder, before = Interrupting(2 * CALLS + 4, times), Recorder(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(objective, tmp_path, recorder, hg.History(tmp_path / "history.jsonl"))
    assert [progress.step for progress in recorder.seen] == list(range(1, made + 1)), "one ends after the step"
    assert recorder.ended == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert hg.load_checkpoint(tmp_path)["step_number"] == made
    assert [line["step"] for line in hg.read_history(tmp_path / "history.jsonl")] == list(range(1, made + 1))
    found = interrupted(inner, tmp_path, resume=tmp_path)
    assert same(found.hparams, expected.hparams)
    assert same(found.params, expected.params)


def test_ctrl_c_says_that_a_second_one_ends_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(Interrupting(3), tmp_path)
    assert "stopping after this step; press Ctrl-C again to stop at once" in capfd.readouterr().err


def test_a_fit_gives_ctrl_c_back_to_whoever_had_it() -> None:
    def mine(_number: int, _frame: Any) -> None:
        raise AssertionError("not mine while it runs")

    previous = signal.signal(signal.SIGINT, mine)
    try:
        run("adam", 2)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_fit_runs_in_a_thread_which_cannot_have_ctrl_c() -> None:
    found: list[hg.Fitted] = []
    thread = threading.Thread(target=lambda: found.append(run("adam", 2)))
    thread.start()
    thread.join(timeout=60)
    assert same(found[0].hparams, run("adam", 2).hparams)


SCRIPT = '''
"""A run that is slow enough to be interrupted."""
import os
import sys
import time

import torch

import hypergrad as hg

torch.set_num_threads(1)
HANG = float(os.environ.get("HANG", "0"))
generator = torch.Generator().manual_seed(0)
x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
made = 0


def inner(params, hparams, batch):
    time.sleep(0.01)
    if HANG and made == 3:
        print("hanging", flush=True)
        time.sleep(HANG)
    (rows,) = batch
    kept = torch.nn.functional.dropout(rows, 0.2)
    return (kept @ params["w"] - 1).square().mean() + hparams["decay"].exp() * params["w"].square().sum()


def outer(params, hparams):
    return (x @ params["w"] - 0.5).square().mean()


class Say(hg.Callback):
    def step(self, run, progress):
        global made
        made = progress.step
        print(progress.step, flush=True)


def trainer(folder, *callbacks):
    return hg.Trainer(
        hg.Problem(inner, outer, inner_data=hg.TensorSampler(x, batch_size=3)),
        hg.Unrolled(5, hg.GradientDescent(lr=0.1, momentum=0.5), warm_start=True),
        hg.outer.Torch(torch.optim.Adam, lr=0.1),
        [hg.History(f"{folder}/history.jsonl"), hg.Checkpoint(folder), *callbacks],
    )


def start():
    return {"w": torch.zeros(3, dtype=torch.float64)}, {"decay": torch.tensor(-1.0, dtype=torch.float64)}


if __name__ == "__main__":
    trainer(sys.argv[1], Say()).fit(*start(), 10_000)
'''


class Child:
    """The script above in a process of its own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.path = directory / "slow_run.py"
        self.path.write_text(SCRIPT)
        self.folder = directory / "out"
        self.process = subprocess.Popen(
            [sys.executable, str(self.path), str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        )

    def wait_for(self, said: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == said:
                return
        raise AssertionError(f"it ended without saying {said!r}: {self.finish()}")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def module(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("slow_run", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def check_whole(self, directory: Path) -> int:
        """Check what the process left, that it can be resumed to the same result, and return the step it was at."""
        step: int = hg.load_checkpoint(self.folder)["step_number"]
        assert sorted(path.name for path in self.folder.iterdir()) == ["checkpoint.pt", "history.jsonl"]
        text = (self.folder / "history.jsonl").read_text()
        assert text.endswith("\n")
        assert [strict(line)["step"] for line in text.splitlines()] == list(range(1, step + 1))
        module = self.module()
        found = module.trainer(self.folder).fit(*module.start(), step + 2, resume=self.folder)
        expected = module.trainer(directory / "whole").fit(*module.start(), step + 2)
        assert same(found.hparams, expected.hparams)
        assert same(found.params, expected.params)
        return step


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@posix
def test_a_process_that_gets_ctrl_c_ends_by_it_and_loses_nothing(tmp_path: Path) -> None:
    child = Child(tmp_path)
    child.wait_for("3")
    time.sleep(0.03)  # into the middle of a step
    child.interrupt()
    status, errors = child.finish()
    assert status == -signal.SIGINT
    assert "stopping after this step" in errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.check_whole(tmp_path) >= 3


@posix
def test_a_second_ctrl_c_ends_a_process_at_once_and_loses_the_step_under_way_only(tmp_path: Path) -> None:
    child = Child(tmp_path, HANG="100")
    child.wait_for("hanging")
    child.interrupt()
    assert child.process.stderr is not None
    assert child.process.stderr.readline() == "\n"
    assert "press Ctrl-C again" in child.process.stderr.readline()
    before = time.monotonic()
    child.interrupt()
    status, errors = child.finish()
    assert time.monotonic() - before < 20, "it slept on"
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.check_whole(tmp_path) == 3
