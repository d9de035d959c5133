"""This library on problems of a chosen size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

import hypergrad as hg
from benchmarks import example_weights, memory, problems, scaled
from benchmarks.problems import Arrays, Task
from benchmarks.rows import engine
from benchmarks.rows.hand import Function

peak_bytes, synchronize, version = memory.peak_bytes, problems.synchronize, engine.version

LR = 0.05
STEP = 0.1


def example_rows(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Take outer steps of ``Live`` with one weight for each of n training examples."""
    step = example_weights.outer_step(settings["n"], 128, 256, "SparseAdam", problems.DEVICE, sparse=settings["sparse"])

    def run() -> dict[str, Any]:
        for _ in range(settings["times"]):
            step()
        return {"answer": [], "counts": {}}

    return run


def outer_step(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Take an outer step with one penalty for each weight: a Neumann hypergradient and one step of Adam."""
    task = scaled.network(settings["n"], settings["batch"], each=True)
    find = _stepper(task, hg.Implicit(hg.Neumann(settings["terms"], step=STEP), stationarity=math.inf))
    optimizer = torch.optim.Adam(task.hparams.values(), lr=1e-3)

    def run() -> dict[str, Any]:
        for key, grad in find().items():
            task.hparams[key].grad = grad
        optimizer.step()
        return {"answer": [], "counts": {}}

    return run


def hypergradient(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Find a Neumann hypergradient with one penalty for each tensor."""
    task = scaled.network(settings["n"], settings["batch"], each=False)
    find = _stepper(task, hg.Implicit(hg.Neumann(settings["terms"], step=STEP), stationarity=math.inf))
    return memory.watched(_answered(find)) if settings.get("resident") else _answered(find)


def implicit(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Train for K steps, then find a Neumann hypergradient."""
    inner = hg.GradientDescent(lr=LR, steps=settings["steps"])
    algorithm = hg.Implicit(hg.Neumann(settings["terms"], step=STEP), inner=inner, stationarity=math.inf)
    return _answered(_stepper(scaled.network(settings["n"], settings["batch"], each=True), algorithm))


def unrolled(_name: str, _arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Differentiate through K steps of training."""
    steps = settings["steps"]
    algorithm = hg.Unrolled(steps, hg.GradientDescent(lr=LR), keep=settings["keep"], truncate=settings.get("truncate"))
    return _answered(_stepper(scaled.network(settings["n"], settings["batch"], each=True), algorithm))


def _stepper(task: Task, algorithm: hg.Algorithm[Any]) -> Callable[[], Mapping[str, torch.Tensor]]:
    problem = hg.Problem(task.inner, task.outer)
    state = algorithm.init(problem, task.params, task.hparams)
    return lambda: algorithm.step(problem, state, task.hparams)[0].grads


def _answered(find: Callable[[], Mapping[str, torch.Tensor]]) -> Function:
    def run() -> dict[str, Any]:
        found = find()
        return {"answer": [grad.cpu().numpy() for grad in found.values()], "counts": {}}

    return run


ROWS = {
    "example weights": example_rows,
    "penalties": outer_step,
    "hypergradient": hypergradient,
    "implicit": implicit,
    "unrolled": unrolled,
}
