"""Face 1: one function that returns a hypergradient with its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Algorithm, Hypergradient
from hypergrad.memory import shortage_explained
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.named import resolve


def hypergradient(
    problem: Problem,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    algorithm: Algorithm[Any] | Literal["auto"],
    *,
    batch: Any = None,
    outer_batch: Any = None,
) -> Hypergradient:
    """Return dF/dλ at one point.

    Nothing that is passed is changed: no ``.grad`` is filled, the random state and the buffers of a module that the
    objectives call functionally stay as they are.

    Args:
        problem: the two objectives.
        params: θ: trained already for :class:`~hypergrad.Implicit` without an inner solver, otherwise where training
            starts. Floating-point tensors of one dtype on one device.
        hparams: λ, of the same dtype and device.
        algorithm: how to find the hypergradient; ``"auto"`` for :class:`~hypergrad.Auto` at trained parameters.
        batch: what the inner objective gets as its batch, instead of the problem's sampler.
        outer_batch: the same for the outer objective.

    Returns:
        The gradients, the parameters they belong to, the outer loss, and a :class:`~hypergrad.Report`.

    Raises:
        InputError: what is wrong with the inputs, and what to do.
        NumericalError: NaN or a diverged solve.
        OutOfMemoryError: not enough memory, with a smaller plan.

    Warns:
        HypergradWarning: every note of the report.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - 1) ** 2 + hparams["x"].exp() * params["w"] ** 2).sum(),
        ...     outer=lambda params, hparams: ((params["w"] - 0.25) ** 2).sum(),
        ... )
        >>> result = hg.hypergradient(problem, {"w": torch.tensor([0.5])}, {"x": torch.zeros(1)}, hg.Implicit())
        >>> result.grads["x"], str(result.report.status)
        (tensor([-0.1250]), 'converged')
    """
    algorithm = resolve(algorithm)
    if batch is not None or outer_batch is not None:
        problem = problem.with_batches(batch, outer_batch)
    hparams = tree.check_tree("hparams", hparams)
    state = algorithm.init(problem, params, tree.detached(hparams))
    with shortage_explained("hypergrad.hypergradient", algorithm, problem):
        result, _ = algorithm.step(problem, state, tree.leaves(hparams))
    result.report.warn()
    return result
