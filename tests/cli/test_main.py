"""The command line as a whole: settings from a file, streams, and errors that fit on one screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.commands import status
from hypergrad.commands.flags import parse
from hypergrad.commands.table import COMMANDS, load
from hypergrad.demo import data, experiment

Capture = pytest.CaptureFixture[str]
NAMES = sorted(COMMANDS)
REQUIRED = {"check": ["ridge:factory"], "completion": ["zsh"], "resume": ["some where"]}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}


def misused(arguments: Sequence[str], capsys: Capture) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == status.MISUSED
    assert out == ""
    assert err.startswith("usage: hypergrad ")
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 8, "one screen"
    assert [line.partition(":")[0] for line in err.splitlines()[-3:]] == ["passed", "expected", "do"]
    return err


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("algorithms", "demo", *REQUIRED)])
def test_what_a_command_prints_as_its_settings_is_what_it_reads(name: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([name, *REQUIRED.get(name, ()), "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"# hypergrad {name}\n")
    path = tmp_path / "c.toml"
    path.write_text(out, encoding="utf-8")
    assert (
        parse(name, load(name), ["--config", str(path)]).command
        == parse(name, load(name), REQUIRED.get(name, ())).command
    )
    assert main([name, "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", NAMES)
def test_help_goes_to_standard_output(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert out.startswith(f"usage: hypergrad {name}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command"),
        (["dmeo"], "did you mean 'demo'"),
        (["--demo"], "--demo before a command"),
        (["demo", "--sed", "3"], "did you mean '--seed'"),
        (["demo", "--data", "fashoin"], "did you mean 'fashion'"),
        (["demo", "--config", "no-such-file.toml"], "no-such-file.toml"),
        (["check"], "module:factory"),
        (["resume"], "DIR"),
        (["completion", "bsh"], "did you mean 'bash'"),
        (["algorithms", "--order", "3"], "0 or 1 or 2"),
    ],
)
def test_a_mistake_fits_on_one_screen_and_names_the_nearest(arguments: list[str], said: str, capsys: Capture) -> None:
    assert said in misused(arguments, capsys)


def test_a_setting_in_a_file_that_is_none_names_the_nearest(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "demo.toml"
    path.write_text("stpes = 3\n", encoding="utf-8")
    assert "did you mean 'steps'" in misused(["demo", "--config", str(path)], capsys)


def test_a_command_that_does_not_exist_is_not_imported(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(COMMANDS, "broken", "hypergrad.commands.no_such_module:Broken")
    assert main(["algorithms", "--order", "0"]) == 0
    assert "ZerothOrder" in capsys.readouterr().out


def test_json_is_all_that_stands_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    images = torch.randint(0, 256, (5000, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(experiment, "load", lambda *_: (images, torch.arange(5000) % 10))
    monkeypatch.setattr(experiment, "FINAL_TRAINING", hg.LBFGS(steps=1))
    monkeypatch.setattr(experiment, "draw", lambda path, *_, **__: path.write_bytes(b""))
    assert main(["demo", "--json", "--steps", "2", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    lines: list[dict[str, Any]] = [json.loads(line) for line in err.splitlines()]
    assert lines[-1]["step"] == lines[-1]["steps"] == 2
    assert set(data.CLASSES) == {"mnist", "fashion"}


def test_a_reader_that_went_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hypergrad", "algorithms", "--order", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": ""},  # as on a terminal of one's own: what is written waits
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=100) == 0
    process.stderr.close()


def test_a_terminal_without_greek_letters_gets_an_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hypergrad", "algorithms", "SOBA"],
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"hypergrad.SOBA(" in done.stdout
    assert b"\\u03bb" in done.stdout, "λ"
