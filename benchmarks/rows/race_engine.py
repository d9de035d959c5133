"""Races of this library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

import hypergrad as hg
from benchmarks.problems import Arrays
from benchmarks.race import Race
from benchmarks.race_problems import task
from benchmarks.rows.race_hand import Function


def version() -> str:
    """Return what computes."""
    return f"hypergrad {hg.__version__}"


def _row(algorithm: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        def run() -> dict[str, Any]:
            race, given = Race(), task(name, arrays)
            with race.clock():
                problem = hg.Problem(given.data, given.outer, penalty=given.penalty, hparams_domain=_domain(name))
                chosen = algorithm(settings)
                under_way = hg.Run(problem, chosen, given.params, given.hparams, _move(settings), probe=False)
            for _ in range(settings["steps"]):
                with race.clock():
                    under_way.step()
                race.note(list(under_way.params.values()), list(under_way.hparams.values()))
            # outside of the clock: a run keeps no hypergradient
            state = chosen.init(problem, given.params, given.hparams)
            first, _ = chosen.step(
                problem, state, {key: t.clone().requires_grad_() for key, t in given.hparams.items()}
            )
            return race.result(list(first.grads.values()))

        return run

    return build


def _domain(name: str) -> dict[str, Any]:
    return {"log_penalty": hg.Box(-10.0, 4.0)} if name == "penalties" else {}


def _move(settings: Mapping[str, Any]) -> hg.outer.OuterMove:
    if "iterations" in settings:
        return hg.outer.LBFGSB(iterations=settings["iterations"])
    return hg.outer.Torch(torch.optim.Adam, lr=settings["outer_rate"], foreach=True)


def _training(settings: Mapping[str, Any]) -> hg.InnerSolver:
    if "tolerance" in settings:
        return hg.LBFGS(tolerance=settings["tolerance"])
    momentum = settings.get("momentum", 0.0)
    return hg.GradientDescent(lr=settings["rate"], momentum=momentum, steps=settings["inner"])


def _neumann(settings: Mapping[str, Any]) -> Any:
    series = hg.Neumann(settings["terms"], step=settings["rate"])
    return hg.Implicit(series, inner=_training(settings), stationarity=math.inf)


def _cg(settings: Mapping[str, Any]) -> Any:
    solver = hg.CG(rtol=settings.get("rtol", 0.0), max_steps=settings["terms"], preconditioner=None)
    return hg.Implicit(solver, inner=_training(settings), stationarity=math.inf)


def _unrolled(settings: Mapping[str, Any]) -> Any:
    rule = hg.GradientDescent(lr=settings["rate"], momentum=settings.get("momentum", 0.0))
    return hg.Unrolled(settings["inner"], rule, warm_start=True)


ROWS = {"neumann": _row(_neumann), "cg": _row(_cg), "unrolled": _row(_unrolled)}
