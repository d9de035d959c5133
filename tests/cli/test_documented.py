"""Every command on the pages about the command line runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.commands.table import COMMANDS
from hypergrad.demo import data, experiment
from tests.cli.examples import PREPARE, QUICK

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["cli", "report"]


def lines(page: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def mnist() -> tuple[Tensor, Tensor]:
    return data.load("mnist")


def run(line: str) -> int:
    program, *words = shlex.split(line)
    assert program == "hypergrad"
    if ">" in words:
        words = words[: words.index(">")]
    quick = () if "--help" in words or "--print-config" in words else QUICK.get(words[0], ())
    try:
        return main([*words, *quick])
    except SystemExit as ended:
        code: Any = ended.code
        return int(code)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(
    page: str,
    mnist: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(experiment, "load", lambda *_: mnist)
    monkeypatch.setattr(experiment, "FINAL_TRAINING", hg.LBFGS(steps=2))
    monkeypatch.setattr(experiment, "draw", lambda path, *_, **__: path.write_bytes(b""))
    monkeypatch.chdir(tmp_path)
    for prepare in PREPARE.values():
        prepare(tmp_path)
    for line in lines(page):
        assert run(line) == 0, line
        out, err = capsys.readouterr()
        assert out, line
        assert "Traceback" not in err
        _, arrow, target = line.partition(" > ")
        if arrow:
            (tmp_path / target).write_text(out, encoding="utf-8")
    assert any(tmp_path.iterdir())


def test_the_page_tells_every_command_and_every_status() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"| `hypergrad {name}` |" in text
    for status in (0, 1, 2, 3, 130):
        assert f"\n| {status} | " in text
