"""Races of higher: unrolling, its only method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import higher
import torch

from benchmarks.problems import Arrays, Tree
from benchmarks.race import drive
from benchmarks.race_problems import Leaves, leaves, task
from benchmarks.rows.race_hand import Function


def version() -> str:
    """Return what computes."""
    return f"higher {metadata.version('higher')}"


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Train in ``innerloop_ctx``, and go back through all steps."""

    def start() -> Any:
        problem = task(name, arrays)
        module, hparams = Leaves(problem.params), leaves(problem.hparams)
        inner = torch.optim.SGD(module.parameters(), lr=settings["rate"], momentum=settings.get("momentum", 0.0))
        outer = torch.optim.Adam(hparams.values(), lr=settings["outer_rate"])

        def tree(model: Any) -> Tree:
            return dict(zip(module.names, model.parameters(), strict=True))

        def advance() -> list[Any]:
            outer.zero_grad()
            with higher.innerloop_ctx(module, inner) as (model, steps):
                for _ in range(settings["inner"]):
                    steps.step(problem.inner(tree(model), hparams))
                problem.outer(tree(model), hparams).backward()
                with torch.no_grad():
                    for value, trained in zip(module.parameters(), model.parameters(), strict=True):
                        value.copy_(trained)
            seen = [value.grad for value in hparams.values()]
            outer.step()
            return seen

        return advance, lambda: (list(module.leaves), list(hparams.values()))

    return lambda: drive(settings["steps"], start)


ROWS = {"unrolled": unrolled}
