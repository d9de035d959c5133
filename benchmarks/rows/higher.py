"""higher: unrolling, its only method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import higher
import torch

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Tree, task
from benchmarks.rows.hand import Function
from benchmarks.rows.modules import Leaves

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"higher {metadata.version('higher')}"


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """K steps of SGD in ``innerloop_ctx``; with ``window``, only the last of them, after plain training."""
    problem, steps = task(name, arrays), settings["steps"]
    window = settings.get("window", steps)
    module = Leaves(problem.params)
    leaves = list(module.parameters())
    optimizer = torch.optim.SGD(leaves, lr=settings["lr"])

    def tree(values: Any) -> Tree:
        return dict(zip(problem.params, values, strict=True))

    def run() -> dict[str, Any]:
        hparams = {key: value.detach().requires_grad_() for key, value in problem.hparams.items()}
        with torch.no_grad():
            for leaf, value in zip(leaves, problem.params.values(), strict=True):
                leaf.copy_(value)
        for _ in range(steps - window):
            grads = torch.autograd.grad(problem.inner(tree(leaves), problem.hparams), leaves)
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            optimizer.step()
        with higher.innerloop_ctx(module, optimizer) as (model, fast):
            for _ in range(window):
                fast.step(problem.inner(tree(model.parameters()), hparams))
            loss = problem.outer(tree(model.parameters()), hparams)
            found = torch.autograd.grad(loss, list(hparams.values()))
        return {"answer": [grad.cpu().numpy() for grad in found], "counts": {}}

    return run


ROWS = {"unrolled": unrolled}
