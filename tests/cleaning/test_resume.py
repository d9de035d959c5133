"""A run that was interrupted anywhere goes on to the same files, bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import hypergrad as hg
from hypergrad.cleaning import Settings, clean
from hypergrad.cleaning.folder import Folder
from hypergrad.errors import InputError
from tests.cleaning.common import noisy, online, quick, right

FILES = ("weights.parquet", "suspicious.csv", "cleaned_indices.npy", "previews.json")
WAYS: dict[str, Settings] = {
    "nested": quick(seeds=2, steps=6),
    "nested-labels": quick(seeds=2, steps=6, correct_labels=True),
    "nested-mlp": quick(seeds=2, steps=6, weighting="mlp"),
    "online": online(seeds=2, epochs=6, model="mlp"),
    "online-soba": online(seeds=2, epochs=6, algorithm="soba"),
}


class Interrupt(hg.Callback):
    """Raises at a step of a seed, once."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, run: Any, progress: Any) -> None:
        if progress.step == self.at:
            raise KeyboardInterrupt


def contents(out: Path) -> dict[str, Any]:
    result = json.loads((out / "result.json").read_text())
    result.pop("seconds")
    return {**{name: (out / name).read_bytes() for name in FILES}, "result": result}


@pytest.mark.parametrize("way", WAYS)
def test_interrupted_in_either_seed_and_resumed(way: str, tmp_path: Path) -> None:
    settings, whole, torn = WAYS[way], tmp_path / "whole", tmp_path / "torn"
    clean(noisy(60), right(60), settings, out=whole)
    for seed, at in ((0, 3), (0, 5), (1, 4)):
        with pytest.raises(KeyboardInterrupt):
            clean(
                noisy(60),
                right(60),
                settings,
                out=torn,
                resume=torn.exists(),
                callbacks=lambda now, seed=seed, at=at: [Interrupt(at)] if now == seed else [],  # type: ignore[misc]
            )
        assert not (torn / "result.json").exists()
    clean(noisy(60), right(60), settings, out=torn, resume=True)
    assert contents(torn) == contents(whole)


def test_interrupted_between_two_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = quick(seeds=3, steps=4)
    clean(noisy(60), right(60), settings, out=tmp_path / "whole")
    kept, keep = [], Folder.keep

    def stop(self: Folder, seed: int, outcome: Any) -> None:
        keep(self, seed, outcome)
        kept.append(seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "keep", stop)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            clean(noisy(60), right(60), settings, out=tmp_path / "torn", resume=resume)
    monkeypatch.undo()
    assert kept == [0, 1]
    clean(noisy(60), right(60), settings, out=tmp_path / "torn", resume=True)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_interrupted_before_the_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = quick(steps=4)
    clean(noisy(60), right(60), settings, out=tmp_path / "whole")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hypergrad.cleaning.clean"], "write_result", stop)
    with pytest.raises(KeyboardInterrupt):
        clean(noisy(60), right(60), settings, out=tmp_path / "torn")
    monkeypatch.undo()
    clean(noisy(60), right(60), settings, out=tmp_path / "torn", resume=True)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_finished_run_can_go_on_with_more_seeds(tmp_path: Path) -> None:
    clean(noisy(60), right(60), quick(seeds=2, steps=4), out=tmp_path / "a")
    found = clean(noisy(60), right(60), quick(seeds=3, steps=4), out=tmp_path / "a", resume=True)
    clean(noisy(60), right(60), quick(seeds=3, steps=4), out=tmp_path / "b")
    assert found.stability_report["seeds"] == 3
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("what", ["data", "settings"])
def test_a_run_of_something_else_is_refused(what: str, tmp_path: Path) -> None:
    clean(noisy(60), right(60), quick(steps=4), out=tmp_path)
    before = contents(tmp_path)
    train = noisy(60, seed=7) if what == "data" else noisy(60)
    settings = quick(steps=4, penalty=0.5) if what == "settings" else quick(steps=4)
    with pytest.raises(InputError, match="other data or with other settings"):
        clean(train, right(60), settings, out=tmp_path, resume=True)
    assert contents(tmp_path) == before
