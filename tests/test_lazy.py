"""What ``import hypergrad`` brings with it, and names whose modules are imported when they are first asked for."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hypergrad as hg
from hypergrad.lazy import on_first_use
from hypergrad.solvers import bilevel
from tests.test_house import ROOT, public_names, typed_names

UNWANTED = {
    *("cmaes", "datasets", "higher", "jinja2.environment", "matplotlib", "mlflow", "optuna", "pandas", "shtab"),
    *("sklearn", "tensorboard", "torchdata", "tqdm", "wandb"),
    *("http.client", "http.server", "scipy", "statistics", "torch._dynamo", "torch._inductor", "xml.etree.ElementTree"),
    *("hypergrad.bridges.tracking", "hypergrad.cleaning", "hypergrad.commands", "hypergrad.compare", "hypergrad.demo"),
    *("hypergrad.report", "hypergrad.solvers.bilevel.maid", "hypergrad.solvers.bilevel.soba", "hypergrad.testing"),
}
"""Modules that take their time, and that most programs do without."""


def after(code: str) -> set[str]:
    """The modules that an interpreter of its own has after some code."""
    command = [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(json.loads(found))


def test_importing_brings_nothing_that_is_rarely_used() -> None:
    brought = after("import hypergrad") - after("import torch")
    assert {name for name in UNWANTED if name in brought} == set()
    assert "hypergrad.live" in brought


def test_a_late_name_brings_its_module() -> None:
    assert "hypergrad.solvers.bilevel.maid" in after("import hypergrad; hypergrad.MAID")
    assert "hypergrad.report.record" in after("import hypergrad; hypergrad.report.Record")


def test_all_public_names_are_there_and_listed() -> None:
    assert set(public_names()) <= set(dir(hg))
    assert [name for name in public_names() if not hasattr(hg, name)] == []
    assert set(public_names()) <= set(hg.__all__)  # type: ignore[attr-defined]


def test_a_star_brings_all_public_names() -> None:
    space: dict[str, object] = {}
    exec("from hypergrad import *", space)
    assert set(public_names()) <= set(space)
    assert space["Implicit"] is hg.Implicit


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    typed = typed_names(Path(bilevel.__file__))
    assert typed == {name: f"{bilevel.__name__}.{module}" for module, names in bilevel.NAMES.items() for name in names}
    assert {name for name, module in typed_names(Path(hg.__file__)).items() if module == bilevel.__name__} <= set(typed)


def test_a_late_name_is_one_object_wherever_it_is_asked_for() -> None:
    from hypergrad.solvers.bilevel.implicit import Implicit

    assert hg.Implicit is bilevel.Implicit is Implicit
    assert vars(hg)["Implicit"] is Implicit
    algorithm = hg.Implicit(hg.CG())
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm


@pytest.mark.parametrize("module", [hg, bilevel])
def test_a_wrong_name_is_an_attribute_error_with_a_suggestion(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Implict'") as caught:
        module.Implict  # noqa: B018
    assert caught.value.name == "Implict"
    assert caught.value.obj is module
    with pytest.raises(ImportError, match="cannot import name 'Implict'"):
        exec(f"from {module.__name__} import Implict")


def test_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("package_of_late_names")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    package.__getattr__, package.__dir__ = on_first_use(  # type: ignore[method-assign]
        package.__name__, {"fractions": ["Fraction"]}, modules=["xml.sax"]
    )
    assert {"Fraction", "sax"} <= set(dir(package))
    assert "Fraction" not in vars(package)
    assert package.Fraction(1, 2) == 0.5
    assert "Fraction" in vars(package)
    assert package.sax.__name__ == "xml.sax"
