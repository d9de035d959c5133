"""boat-torch: ``Problem.run_iter`` with its dictionaries of settings and losses that are found by their names.

It always takes a step of the inner optimizer first, so that its answer belongs to θ − step ∇g, not to θ: the same
where θ is the inner optimum. It also evaluates both losses once more, and writes them to a file, here the null device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from boat_torch.boat_opt import Problem

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Task, Tree, task
from benchmarks.rows.hand import Function
from benchmarks.rows.modules import Leaves, points

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"boat-torch {metadata.version('boat-torch')}"


def inner_loss(feed: Any, upper: Any, lower: Any, params: Any = None) -> torch.Tensor:
    """Return the training loss; the library looks the function up by its name."""
    problem: Task = feed["problem"]
    return problem.inner(_tree(problem, params or lower.parameters()), _tree(problem, upper.parameters()))


def outer_loss(feed: Any, upper: Any, lower: Any, params: Any = None) -> torch.Tensor:
    """Return the validation loss; the library looks the function up by its name."""
    problem: Task = feed["problem"]
    return problem.outer(_tree(problem, params or lower.parameters()), _tree(problem, upper.parameters()))


def _tree(problem: Task, values: Any) -> Tree:
    return dict(zip(problem.params, values, strict=True))


def _row(operations: list[str], products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        lower, upper = Leaves(problem.params), Leaves(problem.hparams)
        hparams = list(upper.parameters())
        solver = Problem(_config(operations, lower, upper, settings), _losses())
        solver.build_ll_solver()
        solver.build_ul_solver()
        feed, given = {"problem": problem}, points(problem, arrays)

        def run() -> dict[str, Any]:
            answer = []
            for theta, logs in given:
                if len(given) > 1:
                    lower.load(theta)
                    upper.load(logs)
                for value in hparams:
                    value.grad = None
                grads, _ = solver.run_iter(feed, feed, 0)
                answer += [grad.cpu().numpy() for grad in grads]
            return {"answer": answer, "counts": {key: count * len(given) for key, count in products(settings).items()}}

        return run

    return build


def _losses() -> dict[str, Any]:
    return {
        f"{level}_level_loss": {"function": f"{__name__}.{function.__name__}", "params": {}}
        for level, function in (("lower", inner_loss), ("upper", outer_loss))
    }


def _config(operations: list[str], lower: Leaves, upper: Leaves, settings: Mapping[str, Any]) -> dict[str, Any]:
    steps, lr = settings.get("steps", 1), settings.get("lr", settings.get("step", 1.0))
    truncated = steps - settings.get("window", steps)
    return {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": [*operations, "RGT"] if truncated else operations,
        "lower_level_model": lower,
        "upper_level_model": upper,
        "lower_level_var": list(lower.parameters()),
        "upper_level_var": list(upper.parameters()),
        "lower_level_opt": torch.optim.SGD(lower.parameters(), lr=lr),
        "upper_level_opt": torch.optim.SGD(upper.parameters(), lr=1.0),
        "lower_iters": steps,
        "CG": {"k": settings.get("terms", 0), "tolerance": settings.get("atol", 0.0)},
        "RGT": {"truncate_iter": truncated},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
        "FD": {"r": 1e-2},
        "accumulate_grad": False,
        "return_grad": True,
        "copy_last_param": False,
        "device": "cpu",
        "loss_log_path": os.devnull,
    }


def _terms(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {} if settings.get("atol") else {"products": settings["terms"]}


ROWS = {
    "neumann": _row(["NS"], _terms),
    "cg": _row(["CG"], _terms),
    "unrolled": _row(["RAD"], lambda _settings: {}),
}
