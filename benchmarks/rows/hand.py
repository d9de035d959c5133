"""What one would write by hand with torch.autograd: the limit that everything is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Task, Tree, task

Function = Callable[[], dict[str, Any]]

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"torch {torch.__version__}"


def _leaves(problem: Task) -> tuple[Tree, Tree]:
    return (
        {key: value.detach().requires_grad_() for key, value in problem.params.items()},
        {key: value.detach().requires_grad_() for key, value in problem.hparams.items()},
    )


def neumann(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """K terms of the Neumann series, with one graph of the inner gradient."""
    problem, terms, step = task(name, arrays), settings["terms"], settings["step"]

    def run() -> dict[str, Any]:
        params, hparams = _leaves(problem)
        theta = list(params.values())
        v = torch.autograd.grad(problem.outer(params, hparams), theta)
        gradient = torch.autograd.grad(problem.inner(params, hparams), theta, create_graph=True)
        c, p = [t.clone() for t in v], [t.clone() for t in v]
        for _ in range(terms):
            product = torch.autograd.grad(gradient, theta, c, retain_graph=True)
            for ci, pi, hi in zip(c, p, product, strict=True):
                ci.sub_(hi, alpha=step)
                pi.add_(ci)
        return _answer(torch.autograd.grad(gradient, list(hparams.values()), [-step * t for t in p]), terms)

    return run


def neumann_apart(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Do the same with the penalty's diagonal taken out of the graph."""
    problem, terms, step = task(name, arrays), settings["terms"], settings["step"]

    def run() -> dict[str, Any]:
        params, hparams = _leaves(problem)
        theta = list(params.values())
        v = torch.autograd.grad(problem.outer(params, hparams), theta)
        gradient = torch.autograd.grad(problem.data(params, hparams), theta, create_graph=True)
        shrinkage = torch.autograd.grad(problem.penalty(params, hparams), theta, create_graph=True)
        diagonal = torch.autograd.grad(shrinkage, theta, [torch.ones_like(t) for t in theta], retain_graph=True)
        c, p = [t.clone() for t in v], [t.clone() for t in v]
        for _ in range(terms):
            product = torch.autograd.grad(gradient, theta, c, retain_graph=True)
            for ci, pi, hi, di in zip(c, p, product, diagonal, strict=True):
                ci.addcmul_(ci, di, value=-step).sub_(hi, alpha=step)
                pi.add_(ci)
        return _answer(torch.autograd.grad(shrinkage, list(hparams.values()), [-step * t for t in p]), terms)

    return run


def cg(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """K steps of conjugate gradients, with one graph of the inner gradient."""
    problem, terms = task(name, arrays), settings["terms"]

    def run() -> dict[str, Any]:
        params, hparams = _leaves(problem)
        theta = list(params.values())
        b = torch.autograd.grad(problem.outer(params, hparams), theta)
        gradient = torch.autograd.grad(problem.inner(params, hparams), theta, create_graph=True)
        x, r, p = [torch.zeros_like(t) for t in b], [t.clone() for t in b], [t.clone() for t in b]
        rho = _dot(r, r)
        for _ in range(terms):
            product = torch.autograd.grad(gradient, theta, p, retain_graph=True)
            alpha = rho / _dot(p, product)
            for xi, ri, pi, hi in zip(x, r, p, product, strict=True):
                xi.addcmul_(pi, alpha)
                ri.addcmul_(hi, -alpha)
            rho, before = _dot(r, r), rho
            for ri, pi in zip(r, p, strict=True):
                pi.mul_(rho / before).add_(ri)
        return _answer(torch.autograd.grad(gradient, list(hparams.values()), [-t for t in x]), terms)

    return run


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Back-propagate through K steps of gradient descent in one graph; with ``window``, through the last of them."""
    problem, steps, lr = task(name, arrays), settings["steps"], settings["lr"]
    window = settings.get("window", steps)

    def run() -> dict[str, Any]:
        params, hparams = _leaves(problem)
        for step in range(steps):
            inside = step >= steps - window
            gradient = torch.autograd.grad(problem.inner(params, hparams), list(params.values()), create_graph=inside)
            params = {key: value - lr * g for (key, value), g in zip(params.items(), gradient, strict=True)}
            if not inside:
                params = {key: value.detach().requires_grad_() for key, value in params.items()}
        return _answer(torch.autograd.grad(problem.outer(params, hparams), list(hparams.values())))

    return run


def training_step(name: str, arrays: Arrays, _settings: Mapping[str, Any]) -> Function:
    """Take one plain step of training without the penalty: forward, backward, SGD."""
    problem = task(name, arrays)
    params = {key: value.clone().requires_grad_() for key, value in problem.params.items()}
    optimizer = torch.optim.SGD(params.values(), lr=1e-6)

    def run() -> dict[str, Any]:
        optimizer.zero_grad()
        problem.data(params, problem.hparams).backward()
        optimizer.step()
        return {"answer": [], "counts": {}}

    return run


def _dot(a: Any, b: Any) -> Tensor:
    return torch.stack([(ai * bi).sum() for ai, bi in zip(a, b, strict=True)]).sum()


def _answer(grads: Any, products: int | None = None) -> dict[str, Any]:
    counts = {} if products is None else {"products": products + 1}  # the mixed product is one, too
    return {"answer": [grad.cpu().numpy() for grad in grads], "counts": counts}


ROWS = {
    "neumann": neumann,
    "neumann apart": neumann_apart,
    "cg": cg,
    "unrolled": unrolled,
    "training step": training_step,
}
