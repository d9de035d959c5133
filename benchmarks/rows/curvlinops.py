"""curvlinops: the inverse of its Hessian operator times a vector; the two gradients round it are written by hand.

The operator takes a model and a loss on its output; the model's output here is the whole training loss, penalty
included, so that its Hessian is the one that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from curvlinops import CGInverseLinearOperator, HessianLinearOperator, NeumannInverseLinearOperator

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Task, Tree, task
from benchmarks.rows.hand import Function

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"curvlinops {metadata.version('curvlinops-for-pytorch')}"


class Objective(torch.nn.Module):
    """The training loss as a model of its parameters; the batch says nothing."""

    def __init__(self, problem: Task, hparams: Tree) -> None:
        super().__init__()
        self.problem, self.hparams = problem, hparams
        self.leaves = torch.nn.ParameterList([torch.nn.Parameter(value.clone()) for value in problem.params.values()])

    def forward(self, _batch: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        return self.problem.inner(dict(zip(self.problem.params, self.leaves, strict=True)), self.hparams)


class Same(torch.nn.Module):
    """A loss function that hands its input on."""

    reduction = "sum"

    def forward(self, prediction: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        """Return the prediction."""
        return prediction


def _row(invert: Any, products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        hparams = {key: value.detach().requires_grad_() for key, value in problem.hparams.items()}
        model = Objective(problem, hparams)
        theta = list(model.parameters())
        nothing = torch.zeros(1, dtype=theta[0].dtype, device=theta[0].device)
        hessian = HessianLinearOperator(model, Same(), theta, [(nothing, nothing)])
        inverse = invert(hessian, settings)

        def run() -> dict[str, Any]:
            loss = problem.outer(dict(zip(problem.params, theta, strict=True)), hparams)
            solved = inverse @ list(torch.autograd.grad(loss, theta))
            gradient = torch.autograd.grad(model(nothing), theta, create_graph=True)
            grads = torch.autograd.grad(gradient, list(hparams.values()), [-value for value in solved])
            return {"answer": [grad.cpu().numpy() for grad in grads], "counts": {"products": products(settings)}}

        return run

    return build


def _neumann(hessian: Any, settings: Mapping[str, Any]) -> Any:
    return NeumannInverseLinearOperator(hessian, num_terms=settings["terms"], scale=settings["step"], check_nan=False)


def _cg(hessian: Any, settings: Mapping[str, Any]) -> Any:
    return CGInverseLinearOperator(
        hessian, max_iter=settings["terms"], tolerance=settings.get("rtol", 0.0), max_tridiag_iter=0
    )


ROWS = {
    "neumann": _row(_neumann, lambda settings: settings["terms"]),
    # one more for the residual of the start; the solver counts products only where it stops at the limit
    "cg": _row(_cg, lambda settings: None if settings.get("rtol") else settings["terms"] + 1),
}
