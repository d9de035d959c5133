"""TorchOpt: ``custom_root`` over its linear solvers, and its functional optimizers for unrolling."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
import torchopt
from torchopt.diff.implicit import custom_root

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Tree, task
from benchmarks.rows.hand import Function

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"torchopt {metadata.version('torchopt')}"


def _implicit(solver: Any, products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        names = list(problem.params)

        def tree(values: Any) -> Tree:
            return dict(zip(names, values, strict=True))

        def inner(params: Any, hparams: Any) -> torch.Tensor:
            return problem.inner(tree(params), tree(hparams))

        def given(params: Any, _hparams: Any) -> Any:
            return params

        solve = custom_root(torch.func.grad(inner), argnums=1, solve=solver(settings))(given)
        theta = tuple(problem.params.values())

        def run() -> dict[str, Any]:
            hparams = tuple(value.detach().requires_grad_() for value in problem.hparams.values())
            params = solve(theta, hparams)
            grads = torch.autograd.grad(problem.outer(tree(params), tree(hparams)), hparams)
            return {"answer": [grad.cpu().numpy() for grad in grads], "counts": {"products": products(settings)}}

        return run

    return build


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """K steps of SGD with updates that stay in the graph; with ``window``, only the last of them."""
    problem, steps = task(name, arrays), settings["steps"]
    window = settings.get("window", steps)
    optimizer = torchopt.sgd(settings["lr"])

    def step(params: Any, state: Any, hparams: Tree, *, graph: bool) -> tuple[Any, Any]:
        loss = problem.inner(params, hparams)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=graph)
        updates, state = optimizer.update(dict(zip(params, grads, strict=True)), state, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    def run() -> dict[str, Any]:
        hparams = {key: value.detach().requires_grad_() for key, value in problem.hparams.items()}
        params = {key: value.detach().requires_grad_() for key, value in problem.params.items()}
        state = optimizer.init(params)
        for _ in range(steps - window):
            params, state = step(params, state, hparams, graph=False)
            params = {key: value.detach().requires_grad_() for key, value in params.items()}
        for _ in range(window):
            params, state = step(params, state, hparams, graph=True)
        grads = torch.autograd.grad(problem.outer(params, hparams), list(hparams.values()))
        return {"answer": [grad.cpu().numpy() for grad in grads], "counts": {}}

    return run


def _neumann(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_inv(ns=True, maxiter=settings["terms"], alpha=settings["step"])


def _cg(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_cg(maxiter=settings["terms"], rtol=settings.get("rtol", 0.0))


def _normal_cg(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_normal_cg(maxiter=settings["terms"], rtol=settings.get("rtol", 0.0))


ROWS = {
    "neumann": _implicit(_neumann, lambda settings: settings["terms"]),
    # one more for the residual of the start; the solver counts products only where it stops at the limit
    "cg": _implicit(_cg, lambda settings: None if settings.get("rtol") else settings["terms"] + 1),
    "normal cg": _implicit(_normal_cg, lambda settings: None if settings.get("rtol") else 2 * settings["terms"] + 3),
    "unrolled": unrolled,
}
