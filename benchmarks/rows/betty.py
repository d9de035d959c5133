"""betty-ml: a problem for each level, and the hypergradient of the outer one as its engine calls for it.

Objects that a user makes once are made before the clock runs. One call is what ``Problem.one_step_descent`` does for
the outer problem, without its optimizer's step: loss, backward, gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem, IterativeProblem

from benchmarks import memory, problems
from benchmarks.problems import Arrays, Task, task
from benchmarks.rows.hand import Function
from benchmarks.rows.modules import Leaves, points

peak_bytes, synchronize = memory.peak_bytes, problems.synchronize


def version() -> str:
    """Return what computes."""
    return f"betty-ml {metadata.version('betty-ml')}"


def _levels(problem: Task, outer: Config, inner: Config, inner_class: type[Any], lr: float) -> tuple[Any, Any, Engine]:
    class Outer(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, _batch: object) -> torch.Tensor:
            return problem.outer(dict(zip(problem.params, self.inner.parameters(), strict=True)), self.module.tree())

        def get_batch(self) -> tuple[()]:
            return ()

    class Inner(inner_class):  # type: ignore[misc]
        def training_step(self, _batch: object) -> torch.Tensor:
            return problem.inner(dict(zip(problem.params, self.parameters(), strict=True)), self.outer.module.tree())

        def get_batch(self) -> tuple[()]:
            return ()

    hparams, params = Leaves(problem.hparams), Leaves(problem.params)
    above = Outer("outer", outer, module=hparams, optimizer=torch.optim.SGD(hparams.parameters(), lr=1.0))
    below = Inner("inner", inner, module=params, optimizer=torch.optim.SGD(params.parameters(), lr=lr))
    links = {"u2l": {above: [below]}, "l2u": {below: [above]}}
    engine = Engine([above, below], EngineConfig(logger_type="none"), links)
    below.cur_batch = ()
    return above, below, engine


def _gradients(above: Any) -> list[Any]:
    """Return the hypergradient the way one step of the outer problem finds it."""
    loss, _ = above.get_loss(())
    above.backward(
        loss,
        above.trainable_parameters(),
        above.paths,
        create_graph=False,
        retain_graph=above.config.retain_graph,
        allow_unused=above.config.allow_unused,
    )
    found = [value.grad.cpu().numpy() for value in above.trainable_parameters()]
    above.zero_grad()
    return found


def _implicit(configure: Any, products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        problem = task(name, arrays)
        above, below, _ = _levels(problem, Config(), configure(settings), ImplicitProblem, 1.0)
        given = points(problem, arrays)

        def run() -> dict[str, Any]:
            answer = []
            for params, hparams in given:
                if len(given) > 1:
                    below.module.load(params)
                    above.module.load(hparams)
                answer += _gradients(above)
            return {"answer": answer, "counts": {"products": products(settings) * len(given)}}

        return run

    return build


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
    """K steps of SGD through ``IterativeProblem``, which needs ``retain_graph`` on both levels; there is no window."""
    if "window" in settings:
        raise ValueError("betty has no truncated unrolling")
    problem, steps = task(name, arrays), settings["steps"]
    # with the iterates in the graph, the direct gradient is the whole one
    outer, inner = Config(first_order=False, retain_graph=True), Config(retain_graph=True, unroll_steps=steps)
    above, below, _ = _levels(problem, outer, inner, IterativeProblem, settings["lr"])

    def run() -> dict[str, Any]:
        below.params = tuple(value.clone().requires_grad_() for value in problem.params.values())
        for _ in range(steps):
            below.one_step_descent(())
        return {"answer": _gradients(above), "counts": {}}

    return run


def _neumann(settings: Mapping[str, Any]) -> Config:
    return Config(type="neumann", neumann_iterations=settings["terms"], neumann_alpha=settings["step"])


def _cg(settings: Mapping[str, Any]) -> Config:
    return Config(type="cg", cg_iterations=settings["terms"], cg_alpha=1.0)


def _darts(settings: Mapping[str, Any]) -> Config:
    return Config(type="darts", darts_alpha=settings.get("radius", 0.01))


def _terms(settings: Mapping[str, Any]) -> int:
    return int(settings["terms"])


ROWS = {
    "neumann": _implicit(_neumann, _terms),
    "cg": _implicit(_cg, _terms),
    "darts": _implicit(_darts, lambda _settings: 1),
    "unrolled": unrolled,
}
