"""Any of scipy's iterative solvers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_function


@final
@dataclass(frozen=True)
class Scipy(LinearSolver):
    """A solver of :mod:`scipy.sparse.linalg` on the host: vectors go to numpy and back at every product.

    Args:
        function: a function with the signature of :func:`scipy.sparse.linalg.cg`, returning ``(x, info)``.
        options: keyword arguments of that function, such as ``rtol`` and ``maxiter``.

    The status is ``converged`` where ``info`` is 0; the residual is the true one.

    Cost: what the function asks for, and 1 product for the residual.

    Example:
        >>> import torch, scipy.sparse.linalg
        >>> solver = Scipy(scipy.sparse.linalg.minres, {"rtol": 1e-12})
        >>> solver.solve(lambda v: 2 * v, torch.ones(2, dtype=torch.float64)).value
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    function: Callable[..., tuple[Any, int]]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_symmetric = False
    needs_definite = False
    uses_start = True
    exact = True
    cost = "the function's, and 1"

    def __post_init__(self) -> None:
        """Refuse what cannot be called."""
        check_function(self, "function", "a solver of scipy.sparse.linalg", "pass the function itself, not its name")

    def budget(self, size: int) -> int:
        """Return one for the residual; the function's own are not known."""
        return 1

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        made = operator.products
        start = None if x0 is None else x0.cpu().numpy()
        x, info = self.function(operator.to_scipy(), b.cpu().numpy(), x0=start, **self.options)
        value = torch.as_tensor(x, dtype=b.dtype).to(b.device)
        residual = float(torch.linalg.vector_norm(b - operator(value)) / torch.linalg.vector_norm(b))
        status = Status.CONVERGED if info == 0 else Status.MAX_STEPS
        if not residual < float("inf"):
            status = Status.NON_FINITE
        return LinearResult(value, status, residual, operator.products - made, memory=memory)
