"""higher's unrolled training on problems of a chosen size."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import higher
import torch
from torch import Tensor, nn

from benchmarks import memory, problems, scaled
from benchmarks.problems import Arrays

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize

LR = 0.05


def version() -> str:
    """Return what computes."""
    return f"higher {importlib.metadata.version('higher')}"


class _Network(nn.Module):
    def __init__(self, task: problems.Task) -> None:
        super().__init__()
        self.task = task
        for name, value in task.params.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, hparams: Mapping[str, Tensor], *, outer: bool) -> Tensor:
        params = {name: getattr(self, name) for name in self.task.params}
        return (self.task.outer if outer else self.task.inner)(params, dict(hparams))


def unrolled(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Any:
    """Differentiate through K steps of training."""
    task = scaled.network(settings["n"], settings["batch"], each=True)
    module = _Network(task)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)

    def run() -> dict[str, Any]:
        hparams = {key: value.detach().requires_grad_() for key, value in task.hparams.items()}
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=True) as (network, training):
            for _ in range(settings["steps"]):
                training.step(network(hparams, outer=False))
            found = torch.autograd.grad(network(hparams, outer=True), list(hparams.values()))
        return {"answer": [grad.cpu().numpy() for grad in found], "counts": {}}

    return run


ROWS = {"unrolled": unrolled}
