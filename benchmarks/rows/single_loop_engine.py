"""Single-loop methods of this library: a step for each pair of batches, then a plain step of λ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import hypergrad as hg
from benchmarks.finite_sums import BATCH, parts
from benchmarks.problems import DEVICE, Arrays
from benchmarks.rows.engine import version
from benchmarks.rows.hand import Function

__all__ = ["ROWS", "version"]


def _row(kind: Any, *, run_object: bool = False, **options: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        tensors = {key: torch.from_numpy(value).to(DEVICE) for key, value in arrays.items()}
        (inner, outer), data = parts(name, tensors)
        samplers = [hg.Partition(*part, batch_size=BATCH, seed=seed) for seed, part in enumerate(data)]
        problem = hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])
        given = {key: value for key, value in settings.items() if key in ("iterations", "period")}
        algorithm = kind(step_size=settings["step"], **given, **options)
        start = {"w": tensors["params"]}, {"x": tensors["hparams"]}
        steps, rate = settings["steps"], settings["step"]
        first = [algorithm.init(problem, *start), start[1]["x"]]
        if kind is not hg.SOBA:  # the tables, or the first pass over the whole data, are no part of a step
            _, first[0] = algorithm.step(problem, first[0], {"x": first[1]})

        def rewind() -> None:
            for sampler in samplers:
                sampler.load_state_dict({"drawn": 0})

        def run() -> dict[str, Any]:
            state, x = first
            rewind()
            for _ in range(steps):
                found, state = algorithm.step(problem, state, {"x": x})
                x = torch.sub(x, found.grads["x"], alpha=rate)
            return {"answer": [x.cpu().numpy()], "counts": {}}

        def run_run() -> dict[str, Any]:
            rewind()
            move = hg.outer.Torch(torch.optim.SGD, lr=rate)
            loop = hg.Run(problem, algorithm, *start, move, probe=False)
            for _ in range(steps):
                loop.step()
            return {"answer": [loop.hparams["x"].cpu().numpy()], "counts": {}}

        return run_run if run_object else run

    return build


ROWS = {
    "SOBA": _row(hg.SOBA),
    "SABA": _row(hg.SABA),
    "SRBA": _row(hg.SRBA),
    "SOBA in a Run": _row(hg.SOBA, run_object=True),
    "SOBA compiled": _row(hg.SOBA, compile=True),
    "SABA compiled": _row(hg.SABA, compile=True),
}
