"""What the examples in the commands' docstrings need to run, and what makes them quick: one entry a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

RIDGE = """
import torch
import hypergrad as hg


def factory():
    problem = hg.Problem(
        inner=lambda params, hparams: ((params["w"] - 1) ** 2 + hparams["x"].exp() * params["w"] ** 2).sum(),
        outer=lambda params, hparams: ((params["w"] - 0.25) ** 2).sum(),
    )
    params, hparams = ({name: torch.zeros(2, dtype=torch.float64)} for name in ("w", "x"))
    return problem, params, hparams, hg.Implicit(hg.CG(), inner=hg.Newton())
"""


def _ridge(folder: Path) -> None:
    (folder / "ridge.py").write_text(RIDGE, encoding="utf-8")


def _finished_run(folder: Path) -> None:
    run = folder / "hypergrad-demo"
    run.mkdir(exist_ok=True)
    times = {"began": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:01+00:00"}
    (run / "run.json").write_text(json.dumps({**times, "stopped": "steps"}), encoding="utf-8")
    (run / "history.jsonl").write_text(json.dumps({"step": 1, "outer_loss": 1.0}) + "\n", encoding="utf-8")


PREPARE: dict[str, Callable[[Path], None]] = {
    "check": _ridge,
    "report": _finished_run,
    "watch": _finished_run,
}
"""Writes the files that a command's examples name into the folder they run in."""

QUICK: dict[str, tuple[str, ...]] = {
    "demo": ("--steps", "1"),
}
"""Flags added to each line of a command."""
