"""Compiled iterations of single-loop methods are the eager ones, or are left out with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree
from tests.finite_sums import FiniteSum, finite_sum

METHODS: dict[str, Callable[..., Any]] = {
    "soba": lambda **options: hg.SOBA(step_size=0.1, **options),
    "saba": lambda **options: hg.SABA(step_size=0.05, **options),
    "srba": lambda **options: hg.SRBA(step_size=0.05, period=4, **options),
}


def logistic(noise: float = 0.0) -> FiniteSum:
    """Logistic regression on a few batches, with dropout where ``noise`` is above 0."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).double()

    def outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        features, labels = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(features @ params["w"], labels)

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        features, labels = batch
        features = torch.nn.functional.dropout(features, noise) if noise else features
        return outer(params, hparams, (features, labels)) + 0.5 * (hparams["x"].exp() * params["w"].square()).sum()

    samplers = [hg.Partition(x, y, batch_size=4, seed=seed) for seed in (1, 2)]
    start = {"w": torch.zeros(6, dtype=torch.float64)}, {"x": torch.full((6,), -1.0, dtype=torch.float64)}
    problem = hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])
    return dataclasses.replace(finite_sum(), problem=problem, params=start[0], hparams=start[1])


def descend(algorithm: Any, steps: int, noise: float = 0.0) -> tuple[Tensor, Any]:
    """λ after plain steps, and the last report."""
    case = logistic(noise)
    state, x = algorithm.init(case.problem, case.params, case.hparams), case.hparams["x"]
    for _ in range(steps):
        found, state = algorithm.step(case.problem, state, {"x": x})
        x = x - 0.5 * found.grads["x"]
    return x, found.report


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_compiled_iterations_are_the_eager_ones(name: str) -> None:
    eager, plain = descend(METHODS[name](), 7)
    compiled, report = descend(METHODS[name](compile=True), 7)
    assert not report.notes
    assert report.cost == plain.cost
    assert report.outer_loss == pytest.approx(plain.outer_loss, rel=1e-12)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_several_iterations_in_one_graph_are_the_eager_ones() -> None:
    eager, plain = descend(METHODS["soba"](iterations=6), 3)
    compiled, report = descend(METHODS["soba"](iterations=6, compile=True), 3)
    assert not report.notes
    assert report.cost == plain.cost
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_loss_that_draws_random_numbers_is_left_to_run_eagerly() -> None:
    torch.manual_seed(0)
    eager, _ = descend(METHODS["soba"](), 3, noise=0.5)
    torch.manual_seed(0)
    compiled, report = descend(METHODS["soba"](compile=True), 3, noise=0.5)
    assert "random numbers" in report.notes["compile"]
    assert torch.equal(compiled, eager)


def test_what_the_compiler_cannot_take_runs_eagerly_with_the_reason() -> None:
    case = finite_sum()

    def outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        print(end="")  # what a graph cannot hold
        value: Tensor = case.problem.outer(params, hparams, batch) * float(params["w"].detach().numpy().shape[0] / 5)
        return value

    problem = dataclasses.replace(case.problem, outer=outer)
    algorithm = hg.SOBA(step_size=0.1, compile=True)
    with pytest.warns(hg.errors.CompileWarning, match="cannot be compiled"):
        found = hg.hypergradient(problem, case.params, case.hparams, algorithm)
    expected = hg.hypergradient(finite_sum().problem, case.params, case.hparams, hg.SOBA(step_size=0.1))
    torch.testing.assert_close(found.grads["x"], expected.grads["x"])


def test_buffers_of_modules_are_left_alone() -> None:
    layer = torch.nn.BatchNorm1d(1).double()
    case = finite_sum()

    def outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        value: Tensor = layer(params["w"][:, None]).square().sum() + case.problem.outer(params, hparams, batch)
        return value

    problem, before = dataclasses.replace(case.problem, outer=outer), layer.running_mean
    assert before is not None
    kept = before.clone()
    with pytest.warns(hg.errors.CompileWarning, match="buffers"):
        hg.hypergradient(problem, case.params, case.hparams, hg.SOBA(step_size=0.1, compile=True))
    assert layer.running_mean is before
    assert torch.equal(before, kept)


def test_a_method_that_asks_for_other_derivatives_refuses_to_compile() -> None:
    with pytest.raises(hg.errors.UnsupportedError, match="leave compile out"):
        hg.StocBiO(step_size=0.1, compile=True)


def test_a_root_cannot_be_compiled() -> None:
    problem = hg.Problem.fixed_point(
        lambda params, hparams: {"w": 0.5 * params["w"] + hparams["x"]}, lambda params, hparams: params["w"].sum()
    )
    with pytest.raises(hg.errors.UnsupportedError, match="root or fixed point"):
        hg.SOBA(step_size=0.1, compile=True).init(problem, {"w": torch.zeros(1)}, {"x": torch.zeros(1)})


def test_tables_are_those_of_a_plain_average() -> None:
    from hypergrad.solvers.bilevel.saba import RECENT, Table

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    table, plain = Table(rows, rows.mean(dim=0)), rows.clone()
    for step in range(3 * RECENT):
        place, now = step * 7 % 5, torch.randn(3, dtype=torch.float64, generator=generator)
        expected = now - plain[place] + plain.mean(dim=0)
        found, table = table.correct(place, now)
        plain[place] = now
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(table.mean, plain.mean(dim=0))


def test_held_evaluations_start_from_the_owners_buffers_each_time() -> None:
    from hypergrad import evaluation

    layer = torch.nn.BatchNorm1d(2, momentum=0.5)
    mean = layer.running_mean
    assert mean is not None
    seen = []
    with evaluation.held() as held:
        for _ in range(2):
            with evaluation.still():
                layer(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
                assert layer.running_mean is not None
                seen.append(layer.running_mean.clone())
        assert held.used
    assert torch.equal(seen[0], seen[1])
    assert layer.running_mean is mean
    assert not mean.any()
