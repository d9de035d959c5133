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
from benchmarks.rows.modules import points

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

        def same(params: Any, _hparams: Any) -> Any:
            return params

        given = points(problem, arrays)
        theta = [(tuple(params.values()), tuple(hparams.values())) for params, hparams in given]

        def run() -> dict[str, Any]:
            solve = custom_root(torch.func.grad(inner), argnums=1, solve=solver(settings))(same)
            answer = []
            for params, hparams in theta:
                leaves = tuple(value.detach().requires_grad_() for value in hparams)
                loss = problem.outer(tree(solve(params, leaves)), tree(leaves))
                answer += [grad.cpu().numpy() for grad in torch.autograd.grad(loss, leaves)]
            count = products(settings)
            return {"answer": answer, "counts": {"products": None if count is None else count * len(theta)}}

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


def _warm_cg(settings: Mapping[str, Any]) -> Any:
    """Return conjugate gradients that start where the last solve ended, which the library leaves to its user."""
    last: list[Any] = [None]

    def solve(matvec: Any, b: Any) -> Any:
        # the right-hand side of this library is −∂f/∂θ each time, so the last solution fits as it is
        solver = torchopt.linear_solve.solve_cg(maxiter=settings["terms"], rtol=0.0, init=last[0])
        last[0] = solver(matvec, b)
        return last[0]

    return solve


def _normal_cg(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_normal_cg(maxiter=settings["terms"], rtol=settings.get("rtol", 0.0))


ROWS = {
    "neumann": _implicit(_neumann, lambda settings: settings["terms"]),
    # one more for the residual of the start; the solver counts products only where it stops at the limit
    "cg": _implicit(_cg, lambda settings: None if settings.get("rtol") else settings["terms"] + 1),
    "normal cg": _implicit(_normal_cg, lambda settings: None if settings.get("rtol") else 2 * settings["terms"] + 3),
    "cg, warm start": _implicit(_warm_cg, lambda settings: settings["terms"] + 1),
    "unrolled": unrolled,
}
