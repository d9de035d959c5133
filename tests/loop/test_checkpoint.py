"""Checkpoints: one whole file, refused when it does not fit, never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.errors import InputError, TreeError
from tests.loop.common import (
    LOOSE,
    LR,
    MOMENTUM,
    RESUMED,
    UNFIT,
    Recorder,
    batches,
    inner,
    outer,
    parts,
    plain,
    run,
    same,
    scheduled,
    start,
)


def test_a_checkpoint_is_one_file_that_loads_as_plain_data(tmp_path: Path) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path / "deep" / "folder"))
    assert [path.name for path in (tmp_path / "deep" / "folder").iterdir()] == ["checkpoint.pt"]
    state = torch.load(tmp_path / "deep" / "folder" / "checkpoint.pt", weights_only=True)
    assert state["step_number"] == 2
    assert same(state, hg.load_checkpoint(tmp_path / "deep" / "folder"))


def test_a_checkpoint_is_saved_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    class Look(hg.Callback):
        def __init__(self) -> None:
            self.found: list[int | None] = []

        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            there = (tmp_path / "checkpoint.pt").exists()
            self.found.append(hg.load_checkpoint(tmp_path)["step_number"] if there else None)

    look = Look()
    run("adam", 7, hg.Checkpoint(tmp_path, every=3), look)
    assert look.found == [None, None, None, 3, 3, 3, 6], "a checkpoint comes after the other callbacks"
    assert hg.load_checkpoint(tmp_path)["step_number"] == 7


def test_a_save_that_fails_leaves_the_checkpoint_before_it_and_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path))

    def full(state: Any, path: Any) -> None:
        Path(path).write_bytes(b"half a chec")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run("adam", 3, hg.Checkpoint(tmp_path), resume=tmp_path)
    assert hg.load_checkpoint(tmp_path)["step_number"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "pickle", "in-state"])
def test_a_checkpoint_is_never_executed(form: str, tmp_path: Path) -> None:
    bomb, blown = Bomb(tmp_path / "blown"), tmp_path / "blown"
    if form == "in-state":
        run("adam", 1, hg.Checkpoint(tmp_path))
        torch.save({**hg.load_checkpoint(tmp_path), "seed": bomb}, tmp_path / "checkpoint.pt")
    elif form == "zip":
        torch.save(bomb, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError) as caught:
        run("adam", 3, resume=tmp_path)
    assert not blown.exists()
    passed, expected, do = parts(caught.value)
    assert "checkpoint.pt, which cannot be read" in passed
    assert "hypergrad.Checkpoint" in expected
    assert "without resume" in do


@pytest.mark.parametrize("content", ["cut", "empty", "text", "tensor", "list"])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(content: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    run("adam", 1, hg.Checkpoint(tmp_path))
    if content == "tensor":
        torch.save(torch.ones(2), path)
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-200], "empty": b"", "text": b"step 7"}[content])
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        run("adam", 3, hg.Checkpoint(tmp_path), resume=tmp_path)
    assert str(path) in parts(caught.value)[0]
    assert path.read_bytes() == before


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run("adam", 3, resume=tmp_path)
    passed, _, do = parts(caught.value)
    assert str(tmp_path) in passed
    assert "checkpoint.pt" in passed
    assert "without resume" in do


def begun(setup: str) -> hg.Run:
    problem, algorithm, move = RESUMED[setup]()
    return hg.Run(problem, algorithm, *start(), move)


def halfway(setup: str = "batches") -> tuple[hg.Run, dict[str, Any]]:
    """A run after two steps, and another run's state after one."""
    other, made = begun(setup), begun(setup)
    other.step()
    made.step()
    made.step()
    return made, other.state_dict()


STATE_KEYS = (
    "format",
    "algorithm",
    "outer",
    "seed",
    "step_number",
    "hparams",
    "params",
    "algorithm_state",
    "outer_state",
    "samplers",
    "callbacks",
)


def test_the_keys_of_a_state_are_the_ones_that_are_tested_here() -> None:
    assert set(halfway()[1]) == set(STATE_KEYS)


@pytest.mark.parametrize("key", STATE_KEYS)
@pytest.mark.parametrize("fault", ["missing", "string", "none"])
def test_a_state_with_a_spoilt_entry_is_refused_and_the_run_stays(fault: str, key: str) -> None:
    made, state = halfway()
    before = made.state_dict()
    if fault == "missing":
        del state[key]
    else:
        state[key] = "nonsense" if fault == "string" else None
    with pytest.raises(InputError) as caught:
        made.load_state_dict(state)
    assert repr(key) in parts(caught.value)[0]
    assert same(made.state_dict(), before)


@pytest.mark.parametrize("fault", UNFIT)
def test_a_state_of_another_run_is_refused_and_the_run_stays(fault: str) -> None:
    made, state = halfway()
    before = made.state_dict()
    spoil, said = UNFIT[fault]
    with pytest.raises(InputError) as caught:
        made.load_state_dict(spoil(state))
    assert said in parts(caught.value)[0]
    assert same(made.state_dict(), before)
    made.step()  # and it can go on


OTHER_SETTINGS: dict[str, tuple[Callable[[], tuple[hg.Problem, Any, hg.outer.OuterMove]], tuple[str, ...]]] = {
    "algorithm": (lambda: (plain(), MOMENTUM, hg.outer.Torch(torch.optim.Adam, lr=0.1)), ("Implicit", "Unrolled")),
    "outer": (lambda: (plain(), LOOSE, hg.outer.LBFGSB()), ("Torch", "LBFGSB")),
    "optimizer": (lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.SGD, lr=0.1)), ("Adam", "SGD")),
    "scheduler": (
        lambda: (plain(), LOOSE, scheduled(partial(LR.StepLR, step_size=2), torch.optim.Adam)),
        ("scheduler",),
    ),
    "groups": (
        lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1, groups={"scale": {"lr": 0.3}})),
        ("group",),
    ),
    "samplers": (lambda: (batches(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)), ("sampler",)),
}


@pytest.mark.parametrize("what", OTHER_SETTINGS)
def test_a_checkpoint_is_refused_by_a_trainer_with_other_settings_before_anything_is_written(
    what: str, tmp_path: Path
) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    make, said = OTHER_SETTINGS[what]
    callbacks = [hg.Checkpoint(tmp_path), hg.History(tmp_path / "history.jsonl"), Recorder()]
    with pytest.raises(InputError) as caught:
        hg.Trainer(*make(), callbacks).fit(*start(), 4, resume=tmp_path)
    text = " ".join(parts(caught.value))
    assert all(word in text for word in said), text
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_is_refused_by_a_trainer_with_other_names(tmp_path: Path) -> None:
    run("adam", 1, hg.Checkpoint(tmp_path))
    params, hparams = start()
    renamed = {"decoy" if key == "decay" else key: value for key, value in hparams.items()}
    problem = hg.Problem(
        lambda params, hparams: inner(params, {"decay": hparams["decoy"], "scale": hparams["scale"]}, None),
        lambda params, hparams: outer(params, hparams, None),
    )
    with pytest.raises(TreeError) as caught:
        hg.Trainer(problem, LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)).fit(params, renamed, 2, resume=tmp_path)
    passed, expected, _ = parts(caught.value)
    assert "the saved hparams" in passed
    assert "'decay' (did you mean 'decoy'?)" in passed
    assert "'decoy'" in expected
