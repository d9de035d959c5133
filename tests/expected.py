"""What the rows of THE TABLE have to equal: closed forms and dense references, apart from the library's own paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hypergrad as hg
from hypergrad.testing import KnownProblem, implicit_reference, linearisation, unrolled_reference
from hypergrad.tree import Layout, Tree


def truth(known: KnownProblem) -> Tree:
    return known.hypergradient()


def inverse_series(known: KnownProblem, terms: int) -> Tree:
    """The Neumann series as a matrix polynomial: α Σ (I − αJᵀ)ʲ."""
    solution, step = known.trained(), known.step or 0.5
    jacobian = linearisation(known, solution, known.hparams).jacobian.mT
    identity = torch.eye(len(jacobian), dtype=jacobian.dtype)
    power, total = identity, torch.zeros_like(jacobian)
    for _ in range(terms + 1):
        total = total + power
        power = power @ (identity - step * jacobian)
    return implicit_reference(known, step * total, solution, known.hparams)


def damped(known: KnownProblem, damping: float) -> Tree:
    solution = known.trained()
    jacobian = linearisation(known, solution, known.hparams).jacobian.mT
    identity = torch.eye(len(jacobian), dtype=jacobian.dtype)
    return implicit_reference(known, torch.linalg.inv(jacobian + damping * identity), solution, known.hparams)


def by_autograd(known: KnownProblem, lr: float, steps: int) -> Tree:
    """dF_T/dλ through Adam's textbook formulas, by one backward pass."""
    lam = {key: value.detach().requires_grad_() for key, value in known.hparams.items()}
    point = {key: value.detach().requires_grad_() for key, value in known.params.items()}
    first = {key: torch.zeros_like(value) for key, value in point.items()}
    second = {key: torch.zeros_like(value) for key, value in point.items()}
    for step in range(1, steps + 1):
        gradient = known.problem.residual(point, lam, create_graph=True)
        first = {key: 0.9 * first[key] + 0.1 * gradient[key] for key in point}
        second = {key: 0.99 * second[key] + 0.01 * gradient[key] ** 2 for key in point}
        scale = {key: (second[key] / (1 - 0.99**step)).sqrt() + 1e-3 for key in point}
        point = {key: point[key] - lr * first[key] / (1 - 0.9**step) / scale[key] for key in point}
    value = known.problem.outer_value(point, lam)
    slopes = torch.autograd.grad(value, list(lam.values()), materialize_grads=True)
    return dict(zip(lam, slopes, strict=True))


def truncated(window: int, known: KnownProblem) -> Tree:
    return unrolled_reference(known, known.step, known.steps, min(window, known.steps), known.hparams)


def projections(known: KnownProblem, build: Callable[[KnownProblem], Any], scale: float) -> Tree:
    """The mean of ⟨dF, v⟩ v over the directions that the first step uses, times a factor."""
    layout = Layout.of(known.hparams)
    slope = layout.flatten(known.hypergradient())
    vectors = torch.stack(build(known).directions_at(0, layout))
    return layout.views(scale * (vectors @ slope) @ vectors / len(vectors))


def guided(known: KnownProblem) -> Tree:
    """The projection of dF on the truncated hypergradient."""
    layout, window = Layout.of(known.hparams), min(3, known.steps)
    guess = layout.flatten(unrolled_reference(known, known.step, known.steps, window, known.hparams))
    slope = layout.flatten(known.hypergradient())
    length = guess @ guess
    return layout.views(guess * (slope @ guess / length if float(length) else 0.0))


def process_gradient(known: KnownProblem, build: Callable[[KnownProblem], hg.ZoRD]) -> Tree:
    """The slope of the process's mean, by autograd through a dense solve, given the runs that the first step made."""
    algorithm, layout = build(known), Layout.of(known.hparams)
    state = algorithm.init(known.problem, known.params, known.hparams)
    state = algorithm.step(known.problem, state, known.hparams)[1]
    x = layout.flatten(known.hparams).double().requires_grad_()

    def kernel(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(left[:, None] - right[None]).square().sum(-1) / 2)

    center, matrix = state.values.mean(), kernel(state.points, state.points)
    scale = float(state.values.max() - state.values.min()) or 1.0
    noise = algorithm.noise * torch.eye(len(matrix), dtype=matrix.dtype)
    mean = kernel(x[None], state.points) @ torch.linalg.solve(matrix + noise, (state.values - center) / scale)
    (slope,) = torch.autograd.grad(scale * mean.sum(), x)
    return layout.views(slope.to(layout.dtype))
