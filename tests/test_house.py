"""The house: imports point down, packaging is complete, public names have docstrings, scripts run."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "lazy", "streams", "version"),
    ("factories", "memo", "settings", "shortage"),
    ("backward", "evaluation", "outer_schedules", "schedules", "splits", "versions"),
    ("tree", "data", "domains", "loaders"),
    ("accumulated", "projections"),
    ("guards", "objective", "outside", "stationarity"),
    ("frame",),
    ("lagrangian",),
    ("inner_problem",),
    ("problem",),
    ("algorithm", "held_out", "linear"),
    ("inner", "preconditioner", "probe"),
    ("kinds", "memory"),
    ("solvers", "solvers.linear"),
    ("solvers.inner",),
    ("saved",),
    ("solvers.best_response",),
    ("oracle",),
    ("outer",),
    ("solvers.bilevel", "solvers.best_response"),
    ("hyperparameters",),
    ("hypergradient", "differentiable", "live", "check", "bridges"),
    ("run",),
    ("callbacks", "population"),
    ("averaging",),
    ("trainer",),
    ("report",),
    ("",),  # hypergrad/__init__.py: the public names
    ("bridges.tracking",),
    ("bridges.mlflow", "bridges.tensorboard", "bridges.wandb"),
    ("testing", "demo", "bridges.optuna", "cleaning"),
    ("compare",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Modules and packages of ``hypergrad``, the lowest floor first: what stands on one may import what lies below it.

Neighbours on one floor do not import each other; modules of one package may, without going round in a circle.
"""

TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "constraints.txt",
    "hypergrad",
    "solvers",
    "tests",
    "examples",
    "benchmarks",
    "docs",
    ".ci",
}
OPTIONAL = {
    *("cmaes", "higher", "jinja2", "matplotlib", "mlflow", "mlxtend", "optuna", "shtab", "sklearn"),
    *("tensorboard", "torchdata", "tqdm", "wandb"),
}
SMOKE: dict[str, dict[str, Any]] = {
    "cleaning_cost": {"examples": 128, "epochs": 1, "repeats": 1},
    "example_weights": {"sizes": (100, 1000), "batch": 8, "width": 8, "steps": 2, "repeats": 2},
    "forecast": {"size": 8, "steps": 2, "repeats": 1},
    "live_cost": {"width": 2, "batch": 8, "weights": 300, "terms": 2, "repeats": 2},
    "optimizer_step": {"sizes": ((2, 10),), "repeats": 2},
    "profile": {"networks": ("mlp", "logistic"), "terms": 2, "repeats": 1, "smoke": True},
}
"""Arguments with which the ``main`` of each benchmark is over in seconds."""
PARTS = {
    "exact",
    *("finite_sums", "harness", "memory", "plots", "problems", "race", "race_data", "race_problems", "race_tuning"),
    *("results", "scaled", "single_loop"),
}
"""Modules of ``benchmarks/`` that benchmarks are made of."""


