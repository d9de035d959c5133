"""``python -m benchmarks``: bad input, interrupts, noise, and the page of results."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import results
from benchmarks.harness import write_json
from benchmarks.sheets import SHEETS
from benchmarks.sheets.sheet import NOISY, Claim, Method, Options, Processes, Sheet, measure
from tests.test_house import ROOT

ARRAYS = {"x": np.arange(1.0, 4.0)}


def strict(path: Path) -> Any:
    """Read JSON without NaN and Infinity, which JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def draw(_result: dict[str, Any], figure: Any) -> None:
    figure.add_subplot(1, 1, 1)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Options], Any]], None]]:
    """Make a function the only sheet, ``fake``."""

    def use(run: Callable[[Options], Any]) -> None:
        module: Any = ModuleType("benchmarks.sheets.fake")
        module.run, module.draw = run, draw
        monkeypatch.setitem(sys.modules, "benchmarks.sheets.fake", module)
        monkeypatch.setattr(command, "SHEETS", ("fake",))
        monkeypatch.setattr(results, "SHEETS", ("fake",))

    threads = torch.get_num_threads()
    yield use
    torch.set_num_threads(threads)


def started(options: Options) -> Sheet:
    sheet = Sheet("fake", "A sheet", options, about="What it is.")
    sheet.add("first case", {"hand/row": {"time": 1.0, "spread": 0.0}, "lost/row": {"reason": "this | that"}})
    return sheet


def complete(options: Options) -> dict[str, Any]:
    sheet = started(options)
    sheet.claim("time", 1.0, 2.0)
    sheet.claim("gain", 1.0, 2.0, at_most=False)
    return sheet.save(finished=True)


