"""The problems as modules, for libraries that ask for one, and the points at which hypergradients are taken."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import Module, Parameter, ParameterList

from benchmarks.problems import DEVICE, Arrays, Task, Tree


class Leaves(Module):
    """A module that owns the tensors of a tree, in order.

    Args:
        tree: the tensors; copied.
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.names = list(tree)
        self.leaves = ParameterList([Parameter(value.clone()) for value in tree.values()])

    def tree(self) -> Tree:
        """Return the tensors under the problem's names."""
        return dict(zip(self.names, self.leaves, strict=True))

    @torch.no_grad()
    def load(self, tree: Tree) -> None:
        """Copy values into the tensors."""
        for leaf, value in zip(self.leaves, tree.values(), strict=True):
            leaf.copy_(value)


def points(problem: Task, arrays: Arrays) -> list[tuple[Tree, Tree]]:
    """Return (θ, λ) of the problem, and those of later outer steps: ``later.1.params.NAME``, ``later.1.hparams.NAME``.

    Args:
        problem: made of the arrays.
        arrays: the problem's, and perhaps those of later steps.
    """
    found = [(problem.params, problem.hparams)]
    while any(key.startswith(f"later.{len(found)}.") for key in arrays):
        params, hparams = (
            {
                key: torch.from_numpy(np.ascontiguousarray(arrays[f"later.{len(found)}.{part}.{key}"])).to(DEVICE)
                for key in problem.params
            }
            for part in ("params", "hparams")
        )
        found.append((params, hparams))
    return found
