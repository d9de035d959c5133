"""Races of betty-ml: its engine trains, calls for hypergradients and moves the hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem

from benchmarks.problems import Arrays
from benchmarks.race import drive
from benchmarks.race_problems import Leaves, task
from benchmarks.rows.race_hand import Function


def version() -> str:
    """Return what computes."""
    return f"betty-ml {metadata.version('betty-ml')}"


def _row(configure: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        return lambda: drive(settings["steps"], lambda: _start(name, arrays, settings, configure(settings)))

    return build


def _start(name: str, arrays: Arrays, settings: Mapping[str, Any], config: Config) -> Any:
    problem = task(name, arrays)
    params, hparams = Leaves(problem.params), Leaves(problem.hparams)
    seen: list[Any] = []

    class Outer(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, _batch: object) -> torch.Tensor:
            return problem.outer(self.inner.module.tree(), self.module.tree())

        def get_batch(self) -> tuple[()]:
            return ()

        def optimizer_step(self) -> None:
            seen[:] = [value.grad for value in self.trainable_parameters()]
            super().optimizer_step()

    class Inner(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, _batch: object) -> torch.Tensor:
            return problem.inner(self.module.tree(), self.outer.module.tree())

        def get_batch(self) -> tuple[()]:
            return ()

        def on_inner_loop_start(self) -> None:
            self.optimizer.state.clear()  # momentum starts from zero, as in every row

    inner = torch.optim.SGD(params.parameters(), lr=settings["rate"], momentum=settings.get("momentum", 0.0))
    outer = torch.optim.Adam(hparams.parameters(), lr=settings["outer_rate"])
    above = Outer("outer", Config(), module=hparams, optimizer=outer)
    below = Inner("inner", config, module=params, optimizer=inner)
    links = {"u2l": {above: [below]}, "l2u": {below: [above]}}
    engine = Engine([above, below], EngineConfig(logger_type="none"), links)
    engine.train()

    def advance() -> list[Any]:
        for _ in range(settings["inner"]):
            engine.global_step += 1
            engine.train_step()
        return list(seen)

    return advance, lambda: (list(params.leaves), list(hparams.leaves))


def _neumann(settings: Mapping[str, Any]) -> Config:
    terms, step = settings["terms"], settings["rate"]
    return Config(type="neumann", neumann_iterations=terms, neumann_alpha=step, unroll_steps=settings["inner"])


def _cg(settings: Mapping[str, Any]) -> Config:
    return Config(type="cg", cg_iterations=settings["terms"], cg_alpha=1.0, unroll_steps=settings["inner"])


def _darts(settings: Mapping[str, Any]) -> Config:
    return Config(type="darts", unroll_steps=settings["inner"])


ROWS = {"darts": _row(_darts), "neumann": _row(_neumann), "cg": _row(_cg)}
