"""What the examples promise beyond running: short, listed, the same every time, gradients zeroed in time."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("_"))
LIVE_LOOPS = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *EXAMPLES]
    if re.search(r"outer_optimizer\.step\(\)", path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_listed(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    assert f"examples/{path.name}" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dataset_distillation", "domain_weights", "few_shot"])
def test_an_example_repeats_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"examples.{name}").main
    assert main(steps=2) == main(steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


@pytest.mark.parametrize("path", LIVE_LOOPS, ids=lambda path: path.name)
def test_gradients_of_hyperparameters_are_zeroed_right_before_each_hypergradient(path: Path) -> None:
    """A training loss's ``backward()`` fills them as well; after the outer step is too early."""
    lines = path.read_text(encoding="utf-8").splitlines()
    calls = [number for number, line in enumerate(lines) if "hyper.backward(" in line]
    trained = [number for number in calls if re.search(r"loss.*\.backward\(\)", "\n".join(lines[number - 8 : number]))]
    assert trained
    assert all(re.search(r"optimizer\.zero_grad\(\)|\.grad = None", lines[number - 1]) for number in trained)
