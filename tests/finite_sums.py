"""A strongly convex bilevel problem that is a mean over batches, with its optimum in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree

INNER, OUTER, P, D = 16, 12, 5, 3
"""Numbers of inner and outer batches, of parameters and of hyperparameters."""


@dataclass(frozen=True)
class FiniteSum:
    """g_i = ½ θᵀA_iθ − θᵀ(B_iλ + c_i), f_j = ½ ‖θ − t_j‖² + ½ ‖λ − u_j‖² / 4; all randomness is in the batches.

    Attributes:
        problem: with samplers.
        gradient: dF/dλ in closed form.
        optimum: λ*.
        curvature: largest eigenvalue of any A_i.
    """

    problem: hg.Problem
    gradient: Callable[[Tensor], Tensor]
    optimum: Tensor
    curvature: float
    params: Tree
    hparams: Tree


def finite_sum(noise: float = 1.0, seed: int = 0, sampler: Any = hg.Partition) -> FiniteSum:
    """Return the problem; ``noise`` scales how far the batches differ from their mean."""
    generator = torch.Generator().manual_seed(17)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    root = normal(INNER, P, P)
    identity = torch.eye(P, dtype=torch.float64)
    a = identity + noise * 0.3 * (root @ root.mT / P - (root @ root.mT / P).mean(dim=0)) + 0.5 * _spread()
    b = normal(P, D) + noise * 0.5 * _centred(normal(INNER, P, D))
    c = normal(P) + noise * 0.5 * _centred(normal(INNER, P))
    t, u = normal(P) + noise * 0.5 * _centred(normal(OUTER, P)), normal(D) + noise * 0.5 * _centred(normal(OUTER, D))
    a = (a + a.mT) / 2

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        rows, w = batch[0], params["w"]
        right = torch.einsum("npd,d->np", b[rows], hparams["x"]) + c[rows]
        value: Tensor = (torch.einsum("p,npq,q->n", w, a[rows], w) / 2 - right @ w).mean()
        return value

    def outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        rows = batch[0]
        near: Tensor = (params["w"] - t[rows]).square().sum(dim=-1).mean() / 2
        far: Tensor = (hparams["x"] - u[rows]).square().sum(dim=-1).mean() / 8
        return near + far

    mean_a, mean_b, mean_c, mean_t, mean_u = (x.mean(dim=0) for x in (a, b, c, t, u))
    response = torch.linalg.solve(mean_a, mean_b)
    offset = torch.linalg.solve(mean_a, mean_c)

    def gradient(x: Tensor) -> Tensor:
        slope: Tensor = response.mT @ (response @ x + offset - mean_t) + (x - mean_u) / 4
        return slope

    hessian = response.mT @ response + torch.eye(D, dtype=torch.float64) / 4
    optimum = torch.linalg.solve(hessian, mean_u / 4 - response.mT @ (offset - mean_t))
    data = {
        "inner_data": sampler(torch.arange(INNER), batch_size=1, seed=seed),
        "outer_data": sampler(torch.arange(OUTER), batch_size=1, seed=seed + 1),
    }
    return FiniteSum(
        problem=hg.Problem(inner, outer, **data),
        gradient=gradient,
        optimum=optimum,
        curvature=float(torch.linalg.eigvalsh(a).max()),
        params={"w": torch.zeros(P, dtype=torch.float64)},
        hparams={"x": torch.zeros(D, dtype=torch.float64)},
    )


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=0)


def _spread() -> Tensor:
    return torch.diag(torch.linspace(0, 1, P, dtype=torch.float64))


def descend(
    case: FiniteSum, algorithm: Any, lr: Callable[[int], float], steps: int, seed: int = 0
) -> tuple[list[float], hg.Run]:
    """Return ‖dF/dλ‖² at each step of plain gradient steps along the algorithm's directions, and the run."""

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lr)

    move = hg.outer.Torch(torch.optim.SGD, schedule, lr=1.0)
    run = hg.Run(case.problem, algorithm, case.params, case.hparams, move, seed=seed)
    errors = []
    for _ in range(steps):
        run.step()
        errors.append(float(case.gradient(run.hparams["x"]).square().sum()))
    return errors, run
