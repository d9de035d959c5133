"""A run that was stopped and resumed is the same run, bit for bit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
import hypergrad.callbacks
from tests.loop.common import RESUMED, Recorder, run, same, start


def check_same_run(setup: str, directory: Path, stops: tuple[int, ...], steps: int = 7) -> None:
    whole, pieces = Recorder(), Recorder()
    expected = run(setup, steps, whole)
    run(setup, stops[0], pieces, hg.Checkpoint(directory))
    for stop in (*stops[1:], steps):
        torch.rand(3)  # the global random state must not matter
        found = run(setup, stop, pieces, hg.Checkpoint(directory), resume=directory, seed=99)
    assert [progress.step for progress in pieces.seen] == list(range(1, steps + 1))
    for left, right in zip(whole.seen, pieces.seen, strict=True):
        for name in ("hparams", "params", "outer_loss", "norm", "moved", "cost"):
            assert same(getattr(left, name), getattr(right, name)), f"{name} differs in step {left.step}"
    assert same(expected.hparams, found.hparams)
    assert same(expected.params, found.params)
    assert len({progress.outer_loss for progress in whole.seen}) > 1, "nothing moved, so nothing was tested"


@pytest.mark.parametrize("setup", RESUMED)
def test_a_resumed_run_is_the_same_run_bit_for_bit(setup: str, tmp_path: Path) -> None:
    check_same_run(setup, tmp_path, stops=(3,))


@pytest.mark.parametrize("setup", ["implicit-cg-penalty", "unrolled-adam", "dropout-and-batches", "one-cycle"])
def test_a_run_can_be_resumed_again_and_again(setup: str, tmp_path: Path) -> None:
    check_same_run(setup, tmp_path, stops=(1, 2, 5))


@pytest.mark.parametrize(
    "setup",
    [
        "plateau",
        "multi-step-lr",
        "step-lr",
        "cosine",
        "one-cycle",
        "lambda-lr",
        "sequential",
        "cyclic",
        "warm-up-then-plateau",
    ],
)
def test_the_schedulers_of_these_runs_do_change_the_step(setup: str) -> None:
    recorder = Recorder()
    run(setup, 7, recorder)
    plainly = Recorder()
    problem, algorithm, move = RESUMED[setup]()
    assert isinstance(move, hg.outer.Torch)
    hg.Trainer(problem, algorithm, hg.outer.Torch(move.optimizer, **move.options), [plainly], seed=5).fit(*start(), 7)
    assert not same(recorder.seen[-1].moved, plainly.seen[-1].moved)


def test_a_finished_run_that_is_resumed_makes_no_further_step(tmp_path: Path) -> None:
    done = run("adam", 3, hg.Checkpoint(tmp_path))
    recorder = Recorder()
    again = run("adam", 3, recorder, resume=tmp_path)
    assert recorder.seen == []
    assert (again.steps, again.stopped, again.last) == (3, "steps", None)
    assert same(again.hparams, done.hparams)
    assert same(again.params, done.params)


def test_a_resumed_run_stops_early_at_the_same_best_step(tmp_path: Path) -> None:
    setup, values = "adam", [5.0, 1.0, 3.0, 4.0, 3.0, 2.0, 2.0]

    def stopping() -> hg.EarlyStopping:
        return hg.EarlyStopping(patience=4, monitor=lambda progress: values[progress.step - 1])

    expected = run(setup, 7, stopping())
    run(setup, 3, stopping(), hg.Checkpoint(tmp_path))
    found = run(setup, 7, stopping(), resume=tmp_path)
    assert expected.steps == found.steps == 6
    assert same(expected.hparams, found.hparams)


def test_a_state_is_plain_data_and_a_snapshot() -> None:
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    made = hg.Run(problem, algorithm, *start(), move)
    made.step()
    state = made.state_dict()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) in (str, int) for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (Tensor, int, float, str, bool), type(value)
            assert not isinstance(value, Tensor) or not value.requires_grad

    check(state)
    kept = pickle.loads(pickle.dumps(state))
    made.step()
    assert same(state, kept)
    state["hparams"]["decay"].fill_(77.0)
    assert float(made.hparams["decay"].max()) < 77


def test_a_run_leaves_its_inputs_and_the_random_state_alone() -> None:
    params, hparams = start()
    before, random = (dict(params), dict(hparams)), torch.get_rng_state()
    versions = [value._version for value in (*params.values(), *hparams.values())]
    hg.Trainer(*RESUMED["dropout-and-batches"](), seed=1).fit(params, hparams, 3)
    assert (params, hparams) == before
    assert [value._version for value in (*params.values(), *hparams.values())] == versions
    assert all(value.grad is None and not value.requires_grad for value in (*params.values(), *hparams.values()))
    assert torch.equal(torch.get_rng_state(), random)
