"""Races of boat-torch: ``Problem.run_iter`` trains, finds the hypergradient and moves the hyperparameters.

It evaluates both losses once more after each step and writes all of them to a file, here the null device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from boat_torch.boat_opt import Problem

from benchmarks.problems import Arrays, Tree
from benchmarks.race import drive
from benchmarks.race_problems import Leaves, task
from benchmarks.rows.race_hand import Function


def version() -> str:
    """Return what computes."""
    return f"boat-torch {metadata.version('boat-torch')}"


def inner_loss(feed: Any, upper: Any, lower: Any, params: Any = None) -> torch.Tensor:
    """Return the training loss; the library looks the function up by its name."""
    problem = feed["problem"]
    loss: torch.Tensor = problem.inner(_tree(problem.params, params or lower.parameters()), upper.tree())
    return loss


def outer_loss(feed: Any, upper: Any, lower: Any, params: Any = None) -> torch.Tensor:
    """Return the validation loss; the library looks the function up by its name."""
    problem = feed["problem"]
    loss: torch.Tensor = problem.outer(_tree(problem.params, params or lower.parameters()), upper.tree())
    return loss


def _tree(like: Tree, values: Any) -> Tree:
    return dict(zip(like, values, strict=True))


def _row(operation: str) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        return lambda: drive(settings["steps"], lambda: _start(name, arrays, settings, operation))

    return build


def _start(name: str, arrays: Arrays, settings: Mapping[str, Any], operation: str) -> Any:
    problem = task(name, arrays)
    lower, upper = Leaves(problem.params), Leaves(problem.hparams)
    seen: list[Any] = []

    class Outer(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            seen[:] = [value.grad.clone() for value in upper.parameters() if value.grad is not None]
            return super().step(closure)

    inner = torch.optim.SGD(lower.parameters(), lr=settings["rate"], momentum=settings.get("momentum", 0.0))
    config = {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": [operation],
        "lower_level_model": lower,
        "upper_level_model": upper,
        "lower_level_var": list(lower.parameters()),
        "upper_level_var": list(upper.parameters()),
        "lower_level_opt": inner,
        "upper_level_opt": Outer(upper.parameters(), lr=settings["outer_rate"]),
        "lower_iters": settings["inner"],
        "CG": {"k": settings["terms"], "tolerance": 0.0},
        "RGT": {"truncate_iter": 0},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
        "FD": {"r": 1e-2},
        "accumulate_grad": False,
        "return_grad": False,
        "copy_last_param": True,
        "device": "cpu",
        "loss_log_path": os.devnull,
    }
    losses = {
        f"{level}_level_loss": {"function": f"{__name__}.{function.__name__}", "params": {}}
        for level, function in (("lower", inner_loss), ("upper", outer_loss))
    }
    solver = Problem(config, losses)
    solver.build_ll_solver()
    solver.build_ul_solver()
    feed, turn = {"problem": problem}, 0

    def advance() -> list[Any]:
        nonlocal turn
        solver.run_iter(feed, feed, turn)
        turn += 1
        return list(seen)

    return advance, lambda: (list(lower.parameters()), list(upper.parameters()))


ROWS = {"neumann": _row("NS"), "cg": _row("CG"), "unrolled": _row("RAD"), "darts": _row("FD")}
