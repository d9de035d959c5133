"""Every example that ``--help`` shows runs, and every command keeps the rules of a command."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.commands.fields import attributes, description, fields_of, section
from hypergrad.commands.flags import parser_of
from hypergrad.commands.table import COMMANDS, load
from hypergrad.demo import data, experiment
from tests.cli.examples import PREPARE, QUICK

NAMES = sorted(COMMANDS)


def lines(name: str) -> list[str]:
    text = section(load(name), "Example")
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def mnist() -> tuple[Tensor, Tensor]:
    return data.load("mnist")


@pytest.fixture
def here(mnist: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; MNIST is parsed once, and the demo ends quickly."""
    monkeypatch.setattr(experiment, "load", lambda *_: mnist)
    monkeypatch.setattr(experiment, "FINAL_TRAINING", hg.LBFGS(steps=2))
    monkeypatch.setattr(experiment, "draw", lambda path, *_, **__: path.write_bytes(b""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_help_run(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name in PREPARE:
        PREPARE[name](here)
    examples = lines(name)
    assert examples
    assert any(line.startswith(f"hypergrad {name}") for line in examples)
    for line in examples:
        program, command, *rest = shlex.split(line)
        assert program == "hypergrad"
        assert main([command, *rest, *QUICK.get(command, ())]) == 0, line
        out, err = capsys.readouterr()
        assert out, line
        assert "Traceback" not in err


@pytest.mark.parametrize("name", NAMES)
def test_the_help_shows_every_field_and_every_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no word is broken at its hyphen
    command, text = load(name), parser_of(name, load(name)).format_help()
    words = " ".join(text.split())
    for field in fields_of(command):
        assert field.shown in words
        assert field.help, f"{field.name} is not among the Attributes of {name}"
        assert field.help in words
    for line in lines(name):
        assert f"$ {line}" in text
    assert "``" not in text
    assert ":class:" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_a_frozen_dataclass_that_is_called(name: str) -> None:
    command: Any = load(name)
    assert command.__dataclass_params__.frozen
    assert command.__name__.lower() == name
    assert inspect.signature(command.__call__).return_annotation == "int"
    assert set(attributes(command)) == {one.name for one in dataclasses.fields(command)}
    assert description(command).partition("\n")[0].endswith(".")


def test_the_overview_names_every_command_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    for name in NAMES:
        assert f"  {name} " in out
        assert description(load(name)).partition("\n")[0].rstrip(".") in out


@pytest.mark.parametrize("make", PREPARE.values(), ids=PREPARE)
def test_what_examples_need_is_written(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    assert list(tmp_path.iterdir())


def test_the_tables_of_examples_name_commands() -> None:
    assert set(PREPARE) | set(QUICK) <= set(COMMANDS)
