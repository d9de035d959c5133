"""A user's own training function as inner solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost, check_finite
from hypergrad.errors import TreeError
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
        InputError: at once, a function that takes other arguments; at a call, a value that is no mapping.
        TreeError: other keys or shapes, or entries that are no arrays.
        NonFiniteError: trained parameters with NaN or infinity.

    Cost: not known to the library and reported as zero.

    Example:
        >>> import torch
        >>> Training(lambda params, hparams: {"w": hparams["x"]}).budget().inner_gradients
        0
    """

    function: Callable[[Tree, Tree], Mapping[str, Any]]
    _train: UserFunction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the function's signature."""
        object.__setattr__(self, "_train", UserFunction("train", self.function, loss=False))

    def budget(self) -> Cost:
        """Return no passes."""
        return Cost()

    def run(self, problem: Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Call the function."""
        value = self._train(tree.cloned(params), tree.cloned(hparams), None)
        found = tree.check_mapping("train", value, params)
        fitted = {key: _copied(key, found[key], like) for key, like in params.items()}
        tree.check_shapes("the value of train", fitted, params)
        check_finite("the trained params", fitted, when="returned by train")
        return InnerResult(fitted, Status.COMPLETED, Cost())


def _copied(key: str, value: Any, like: Tensor) -> Tensor:
    try:
        return torch.as_tensor(value).detach().to(like, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TreeError(
            passed=f"the value of train with {key!r} of type {type(value).__name__}",
            expected="a tensor or a numpy array under each key",
            do="convert it at the end of train with torch.as_tensor",
        ) from error
