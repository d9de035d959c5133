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
from benchmarks.problems import Arrays, Task, task
from benchmarks.rows.hand import Function
from benchmarks.rows.modules import Leaves, points

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"curvlinops {metadata.version('curvlinops-for-pytorch')}"


class Objective(torch.nn.Module):
    """The training loss as a model of its parameters; the batch says nothing."""

    def __init__(self, problem: Task) -> None:
        super().__init__()
        self.problem = problem
        self.lower, self.upper = Leaves(problem.params), Leaves(problem.hparams)

    def forward(self, _batch: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        return self.problem.inner(self.lower.tree(), self.upper.tree())


class Same(torch.nn.Module):
    """A loss function that hands its input on."""

    reduction = "sum"

    def forward(self, prediction: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        """Return the prediction."""
        return prediction


def _row(invert: Any, products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        model, given = Objective(problem), points(problem, arrays)
        theta, logs = list(model.lower.parameters()), list(model.upper.parameters())
        nothing = torch.zeros(1, dtype=theta[0].dtype, device=theta[0].device)
        inverse = invert(HessianLinearOperator(model, Same(), theta, [(nothing, nothing)]), settings)

        def hypergradient() -> list[Any]:
            loss = problem.outer(model.lower.tree(), model.upper.tree())
            solved = inverse @ list(torch.autograd.grad(loss, theta))
            gradient = torch.autograd.grad(model(nothing), theta, create_graph=True)
            grads = torch.autograd.grad(gradient, logs, [-value for value in solved])
            return [grad.cpu().numpy() for grad in grads]

        def run() -> dict[str, Any]:
            answer = []
            for params, hparams in given:
                if len(given) > 1:
                    model.lower.load(params)
                    model.upper.load(hparams)
                answer += hypergradient()
            count = products(settings)
            return {"answer": answer, "counts": {"products": None if count is None else count * len(given)}}

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
