"""What a comparison writes, and how it goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from hypergrad.commands.compare import Compare
from hypergrad.compare import Task, compare, runner
from hypergrad.compare import tasks as known
from hypergrad.compare.methods import Method
from hypergrad.compare.table import tables
from hypergrad.errors import MissingDependencyError
from tests.compare.common import small

OPTIONS: dict[str, Any] = {"samplers": ("tpe", "random"), "seconds": 0.02, "work": 60}
ROW = {"name", "kind", "space", "dimensions", "status", "reason", "seeds", "curve"}
MEASURED = {
    "final_validation",
    "final_validation_band",
    "test",
    "test_band",
    "validation_at_work",
    "curve_work",
    "runs",
}


def make(seed: int) -> Task:
    return small(seed)


@pytest.fixture(autouse=True)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.TASKS, "tiny", make)
    if "picture" not in request.node.name:
        monkeypatch.setattr(runner, "draw", lambda path, _: path.write_bytes(b""))


def strictly(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no strict JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_what_is_written_the_picture_too(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = compare("tiny", out=out, seeds=2, **OPTIONS)
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.png", "runs.jsonl"}
    written = strictly(out / "compare.json")
    assert written == json.loads(json.dumps(runner.strict(result)))
    assert (written["kind"], written["task"], written["seeds"]) == ("compare", "tiny", [0, 1])
    assert written["versions"]["optuna"]
    assert written["budget"] == {"seconds": 0.02, "work": 60, "clock": "cpu", "patience": 1.5}
    names = [row["name"] for row in written["methods"]]
    assert names[:2] == ["ours: Implicit(CG), Adam", "ours: Implicit(CG), L-BFGS-B"]
    assert names[2:] == [f"{name}, {where}" for where in ("full", "grouped", "shared") for name in ("TPE", "random")]
    for row in written["methods"]:
        assert set(row) >= ROW | MEASURED
        assert row["seeds"] == [0, 1]
        assert all(len(point) == 4 and point[2] <= point[1] <= point[3] for point in row["curve"])
        medians = [point[1] for point in row["curve"]]
        assert medians == sorted(medians, reverse=True)
        assert list(row["test"]) == ["loss"]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_name_everything(tmp_path: Path) -> None:
    result = compare("tiny", out=tmp_path, seeds=2, **OPTIONS)
    text = tables(result)
    assert f"optuna {result['versions']['optuna']}" in text
    assert "At equal time: 0.02 s of CPU time a run" in text
    assert "At equal work: 60 passes" in text
    for row in result["methods"]:
        assert text.count(f"| {row['name']} ") == 2


def test_the_shared_search_is_always_shown(tmp_path: Path) -> None:
    result = compare("tiny", out=tmp_path, seeds=1, samplers=("random",), spaces=("grouped",), seconds=0.01, work=1)
    assert [row["space"] for row in result["methods"] if row["kind"] == "search"] == ["grouped", "shared"]


def test_runs_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    measured = runner.measured

    def counting(method: Method, budget: Any, seed: int) -> dict[str, Any]:
        made.append((method.name, seed))
        return measured(method, budget, seed)

    monkeypatch.setattr(runner, "measured", counting)
    first = compare("tiny", out=tmp_path, seeds=1, **OPTIONS)
    assert len(made) == len(set(made)) == 8
    again = compare("tiny", out=tmp_path, seeds=1, **OPTIONS)
    assert len(made) == 8
    assert again == first
    more = compare("tiny", out=tmp_path, seeds=2, **OPTIONS)
    assert [seed for _, seed in made] == [0] * 8 + [1] * 8
    assert [row["runs"][0] for row in more["methods"]] == [row["runs"][0] for row in first["methods"]]
    compare("tiny", out=tmp_path, seeds=1, **{**OPTIONS, "work": 61})
    assert len(made) == 24  # another budget is another comparison


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, left = runner.measured, [3]

    def interrupted(*arguments: Any) -> dict[str, Any]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(runner, "measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare("tiny", out=tmp_path, seeds=1, **OPTIONS)
    kept = (tmp_path / "runs.jsonl").read_text(encoding="utf-8")
    assert kept.count("\n") == 3
    (tmp_path / "runs.jsonl").write_text(kept + '{"key": {"task": "ti', encoding="utf-8")  # torn by a crash
    left[0] = 100
    result = compare("tiny", out=tmp_path, seeds=1, **OPTIONS)
    assert left[0] == 100 - 5
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == kept.splitlines()
    assert len(lines) == 3 + 1 + 5
    kept_curves = [json.loads(line)["points"] for line in lines[:3]]
    assert [row["runs"][0]["points"] for row in result["methods"][:3]] == kept_curves


def test_a_search_that_cannot_be_made_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    result = compare("tiny", out=tmp_path, seeds=1, samplers=("cma-es",), spaces=("shared",), seconds=0.01, work=1)
    row = result["methods"][-1]
    assert (row["name"], row["status"], row["seeds"], row["curve"]) == ("CMA-ES, shared", "infeasible", [], [])
    assert "hypergrad-engine[optuna-all]" in row["reason"]
    assert "- CMA-ES, shared: the package cmaes is not installed" in tables(result)
    assert result["versions"]["cmaes"] is None


def test_without_matplotlib_only_the_picture_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    compare("tiny", out=tmp_path, seeds=1, samplers=("random",), spaces=("shared",), seconds=0.01, say=said.append)
    assert not (tmp_path / "compare.png").exists()
    assert (tmp_path / "compare.json").exists()
    assert said[-1].startswith("no compare.png")
    assert "pip install" in said[-1]


def test_without_optuna_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"hypergrad-engine\[optuna-all\]"):
        compare("tiny", out=tmp_path / "new", seeds=1)
    assert not (tmp_path / "new").exists()


def test_a_search_that_never_got_a_value_is_shown_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = runner.measured

    def empty(method: Method, budget: Any, seed: int) -> dict[str, Any]:
        run = measured(method, budget, seed)
        failed = {**run, "points": [], "evaluations": 0, "final_validation": math.nan, "test": {}}
        return failed if method.kind == "search" else run

    monkeypatch.setattr(runner, "measured", empty)
    options: dict[str, Any] = {"samplers": ("random",), "spaces": ("shared",), "seeds": 1, "seconds": 0.01, "work": 1}
    first = compare("tiny", out=tmp_path, **options)
    assert strictly(tmp_path / "compare.json")["methods"][-1]["final_validation"] is None
    assert "| random, shared               | 1       | –" in tables(first)
    assert tables(compare("tiny", out=tmp_path, **options)) == tables(first)  # read back from runs.jsonl


OWN = """
import torch
import hypergrad as hg


