"""This library to a tolerance, from outer step to outer step with what it keeps between them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import hypergrad as hg
from benchmarks import memory, problems
from benchmarks.problems import Arrays, task
from benchmarks.rows.engine import version
from benchmarks.rows.hand import Function
from benchmarks.rows.modules import points

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


RANK = 20
"""Of the sketch, at most half of the products."""


def implicit(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """One hypergradient at each of the problem's points; the first call makes everything anew, so set-up counts.

    The settings are ``terms`` (the most products, those of a sketch among them), ``rtol`` (0 by default), ``apart``
    (whether the penalty is given apart), ``compile`` (done beforehand and told apart) and ``preconditioner``:
    ``"none"``, ``"penalty"``, ``"nystrom"`` or ``"recycled"``.
    """
    problem = task(name, arrays)
    if settings.get("apart", True):
        given = hg.Problem(problem.data, problem.outer, penalty=problem.penalty)
    else:
        given = hg.Problem(problem.inner, problem.outer)
    algorithm = hg.Implicit(_solver(settings), stationarity=math.inf, compile=settings.get("compile", False))
    steps = points(problem, arrays)

    def run() -> dict[str, Any]:
        answer, products = [], 0
        state = algorithm.init(given, *steps[0])
        for params, hparams in steps:
            state = dataclasses.replace(state, params=params)
            result, state = algorithm.step(given, state, hparams)
            answer += [result.grads[key].cpu().numpy() for key in hparams]
            # the last product, with the mixed derivative, is everybody's
            products += result.report.cost.products - 1
        return {"answer": answer, "counts": {"products": products, "compile_seconds": compiling}}

    compiling: float | None = None
    if algorithm.compile:
        began = time.process_time()
        run()
        compiling = time.process_time() - began
    return run


def _solver(settings: Mapping[str, Any]) -> hg.LinearSolver:
    if "step" in settings:
        return hg.Neumann(settings["terms"], step=settings["step"])
    steps, rank = settings["terms"], min(RANK, settings["terms"] // 2)
    sketch = hg.NystromPreconditioner(rank=rank, oversample=0)
    kind = settings.get("preconditioner", "none")
    found: hg.Preconditioner | None = {"none": None, "penalty": hg.PenaltyDiagonal(), "nystrom": sketch}.get(kind)
    if kind == "recycled":
        found = hg.Recycled(sketch, keep=150)
    if found is not None:
        steps -= rank if kind in ("nystrom", "recycled") else found.budget(0)
    return hg.CG(rtol=settings.get("rtol", 0.0), max_steps=steps, preconditioner=found)


ROWS = {"implicit": implicit}

__all__ = ["ROWS", "version"]
