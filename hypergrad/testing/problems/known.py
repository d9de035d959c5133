"""A problem with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.problem import Problem
from hypergrad.tree import Tree, cloned, leaves


@final
@dataclass(frozen=True)
class KnownProblem:
    """A problem with a known answer.

    Attributes:
        name: what it is called in a test's name.
        problem: the two objectives.
        params: where training starts.
        hparams: the point at which the hypergradient is asked for.
        solution: θ*(λ) in differentiable torch operations.
        step: a step size with which gradient descent (or, for a root, the damped residual iteration) converges.
        steps: a number of such steps after which the error is below 1e-11 in float64.
        optimum: λ* where F is least and the outer gradient vanishes, or ``None``.
        symmetric: whether the residual is the gradient of an objective.
        definite: whether its Hessian is positive definite, at least on its range, where ∂f/∂θ lies.
        regular: whether its Jacobian is invertible.
        stationary: whether θ*(λ) brings the residual to zero; otherwise it is what ``steps`` steps of training reach.
    """

    name: str
    problem: Problem
    params: Tree
    hparams: Tree
    solution: Callable[[Tree], Tree]
    step: float
    steps: int
    optimum: Tree | None = None
    symmetric: bool = True
    definite: bool = True
    regular: bool = True
    stationary: bool = True

    def trained(self, hparams: Mapping[str, Tensor] | None = None) -> Tree:
        """Return θ*(λ), detached, at the problem's own point by default."""
        return cloned(self.solution(dict(hparams or self.hparams)))

    def hypergradient(self, hparams: Mapping[str, Tensor] | None = None) -> Tree:
        """Return dF/dλ by autograd through the closed form of θ*(λ)."""
        point = leaves(hparams or self.hparams)
        value = self.problem.outer_value(self.solution(point), point)
        slopes = torch.autograd.grad(value, list(point.values()), allow_unused=True)
        return {
            key: torch.zeros_like(leaf).detach() if slope is None else slope
            for (key, leaf), slope in zip(point.items(), slopes, strict=True)
        }


def arguments(known: KnownProblem) -> dict[str, Any]:
    """Return what a face needs of a known problem: the problem, where training starts, and the hyperparameters."""
    return {"problem": known.problem, "params": known.params, "hparams": known.hparams}


def maker(dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    """Return a function of a shape that draws from one stream of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
