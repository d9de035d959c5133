"""``hypergrad algorithms``: every algorithm with what the documentation says of it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

import hypergrad as hg
from hypergrad.cli import main
from hypergrad.commands.catalogue import entries, public

Capture = pytest.CaptureFixture[str]
NAMES = [kind.__name__ for kind in public(hg.Algorithm)]


def printed(capsys: Capture, *arguments: str) -> str:
    assert main(["algorithms", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_names_every_algorithm_with_its_needs_and_cost(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    lines = printed(capsys).splitlines()
    assert lines[0].split() == ["name", "order", "needs", "cost"]
    assert [line.split()[0] for line in lines[1:]] == NAMES
    for line, name in zip(lines[1:], NAMES, strict=True):
        kind: Any = getattr(hg, name)
        assert " ".join(line.split()) == f"{name} {kind.order} {kind.needs} {kind.cost}"


@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_table_is_as_wide_as_the_terminal(width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed(capsys).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == NAMES


def test_json_holds_what_the_documentation_shows(capsys: Capture) -> None:
    found = json.loads(printed(capsys, "--json"))
    assert [entry["name"] for entry in found] == NAMES
    table = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tables.py"))["TABLES"]["bilevel"]()
    for entry, line in zip(found, table.splitlines()[2:], strict=True):
        assert f"`~hypergrad.{entry['name']}`" in line
        assert f"| {entry['order']} |" in line
        assert entry["cost"].replace("(", "").split()[0] in line
        assert set(entry) == {"name", "summary", "exact", "stochastic", "order", "cost", "needs"}


def test_filters_keep_what_fits(capsys: Capture) -> None:
    kept = json.loads(printed(capsys, "--order", "1", "--needs", "First Derivatives", "--json"))
    expected = [entry for entry in entries() if entry.order <= 1 and "first derivatives" in entry.needs.lower()]
    assert [entry["name"] for entry in kept] == [entry.name for entry in expected]
    assert {"F2SA", "BOME"} <= {entry["name"] for entry in kept}
    orders = {entry["order"] for entry in json.loads(printed(capsys, "--order", "0", "--json"))}
    assert orders == {0}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_one_algorithm_has_its_text_and_its_source(name: str, capsys: Capture) -> None:
    text = printed(capsys, name.lower())
    words = " ".join(text.split())
    kind: Any = getattr(hg, name)
    assert text.startswith(f"hypergrad.{name}(")
    assert f"needs: {kind.needs}" in words
    assert f"cost: {kind.cost}" in words
    assert "``" not in text
    more = json.loads(printed(capsys, name, "--json"))
    assert more["name"] == name
    if "Source: " in (kind.__doc__ or ""):
        assert more["source"]
        assert more["source"].split()[0] in text


def test_a_misspelt_name_is_told(capsys: Capture) -> None:
    assert main(["algorithms", "Implict"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "did you mean 'Implicit'?" in err


def test_needs_that_nothing_has_are_told(capsys: Capture) -> None:
    assert main(["algorithms", "--needs", "a quantum computer", "--order", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'a quantum computer' and order 1" in err
