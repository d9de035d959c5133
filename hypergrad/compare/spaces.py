"""Search spaces: how many numbers a search chooses, and which hyperparameters they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.compare.task import Task
from hypergrad.tree import Tree

SPACES = ("full", "grouped", "shared")
MOST = 1000
"""Numbers that a search chooses at most: each is an Optuna parameter of every trial."""


@final
@dataclass(frozen=True)
class Space:
    """Places from 0 to 1, and the hyperparameters between the ends of their ranges that these stand for.

    Attributes:
        name: ``"full"``, ``"grouped"`` or ``"shared"``.
        task: the task.
        index: which place each entry of all hyperparameters, one after another, is at.
        size: number of places.
    """

    name: str
    task: Task
    index: Tensor
    size: int

    @property
    def infeasible(self) -> str | None:
        """Why a search over it is not run, or ``None``."""
        if self.size <= MOST:
            return None
        return f"{self.size:,} Optuna parameters a trial; at most {MOST:,} are tried"

    def expand(self, places: Sequence[float]) -> Tree:
        """Return the hyperparameters at these places."""
        chosen = torch.tensor(list(places), dtype=torch.float64)[self.index]
        parts = chosen.split([value.numel() for value in self.task.hparams.values()])
        found = {}
        for (key, value), part in zip(self.task.hparams.items(), parts, strict=True):
            low, high = self.task.ranges[key]
            found[key] = (low + (high - low) * part).to(value).view_as(value)
        return found

    def start(self) -> list[float]:
        """Return the places of the task's start, the mean of all entries that share one."""
        ends = [(key, *self.task.ranges[key]) for key in self.task.hparams]
        flat = torch.cat(
            [((self.task.hparams[k] - low) / (high - low)).flatten().double().cpu() for k, low, high in ends]
        )
        total = torch.zeros(self.size, dtype=torch.float64).index_add_(0, self.index, flat)
        counts = torch.bincount(self.index, minlength=self.size)
        found: list[float] = (total / counts).clamp(0, 1).tolist()
        return found


def space(name: str, task: Task) -> Space:
    """Return a search space of a task.

    Args:
        name: one of :data:`SPACES`.
        task: the task.
    """
    if name == "full":
        index = torch.arange(task.size)
    elif name == "shared":
        index = torch.zeros(task.size, dtype=torch.long)
    else:
        assert task.groups is not None
        index = torch.cat([task.groups[key].flatten().cpu().long() for key in task.hparams])
    return Space(name, task, index, int(index.max()) + 1)
