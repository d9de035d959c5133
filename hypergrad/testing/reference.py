"""Dense references: Hessians and mixed derivatives row by row, and what each estimator makes of them.

Nothing here is shared with the library's own products: every entry is one plain double backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad.testing.problems import KnownProblem
from hypergrad.tree import Layout, Tree, detached, leaves


@final
@dataclass(frozen=True)
class Linearisation:
    """The derivatives of a problem at one point, as dense matrices.

    Attributes:
        residual: R, n entries.
        jacobian: ∂R/∂θ, n × n.
        mixed: ∂R/∂λ, n × m.
        outer_params: ∂f/∂θ, n entries.
        outer_hparams: ∂f/∂λ, m entries.
    """

    residual: Tensor
    jacobian: Tensor
    mixed: Tensor
    outer_params: Tensor
    outer_hparams: Tensor


def linearisation(known: KnownProblem, params: Tree, hparams: Tree) -> Linearisation:
    """Return all derivatives at a point."""
    theta, lam = leaves(params), leaves(hparams)
    inputs = [*theta.values(), *lam.values()]
    with torch.enable_grad():
        residual = known.problem.residual(theta, lam, None, create_graph=True)
        flat = torch.cat([residual[key].reshape(-1) for key in theta])
        value = known.problem.outer_value(theta, lam, None)
    rows = [_row(entry, inputs) for entry in flat]
    outer = _row(value, inputs)
    size = Layout.of(params).size
    stacked = torch.stack(rows)
    return Linearisation(flat.detach(), stacked[:, :size], stacked[:, size:], outer[:size], outer[size:])


def _row(entry: Tensor, inputs: list[Tensor]) -> Tensor:
    if not entry.requires_grad:
        return torch.cat([torch.zeros_like(x).reshape(-1) for x in inputs]).detach()
    slopes = torch.autograd.grad(entry, inputs, retain_graph=True, allow_unused=True)
    filled = [torch.zeros_like(x) if s is None else s for s, x in zip(slopes, inputs, strict=True)]
    return torch.cat([slope.reshape(-1) for slope in filled]).detach()


def implicit_reference(known: KnownProblem, inverse: Tensor, params: Tree, hparams: Tree) -> Tree:
    """Return ∂f/∂λ − (∂R/∂λ)ᵀ M ∂f/∂θ for a matrix M in the place of the inverse transposed Jacobian."""
    point = linearisation(known, params, hparams)
    flat = point.outer_hparams - point.mixed.mT @ (inverse @ point.outer_params)
    return Layout.of(hparams).views(flat)


def unrolled_reference(known: KnownProblem, step: float, steps: int, window: int, hparams: Tree) -> Tree:
    """Return the truncated back-propagation through gradient descent by explicit matrices.

    a ← (I − step · J_t)ᵀ a and h ← h − step · M_tᵀ a over the last ``window`` of ``steps`` steps, with the Jacobians at
    every iterate; the start's own dependence on λ is added where the window reaches it.
    """
    layout = Layout.of(known.params)
    start = known.params if known.problem.initial is None else detached(known.problem.start(hparams, known.params))
    points = [layout.flatten(start)]
    for _ in range(steps):
        theta = leaves(layout.views(points[-1]))
        points.append(points[-1] - step * layout.flatten(known.problem.residual(theta, hparams, None)))
    last = linearisation(known, layout.views(points[-1]), hparams)
    a, h = last.outer_params, last.outer_hparams
    for point in reversed(points[steps - window : steps]):
        here = linearisation(known, layout.views(point), hparams)
        h = h - step * here.mixed.mT @ a
        a = a - step * here.jacobian.mT @ a
    if known.problem.initial is not None and window == steps:
        lam = leaves(hparams)
        first = known.problem.start(lam, known.params)
        pulled = torch.autograd.grad(list(first.values()), list(lam.values()), list(layout.views(a).values()))
        h = h + torch.cat([slope.reshape(-1) for slope in pulled])
    return Layout.of(hparams).views(h)
