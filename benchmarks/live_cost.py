"""Cost of the live face: a convolutional network, and ten million weights with one hyperparameter each.

Run ``python -m benchmarks.live_cost``. Every row is compared with a hand-written torch.autograd loop that does the same
work on the same module, in alternating runs:

- conv: ``Live.backward`` with ten Neumann terms for example weights and a weight decay, on a network with batch norm.
- outer step: the hypergradient of a perceptron with a log weight decay for each weight, ten Neumann terms, a step of
  Adam on the hyperparameters, and a training step of the model.

Memory is the peak of everything that is alive, the model included, next to that of plain training: the same model and
loss with fixed decays, and a step of Adam on the weights.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg
from benchmarks.harness import alternate, ratio, write_json
from benchmarks.memory import peak_bytes

Loss = Callable[[], Tensor]
STEP = 0.05


def by_hand(model: nn.Module, hparams: list[Tensor], inner: Loss, outer: Loss, terms: int) -> None:
    """Add the Neumann hypergradient to the hyperparameters' ``.grad``, with one graph of the inner gradient."""
    params = list(model.parameters())
    v = torch.autograd.grad(outer(), params)
    gradient = torch.autograd.grad(inner(), params, create_graph=True)
    term, total = [t.clone() for t in v], [t.clone() for t in v]
    for _ in range(terms):
        product = torch.autograd.grad(gradient, params, term, retain_graph=True)
        for ti, qi, hi in zip(term, total, product, strict=True):
            ti.sub_(hi, alpha=STEP)
            qi.add_(ti)
    mixed = torch.autograd.grad(gradient, hparams, [STEP * t for t in total])
    for hyperparameter, m in zip(hparams, mixed, strict=True):
        hyperparameter.grad = -m if hyperparameter.grad is None else hyperparameter.grad - m


def by_library(model: nn.Module, hparams: list[Tensor], inner: Loss, outer: Loss, terms: int) -> Callable[[], None]:
    """Return a call that does the same by the live face."""
    algorithm = hg.Implicit(hg.Neumann(terms, step=STEP), stationarity=float("inf"))
    hyper = hg.Live(model, hparams, inner, outer, algorithm, probe=False)  # gradients add up, as by hand

    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hg.errors.CurvatureWarning)  # these models are not trained
            hyper.backward()

    return call


def conv(width: int, batch: int) -> tuple[nn.Module, list[Tensor], Loss, Loss]:
    """Return a convolutional network with batch norm, example weights and a log weight decay, and both losses."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
    x, y = torch.randn(2, batch, 3, 16, 16), torch.randint(10, (2, batch))
    weight, decay = torch.zeros(batch, requires_grad=True), torch.tensor(-4.0, requires_grad=True)

    def inner() -> Tensor:
        each = cross_entropy(model(x[0]), y[0], reduction="none")
        shrinkage = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return (weight.sigmoid() * each).mean() + decay.exp() * shrinkage

    return model, [weight, decay], inner, lambda: cross_entropy(model(x[1]), y[1])


def mlp(width: int, batch: int) -> tuple[nn.Module, list[Tensor], Loss, Loss]:
    """Return a perceptron with three square layers, a log weight decay for each weight, and both losses."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=False) for _ in range(3)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    hparams = [torch.full_like(p, -7.0).requires_grad_() for p in model.parameters()]
    x, y = torch.randn(2, batch, width), torch.randint(10, (2, batch))

    def inner() -> Tensor:
        pairs = zip(hparams, model.parameters(), strict=True)
        shrinkage = torch.stack([(decay.exp() * p.square()).sum() for decay, p in pairs]).sum()
        return cross_entropy(model(x[0]), y[0]) + shrinkage / 2

    return model, hparams, inner, lambda: cross_entropy(model(x[1]), y[1])


def outer_step(
    model: nn.Module, hparams: list[Tensor], inner: Loss, backward: Callable[[], None]
) -> Callable[[], None]:
    """Return a training step of the model followed by a step of its hyperparameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    move = torch.optim.Adam(hparams, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = inner()
        torch.autograd.backward(loss, inputs=list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        move.zero_grad()
        backward()
        move.step()

    return step


def plain_training(width: int, batch: int) -> None:
    """Build a model and train it for two steps, the decays being fixed numbers of the same loss."""
    model, hparams, inner, _ = mlp(width, batch)
    for hyperparameter in hparams:
        hyperparameter.requires_grad = False
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        inner().backward()
        optimizer.step()


def with_hypergradients(width: int, batch: int, terms: int) -> None:
    """Build the same and make two outer steps by the live face."""
    model, hparams, inner, outer = mlp(width, batch)
    step = outer_step(model, hparams, inner, by_library(model, hparams, inner, outer, terms))
    for _ in range(2):
        step()


def pair(
    build: tuple[nn.Module, list[Tensor], Loss, Loss], terms: int, *, steps: bool
) -> dict[str, Callable[[], None]]:
    """Return the hand-written loop and the library's on one model, with training around them or without."""
    model, hparams, inner, outer = build

    def hand() -> None:
        by_hand(model, hparams, inner, outer, terms)

    library = by_library(model, hparams, inner, outer, terms)
    if not steps:
        return {"hand": hand, "library": library}
    return {
        "hand": outer_step(model, hparams, inner, hand),
        "library": outer_step(model, hparams, inner, library),
    }


def difference(hparams: list[Tensor], hand: Callable[[], None], library: Callable[[], None]) -> float:
    """Return the relative difference of the two hypergradients at the present point."""
    found = []
    for row in (hand, library):
        for hyperparameter in hparams:
            hyperparameter.grad = None
        row()
        found.append(torch.cat([h.grad.reshape(-1) for h in hparams if h.grad is not None]))
    return float((found[1] - found[0]).norm() / found[0].norm())


def main(
    width: int = 16,
    batch: int = 32,
    weights: int = 10_000_000,
    terms: int = 10,
    repeats: int = 9,
    threads: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, print and return the ratios."""
    torch.set_num_threads(threads)
    side = round((weights / 3) ** 0.5)
    result: dict[str, Any] = {"weights": 3 * side**2, "terms": terms, "repeats": repeats, "time": {}, "difference": {}}
    for name in ("conv", "outer step"):
        parts = conv(width, batch) if name == "conv" else mlp(side, batch)
        result["difference"][name] = difference(parts[1], *pair(parts, terms, steps=False).values())
        timings = alternate(pair(parts, terms, steps=name == "outer step"), repeats)
        result["time"][name] = ratio(timings, "library", "hand")
        print(
            f"{name:12s} {result['time'][name]:6.3f}x the hand-written loop (spread {timings['library'].spread:.1%}), "
            f"difference {result['difference'][name]:.1e}"
        )
        del parts, timings
    plain = peak_bytes(lambda: plain_training(side, batch))
    result["memory"] = peak_bytes(lambda: with_hypergradients(side, batch, terms)) / plain
    print(f"{'memory':12s} {result['memory']:6.3f}x plain training ({plain / 2**20:.0f} MiB), {3 * side**2:,} weights")
    if out is not None:
        write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--weights", type=int, default=10_000_000)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    main(**vars(parser.parse_args()))
