"""The published experiments run: each in its smallest size, through its own command line."""

from __future__ import annotations

import importlib
import json
import math
import os
from pathlib import Path

import pytest
import torch

from benchmarks.papers.experiment import Table, read_options
from hypergrad.errors import MissingDependencyError

FOLDER = Path(__file__).parents[1] / "benchmarks" / "papers"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.papers.{name}")
    before = torch.get_rng_state()
    try:
        result = module.main(["--smoke", "--out", str(tmp_path / "table.json")])
    except MissingDependencyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    assert torch.equal(torch.get_rng_state(), before), "the experiment draws from the global random numbers"
    assert json.loads((tmp_path / "table.json").read_text())["cells"] == result["cells"]
    assert len(result["cells"]) >= 2, "a table with one row compares nothing"
    values = [value for row in result["cells"].values() for seeds in row.values() for value in seeds]
    assert values
    assert sum(map(math.isfinite, values)) >= len(values) / 2
    shown = capsys.readouterr().out
    assert module.__doc__
    assert "Data: " in shown
    for row in result["cells"]:
        assert row in shown


def test_a_table_gives_mean_and_deviation_of_a_sample() -> None:
    table = Table("title", "data", {"accuracy": ".2f", "seconds": ".0f"})
    for value in (1.0, 2.0, 3.0):
        table.add("one", accuracy=value)
    table.add("two", accuracy=math.inf, seconds=5)
    assert "2.00 ± 1.00" in table.text()
    assert "diverged 1/1" in table.text()
    assert table.mean("one", "accuracy") == 2
    with pytest.raises(KeyError, match="speed"):
        table.add("one", speed=1)


def test_options() -> None:
    assert list(read_options("x", [], seeds=4).seeds) == [0, 1, 2, 3]
    assert list(read_options("x", ["--smoke"], seeds=4).seeds) == [0]
    assert list(read_options("x", ["--full", "--seeds", "2"]).seeds) == [0, 1]
    assert read_options("x", ["--full"]).pick(smoke=1, default=2, full=3) == 3
    with pytest.raises(SystemExit):
        read_options("x", ["--full", "--smoke"])
    with pytest.raises(SystemExit):
        read_options("x", ["--seeds", "0"])
