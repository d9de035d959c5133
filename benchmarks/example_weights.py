"""Cost of an outer step with one weight for each training example, for small and large training sets.

Run ``python -m benchmarks.example_weights``. An outer step is one hypergradient of ``Live`` for a small network on a
batch, one step of the outer optimizer, and ``zero_grad``. The rows differ in the number of examples alone; printed are
CPU times relative to the first one. The last row takes dense gradients, for comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hypergrad as hg
from benchmarks.harness import Timing, alternate, ratio, write_json

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SparseAdam": partial(torch.optim.SparseAdam, lr=1e-2),
    "SGD": partial(torch.optim.SGD, lr=1e-1),
}


def outer_step(
    n: int, batch: int, width: int, optimizer: str, device: torch.device, *, sparse: bool
) -> Callable[[], Any]:
    """Return an outer step with n examples, of whose data only a batch is looked at."""
    torch.manual_seed(0)
    x, xv = torch.randn(2, batch, 64, device=device)
    y, yv = torch.randint(10, (2, batch), device=device)
    rows = torch.randint(n, (16, batch), device=device)
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).to(device)
    weights = hg.ExampleWeights(n, sparse=sparse, device=device)
    build = OPTIMIZERS[optimizer] if sparse else partial(torch.optim.Adam, lr=1e-2)
    outer_optimizer = build(weights.parameters())

    def inner(index: Tensor) -> Tensor:
        losses: Tensor = nn.functional.cross_entropy(model(x), y, reduction="none")
        shrink = torch.stack([tensor.square().sum() for tensor in model.parameters()]).sum()
        return (weights.forward(index) * losses).mean() + 0.1 * shrink

    def outer() -> Tensor:
        return nn.functional.cross_entropy(model(xv), yv)

    algorithm = hg.Implicit(hg.Neumann(5, step=0.1), stationarity=float("inf"))
    hyper, turn = hg.Live(model, weights, inner, outer, algorithm), 0

    def step() -> None:
        nonlocal turn
        turn = (turn + 1) % len(rows)
        hyper.backward(rows[turn])
        outer_optimizer.step()
        outer_optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000, 10_000_000),
    batch: int = 128,
    width: int = 256,
    steps: int = 20,
    repeats: int = 9,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, print and return the ratios."""
    torch.set_num_threads(1)
    where = torch.device(device)
    result: dict[str, Any] = {"batch": batch, "width": width, "device": device, "repeats": repeats, "rows": {}}

    def several(step: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                step()

        return run

    for optimizer in OPTIMIZERS:
        rows = {f"{n}": several(outer_step(n, batch, width, optimizer, where, sparse=True)) for n in sizes}
        last = f"{sizes[-1]}, dense Adam"
        if optimizer == "SparseAdam":
            rows[last] = several(outer_step(sizes[-1], batch, width, optimizer, where, sparse=False))
        timings: dict[str, Timing] = alternate(rows, repeats)
        print(f"{optimizer:24s} {'a step':>10s} {'spread':>7s} {'relative':>9s}")
        for name in rows:
            relative = ratio(timings, name, str(sizes[0]))
            seconds = timings[name].median / steps
            result["rows"][f"{optimizer}, {name}"] = {"seconds": seconds, "ratio": relative}
            print(f"  {name:22s} {seconds * 1e3:7.3f} ms {timings[name].spread:6.1%} {relative:8.3f}x")
    if out is not None:
        write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    main(**vars(parser.parse_args()))
