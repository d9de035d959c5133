"""THE TABLE of methods: each with its own closed form, written out with plain torch.autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree
from tests.networks.setting import Twin

QUIET = float("inf")
STEPS, LR, MOMENTUM = 4, 0.1, 0.9
DAMPING, TERMS, STEP = 5.0, 10, 0.15


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split(vector: Tensor, like: Tree) -> Tree:
    pieces = vector.split([value.numel() for value in like.values()])
    return {key: piece.reshape(value.shape) for (key, value), piece in zip(like.items(), pieces, strict=True)}


def slopes(value: Tensor, theta: Tree, *, create_graph: bool = False) -> Tensor:
    return flat(torch.autograd.grad(value, list(theta.values()), create_graph=create_graph))


class Dense:
    """∇g, H and ∂²g/∂θ∂λ of one evaluation, entry by entry."""

    def __init__(self, twin: Twin, theta: Tree) -> None:
        self.lam = twin.lam
        self.gradient = slopes(twin.g(theta), theta, create_graph=True)
        inputs = list(theta.values())
        rows = [torch.autograd.grad(e, inputs, retain_graph=True, materialize_grads=True) for e in self.gradient]
        self.hessian = torch.stack([flat(row) for row in rows])

    def mixed(self, q: Tensor) -> Tree:
        found = torch.autograd.grad(self.gradient, list(self.lam.values()), q, retain_graph=True)
        return dict(zip(self.lam, found, strict=True))


def judged(twin: Twin, theta: Tree) -> tuple[Tensor, Tree]:
    """Return ∂f/∂θ and ∂f/∂λ of one evaluation."""
    value = twin.f(theta)
    direct = torch.autograd.grad(value, list(twin.lam.values()), materialize_grads=True, retain_graph=True)
    return slopes(value, theta), dict(zip(twin.lam, direct, strict=True))


def implicit(solve: Callable[[Tensor, Tensor], Tensor], train: int = 0) -> Callable[[Twin], Tree]:
    """dF/dλ = ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ solve(H, ∂f/∂θ), after some plain gradient steps."""

    def reference(twin: Twin) -> Tree:
        theta = twin.theta
        for _ in range(train):
            gradient = split(slopes(twin.g(theta), theta), theta)
            theta = {k: (value - LR * gradient[k]).detach().requires_grad_() for k, value in theta.items()}
        v, direct = judged(twin, theta)
        dense = Dense(twin, theta)
        mixed = dense.mixed(solve(dense.hessian, v))
        return {key: direct[key] - mixed[key] for key in direct}

    return reference


def series(hessian: Tensor, v: Tensor) -> Tensor:
    """α Σ_{j ≤ k} (I − α (H + d I))ʲ v."""
    factor = torch.eye(len(v)).to(v) * (1 - STEP * DAMPING) - STEP * hessian
    term, total = v, v
    for _ in range(TERMS):
        term = factor @ term
        total = total + term
    return STEP * total


def damped(hessian: Tensor, v: Tensor) -> Tensor:
    """(H + d I)⁻¹ v."""
    value: Tensor = torch.linalg.solve(hessian + DAMPING * torch.eye(len(v)).to(v), v)
    return value


def unrolled(twin: Twin) -> Tree:
    """The derivative of f after some steps with momentum, one autograd graph of everything."""
    theta = twin.theta
    velocity = {key: torch.zeros_like(value) for key, value in theta.items()}
    for _ in range(STEPS):
        gradient = split(slopes(twin.g(theta), theta, create_graph=True), theta)
        velocity = {key: MOMENTUM * velocity[key] + gradient[key] for key in theta}
        theta = {key: value - LR * velocity[key] for key, value in theta.items()}
    found = torch.autograd.grad(twin.f(theta), list(twin.lam.values()))
    return dict(zip(twin.lam, found, strict=True))


def soba(twin: Twin) -> Tree:
    """Three steps of θ and q at once; the direction is that of the last."""
    theta = twin.theta
    q = torch.zeros_like(slopes(torch.stack([p.sum() for p in theta.values()]).sum(), theta))
    direction: Tree = {}
    for _ in range(3):
        dense = Dense(twin, theta)
        v, direct = judged(twin, theta)
        mixed = dense.mixed(q)
        direction = {key: direct[key] - mixed[key] for key in direct}
        step = split(dense.gradient.detach(), theta)
        q = q - STEP * (dense.hessian @ q - v)
        theta = {key: (value - LR * step[key]).detach().requires_grad_() for key, value in theta.items()}
    return direction


RULE = hg.GradientDescent(lr=LR, momentum=MOMENTUM)


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        algorithm: for parameters of a dtype.
        reference: its closed form on the float64 problem.
        live: whether by the live face, else as functions of both trees.
    """

    algorithm: Callable[[torch.dtype], hg.Algorithm[Any]]
    reference: Callable[[Twin], Tree]
    live: bool = True


def conjugate(dtype: torch.dtype) -> hg.Implicit:
    return hg.Implicit(hg.CG(rtol=100 * torch.finfo(dtype).eps / 16), damping=DAMPING, stationarity=QUIET)


METHODS: dict[str, Method] = {
    "neumann": Method(
        lambda _: hg.Implicit(hg.Neumann(TERMS, step=STEP), damping=DAMPING, stationarity=QUIET), implicit(series)
    ),
    "conjugate-gradients": Method(conjugate, implicit(damped)),
    "identity": Method(lambda _: hg.Implicit(hg.Identity(), stationarity=QUIET), implicit(lambda hessian, v: v)),
    "t1-t2": Method(
        lambda _: hg.Implicit(hg.Identity(LR), inner=hg.GradientDescent(lr=LR, steps=2), stationarity=QUIET),
        implicit(lambda hessian, v: LR * v, train=2),
    ),
    "function": Method(conjugate, implicit(damped), live=False),
    "function-unrolled": Method(lambda _: hg.Unrolled(STEPS, RULE), unrolled, live=False),
    "unrolled": Method(lambda _: hg.Unrolled(STEPS, RULE), unrolled),
    "unrolled-sqrt": Method(lambda _: hg.Unrolled(STEPS, RULE, keep="sqrt"), unrolled),
    "forward": Method(lambda _: hg.ForwardMode(STEPS, RULE), unrolled),
    "single-loop": Method(lambda _: hg.SOBA(step_size=LR, linear_step_size=STEP, iterations=3), soba),
}
