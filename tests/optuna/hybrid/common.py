"""A small ridge regression with a penalty for each weight, whose structure a study proposes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.bridges.optuna import HybridObjective, Tuning
from hypergrad.tree import Tree

GENERATOR = torch.Generator().manual_seed(0)
X, XV = (torch.randn(12, 3, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
TRUTH = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
Y, YV = (x @ TRUTH + 0.5 * torch.randn(12, dtype=torch.float64, generator=GENERATOR) for x in (X, XV))
ALGORITHM = hg.Implicit(hg.Dense(), inner=hg.Newton(tolerance=1e-8))
ADAM = hg.outer.Torch(torch.optim.Adam, lr=0.2)


def features(x: Tensor, degree: int) -> Tensor:
    return torch.cat([x**power for power in range(1, degree + 1)], dim=1)


def problem(degree: int = 1, **options: Any) -> hg.Problem:
    a, av = features(X, degree), features(XV, degree)
    return hg.Problem(
        inner=lambda params, hparams: (a @ params["w"] - Y).square().mean(),
        outer=lambda params, hparams: (av @ params["w"] - YV).square().mean(),
        penalty=lambda params, hparams: (hparams["decay"].exp() * params["w"].square()).sum(),
        **options,
    )


def start(degree: int = 1, decay: float = 1.0) -> tuple[Tree, Tree]:
    width = 3 * degree
    zeros = torch.zeros(width, dtype=torch.float64)
    return {"w": zeros}, {"decay": torch.full((width,), decay, dtype=torch.float64)}


def build(trial: Any) -> Any:
    degree = trial.suggest_int("degree", 1, 2)
    return problem(degree), *start(degree), ALGORITHM


def fixed(trial: Any) -> Any:
    trial.suggest_float("unused", 0.0, 1.0)
    return problem(), *start(), ALGORITHM


def tuned(trial: Any, **options: Any) -> Tuning:
    make: Any = Tuning
    found: Tuning = make(*fixed(trial), **options)
    return found


def loss(params: Tree, hparams: Tree) -> float:
    degree = len(params["w"]) // 3
    return float((features(XV, degree) @ params["w"] - YV).square().mean())


def objective(function: Any = build, steps: int = 4, **options: Any) -> HybridObjective:
    options.setdefault("outer", ADAM)
    options.setdefault("wait", 0.0)
    return HybridObjective(function, steps, **options)


def study(**options: Any) -> optuna.Study:
    options.setdefault("sampler", optuna.samplers.RandomSampler(seed=0))
    options.setdefault("pruner", optuna.pruners.NopPruner())
    return optuna.create_study(**options)


def run(found: optuna.Study, *, trials: int = 1, function: Any = build, **options: Any) -> optuna.Study:
    found.optimize(objective(function, **options), n_trials=trials)
    return found


def journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend

    backend: Any = JournalFileBackend(str(path))
    return optuna.storages.JournalStorage(backend)


def attrs(trial: Any) -> dict[str, Any]:
    return {name.removeprefix("hypergrad:"): value for name, value in trial.user_attrs.items()}


class Interrupting(hg.Callback):
    """Presses Ctrl-C, or does something else, at a step of the first trial that gets there."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        if progress.step == self.at:
            self.at = -1
            self.act()

    def act(self) -> None:
        signal.raise_signal(signal.SIGINT)


def with_callbacks(*callbacks: hg.Callback) -> Any:
    def built(trial: Any) -> Tuning:
        return tuned(trial, callbacks=callbacks)

    return built
