"""Face 1: functions that return a hypergradient with its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Algorithm, Hypergradient
from hypergrad.errors import InputError
from hypergrad.memory import shortage_explained
from hypergrad.problem import Objective, Problem
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


def hypergradients(
    problem: Problem,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    algorithm: Algorithm[Any] | Literal["auto"],
    outers: Mapping[str, Objective],
    *,
    batch: Any = None,
    outer_batch: Any = None,
) -> dict[str, Hypergradient]:
    """Return the hypergradient of each of several outer objectives at one point: of tasks, groups, or metrics.

    :class:`~hypergrad.Implicit` trains once, builds one graph of the inner gradient, and gives its linear solver all
    right-hand sides; :class:`~hypergrad.CG` takes the products of an iteration in one block where that is faster, on
    problems of up to some ten thousand parameters. Other algorithms are asked once for each objective.

    Args:
        problem: the inner objective; its outer one is not used.
        params: as for :func:`hypergradient`.
        hparams: as for :func:`hypergradient`.
        algorithm: as for :func:`hypergradient`.
        outers: name to outer objective, of the form of the problem's. All get the same outer batch.
        batch: what the inner objective gets as its batch, instead of the problem's sampler.
        outer_batch: the same for the outer objectives.

    Returns:
        The names with a hypergradient each. The cost of training and of the graph is in the first report.

    Raises:
        InputError: as for :func:`hypergradient`; ``outers`` that is empty or holds what is no function.
        NumericalError: NaN or a diverged solve.
        OutOfMemoryError: not enough memory, with a smaller plan.

    Warns:
        HypergradWarning: every note of the reports.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"]) ** 2).sum(),
        ...     outer=lambda params, hparams: params["w"].sum(),
        ... )
        >>> groups = {"near": lambda params, hparams: (params["w"] ** 2).sum(),
        ...           "far": lambda params, hparams: ((params["w"] - 5) ** 2).sum()}
        >>> point = {"w": torch.tensor([3.0])}, {"x": torch.tensor([3.0])}
        >>> found = hg.hypergradients(problem, *point, hg.Implicit(), groups)
        >>> found["near"].grads["x"], found["far"].grads["x"]
        (tensor([6.]), tensor([-4.]))
    """
    if not isinstance(outers, Mapping) or not outers or not all(callable(outer) for outer in outers.values()):
        raise InputError(
            passed=f"outers={outers!r}",
            expected="a dict of at least one outer objective (params, hparams) or (params, hparams, batch) -> scalar",
            do='pass {"name": function, ...}',
        )
    algorithm = resolve(algorithm)
    if batch is not None or outer_batch is not None:
        problem = problem.with_batches(batch, outer_batch)
    hparams = tree.check_tree("hparams", hparams)
    state = algorithm.init(problem, params, tree.detached(hparams))
    with shortage_explained("hypergrad.hypergradients", algorithm, problem):
        found = algorithm.several(problem, state, tree.leaves(hparams), outers)
    for result in found.values():
        result.report.warn()
    return found
