"""Iterative refinement: products in low precision, corrected by the true residual."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.settings import check_counts, check_kind, check_numbers
from hypergrad.solvers.linear.cg import CG


@final
@dataclass(frozen=True)
class Refined(LinearSolver):
    """Solve with products in a lower precision, and correct by the residual in full precision until it is small.

    1. r = b − A x₀, with a product in full precision
    2. e ≈ Ã⁻¹ r by ``solver``, where à v is formed in ``product_dtype`` and everything else in b's precision
    3. x ← x + e;  r = b − A x; from 2 until ‖r‖ ≤ max(rtol ‖b‖, atol)

    A correction that does not halve the residual ends the solve with the status ``stalled`` and the best x: Ã is then
    too coarse for A, whose condition is beyond about 1/ε of ``product_dtype``, or ``solver`` met negative curvature,
    which is then reported as well. The residual reported is the true one.

    Args:
        solver: how each correction is found; a loose tolerance is enough, and what the last correction needs not
            solve is left out.
        product_dtype: ``torch.float32`` for a problem in float64, ``torch.bfloat16`` or ``torch.float16`` for one in
            float32.
        rtol: relative tolerance on the true residual, at least 0.
        atol: absolute tolerance on the true residual, at least 0, in units of b.
        max_steps: largest number of corrections, at least 1.

    The products come from a second graph of ∇_θ g, recorded at copies of θ, λ and the batch in ``product_dtype``:
    memory for these vectors (not for the model) and for that graph. Data that an objective captures has to follow the
    parameters, ``x.to(params["weight"].dtype)``, or come through a sampler.

    It pays where a product in the lower precision is several times faster, which was not measured on an accelerator.
    On one CPU core, float32 under float64 took 0.9 to 1.1 times as long as plain CG on networks of 8,000 to 130,000
    weights, and bfloat16 under float32 longer: restarting at each correction costs half as many products again.

    Cost: one product in full precision a correction (1 more from a warm start), the solver's products in low
    precision, and one evaluation with its gradient to record the second graph.

    Raises:
        UnsupportedError: an objective that does not work in the lower precision, or an operator without products in it.

    Source: Wilkinson (1963); with a Krylov solver in lower precision, Carson and Higham (2018).

    Example:
        >>> import torch, hypergrad as hg
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: (
        ...         (x.to(params["w"].dtype) @ params["w"] - 1).square().sum()
        ...         + (hparams["decay"] * params["w"].square()).sum()
        ...     ),
        ...     outer=lambda params, hparams: params["w"].square().sum(),
        ... )
        >>> start = {"w": torch.zeros(2, dtype=torch.float64)}, {"decay": torch.ones(2, dtype=torch.float64)}
        >>> algorithm = hg.Implicit(hg.Refined(hg.CG(rtol=1e-4), rtol=1e-12), inner=hg.Newton())
        >>> result = hg.hypergradient(problem, *start, algorithm)
        >>> result.report.residual < 1e-12
        True
    """

    solver: LinearSolver = field(default_factory=lambda: CG(rtol=1e-4))
    product_dtype: torch.dtype = torch.float32
    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 20
    needs_symmetric = True
    needs_definite = True
    uses_start = True
    exact = True
    graphs = 2
    cost = "1 a correction, and the solver's in low precision for each"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "max_steps")
        check_numbers(self, "rtol", "atol", least=0)
        check_kind(self, "solver", LinearSolver, "pass one of hypergrad's, such as hypergrad.CG(rtol=1e-4)")
        if not (isinstance(self.product_dtype, torch.dtype) and self.product_dtype.is_floating_point):
            raise InputError(
                passed=f"Refined(product_dtype={self.product_dtype!r})",
                expected="a floating-point dtype of torch, below that of the parameters",
                do="pass torch.float32, torch.bfloat16 or torch.float16",
            )
        for name in ("needs_symmetric", "needs_definite"):
            object.__setattr__(self, name, getattr(self.solver, name))

    def budget(self, size: int) -> int:
        """Return the solver's and one for each correction, at the most."""
        return self.max_steps * (self.solver.budget(size) + 1)

    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        low, made = operator.lowered(self.product_dtype), operator.products
        x, r = torch.zeros_like(b) if x0 is None else x0, b.clone()
        if x0 is not None:
            operator.add(r, x, -1.0)
        size, residual = float(torch.linalg.vector_norm(b)), float(torch.linalg.vector_norm(r))
        target, status, bent = max(self.rtol * size, self.atol), None, False
        for _ in range(self.max_steps):
            if residual <= target:
                break
            correction = self._to(target).solve_flat(low, r, None, memory)
            memory, bent = correction.memory, bent or correction.negative_curvature
            following = x + correction.value
            r = operator(following).neg_().add_(b)
            before, residual = residual, float(torch.linalg.vector_norm(r))
            if not math.isfinite(residual):
                status = Status.NON_FINITE
                break
            if residual < before:
                x = following
            if residual > max(before / 2, target):
                status, residual = Status.STALLED, min(residual, before)
                break
        if status is None:
            status = Status.CONVERGED if residual <= target else Status.MAX_STEPS
        products = operator.products - made + low.products
        hard = bent and status is not Status.CONVERGED
        return LinearResult(x, status, residual / size, products, negative_curvature=hard, memory=memory)

    def _to(self, target: float) -> LinearSolver:
        """Return the solver, which need not go beyond a third of the target."""
        solver: Any = self.solver
        if not hasattr(solver, "atol"):
            return self.solver
        least: LinearSolver = dataclasses.replace(solver, atol=max(solver.atol, target / 3))
        return least


def converted(value: Any, dtype: torch.dtype) -> Any:
    """Return a batch, a tensor or tuples, lists and dicts of them, its floating-point tensors in this precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: converted(part, dtype) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(converted(part, dtype) for part in value))
    return type(value)(converted(part, dtype) for part in value) if type(value) in (list, tuple) else value
