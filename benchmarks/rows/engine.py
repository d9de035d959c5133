"""This library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import hypergrad as hg
from benchmarks import memory, problems
from benchmarks.problems import Arrays, task
from benchmarks.rows.hand import Function

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"hypergrad {hg.__version__}"


def _row(algorithm: Any, *, apart: bool = False) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        given = (
            hg.Problem(problem.data, problem.outer, penalty=problem.penalty)
            if apart
            else hg.Problem(problem.inner, problem.outer)
        )
        chosen = algorithm(settings)
        state = chosen.init(given, problem.params, problem.hparams)

        def run() -> dict[str, Any]:
            result, _ = chosen.step(given, state, problem.hparams)
            if "compile" in result.report.notes:
                raise RuntimeError(result.report.notes["compile"])
            grads = [result.grads[key].cpu().numpy() for key in problem.hparams]
            return {"answer": grads, "counts": {"products": result.report.cost.products}}

        return run

    return build


def _neumann(settings: Mapping[str, Any]) -> hg.Implicit:
    return hg.Implicit(hg.Neumann(settings["terms"], step=settings["step"]), stationarity=math.inf)


def _cg(settings: Mapping[str, Any]) -> hg.Implicit:
    return hg.Implicit(hg.CG(rtol=0.0, max_steps=settings["terms"], preconditioner=None), stationarity=math.inf)


def _compiled(algorithm: Callable[[Mapping[str, Any]], hg.Implicit]) -> Callable[[Mapping[str, Any]], hg.Implicit]:
    return lambda settings: dataclasses.replace(algorithm(settings), compile=True)


def _unrolled(settings: Mapping[str, Any]) -> hg.Unrolled:
    return hg.Unrolled(
        steps=settings["steps"],
        inner=hg.GradientDescent(lr=settings["lr"]),
        truncate=settings.get("window"),
        keep=settings.get("keep", "graph"),
    )


ROWS = {
    "neumann": _row(_neumann),
    "neumann apart": _row(_neumann, apart=True),
    "neumann compiled": _row(_compiled(_neumann)),
    "cg": _row(_cg),
    "cg apart": _row(_cg, apart=True),
    "cg compiled": _row(_compiled(_cg)),
    "unrolled": _row(_unrolled),
    "unrolled recomputed": _row(_unrolled),
}
