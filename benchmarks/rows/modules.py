"""The problems as modules, for libraries that ask for one."""

from __future__ import annotations

from torch.nn import Module, Parameter, ParameterList

from benchmarks.problems import Tree


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
