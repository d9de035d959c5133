"""What the examples in the commands' docstrings need to run, and what makes them quick: one entry a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hypergrad as hg
from hypergrad.report import Record

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


def _tables(folder: Path) -> None:
    kinds = ["ab"[n % 2] for n in range(100)]
    widths = (f"{n * 37 % 101 + 60 * (n % 2)},{kind}" for n, kind in enumerate(kinds))
    (folder / "flowers.csv").write_text("\n".join(["width,species", *widths]), encoding="utf-8")
    words = [f"{('poor', 'good')[n % 2]} thing w{n % 7} v{n % 11} u{n % 13},{kind}" for n, kind in enumerate(kinds)]
    for name, part in (("reviews.csv", words[:60]), ("checked.csv", words[60:])):
        (folder / name).write_text("\n".join(["review,rating", *part]), encoding="utf-8")


def _run(folder: Path) -> None:
    problem, params, hparams, algorithm = _factory()
    out = folder / "hypergrad-demo"
    callbacks = [Record(out), hg.History(out / "history.jsonl")]
    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.SGD, lr=0.1), callbacks)
    trainer.fit(params, hparams, steps=2)


def _factory() -> Any:
    names: dict[str, Any] = {}
    exec(RIDGE, names)
    return names["factory"]()


PREPARE: dict[str, Callable[[Path], None]] = {
    "check": _ridge,
    "clean": _tables,
    "report": _run,
    "watch": _run,
}
"""Writes the files that a command's examples name into the folder they run in."""

QUICK: dict[str, tuple[str, ...]] = {
    "clean": ("--steps", "2", "--seeds", "1"),
    "compare": ("--seeds", "1", "--seconds", "0.05"),
    "demo": ("--steps", "1"),
}
"""Flags added to each line of a command."""
