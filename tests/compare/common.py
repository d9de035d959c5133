"""A task that is over in milliseconds, and budgets that count work only."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import hypergrad as hg
from hypergrad.compare import Budget, FromStart, Ours, Task, regularisation
from hypergrad.testing.counting import Counter, counted


def small(seed: int = 0, size: int = 12, **changes: Any) -> Task:
    """Sparse regression with few features."""
    return dataclasses.replace(regularisation.sparse(size, seed), **changes)


def watched(**changes: Any) -> tuple[Task, Counter]:
    """The same task, with a counter inside its objectives, which sees no penalty that is given apart."""
    task = small(**changes)
    inner, penalty = task.problem.inner, task.problem.penalty
    assert inner is not None
    assert penalty is not None
    whole = dataclasses.replace(
        task.problem, inner=lambda params, hparams: inner(params, hparams) + penalty(params, hparams), penalty=None
    )
    problem, counter = counted(whole)
    return dataclasses.replace(task, problem=problem), counter


def by_work(passes: int) -> Budget:
    """A budget that no clock ends."""
    return Budget(seconds=1e-9, work=passes, patience=1e12)


def stepping() -> Task:
    """The task with training that is cut short, from the start every time."""
    task = small()
    inner = hg.GradientDescent(lr=0.1, steps=18)
    algorithm = hg.Implicit(hg.Neumann(3), inner=FromStart(inner, task.params), stationarity=float("inf"))
    ours = {"Neumann": Ours(algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.3))}
    return dataclasses.replace(task, inner=inner, warm=False, ours=ours)