def ridge(seed):
    torch.manual_seed(seed)
    x, y = torch.randn(60, 5), torch.randn(60)

    def loss(params, rows):
        return (x[rows] @ params["w"] - y[rows]).square().mean()

    problem = hg.Problem(
        inner=lambda params, hparams: loss(params, slice(0, 20)),
        outer=lambda params, hparams: loss(params, slice(20, 40)),
        penalty=lambda params, hparams: (hparams["log_penalty"].exp() * params["w"].square()).sum(),
    )
    hparams, ranges = {"log_penalty": torch.zeros(5)}, {"log_penalty": (-6.0, 3.0)}
    return problem, {"w": torch.zeros(5)}, hparams, ranges, lambda params, hparams: loss(params, slice(40, 60))


def as_dict():
    problem, params, hparams, ranges, test = ridge(0)
    return {"problem": problem, "params": params, "hparams": hparams, "ranges": ranges, "test": test}
"""


@pytest.mark.parametrize("function", ["ridge", "as_dict"])
def test_the_command_on_a_task_of_ones_own(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compared_task.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"samplers": ("random",), "seeds": 1, "seconds": 0.02, "work": 40, "clock": "wall"}
    command = Compare(task=f"compared_task:{function}", out=tmp_path / "out", **options)
    assert command() == 0
    shown = capsys.readouterr()
    assert "5 hyperparameters" in shown.out
    assert "0.02 s of wall time" in shown.out
    assert "ours: Implicit(CG), Adam" in shown.out
    assert shown.err.count("seed 0, ") == 4
    quiet = Compare(task=f"compared_task:{function}", out=tmp_path / "out", quiet=True, json=True, **options)
    assert quiet() == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out) == strictly(tmp_path / "out" / "compare.json")


def test_quick_is_two_seeds_of_a_fifth_of_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the command's help."""
    assert Compare(task="sparse-100", quick=True, samplers=("tpe", "random"), out=tmp_path)() == 0
    found = strictly(tmp_path / "compare.json")
    assert (found["seeds"], found["budget"]["seconds"]) == ([0, 1], runner.QUICK.seconds)
    assert "Linear regression, one penalty for each of 100 features" in capsys.readouterr().out
