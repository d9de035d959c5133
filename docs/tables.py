"""The tables of ``algorithms.md``, made from the classes themselves.

Importable without Sphinx, so that a test can look for missing rows.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypergrad as hg
from hypergrad.commands.catalogue import paragraph, public, summary, trait
from hypergrad.inner import UpdateRule

Row = list[str]
ROOT = Path(__file__).parents[1]


def cell(text: str) -> str:
    """Return text for a cell of a MyST table: roles and literals as code, everything else as it is read."""
    parts = re.split(r"(:[a-z:]+:`[^`]*`|``[^`]*``)", text)
    for place, part in enumerate(parts):
        if place % 2:
            name = part.strip("`").rpartition("`")[2].rpartition("~")[2]
            parts[place] = f"`{name.rpartition('.')[2] if '~' in part else name}`".replace("|", "\\|")
        else:
            parts[place] = re.sub(r"([\\|*_<>\[\]#$])", r"\\\1", part)
    return "".join(parts)


def link(kind: type) -> str:
    """Return a reference to the class in ``api.md``."""
    return "{py:class}`~hypergrad." + kind.__name__ + "`"


def table(header: Row, rows: Iterable[Row]) -> str:
    """Return a MyST table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows(base: type, columns: dict[str, Callable[[Any], str]]) -> str:
    """Return the table of an interface: name, the columns, and what the class is."""
    header = ["name", *columns, "what it is"]
    return table(
        header,
        [[link(kind), *(cell(read(kind)) for read in columns.values()), cell(summary(kind))] for kind in public(base)],
    )


def attribute(name: str) -> Callable[[type], str]:
    """Return a column that reads a trait."""
    return lambda kind: trait(kind, name)


def bilevel() -> str:
    """Return the table of bilevel algorithms."""
    return rows(hg.Algorithm, {name: attribute(name) for name in ("exact", "stochastic", "order", "cost", "needs")})


def inner() -> str:
    """Return the table of inner solvers."""
    return rows(
        hg.InnerSolver,
        {
            "differentiable": lambda kind: "yes" if issubclass(kind, UpdateRule) else "no",
            "tunable settings": lambda kind: ", ".join(getattr(kind, "tuned", ())) or "none",
            "cost": lambda kind: paragraph(kind, "Cost"),
        },
    )


def linear() -> str:
    """Return the table of linear solvers."""
    return rows(
        hg.LinearSolver,
        {
            "exact": attribute("exact"),
            "needs symmetric": attribute("needs_symmetric"),
            "needs definite": attribute("needs_definite"),
            "warm start": attribute("uses_start"),
            "products": attribute("cost"),
        },
    )


def preconditioners() -> str:
    """Return the table of preconditioners."""
    return rows(hg.Preconditioner, {"cost": lambda kind: paragraph(kind, "Cost")})


def rates() -> str:
    """Return the table of claimed and measured rates, from those that the tests check."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    measured = importlib.import_module("tests.rates").RATES
    header = [
        "row",
        "claimed slope",
        "measured slope (three seeds where no other number stands)",
        "against",
        "claim",
        "setting",
        "fails without",
    ]
    return table(header, [[f"`{name}`", *map(cell, written(rate))] for name, rate in measured.items()])


def written(rate: Any) -> Row:
    """Return the cells of a rate: two numbers and the words for them."""
    claim = f"{rate.claim} ({rate.source})"
    found = f"{signed(rate.measured)} ± {rate.spread:.2f}"
    return [signed(rate.claimed), found, rate.against, claim, rate.setting, rate.broken]


def signed(value: float) -> str:
    """Return a number with two digits and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


TABLES = {
    "bilevel": bilevel,
    "inner": inner,
    "linear": linear,
    "preconditioners": preconditioners,
    "rates": rates,
}


def write(folder: Path) -> None:
    """Write every table to ``folder/name.md``, leaving files that have not changed alone."""
    folder.mkdir(exist_ok=True)
    for name, make in TABLES.items():
        path, text = folder / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
