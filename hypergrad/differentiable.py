"""Face 2: training as a differentiable function of the hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm
from hypergrad.errors import InputError
from hypergrad.linear import LinearSolver
from hypergrad.problem import Objective, Problem
from hypergrad.solvers.bilevel.implicit import Implicit
from hypergrad.solvers.bilevel.named import resolve
from hypergrad.solvers.inner.training import Training
from hypergrad.solvers.linear.cg import CG
from hypergrad.tree import Tree

TrainFunction = Callable[[Tree, Tree], Mapping[str, Any]]


def differentiable(
    train: TrainFunction,
    inner: Objective,
    *,
    penalty: Objective | None = None,
    linear: LinearSolver | None = None,
    damping: float = 0.0,
) -> Callable[..., Tree]:
    """Return ``train`` as a function whose result can be differentiated with respect to the hyperparameters.

    The value is exactly what ``train`` returns. Backwards it is dθ*/dλ = −H⁻¹ ∂²g/∂θ∂λ by the implicit function
    theorem, so ``train`` may be anything: scikit-learn, scipy, a loop with ``.item()``, another process. The
    gradient's graph is ordinary autograd: hyperparameters that the objective's closure hides are found as well.

    Args:
        train: ``(params, hparams) -> params``, given detached copies; it may return numpy arrays.
        inner: g, the objective that ``train`` minimises, without ``penalty``.
        penalty: an elementwise part of the objective given apart (see :class:`~hypergrad.Problem`).
        linear: solver of the linear system, :class:`~hypergrad.CG` by default.
        damping: number of at least 0 added to the Hessian.

    Returns:
        A function ``(params, hparams, batch=None) -> params`` with the same keys; ``batch`` goes to ``inner``.

    Cost: one call of ``train`` and one inner gradient forwards; a linear solve and one or two products backwards.

    Raises:
        InputError: the wrapped function checks its arguments and what ``train`` returns.
        UnsupportedError: a second derivative is asked for.
        NonFiniteError: NaN in what ``train`` returns, or in a product.

    Example:
        >>> import torch, hypergrad as hg
        >>> def ridge(params, hparams):
        ...     return {"w": torch.tensor([1.0]) / (1 + hparams["x"])}
        >>> def inner(params, hparams):
        ...     return 0.5 * ((params["w"] - 1) ** 2 + hparams["x"] * params["w"] ** 2).sum()
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> trained = hg.differentiable(ridge, inner)({"w": torch.zeros(1)}, {"x": x})
        >>> trained["w"].sum().backward()
        >>> x.grad
        tensor([-0.2500])
    """
    algorithm = Implicit(linear or CG(), inner=Training(train), damping=damping)
    problem = Problem(inner, _no_outer, penalty=penalty)

    @guards.uncompiled
    def trained(params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], batch: Any = None) -> Tree:
        """Return the trained parameters, attached to the hyperparameters."""
        return algorithm.attach(problem.with_batches(batch), params, tree.check_tree("hparams", hparams))

    return trained


@guards.uncompiled
def solve(
    problem: Problem,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    algorithm: Algorithm[Any] | Literal["auto"],
) -> Tree:
    """Return θ(λ) after the algorithm's own training, as tensors whose backward pass is that algorithm.

    :class:`~hypergrad.Implicit` solves the linear system backwards; the others run their hypergradient for the outer
    objective ⟨c, θ⟩, whose hypergradient is the vector-Jacobian product (dθ/dλ)ᵀ c. The problem's ``outer`` is not
    used.

    Args:
        problem: the inner problem.
        params: where training starts.
        hparams: λ; tensors that require grad get gradients.
        algorithm: how to train and to differentiate; ``"auto"`` to have it chosen.

    Returns:
        θ(λ) with the keys of ``params``.

    Raises:
        InputError: wrong inputs, or an implicit algorithm without an inner solver.
        UnsupportedError: a second derivative is asked for.
        NumericalError: NaN or a diverged solve.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"] ** 2) ** 2).sum(),
        ...     outer=lambda params, hparams: params["w"].sum(),
        ... )
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> algorithm = hg.Implicit(hg.CG(), inner=hg.Newton(tolerance=1e-5))
        >>> hg.solve(problem, {"w": torch.zeros(1)}, {"x": x}, algorithm)["w"].backward()
        >>> x.grad
        tensor([6.])
    """
    algorithm = resolve(algorithm, problem)
    algorithm = algorithm.at_step(0)
    if isinstance(algorithm, Implicit) and algorithm.inner is None:
        raise InputError(
            passed=f"{algorithm!r}",
            expected="an algorithm that knows how to train",
            do="pass hypergrad.Implicit(..., inner=hypergrad.LBFGS()), or wrap your own training with "
            "hypergrad.differentiable",
        )
    return algorithm.attach(problem, params, tree.check_tree("hparams", hparams))


def _no_outer(_params: Tree, _hparams: Tree) -> Tensor:
    raise InputError(
        passed="a call of the outer objective of a differentiable function",
        expected="the outer loss to be computed from what the function returns",
        do="call the wrapped function and backpropagate from your own loss",
    )