def library(root: Path) -> dict[str, Path]:
    """Every module of the library under its import name; ``hypergrad/solvers`` is a link to ``solvers``."""
    found = {}
    for folder, prefix in (("hypergrad", "hypergrad"), ("solvers", "hypergrad.solvers")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if folder == "solvers" or parts[0] != "solvers":
                found[".".join([prefix, *parts]).removesuffix(".__init__")] = path
    return found


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found


def unit(module: str) -> str | None:
    """The longest name in FLOORS that a module belongs to."""
    name = module.removeprefix("hypergrad").removeprefix(".")
    known = [entry for floor in FLOORS for entry in floor if name == entry or (entry and name.startswith(entry + "."))]
    return max(known, key=len, default=None)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, and those that hang on it."""
    left = dict(graph)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def violations(root: Path) -> list[str]:
    """What breaks the rule that imports point down, one line each."""
    modules = library(root)
    level = {entry: number for number, floor in enumerate(FLOORS) for entry in floor}
    graph = {module: imports(path, modules) for module, path in modules.items()}
    found = [f"{module} stands on no floor" for module in modules if unit(module) is None]
    for module, needed in graph.items():
        mine = unit(module)
        for other in sorted(needed):
            if other.split(".")[0] in ("solvers", "tests", "examples", "benchmarks", "docs"):
                found.append(f"{module} imports {other}, which is not part of the library")
            if other.split(".")[0] != "hypergrad" or mine is None:
                continue
            theirs = unit(other)
            if theirs is None:
                found.append(f"{module} imports {other}, which stands on no floor")
            elif mine != theirs and level[mine] <= level[theirs]:
                found.append(f"{module} imports {other}, which does not lie below it")
    round_about = circle(graph)
    return found + ([f"imports go round in a circle: {round_about}"] if round_about else [])


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


PLANTS = {
    "up": ("hypergrad/tree.py", "from hypergrad.problem import Problem", "hypergrad.problem"),
    "across": ("hypergrad/live.py", "import hypergrad.check", "hypergrad.check"),
    "to the top": ("solvers/bilevel/implicit.py", "import hypergrad as hg", "imports hypergrad,"),
    "to the top, beside a module": ("hypergrad/live.py", "from hypergrad import CG, errors", "imports hypergrad,"),
    "inside a function": ("hypergrad/errors.py", "def f():\n    from hypergrad import cli", "hypergrad.cli"),
    "from a higher solver": ("solvers/linear/cg.py", "from hypergrad.solvers.inner import Newton", "solvers.inner"),
    "from its own package": ("solvers/inner/adam.py", "from hypergrad.solvers.inner import Newton", "circle"),
    "between neighbours": (
        "solvers/linear/preconditioners.py",
        "from hypergrad.solvers.linear.spectrum import top_curvature",
        "circle",
    ),
    "by the folder's name": ("solvers/bilevel/unrolled.py", "from solvers.linear.cg import CG", "not part of"),
    "from the tests": ("hypergrad/run.py", "import tests.algorithms", "not part of"),
    "new module": ("hypergrad/helpers.py", "", "hypergrad.helpers stands on no floor"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_violation_is_caught(plant: str, tmp_path: Path) -> None:
    where, line, message = PLANTS[plant]
    for folder in ("hypergrad", "solvers"):
        skip = shutil.ignore_patterns("__pycache__", *(["solvers"] if folder == "hypergrad" else []))
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    before = violations(tmp_path)
    with (tmp_path / where).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    found = [text for text in violations(tmp_path) if text not in before]
    assert found
    assert message in "\n".join(found)


def test_every_floor_is_inhabited() -> None:
    units = {unit(module) for module in library(ROOT)}
    assert [entry for floor in FLOORS for entry in floor if entry not in units] == []


def test_optional_libraries_are_imported_by_the_demo_and_the_bridges_only() -> None:
    modules = library(ROOT)
    guilty = {
        module: wanted
        for module, path in modules.items()
        if not module.startswith(
            tuple(f"hypergrad.{name}" for name in ("bridges", "cleaning", "commands", "compare", "demo", "report"))
        )
        and (wanted := {name.split(".")[0] for name in imports(path, modules)} & OPTIONAL)
    }
    assert guilty == {}


RECORD = """
import sys
import torch


class Recorder:
    def find_spec(self, name, path=None, target=None):
        print(name.split(".")[0])


loaded = set(sys.modules)
sys.meta_path.insert(0, Recorder())
import hypergrad
print(*(name.split(".")[0] for name in set(sys.modules) - loaded), sep="\\n")
"""


def test_import_asks_for_no_optional_library() -> None:
    """Attempts count, too: an optional library may be missing here, or hidden in a try block."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", RECORD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = set(done.stdout.split())
    assert "hypergrad" in asked
    assert asked & (OPTIONAL | {"scipy", "pandas", "tests"}) == set()


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_are_those_on_disk() -> None:
    packages = {module for module, path in library(ROOT).items() if path.name == "__init__.py"}
    folders = {
        ".".join([prefix, *path.parent.relative_to(ROOT / folder).parts])
        for folder, prefix in (("hypergrad", "hypergrad"), ("solvers", "hypergrad.solvers"))
        for path in (ROOT / folder).rglob("*.py")
        if not (folder == "hypergrad" and path.relative_to(ROOT / folder).parts[0] == "solvers")
    }
    assert folders == packages, "a folder without __init__.py"
    assert settings()["tool"]["setuptools"]["packages"] == sorted(packages)


def test_solvers_are_a_link() -> None:
    link = ROOT / "hypergrad" / "solvers"
    assert link.is_symlink()
    assert link.readlink() == Path("../solvers")


def test_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if "==" not in pin or "+" in pin] == []
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    project = settings()["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {name.partition(">=")[0].partition("[")[0].lower().replace("_", "-") for name in wanted}
    assert names - pinned == {"hypergrad-engine"}


def test_top_level_is_what_it_was_meant_to_be() -> None:
    """Tracked files and those that a commit of everything would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {path.partition("/")[0] for path in listed if (ROOT / path).exists()}
    assert TOP_LEVEL - found == set()
    assert {name for name in found - TOP_LEVEL if not name.startswith(".")} == set()


def typed_names(path: Path) -> dict[str, str]:
    """The names that a module exports in the form ``X as X``, also for type checkers alone, and where they are from."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    late = [node for block in body if isinstance(block, ast.If) for node in block.body]
    exported = [node for node in [*body, *late] if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in exported for alias in node.names if alias.asname == alias.name}


def public_names() -> list[str]:
    """The names that ``hypergrad/__init__.py`` exports in the form ``X as X``."""
    return [name for name in typed_names(ROOT / "hypergrad" / "__init__.py") if not name.startswith("__")]


def documented(value: object) -> bool:
    """Whether a docstring was written: a dataclass without one gets its signature."""
    text = value.__doc__ or ""
    return bool(text.strip()) and not text.startswith(f"{getattr(value, '__name__', '')}(")


def test_public_names_have_docstrings() -> None:
    assert [name for name in public_names() if not documented(getattr(hg, name))] == []


def test_an_undocumented_dataclass_is_noticed() -> None:
    from dataclasses import dataclass

    @dataclass
    class Bare:
        x: int

    assert not documented(Bare)
    assert documented(hg.Cost)


def solvers_and_algorithms() -> Iterator[type]:
    bases = (hg.Algorithm, hg.InnerSolver, hg.LinearSolver, hg.Preconditioner)
    for name in public_names():
        value = getattr(hg, name)
        if inspect.isclass(value) and issubclass(value, bases) and not inspect.isabstract(value):
            yield value


def test_algorithms_and_solvers_have_a_running_example() -> None:
    missing = [kind.__name__ for kind in solvers_and_algorithms() if ">>> " not in (kind.__doc__ or "")]
    assert missing == []


def test_library_files_are_under_400_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in library(ROOT).values()
    }
    assert {path: length for path, length in lengths.items() if length >= 400} == {}


def scripts(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", scripts("examples"))
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.import_module(f"examples.{name}").main(steps=2)
    assert math.isfinite(found)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", [name for name in scripts("benchmarks") if name not in PARTS])
def test_benchmarks_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in SMOKE, "a benchmark needs arguments for a smoke run"
    threads = torch.get_num_threads()
    try:
        result = importlib.import_module(f"benchmarks.{name}").main(**SMOKE[name])
    finally:
        torch.set_num_threads(threads)
    assert result
    assert capsys.readouterr().out.strip()
