"""A user's own training function as inner solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost
from hypergrad.inner import InnerResult, InnerSolver
from hypergrad.linear import Status
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Training(InnerSolver):
    """Any function ``(params, hparams) -> params``: another library, another process, a loop of one's own.

    Nothing is differentiated through it, so it may use numpy, scikit-learn or ``.item()``. It gets detached copies.

    Args:
        function: returns a mapping with the keys of ``params``; the tensors are copied.

    Cost: not known to the library and reported as zero.

    Example:
        >>> import torch
        >>> Training(lambda params, hparams: {"w": hparams["x"]}).budget().inner_gradients
        0
    """

    function: Callable[[Tree, Tree], Mapping[str, Tensor]]

    def budget(self) -> Cost:
        """Return no passes."""
        return Cost()

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Call the function."""
        value = UserFunction("training", self.function).tree(tree.cloned(params), tree.cloned(hparams), None)
        fitted = {key: value[key].to(like).reshape(like.shape) for key, like in params.items()}
        return InnerResult(tree.cloned(fitted), Status.COMPLETED, Cost())
