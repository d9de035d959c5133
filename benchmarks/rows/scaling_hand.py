"""What one would write by hand with torch.autograd, on problems of a chosen size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import memory, problems, scaled
from benchmarks.problems import Arrays, Task
from benchmarks.rows import hand
from benchmarks.rows.hand import Function

peak_bytes, synchronize, version = memory.peak_bytes, problems.synchronize, hand.version

LR = 0.05
STEP = 0.1


def outer_step(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Take an outer step with one penalty for each weight: a Neumann hypergradient and one step of Adam."""
    task = scaled.network(settings["n"], settings["batch"], each=True)
    optimizer = torch.optim.Adam(task.hparams.values(), lr=1e-3)

    def run() -> dict[str, Any]:
        for value, grad in zip(task.hparams.values(), _neumann(task, settings["terms"]), strict=True):
            value.grad = grad
        optimizer.step()
        return {"answer": [], "counts": {}}

    return run


def hypergradient(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Find a Neumann hypergradient with one penalty for each tensor."""
    task = scaled.network(settings["n"], settings["batch"], each=False)

    def run() -> dict[str, Any]:
        return {"answer": [grad.cpu().numpy() for grad in _neumann(task, settings["terms"])], "counts": {}}

    return memory.watched(run) if settings.get("resident") else run


def unrolled(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Differentiate through K steps of training, with the whole graph."""
    task = scaled.network(settings["n"], settings["batch"], each=True)

    def run() -> dict[str, Any]:
        params = {key: value.detach().requires_grad_() for key, value in task.params.items()}
        hparams = {key: value.detach().requires_grad_() for key, value in task.hparams.items()}
        for _ in range(settings["steps"]):
            grads = torch.autograd.grad(task.inner(params, hparams), list(params.values()), create_graph=True)
            params = {key: value - LR * grad for (key, value), grad in zip(params.items(), grads, strict=True)}
        found = torch.autograd.grad(task.outer(params, hparams), list(hparams.values()))
        return {"answer": [grad.cpu().numpy() for grad in found], "counts": {}}

    return run


def _neumann(task: Task, terms: int) -> list[torch.Tensor]:
    params = {key: value.detach().requires_grad_() for key, value in task.params.items()}
    hparams = {key: value.detach().requires_grad_() for key, value in task.hparams.items()}
    theta = list(params.values())
    v = torch.autograd.grad(task.outer(params, hparams), theta)
    gradient = torch.autograd.grad(task.inner(params, hparams), theta, create_graph=True)
    c, p = [t.clone() for t in v], [t.clone() for t in v]
    for _ in range(terms):
        for ci, pi, hi in zip(c, p, torch.autograd.grad(gradient, theta, c, retain_graph=True), strict=True):
            ci.sub_(hi, alpha=STEP)
            pi.add_(ci)
    return list(torch.autograd.grad(gradient, list(hparams.values()), [-STEP * t for t in p]))


ROWS = {"penalties": outer_step, "hypergradient": hypergradient, "unrolled": unrolled}