def test_a_sheet_is_json_a_picture_and_a_page(register: Any, tmp_path: Path) -> None:
    register(complete)
    assert command.main(["run", "fake", "--out", str(tmp_path)]) == 0
    assert strict(tmp_path / "fake.json")["finished"] is True
    assert (tmp_path / "fake.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| time | ≤ 2 | 1 | met |" in page
    assert "| gain | ≥ 2 | 1 | not met |" in page
    assert "| lost/row | this / that | |" in page
    assert "![A sheet](fake.png)" in page
    assert "What it is." in page


def test_the_page_is_made_from_json_alone_and_the_same_each_time(register: Any, tmp_path: Path) -> None:
    register(complete)
    out = tmp_path / "results"
    command.main(["run", "fake", "--out", str(out)])
    page = tmp_path / "RESULTS.md"
    first = page.read_bytes()
    assert b"![A sheet](results/fake.png)" in first
    page.unlink()
    (out / "fake.png").unlink()
    assert command.main(["results", "--out", str(out)]) == 0
    assert page.read_bytes() == first


def test_an_interrupted_sheet_keeps_what_was_measured(
    register: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: Options) -> None:
        started(options)
        raise KeyboardInterrupt

    register(interrupted)
    assert command.main(["run", "fake", "--out", str(tmp_path)]) == 130
    kept = strict(tmp_path / "fake.json")
    assert kept["finished"] is False
    assert kept["cases"]["first case"]["rows"]["hand/row"]["time"] == 1.0
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## A sheet (interrupted: what was measured)" in page
    assert "| hand/row |" in page
    assert ".png" not in page
    assert f"interrupted: what was measured is in {tmp_path}" in capsys.readouterr().err


def test_an_interrupt_before_the_first_case_has_its_status(register: Any, tmp_path: Path) -> None:
    def interrupted(options: Options) -> None:
        raise KeyboardInterrupt

    register(interrupted)
    assert command.main(["run", "fake", "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_sheet_is_told_and_the_others_go_on(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(options: Options) -> None:
        started(options)
        raise ZeroDivisionError("in the sheet")

    register(wrong)
    other: Any = ModuleType("benchmarks.sheets.other")
    other.run, other.draw = lambda options: Sheet("other", "Another", options).save(finished=True), draw
    monkeypatch.setitem(sys.modules, "benchmarks.sheets.other", other)
    for module in (command, results):
        monkeypatch.setattr(module, "SHEETS", ("fake", "other"))
    assert command.main(["run", "all", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: in the sheet" in told
    assert f"the sheet fake failed: what it measured is in {tmp_path}" in told
    assert strict(tmp_path / "fake.json")["finished"] is False
    assert strict(tmp_path / "other.json")["finished"] is True


def test_a_smoke_run_judges_nothing(register: Any, tmp_path: Path) -> None:
    register(complete)
    command.main(["run", "fake", "--smoke", "--out", str(tmp_path)])
    assert {claim["verdict"] for claim in strict(tmp_path / "fake.json")["claims"]} == {"not measured"}
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| time | ≤ 2 | – | not measured |" in page
    assert "a smoke run: the figures mean nothing" in page


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    write_json(path, {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (-float("inf"), "NaN")}})
    found = strict(path)
    assert (found["a"], found["b"], found["c"]["d"]) == (None, [1.0, None], [None, "NaN"])


def test_a_claim_about_no_number_is_not_met() -> None:
    assert Claim("error", float("nan"), 1.0).verdict == "not met"
    assert Claim("error", None, 1.0).verdict == "not measured"


def test_a_row_that_finds_no_number_is_on_the_page(register: Any, fake_peer: str, tmp_path: Path) -> None:
    def run(options: Options) -> dict[str, Any]:
        sheet = Sheet("fake", "A sheet", options)
        methods = [Method("fake", "fine"), Method("fake", "infinite")]
        with Processes(dataclasses.replace(options, peers=("fake",))) as processes:
            sheet.add("case", measure(methods, "", ARRAYS, processes, base="fake/fine", memory=False))
        sheet.claim("error", sheet.value("case", "fake/infinite", "error"), 1.0)
        return sheet.save(finished=True)

    register(run)
    assert command.main(["run", "fake", "--repeats", "1", "--out", str(tmp_path)]) == 0
    assert strict(tmp_path / "fake.json")["cases"]["case"]["rows"]["fake/infinite"]["error"] is None
    assert "| error | ≤ 1 | – | not met |" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_noise_withholds_the_verdict_and_is_printed(register: Any, fake_peer: str, tmp_path: Path) -> None:
    def run(options: Options) -> dict[str, Any]:
        sheet = Sheet("fake", "A sheet", options)
        methods = [Method("fake", "fine"), Method("fake", "noisy")]
        with Processes(dataclasses.replace(options, peers=("fake",))) as processes:
            sheet.add("case", measure(methods, "", ARRAYS, processes, base="fake/fine", memory=False))
        noisy = sheet.noisy("case", "fake/noisy")
        sheet.claim("time", sheet.value("case", "fake/noisy", "time"), 1e9, noisy=noisy)
        return sheet.save(finished=True)

    register(run)
    command.main(["run", "fake", "--repeats", "6", "--out", str(tmp_path)])
    found = strict(tmp_path / "fake.json")
    assert found["claims"][0]["verdict"] == "too noisy"
    spread = found["cases"]["case"]["rows"]["fake/noisy"]["spread"]
    assert spread > NOISY
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"| {spread:.0%} |" in page
    assert "| too noisy |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "invalid choice: 'nothing'"),
        (["run"], "the following arguments are required: NAME"),
        (["run", "cost", "--peers", "nobody"], "invalid choice: 'nobody'"),
        (["run", "cost", "--repeats", "0"], "0 is no number of rounds; expected an integer of at least 1"),
        (["run", "cost", "--repeats", "-1"], "expected an integer of at least 1"),
        (["run", "cost", "--repeats", "many"], "many is no number of rounds"),
        (["run", "cost", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["run", "cost", "--timeout", "0"], "0 is no time; expected seconds above 0"),
        (["run", "cost", "--timeout", "nan"], "nan is no time; expected seconds above 0"),
        ([], "the following arguments are required"),
    ],
)
def test_bad_input_is_refused_at_the_door(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, *(["--out", str(out)] if arguments else [])])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_cuda_without_a_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        command.main(["run", "cost", "--device", "cuda", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "torch sees no CUDA device: leave --device out to measure on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["", "absent"])
def test_results_of_nothing_say_what_to_run(folder: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no sheet: run python -m benchmarks run all --out"):
        command.main(["results", "--out", str(tmp_path / folder)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sheet": "fa', "fake.json is no JSON"),
        ("[1, 2]", "fake.json is no sheet .it lacks about, cases, claims"),
        ('{"sheet": "fake", "title": "A"}', "fake.json is no sheet .it lacks about, cases, claims, columns"),
        ("\0\1", "fake.json is no JSON"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, register: Any, tmp_path: Path) -> None:
    register(complete)
    (tmp_path / "fake.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=message) as stopped:
        command.main(["results", "--out", str(tmp_path)])
    assert "delete it and run python -m benchmarks run fake" in str(stopped.value)
    assert not (tmp_path / "RESULTS.md").exists()
    assert command.main(["run", "fake", "--out", str(tmp_path)]) == 0


def test_files_of_others_are_left_alone(register: Any, tmp_path: Path) -> None:
    register(complete)
    (tmp_path / "notes.json").write_text("mine", encoding="utf-8")
    assert command.main(["run", "fake", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "notes.json").read_text(encoding="utf-8") == "mine"


def test_the_page_names_every_sheet_and_its_commands_are_understood() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| `(\w+)` \|", page) == list(SHEETS)
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("python -m benchmarks ")]
    given = [command.parser().parse_args(line[3:]) for line in lines]
    assert {one.command for one in given} == {"run", "results"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHEETS)
def test_every_sheet_runs_small_without_peers(name: str, tmp_path: Path) -> None:
    flags = ["--smoke", "--peers", "--repeats", "2", "--no-build", "--out", str(tmp_path)]
    line = [sys.executable, "-m", "benchmarks", "run", name, *flags]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = strict(tmp_path / f"{name}.json")
    assert found["finished"] is True
    assert found["smoke"] is True
    assert found["cases"]
    assert found["claims"]
    assert {claim["verdict"] for claim in found["claims"]} == {"not measured"}
    rows = [row for case in found["cases"].values() for row in case["rows"].values()]
    assert [row["reason"] for row in rows if "reason" in row] == []
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"## {found['title']} (a smoke run: the figures mean nothing)" in page
