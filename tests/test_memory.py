"""Memory: flat in the number of inner steps, bounded in what is recomputed, and nothing kept behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from benchmarks.memory import peak_bytes
from hypergrad.tree import Tree, leaves

SIZE = 40_000
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 200, generator=GENERATOR), torch.randn(32, 200, generator=GENERATOR)
PARAMS = {"w": torch.zeros(200, 200)}
HPARAMS = {"x": torch.full((200, 200), -3.0)}


def inner(params: Tree, hparams: Tree) -> Tensor:
    return (X @ params["w"] - Y).square().mean() + (hparams["x"].exp() * params["w"].square()).sum() / SIZE


PROBLEM = hg.Problem(inner, lambda params, _: (X @ params["w"] - 1).square().mean())


def peak(algorithm: hg.Algorithm[Any]) -> int:
    state = algorithm.init(PROBLEM, PARAMS, HPARAMS)
    return peak_bytes(lambda: algorithm.step(PROBLEM, state, leaves(HPARAMS)))


def implicit(steps: int) -> hg.Algorithm[Any]:
    linear = hg.Neumann(3, step=0.1)
    return hg.Implicit(linear, inner=hg.GradientDescent(lr=0.1, momentum=0.9, steps=steps), stationarity=float("inf"))


def unrolled(steps: int, keep: str, truncate: int | None = None) -> hg.Algorithm[Any]:
    return hg.Unrolled(steps, hg.GradientDescent(lr=0.1, momentum=0.9), truncate=truncate, keep=keep)  # type: ignore[arg-type]


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_implicit_memory_is_flat_in_the_number_of_inner_steps() -> None:
    assert peak(implicit(50)) == peak(implicit(5))


def test_truncated_memory_is_flat_in_the_number_of_inner_steps() -> None:
    for keep in ("graph", "iterates", "sqrt"):
        assert peak(unrolled(60, keep, truncate=4)) == peak(unrolled(12, keep, truncate=4))


def test_forward_mode_memory_is_flat_in_the_number_of_inner_steps() -> None:
    rule = hg.GradientDescent(lr=0.1)
    forward = [hg.ForwardMode(steps, rule, mode="random", directions=2) for steps in (5, 30)]
    assert peak(forward[0]) == peak(forward[1])


def test_recomputation_bounds_the_memory_of_unrolling() -> None:
    """Iterates cost 2 vectors a step (parameters and momentum); √K and log K of them cost √K and log K."""
    vector = 4 * SIZE
    grown = {}
    for keep in ("graph", "iterates", "sqrt", "log"):
        short, long = peak(unrolled(16, keep)), peak(unrolled(144, keep))
        grown[keep] = (long - short) / vector
    assert grown["graph"] > grown["iterates"]
    assert grown["iterates"] == pytest.approx(2 * 128, rel=0.05)
    assert grown["sqrt"] <= 2 * 2 * (12 - 4) + 6
    assert grown["log"] <= 2 * 5 + 6


def test_repeated_hypergradients_keep_nothing() -> None:
    algorithms: list[hg.Algorithm[Any]] = [
        implicit(3),
        hg.Implicit(hg.CG(max_steps=5), stationarity=float("inf")),
        unrolled(5, "graph"),
        unrolled(5, "sqrt"),
        hg.ForwardMode(3, hg.GradientDescent(lr=0.1), mode="guided"),
    ]
    for algorithm in algorithms:
        state = algorithm.init(PROBLEM, PARAMS, HPARAMS)

        def once(algorithm: hg.Algorithm[Any] = algorithm, state: object = state) -> None:
            algorithm.step(PROBLEM, state, leaves(HPARAMS))

        counts = []
        gc.disable()
        try:
            for _ in range(6):
                once()
                counts.append(live_tensors())
        finally:
            gc.enable()
        assert counts[-1] == counts[1], f"{algorithm!r}: {counts}"


def test_graph_is_freed_with_the_hypergradient() -> None:
    """Without the garbage collector: the graph is in no reference cycle."""
    gc.disable()
    try:
        point = PROBLEM.linearise(PARAMS, HPARAMS)
        point.hvp(torch.ones(SIZE))
        alive = weakref.ref(next(iter(point.params.values())))
        del point
        assert alive() is None
    finally:
        gc.enable()


def test_backward_through_differentiable_frees_its_graph() -> None:
    trained = hg.differentiable(lambda params, _: {"w": params["w"]}, inner, linear=hg.Neumann(2, step=0.1))
    gc.disable()
    try:
        counts = []
        for _ in range(5):
            x = HPARAMS["x"].clone().requires_grad_()
            value = trained(PARAMS, {"x": x})["w"].sum()
            value.backward()
            del value, x
            counts.append(live_tensors())
        assert counts[-1] == counts[1]
    finally:
        gc.enable()


def test_live_model_is_not_copied() -> None:
    """Peak memory of a Neumann hypergradient on a wide layer: a handful of vectors, whatever the model weighs."""
    model = torch.nn.Linear(1000, 1000)
    log_decay = torch.tensor(-3.0, requires_grad=True)
    x = torch.randn(2, 1000, generator=GENERATOR)

    def train_loss() -> Tensor:
        loss: Tensor = model(x).square().mean() + log_decay.exp() * model.weight.square().sum() / 1e6
        return loss

    def valid_loss() -> Tensor:
        loss: Tensor = (model(x) - 1).square().mean()
        return loss

    hyper = hg.Live(model, [log_decay], train_loss, valid_loss, hg.Implicit(hg.Neumann(3, step=0.1), stationarity=9e9))
    weight = 4 * 1000 * 1000
    assert peak_bytes(hyper.backward) <= 9.5 * weight
