"""A user's own training function as inner solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
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
        function: returns tensors or numpy arrays with the keys and shapes of ``params``, which are copied.

    Raises:
        TreeError: other keys or shapes.
        NonFiniteError: trained parameters with NaN or infinity.

    Cost: not known to the library and reported as zero.

    Example:
        >>> import torch
        >>> Training(lambda params, hparams: {"w": hparams["x"]}).budget().inner_gradients
        0
    """

    function: Callable[[Tree, Tree], Mapping[str, Any]]

    def budget(self) -> Cost:
        """Return no passes."""
        return Cost()

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Call the function."""
        value = UserFunction("train", self.function).tree(tree.cloned(params), tree.cloned(hparams), None)
        fitted = {key: torch.as_tensor(value[key]).detach().to(like, copy=True) for key, like in params.items()}
        tree.check_shapes("the value of train", fitted, params)
        check_finite("the trained params", fitted, when="returned by train")
        return InnerResult(fitted, Status.COMPLETED, Cost())
