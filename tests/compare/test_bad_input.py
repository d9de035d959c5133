"""Bad input is refused at the door, with a remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.compare import Budget, Ours, Task, compare
from hypergrad.compare.tasks import as_task, find
from hypergrad.errors import InputError
from tests.compare.common import small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sparse-10"}, "did you mean 'sparse-100000'|did you mean 'sparse-100"),
        ({"task": "no_such_module_at_all:task"}, "'no_such_module_at_all' was not found"),
        ({"task": "math:squirt"}, "math has no function 'squirt' \\(did you mean 'sqrt'"),
        ({"task": "math:"}, "module:factory"),
        ({"samplers": ("tpa",)}, "did you mean 'tpe'"),
        ({"spaces": ("group",)}, "did you mean 'grouped'"),
        ({"seeds": 0}, "seeds > 0"),
        ({"seeds": 1.5}, "a whole number"),
        ({"seconds": 0.0}, "seconds > 0"),
        ({"seconds": float("nan")}, "seconds > 0"),
        ({"work": 0}, "work > 0"),
        ({"clock": "cpus"}, "did you mean 'cpu'"),
    ],
)
def test_settings(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(InputError, match=message):
        compare(**{"task": "sparse-100", "out": out, **options})
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="which is a file"):
        compare("sparse-100", out=tmp_path / "file", seeds=1)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "a int"),
        ((1, 2), "a tuple"),
        ({"problem": 1}, "nothing under 'params'"),
        ({"problem": 1, "params": 1, "hparams": 1, "ranges": 1, "tests": 1}, "'tests' \\(did you mean 'test'"),
    ],
)
def test_what_a_factory_returns(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_task("mine:task", given)


def test_a_factory_that_wants_more_than_a_seed() -> None:
    with pytest.raises(InputError, match="more than a seed"):
        find("operator:setitem")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": {}}, "for every hyperparameter"),
        ({"ranges": {"log_penalti": (0.0, 1.0)}}, "did you mean 'log_penalty'"),
        ({"ranges": {"log_penalty": (1.0, 1.0)}}, "low < high"),
        ({"ranges": {"log_penalty": (-8.0, float("inf"))}}, "finite"),
        ({"ranges": {"log_penalty": (0.0, 1.0)}}, "outside of its range"),
        ({"groups": {"log_penalty": torch.zeros(3, dtype=torch.long)}}, "of the shape"),
        ({"groups": {"log_penalty": torch.zeros(12)}}, "whole numbers from 0"),
        ({"groups": {"log_penalty": torch.full((12,), -1)}}, "whole numbers from 0"),
        ({"test": 3}, "test=3"),
        ({"inner": hg.CG()}, "inner"),
        ({"problem": None}, "problem"),
    ],
)
def test_tasks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(small(), **changes)


def test_a_test_that_returns_no_number() -> None:
    task: Task = small(test=lambda params, hparams: "good")
    with pytest.raises(InputError, match="test, which returned str"):
        task.tested(dict(task.params), dict(task.hparams))


def test_ways_of_ours() -> None:
    adam = hg.outer.Torch(torch.optim.Adam, lr=0.1)
    with pytest.raises(InputError, match="algorithm"):
        Ours(hg.CG(), adam)
    with pytest.raises(InputError, match="outer"):
        Ours("auto", torch.optim.Adam)  # type: ignore[arg-type]


def test_budgets() -> None:
    with pytest.raises(InputError, match="patience >= 1"):
        Budget(seconds=1.0, work=1, patience=0.5)
