"""Races of TorchOpt: ``MetaSGD`` unrolled, and implicit differentiation by ``custom_root``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
import torchopt
from torchopt.diff.implicit import custom_root

from benchmarks.problems import Arrays, Tree
from benchmarks.race import drive
from benchmarks.race_problems import Leaves, descend, leaves, task
from benchmarks.rows.race_hand import Function


def version() -> str:
    """Return what computes."""
    return f"torchopt {metadata.version('torchopt')}"


def _implicit(solver: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        def start() -> Any:
            problem = task(name, arrays)
            params, hparams = leaves(problem.params), leaves(problem.hparams)
            outer = torch.optim.Adam(hparams.values(), lr=settings["outer_rate"])
            names = list(params)

            def inner(values: Any, given: Any) -> torch.Tensor:
                return problem.inner(dict(zip(names, values, strict=True)), dict(zip(hparams, given, strict=True)))

            @custom_root(torch.func.grad(inner), argnums=1, solve=solver(settings))  # type: ignore[untyped-decorator]
            def solve(values: Any, _given: Any) -> Any:
                return values

            def advance() -> list[Any]:
                descend(problem, params, hparams, settings)
                outer.zero_grad()
                found = solve(tuple(value.detach() for value in params.values()), tuple(hparams.values()))
                problem.outer(dict(zip(names, found, strict=True)), hparams).backward()
                seen = [value.grad for value in hparams.values()]
                outer.step()
                return seen

            return advance, lambda: (list(params.values()), list(hparams.values()))

        return lambda: drive(settings["steps"], start)

    return build


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """Train by ``MetaSGD``, whose steps stay in the graph."""

    def start() -> Any:
        problem = task(name, arrays)
        module, hparams = Leaves(problem.params), leaves(problem.hparams)
        outer = torch.optim.Adam(hparams.values(), lr=settings["outer_rate"])

        def advance() -> list[Any]:
            # a new one for each outer step: momentum starts from zero, as in every row
            inner = torchopt.MetaSGD(module, lr=settings["rate"], momentum=settings.get("momentum", 0.0))
            for _ in range(settings["inner"]):
                inner.step(problem.inner(_named(module), hparams))
            outer.zero_grad()
            problem.outer(_named(module), hparams).backward()
            seen = [value.grad for value in hparams.values()]
            outer.step()
            torchopt.stop_gradient(module)
            return seen

        return advance, lambda: (list(_named(module).values()), list(hparams.values()))

    return lambda: drive(settings["steps"], start)


def _named(module: Leaves) -> Tree:
    """Return what stands in the module now: MetaSGD puts tensors in the place of its parameters."""
    found: dict[str, Any] = module.leaves._parameters
    return dict(zip(module.names, found.values(), strict=True))


def _neumann(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_inv(ns=True, maxiter=settings["terms"], alpha=settings["rate"])


def _cg(settings: Mapping[str, Any]) -> Any:
    return torchopt.linear_solve.solve_cg(maxiter=settings["terms"], rtol=settings.get("rtol", 0.0))


ROWS = {"unrolled": unrolled, "neumann": _implicit(_neumann), "cg": _implicit(_cg)}
