"""What outer moves with an accuracy of their own need at one point: solves that get there, and measured bounds."""

from __future__ import annotations

import torch

from hypergrad import guards, tree
from hypergrad.algorithm import Cost, Hypergradient, check_finite
from hypergrad.errors import InputError
from hypergrad.linear import Status
from hypergrad.oracle import Oracle
from hypergrad.problem import Problem
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Layout, Tree

SHY = 0.999
"""Solvers are asked for a little more than is needed, so that rounding of ‖∇_θ g‖ breaks no promise."""
ATTEMPTS = 20
"""Runs of the solvers that may follow each other while they come nearer to what they were asked for."""


def least_curvature(problem: Problem, params: Tree, hparams: Tree, steps: int = 20) -> tuple[float, Cost]:
    """Return vᵀHv of the unit vector v of a Krylov space where it is least, and the passes made.

    It is never below the smallest eigenvalue of H, and equal to it with as many steps as parameters.

    Args:
        problem: the problem, deterministic.
        params: θ.
        hparams: λ.
        steps: products with H, at least 1; Lanczos' method with full orthogonalisation.
    """
    with guards.pinned_rng(tree.device_of(params)):
        stationarity = problem.linearise(params, hparams, problem.draw_inner())
    layout = stationarity.layout
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(layout.size, dtype=layout.dtype, generator=generator).to(layout.device)
    v /= torch.linalg.vector_norm(v)
    basis, images = [v], [stationarity.hvp(v)]
    check_finite("the Hessian product for params", layout.views(images[0]), when="where training starts")
    while len(basis) < min(steps, layout.size):
        known, v = torch.stack(basis), images[-1]
        size = torch.linalg.vector_norm(v)
        for _ in range(2):  # once is not enough where v lies almost inside the space
            v = v - known.T @ (known @ v)
        left = torch.linalg.vector_norm(v)
        if not bool(left > 1e3 * torch.finfo(layout.dtype).eps * size):
            break  # the space is invariant
        basis.append(v / left)
        images.append(stationarity.hvp(basis[-1]))
    matrix = torch.stack(basis) @ torch.stack(images).T
    least = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    return least, Cost(inner_gradients=1, products=stationarity.products)


def mixed_norm(problem: Problem, params: Tree, hparams: Tree, max_size: int) -> tuple[float, Cost]:
    """Return the spectral norm of J = ∂²g/∂λ∂θ from all its columns or rows, whichever are fewer, and the passes made.

    Raises:
        InputError: more than ``max_size`` of them.
    """
    with guards.pinned_rng(tree.device_of(params)):
        stationarity = problem.linearise(params, hparams, problem.draw_inner())
    columns, rows = Layout.of(hparams), stationarity.layout
    fewer = min(columns.size, rows.size)
    if fewer > max_size:
        raise InputError(
            passed=f"{columns.size} hyperparameter entries and {rows.size} parameters, without a bound on ‖∂²g/∂λ∂θ‖",
            expected=f"at most {max_size} of one of them to measure that norm, at one product each",
            do="pass mixed=lambda hparams: ..., an upper bound on the norm of the mixed derivative",
        )
    by_columns = columns.size == fewer
    vectors = [_mixed(stationarity, columns, unit, by_columns) for unit in torch.eye(fewer, dtype=rows.dtype)]
    matrix = torch.stack(vectors)
    check_finite("the mixed derivative", {"J": matrix}, when="where training ended")
    gradients = 2 if by_columns else 1  # products from the side of λ need ∂g/∂λ with its graph
    return float(torch.linalg.matrix_norm(matrix, 2)), Cost(inner_gradients=gradients, products=stationarity.products)


def _mixed(stationarity: Stationarity, columns: Layout, unit: torch.Tensor, by_columns: bool) -> torch.Tensor:
    unit = unit.to(stationarity.layout.device)
    if by_columns:
        return stationarity.jvp(None, columns.views(unit))
    return columns.flatten(stationarity.cross(unit))


def solved(oracle: Oracle, hparams: Tree, inner: float, linear: float) -> tuple[Hypergradient, str]:
    """Return the hypergradient at two tolerances, and what it still lacks of them.

    A solver whose own limit of steps ends it is run again, from where it stands, as long as it comes nearer.
    """
    result, left = _attempt(oracle, hparams, inner, linear)
    for _ in range(ATTEMPTS):
        before = sum(left)
        if not before:
            return result, ""
        result, left = _attempt(oracle, hparams, inner, linear)
        if not sum(left) < 0.9 * before:
            break
    gap, residual = left
    if gap:
        return result, f"training stopped at a gradient norm of {gap:.3g}, above {inner:.3g}"
    if residual:
        return result, f"the linear solve stopped at a relative residual of {residual:.3g}, above {linear:.3g} in all"
    return result, ""


def _attempt(oracle: Oracle, hparams: Tree, inner: float, linear: float) -> tuple[Hypergradient, tuple[float, float]]:
    """Return a hypergradient, and the gradient norm and residual it left where they are too large, otherwise 0."""
    result = oracle(hparams, (SHY * inner, linear))
    report = result.report
    if report.negative_curvature:
        raise not_convex("an inner Hessian in which the linear solver met curvature of at most 0")
    gap = 0.0 if report.inner_gradient_norm <= inner else report.inner_gradient_norm
    return result, (gap, 0.0 if report.status == Status.CONVERGED else report.residual)


def held(problem: Problem, hparams: Tree, grads: Tree) -> bool:
    """Return whether the domain holds λ where it is, however far −z pulls; true for z = 0."""
    size = float(tree.norm(grads))
    if not size:
        return True
    pull = (1 + float(tree.norm(hparams))) / size
    pulled = problem.project({key: value - pull * grads[key] for key, value in hparams.items()})
    return all(bool(torch.equal(pulled[key], value)) for key, value in hparams.items())


def not_convex(found: str) -> InputError:
    """Return the error for an inner problem that is less convex than MAID was told."""
    return InputError(
        passed=f"MAID for {found}",
        expected="an inner problem that is strongly convex in params, at least by strong_convexity",
        do="lower strong_convexity to a bound that holds, add a penalty such as mu / 2 * |params|^2 to the inner "
        "objective, or use hypergrad.HOAG, which needs no such bound",
    )
