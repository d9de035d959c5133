"""Cost of one Neumann hypergradient of an MLP with one log weight decay per weight.

Run ``python -m benchmarks.step_cost``. The rows: a hand-written torch.autograd loop that builds the gradient's graph
once; this library with the penalty inside the inner objective; both again with the penalty apart. Printed are the
ratios of CPU time and of peak memory to the first row. How much the split gains depends on how fast the processor
multiplies matrices compared with how fast it reads memory: the hand-written loop with the penalty apart is the limit.
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
from benchmarks.memory import peak_bytes

Tree = dict[str, Tensor]


def build(
    width: int, batch: int
) -> tuple[Tree, Tree, Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """Return parameters, log weight decays, data loss, penalty and outer loss."""
    torch.manual_seed(0)
    sizes = [(784, width), (width, width), (width, 10)]
    params: Tree = {}
    for layer, (fan_in, fan_out) in enumerate(sizes):
        params[f"weight{layer}"] = torch.randn(fan_out, fan_in) / fan_in**0.5
        params[f"bias{layer}"] = torch.zeros(fan_out)
    hparams = {key: torch.full_like(value, -7.0) for key, value in params.items()}
    x, y, xv, yv = (
        torch.randn(batch, 784),
        torch.randint(10, (batch,)),
        torch.randn(batch, 784),
        torch.randint(10, (batch,)),
    )

    def forward(params: Tree, x: Tensor) -> Tensor:
        for layer in range(3):
            x = torch.nn.functional.linear(x, params[f"weight{layer}"], params[f"bias{layer}"])
            x = x.relu() if layer < 2 else x
        return x

    def data(params: Tree, _hparams: Tree) -> Tensor:
        return torch.nn.functional.cross_entropy(forward(params, x), y)

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        return 0.5 * torch.stack([(hparams[key].exp() * value.square()).sum() for key, value in params.items()]).sum()

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return torch.nn.functional.cross_entropy(forward(params, xv), yv)

    return params, hparams, data, penalty, outer


def train(params: Tree, hparams: Tree, inner: Callable[..., Tensor], steps: int) -> Tree:
    """Return parameters after some steps of Adam, where the Hessian is close to positive definite."""
    training = hg.TorchOptimizer(lambda tensors: torch.optim.Adam(tensors, lr=1e-3), steps=steps)
    return training.run(hg.Problem(inner, inner), params, hparams).params


def by_hand(
    params: Tree, hparams: Tree, inner: Callable[..., Tensor], outer: Callable[..., Tensor], terms: int, step: float
) -> list[Tensor]:
    """Return the Neumann hypergradient by plain torch.autograd, with one graph of the inner gradient."""
    theta = {key: value.detach().requires_grad_() for key, value in params.items()}
    lam = {key: value.detach().requires_grad_() for key, value in hparams.items()}
    leaves = list(theta.values())
    v = torch.autograd.grad(outer(theta, lam), leaves)
    gradient = torch.autograd.grad(inner(theta, lam), leaves, create_graph=True)
    c, p = [t.clone() for t in v], [t.clone() for t in v]
    for _ in range(terms):
        product = torch.autograd.grad(gradient, leaves, c, retain_graph=True)
        for ci, pi, hi in zip(c, p, product, strict=True):
            ci.sub_(hi, alpha=step)
            pi.add_(ci)
    mixed = torch.autograd.grad(gradient, list(lam.values()), [step * t for t in p])
    return [-m for m in mixed]


def by_hand_apart(
    params: Tree,
    hparams: Tree,
    objectives: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]],
    terms: int,
    step: float,
) -> list[Tensor]:
    """Return the same with the penalty's diagonal taken out of the graph: the limit of what the split can gain."""
    data, penalty, outer = objectives
    theta = {key: value.detach().requires_grad_() for key, value in params.items()}
    lam = {key: value.detach().requires_grad_() for key, value in hparams.items()}
    leaves = list(theta.values())
    v = torch.autograd.grad(outer(theta, lam), leaves)
    gradient = torch.autograd.grad(data(theta, lam), leaves, create_graph=True)
    shrinkage = torch.autograd.grad(penalty(theta, lam), leaves, create_graph=True)
    diagonal = torch.autograd.grad(shrinkage, leaves, [torch.ones_like(t) for t in leaves], retain_graph=True)
    c, p = [t.clone() for t in v], [t.clone() for t in v]
    for _ in range(terms):
        product = torch.autograd.grad(gradient, leaves, c, retain_graph=True)
        for ci, pi, hi, di in zip(c, p, product, diagonal, strict=True):
            ci.addcmul_(ci, di, value=-step).sub_(hi, alpha=step)
            pi.add_(ci)
    mixed = torch.autograd.grad(shrinkage, list(lam.values()), [step * t for t in p])
    return [-m for m in mixed]


def rows(width: int, batch: int, terms: int, step: float) -> dict[str, Callable[[], Any]]:
    """Return what is compared."""
    params, hparams, data, penalty, outer = build(width, batch)

    def whole(params: Tree, hparams: Tree) -> Tensor:
        return data(params, hparams) + penalty(params, hparams)

    params = train(params, hparams, whole, steps=100)
    algorithm = hg.Implicit(hg.Neumann(terms, step=step), stationarity=float("inf"))

    def ours(problem: hg.Problem) -> Callable[[], hg.Hypergradient]:
        state = algorithm.init(problem, params, hparams)
        return lambda: algorithm.step(problem, state, hparams)[0]

    return {
        "hand": lambda: by_hand(params, hparams, whole, outer, terms, step),
        "hypergrad": ours(hg.Problem(whole, outer)),
        "hand, penalty apart": lambda: by_hand_apart(params, hparams, (data, penalty, outer), terms, step),
        "hypergrad, penalty apart": ours(hg.Problem(data, outer, penalty=penalty)),
    }


def main(
    width: int = 1024, batch: int = 128, terms: int = 20, repeats: int = 9, out: Path | None = None
) -> dict[str, Any]:
    """Measure, print and return the ratios."""
    torch.set_num_threads(1)
    compared = rows(width, batch, terms, step=0.1)
    reference = compared["hand"]()
    timings = alternate(compared, repeats)
    result: dict[str, Any] = {"width": width, "batch": batch, "terms": terms, "repeats": repeats, "rows": {}}
    memory = {name: peak_bytes(row) for name, row in compared.items()}
    print(f"{'row':28s} {'time':>8s} {'spread':>7s} {'memory':>8s}   relative to the hand-written loop")
    for name, row in compared.items():
        time_ratio, memory_ratio = ratio(timings, name, "hand"), memory[name] / memory["hand"]
        error = 0.0
        if name != "hand":
            answer = row()
            grads = answer if isinstance(answer, list) else list(answer.grads.values())
            gap = sum(float((a - b).square().sum()) for a, b in zip(grads, reference, strict=True))
            error = (gap / sum(float(b.square().sum()) for b in reference)) ** 0.5
        result["rows"][name] = {"time": time_ratio, "memory": memory_ratio, "error": error}
        print(
            f"{name:28s} {time_ratio:7.3f}x {timings[name].spread:6.1%} {memory_ratio:7.3f}x   difference {error:.1e}"
        )
    if out is not None:
        write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    main(**vars(parser.parse_args()))
