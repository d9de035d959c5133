"""The pages of the documentation are complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import hypergrad as hg
from tests.test_house import public_names, solvers_and_algorithms

DOCS = Path(__file__).parents[1] / "docs"
ITEMS = ("cost", "exact|biased|not an estimate", "needs", "source", "deviations")
"""What a section of the catalogue has to say."""


def test_api_page_names_everything_public() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    described = {line.split("::")[1].strip() for line in page.splitlines() if line.startswith(".. auto")}
    modules = {f"hypergrad.{name}" for name in ("errors", "outer", "report", "solvers.best_response", "testing")}
    assert modules <= described
    assert set(public_names()) - {"best_response", "errors", "outer", "report"} - described == set()


def test_generated_tables_name_every_algorithm_and_solver() -> None:
    pages = runpy.run_path(str(DOCS / "tables.py"))
    tables = {name: make() for name, make in pages["TABLES"].items()}
    text = "\n".join(tables.values())
    assert [kind.__name__ for kind in solvers_and_algorithms() if f"hypergrad.{kind.__name__}`" not in text] == []
    for name, lines in tables.items():
        widths = {len(line.replace("\\|", "").split("|")) for line in lines.splitlines()}
        assert len(widths) == 1, f"{name}: rows of different lengths"
        empty = [line for line in lines.splitlines() if "|  |" in line]
        assert empty == [], f"{name}: a class does not say what it costs or needs"


def catalogue() -> dict[str, str]:
    """Every section of the catalogue by its heading."""
    found = {}
    for page in (DOCS / "catalogue").glob("*.md"):
        text = "\n" + page.read_text(encoding="utf-8")
        for section in re.split(r"\n##? ", text)[1:]:
            heading, _, body = section.partition("\n")
            found[heading] = body
    return found


def entry(name: str) -> str:
    """The heading under which the catalogue describes a class."""
    return {"BOREP": "BO-REP", "LVHBA": "LV-HBA", "BSVRBv1": "BSVRB", "BSVRBv2": "BSVRB"}.get(name, name)


@pytest.mark.parametrize(
    "name",
    [kind.__name__ for kind in solvers_and_algorithms() if issubclass(kind, hg.Algorithm)]
    + ["HOAG", "MAID", "Best-response networks"],
)
def test_the_catalogue_describes_every_algorithm(name: str) -> None:
    text = catalogue()[entry(name)]
    missing = [item for item in ITEMS if not re.search(rf"(?im)^[|*\- ]*(our )?({item})\b", text)]
    assert missing == []
