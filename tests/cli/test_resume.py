"""A command that was saved comes back the same, and an interrupted run ends as if it had not been interrupted."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.commands.demo import Demo
from hypergrad.commands.saved import FILE, load_command, save_command
from hypergrad.demo import data, experiment
from hypergrad.errors import InputError

Capture = pytest.CaptureFixture[str]


def test_a_saved_command_comes_back_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_command(Demo(model="mlp", seed=3, out=Path("run"), root=Path("files"), steps=7), Path("run"))
    expected = Demo(model="mlp", seed=3, out=tmp_path / "run", root=tmp_path / "files", steps=7)
    assert load_command(tmp_path / "run") == expected
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_a_run_that_was_moved_goes_on_where_it_stands_now(tmp_path: Path) -> None:
    save_command(Demo(out=tmp_path / "before"), tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert load_command(tmp_path / "after").out == tmp_path / "after"


DEMO = {"command": "demo", "fields": {}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "something else"),
        ("null", "something else"),
        (json.dumps({**DEMO, "module": "os"}), "something else"),
        (json.dumps({"command": "demo"}), "something else"),
        (json.dumps({**DEMO, "command": "os:system"}), "'os:system'"),
        (json.dumps({**DEMO, "command": "hypergrad.commands.demo:Demo"}), "demo"),
        (json.dumps({**DEMO, "command": "dmeo"}), "did you mean 'demo'"),
        (json.dumps({**DEMO, "command": "resume"}), "'resume'"),
        (json.dumps({**DEMO, "command": ["demo"]}), "['demo']"),
        (json.dumps({**DEMO, "fields": []}), "list"),
        (json.dumps({**DEMO, "fields": {"modle": "mlp"}}), "did you mean 'model'"),
        (json.dumps({**DEMO, "fields": {"__class__": "x"}}), "'__class__'"),
        (json.dumps({**DEMO, "fields": {"model": "resnet"}}), "'resnet'"),
        (json.dumps({**DEMO, "fields": {"seed": "1"}}), "--seed '1'"),
        (json.dumps({**DEMO, "fields": {"out": 3}}), "--out 3"),
        (json.dumps(DEMO) + " " * 2**20, "something else"),
    ],
)
def test_a_file_that_no_command_wrote_is_refused(content: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_command(tmp_path)
    assert said in str(caught.value)
    assert main(["resume", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "do: " in err
    assert len(err.splitlines()) < 10
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_command(tmp_path)


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "holds no command.json" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_a_file_cannot_send_the_results_elsewhere(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    (run / FILE).write_text(json.dumps({**DEMO, "fields": {"out": str(elsewhere)}}), encoding="utf-8")
    assert load_command(run).out == run


# ----------------------------------------------------------------------------------------------------------------------
# The demo
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> Any:
    return data.load("mnist")


@pytest.fixture
def quick(mnist: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "load", lambda *_: mnist)
    monkeypatch.setattr(experiment, "FINAL_TRAINING", hg.LBFGS(steps=2))
    monkeypatch.setattr(experiment, "draw", lambda path, *_, **__: path.write_bytes(b""))


def stop_at(step: int, how: Callable[[], None]) -> type[hg.Callback]:
    class Stop(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            if progress.step == step:
                how()

    return Stop


def weights(folder: Path) -> dict[str, Any]:
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def outcome(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {key: result[key] for key in result if key != "seconds"}


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["outer_loss"]) for line in hg.read_history(folder / "history.jsonl")]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise OSError("the power failed")


@pytest.mark.parametrize(("step", "how", "status"), [(2, interrupt, 130), (11, crash, 1), (3, crash, 1)])
def test_an_interrupted_demo_ends_as_if_it_had_not_been_interrupted(
    step: int,
    how: Callable[[], None],
    status: int,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    flags = ["--steps", "12", "--seed", "1"]
    assert main(["demo", *flags, "--quiet", "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(hg, "ProgressBar", stop_at(step, how))
        assert main(["demo", *flags, "--out", str(tmp_path / "cut")]) == status
    assert not (tmp_path / "cut" / "result.json").exists()
    assert capsys.readouterr().err.endswith(f"go on with: hypergrad resume {tmp_path / 'cut'}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "cut", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {key: value for key, value in json.loads(out).items() if key != "seconds"} == outcome(tmp_path / "whole")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert np.array_equal(weights(tmp_path / "cut")[name], value), name


def test_a_finished_demo_prints_its_result_again(quick: None, tmp_path: Path, capsys: Capture) -> None:
    assert main(["demo", "--steps", "1", "--json", "--quiet", "--out", str(tmp_path)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["resume", str(tmp_path), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_a_demo_begun_anew_forgets_what_was_there(quick: None, tmp_path: Path, capsys: Capture) -> None:
    assert main(["demo", "--steps", "2", "--quiet", "--out", str(tmp_path)]) == 0
    assert main(["demo", "--steps", "1", "--quiet", "--out", str(tmp_path)]) == 0
    assert [step for step, _ in losses(tmp_path)] == [1]
    assert load_command(tmp_path).steps == 1


def test_a_demo_that_is_refused_saves_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert main(["demo", "--steps", "0", "--out", str(tmp_path / "run")]) == 2
    assert "steps=0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------------------
# The comparison
# ----------------------------------------------------------------------------------------------------------------------


def test_a_comparison_goes_on_where_its_runs_end(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "comparison"
    flags = ["--samplers", "random", "--spaces", "shared", "--seeds", "1", "--seconds", "0.05"]
    assert main(["compare", *flags, "--json", "--quiet", "--out", str(out)]) == 0
    first = json.loads(capsys.readouterr().out)
    lines = (out / "runs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) > 1
    (out / "runs.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    assert main(["resume", str(out), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (out / "runs.jsonl").read_text(encoding="utf-8").startswith("".join(lines[:-1]))
    assert len((out / "runs.jsonl").read_text(encoding="utf-8").splitlines()) == len(lines)
    assert [method["name"] for method in again["methods"]] == [method["name"] for method in first["methods"]]


def test_a_comparison_that_is_refused_saves_nothing(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("optuna")
    assert main(["compare", "--seeds", "0", "--out", str(tmp_path / "run")]) == 2
    assert "seeds=0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_comparison_of_somebody_elses_code_is_not_imported(tmp_path: Path, capsys: Capture) -> None:
    saved = {"command": "compare", "fields": {"task": "antigravity:fly", "out": str(tmp_path)}}
    (tmp_path / "command.json").write_text(json.dumps(saved), encoding="utf-8")
    assert main(["resume", str(tmp_path)]) == 2
    assert "antigravity:fly" in capsys.readouterr().err
    assert "antigravity" not in sys.modules
