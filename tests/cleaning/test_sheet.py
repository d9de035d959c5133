"""The sheet that compares the cleaning with others runs, and its data are what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cleaning import __main__ as sheet
from benchmarks.cleaning.data import NAMES, NOISES, adult, draw
from hypergrad.errors import MissingDependencyError


def needs_data(call: Any, *arguments: Any) -> Any:
    """Skip where a data set is missing, but not where CI is."""
    try:
        return call(*arguments)
    except MissingDependencyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_sheet_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cleanlab")
    before = torch.get_rng_state()
    arguments = ["--smoke", "--data", "adult", "--out", str(tmp_path / "table.json")]
    result = needs_data(sheet.main, arguments)
    assert torch.equal(torch.get_rng_state(), before), "the sheet draws from the global random numbers"
    assert json.loads((tmp_path / "table.json").read_text())["tables"] == result["tables"]
    assert len(result["tables"]) == len(NOISES)
    shown = capsys.readouterr().out
    for title, rows in result["tables"].items():
        assert title in shown
        assert rows["everything"]["gap"] == [0.0]
        assert rows["oracle"]["gap"] == [1.0]
        for name in ("hypergrad", "hypergrad, weights alone", "loss ranking", "cleanlab + trusted"):
            assert 0 <= rows[name]["F1"][0] <= 1
            assert rows[name]["AUC"][0] > 0.5, f"{name} is no better than chance on {title}"


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_what_was_asked_for(name: str, kind: str) -> None:
    if name in ("newsgroups", "fashion") and kind != "uniform":
        pytest.skip("reading it once is enough")
    parts = needs_data(draw, name, kind, 0.3, (60, 20, 30), 0, 50)
    assert [len(part) for part in (parts.train, parts.trusted, parts.test)] == [60, 20, 30]
    assert int(parts.wrong.sum()) == 18
    again = draw(name, kind, 0.3, (60, 20, 30), 0, 50)
    assert torch.equal(parts.train.labels, again.train.labels)
    assert torch.equal(parts.train.inputs, again.train.inputs)


def test_the_census_is_read_whole() -> None:
    inputs, rich = needs_data(adult)
    assert inputs.shape == (32_561, 108)
    assert int(rich.sum()) == 7841
    assert torch.equal(inputs[0, :1], torch.tensor([39.0]))


def test_the_census_names_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="pip download --no-deps mglearn"):
        adult(tmp_path)
