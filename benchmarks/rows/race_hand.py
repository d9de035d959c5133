"""Races by hand, with torch.autograd and torch.optim alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import Arrays, Task, Tree
from benchmarks.race import drive
from benchmarks.race_problems import descend, leaves, task

Settings = Mapping[str, Any]
Hypergradient = Callable[[Task, Tree, Tree, Settings], list[Tensor]]
Function = Callable[[], dict[str, Any]]


def version() -> str:
    """Return what computes."""
    return f"torch {torch.__version__}"


def _row(hypergradient: Hypergradient, *, trains: bool = True) -> Any:
    def build(name: str, arrays: Arrays, settings: Settings) -> Function:
        def start() -> Any:
            problem = task(name, arrays)
            params, hparams = leaves(problem.params), leaves(problem.hparams)
            optimizer = torch.optim.Adam(hparams.values(), lr=settings["outer_rate"], foreach=True)

            def advance() -> list[Tensor]:
                if trains:
                    descend(problem, params, hparams, settings)
                found = hypergradient(problem, params, hparams, settings)
                for value, grad in zip(hparams.values(), found, strict=True):
                    value.grad = grad
                optimizer.step()
                return found

            return advance, lambda: (list(params.values()), list(hparams.values()))

        return lambda: drive(settings["steps"], start)

    return build


def neumann(problem: Task, params: Tree, hparams: Tree, settings: Settings) -> list[Tensor]:
    """Terms of the Neumann series with the step of the training, on one graph."""
    theta, step = list(params.values()), settings["rate"]
    v = torch.autograd.grad(problem.outer(params, hparams), theta)
    gradient = torch.autograd.grad(problem.inner(params, hparams), theta, create_graph=True)
    c, p = [t.clone() for t in v], [t.clone() for t in v]
    for _ in range(settings["terms"]):
        product = torch.autograd.grad(gradient, theta, c, retain_graph=True)
        for ci, pi, hi in zip(c, p, product, strict=True):
            ci.sub_(hi, alpha=step)
            pi.add_(ci)
    return list(torch.autograd.grad(gradient, list(hparams.values()), [-step * t for t in p]))


def cg(problem: Task, params: Tree, hparams: Tree, settings: Settings) -> list[Tensor]:
    """Steps of conjugate gradients from zero, until the residual is below ``rtol`` where that is given."""
    theta = list(params.values())
    b = torch.autograd.grad(problem.outer(params, hparams), theta)
    gradient = torch.autograd.grad(problem.inner(params, hparams), theta, create_graph=True)
    x, r, p = [torch.zeros_like(t) for t in b], [t.clone() for t in b], [t.clone() for t in b]
    rho = _dot(r, r)
    enough = settings.get("rtol", 0.0) ** 2 * rho
    for _ in range(settings["terms"]):
        if "rtol" in settings and bool(rho <= enough):
            break
        product = torch.autograd.grad(gradient, theta, p, retain_graph=True)
        alpha = rho / _dot(p, product)
        for xi, ri, pi, hi in zip(x, r, p, product, strict=True):
            xi.addcmul_(pi, alpha)
            ri.addcmul_(hi, -alpha)
        rho, before = _dot(r, r), rho
        for ri, pi in zip(r, p, strict=True):
            pi.mul_(rho / before).add_(ri)
    return list(torch.autograd.grad(gradient, list(hparams.values()), [-t for t in x]))


def darts(problem: Task, params: Tree, hparams: Tree, _settings: Settings) -> list[Tensor]:
    """One central difference of ∂g/∂λ along the step of the training times ∇f, as in DARTS."""
    theta = list(params.values())
    v = torch.autograd.grad(problem.outer(params, hparams), theta)
    radius = 0.01 / float(torch.cat([t.flatten() for t in v]).norm())
    slopes = []
    for sign in (1.0, -1.0):
        moved = {key: t.detach() + sign * radius * vi for (key, t), vi in zip(params.items(), v, strict=True)}
        slopes.append(torch.autograd.grad(problem.inner(moved, hparams), list(hparams.values())))
    return [-(a - b) / (2 * radius) for a, b in zip(*slopes, strict=True)]


def unrolled(problem: Task, params: Tree, hparams: Tree, settings: Settings) -> list[Tensor]:
    """Train with all steps in the graph, and go back through them."""
    values, rate, momentum = dict(params), settings["rate"], settings.get("momentum", 0.0)
    buffers: list[Tensor] | None = None
    for _ in range(settings["inner"]):
        grads = torch.autograd.grad(problem.inner(values, hparams), list(values.values()), create_graph=True)
        moves = list(grads)
        if momentum:
            moves = list(grads) if buffers is None else [momentum * m + g for m, g in zip(buffers, grads, strict=True)]
            buffers = moves
        values = {key: t - rate * m for (key, t), m in zip(values.items(), moves, strict=True)}
    found = torch.autograd.grad(problem.outer(values, hparams), list(hparams.values()))
    with torch.no_grad():
        for key, value in values.items():
            params[key].copy_(value)
    return list(found)


def _dot(a: Any, b: Any) -> Tensor:
    return torch.stack([(ai * bi).sum() for ai, bi in zip(a, b, strict=True)]).sum()


ROWS = {
    "neumann": _row(neumann),
    "cg": _row(cg),
    "darts": _row(darts),
    "unrolled": _row(unrolled, trains=False),
}
