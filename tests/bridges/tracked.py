"""A run that is tracked, cut off and resumed; each tracker's own reader is asked what it holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.bridges.tracking import Tracker
from hypergrad.tree import Tree

STEPS = 9
SCALARS = {
    *("outer_loss", "norm", "residual", "inner_gradient_norm", "implied_error"),
    *("inner_gradients", "products", "outer_gradients", "seconds"),
}


class Recorder(hg.Callback):
    """Keeps every step."""

    def __init__(self) -> None:
        self.seen: dict[int, hg.Progress] = {}

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self.seen[progress.step] = progress


class Crash(hg.Callback):
    """Fails at a step, once the other callbacks have seen it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        if progress.step == self.at:
            run.whole = False  # as after a power cut: nothing more is saved
            raise OSError("the power failed")


def inner(params: Tree, hparams: Tree) -> Tensor:
    return (params["w"] - hparams["x"].sin()).square().sum() + hparams["y"].exp() * params["w"].square().sum()


def outer(params: Tree, _hparams: Tree) -> Tensor:
    return (params["w"] - 0.3).square().sum()


def start() -> tuple[Tree, Tree]:
    params = {"w": torch.zeros(4, dtype=torch.float64)}
    hparams = {"x": torch.linspace(-1, 1, 4, dtype=torch.float64), "y": torch.tensor(-1.0, dtype=torch.float64)}
    return params, hparams


def fit(*callbacks: hg.Callback, steps: int = STEPS, resume: Path | None = None) -> hg.Fitted:
    algorithm = hg.Implicit(hg.CG(rtol=1e-2), inner=hg.GradientDescent(lr=0.1, steps=20), stationarity=math.inf)
    trainer = hg.Trainer(hg.Problem(inner, outer), algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.05), callbacks)
    return trainer.fit(*start(), steps, resume=resume)


def cut_and_resumed(first: Tracker, second: Tracker, folder: Path) -> tuple[Recorder, Recorder]:
    """Run to step 6 with a checkpoint at step 4, crash, and go on from there with another tracker to step 9."""
    before, after = Recorder(), Recorder()
    with pytest.raises(OSError, match="the power failed"):
        fit(before, first, Crash(6), hg.Checkpoint(folder, every=4))
    assert hg.load_checkpoint(folder)["step_number"] == 4
    fit(after, second, hg.Checkpoint(folder, every=4), resume=folder)
    assert list(after.seen) == [5, 6, 7, 8, 9]
    return before, after


def expected(recorders: tuple[Recorder, ...], name: str) -> list[tuple[int, float]]:
    seen: dict[int, hg.Progress] = {}
    for recorder in recorders:
        seen |= recorder.seen
    values: dict[str, Any] = {
        "outer_loss": lambda progress: progress.outer_loss,
        "norm": lambda progress: progress.norm,
        "residual": lambda progress: progress.report.residual,
        "inner_gradient_norm": lambda progress: progress.report.inner_gradient_norm,
        "implied_error": lambda progress: progress.report.implied_error,
        "inner_gradients": lambda progress: progress.cost.inner_gradients,
        "products": lambda progress: progress.cost.products,
        "outer_gradients": lambda progress: progress.cost.outer_gradients,
    }
    return [(step, values[name](progress)) for step, progress in sorted(seen.items())]
