"""Cost of one differentiable optimizer step, in units of the optimizer's own step in place.

Run ``python -m benchmarks.optimizer_step``. The rows: the optimizer itself; ``TorchRule`` without a graph (the
forward passes of ``keep="iterates"``, ``"sqrt"`` and ``"log"``) and with one; the hand-written rule with a graph,
where there is one. No gradient is computed: what a training step costs beside is not in these ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from benchmarks.harness import alternate, ratio, write_json
from hypergrad.inner import UpdateRule
from hypergrad.tree import leaves

Tree = dict[str, Tensor]
OPTIMIZERS: dict[str, tuple[Callable[[list[Tensor]], torch.optim.Optimizer], UpdateRule | None]] = {
    "SGD": (
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, momentum=0.9, foreach=False),
        hg.GradientDescent(lr=1e-3, momentum=0.9),
    ),
    "AdamW": (
        lambda tensors: torch.optim.AdamW(tensors, lr=1e-3, foreach=False),
        hg.Adam(lr=1e-3, weight_decay=1e-2, decoupled=True),
    ),
    "RMSprop": (lambda tensors: torch.optim.RMSprop(tensors, lr=1e-3, foreach=False), None),
    "NAdam": (lambda tensors: torch.optim.NAdam(tensors, lr=1e-3, foreach=False), None),
}


def rows(name: str, count: int, size: int) -> dict[str, Callable[[], Any]]:
    """Return one step of each kind, on ``count`` tensors of ``size`` entries."""
    make, rule = OPTIMIZERS[name]
    torch.manual_seed(0)
    params = {f"w{place}": torch.randn(size) for place in range(count)}
    gradient = {key: torch.randn(size) for key in params}
    tensors = [value.clone().requires_grad_() for value in params.values()]
    optimizer = make(tensors)
    for tensor, grad in zip(tensors, gradient.values(), strict=True):
        tensor.grad = grad

    def step(rule: UpdateRule, *, graph: bool) -> Callable[[], Any]:
        with torch.no_grad():
            _, slots = rule.update(params, gradient, rule.start(params), {}, 0)

        def once() -> Any:
            with torch.set_grad_enabled(graph):
                return rule.update(leaves(params), leaves(gradient), slots, {}, 1)

        return once

    followed = hg.TorchRule(make)
    found: dict[str, Callable[[], Any]] = {
        "plain": optimizer.step,
        "TorchRule": step(followed, graph=False),
        "TorchRule, graph": step(followed, graph=True),
    }
    return found if rule is None else found | {f"{type(rule).__name__}, graph": step(rule, graph=True)}


def main(
    *,
    sizes: tuple[tuple[int, int], ...] = ((6, 300_000), (60, 10_000), (2, 10)),
    repeats: int = 15,
    path: Path | None = None,
) -> dict[str, Any]:
    """Print and return the ratios for ``sizes``: pairs of a number of tensors and their entries."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for count, size in sizes:
        for name in OPTIMIZERS:
            timings = alternate(rows(name, count, size), repeats)
            ratios = {row: ratio(timings, row, "plain") for row in timings}
            result[f"{name}, {count} x {size}"] = {**ratios, "plain seconds": timings["plain"].median}
            told = ", ".join(f"{row} {value:.1f}" for row, value in ratios.items() if row != "plain")
            print(f"{name:8} {count:3} x {size:7}: plain {1e3 * timings['plain'].median:.3f} ms; {told}")
    if path is not None:
        write_json(path, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    main(repeats=arguments.repeats, path=arguments.json)
