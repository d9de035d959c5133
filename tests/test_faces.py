"""Every row of THE TABLE against every law, on every known problem that it applies to, through every face."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.algorithm import Algorithm
from hypergrad.linear import LinearSolver
from hypergrad.preconditioner import Preconditioner
from hypergrad.testing import KNOWN_PROBLEMS, KnownProblem, check_conformance, counted
from hypergrad.testing.conformance import check_accuracy, relative_error
from hypergrad.tree import Layout, leaves
from tests.algorithms import TABLE
from tests.row import Row

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
ROWS = [pytest.param(row, id=row.name) for row in TABLE]
EXACT = [pytest.param(row, id=row.name) for row in TABLE if row.exact]


def known_problems(row: Row, dtype: torch.dtype = torch.float64) -> Iterator[KnownProblem]:
    problems = [make(dtype) for make in KNOWN_PROBLEMS]
    chosen = [known for known in problems if row.applies(known)]
    assert chosen, f"row {row.name} applies to no known problem"
    yield from chosen


def few(row: Row) -> list[KnownProblem]:
    """The first problem with a penalty apart, the first root, the first tiny objective that the row applies to."""
    kinds = (
        lambda known: known.problem.penalty is not None,
        lambda known: known.problem.condition is not None,
        lambda known: known.problem.initial is not None or known.name == "outer_only",
    )
    found = [next((known for known in known_problems(row) if kind(known)), None) for kind in kinds]
    return [known for known in found if known is not None] or list(known_problems(row))[:1]


def merged(problem: hg.Problem) -> hg.Problem:
    """The same problem with its penalty inside the inner objective."""
    inner, penalty = problem.inner, problem.penalty
    if inner is None or penalty is None:
        return problem
    return dataclasses.replace(
        problem, inner=lambda params, hparams: inner(params, hparams) + penalty(params, hparams), penalty=None
    )


def parts(algorithm: object) -> Iterator[object]:
    """The algorithm and everything it is made of."""
    yield algorithm
    held = [value.values() if isinstance(value, Mapping) else [value] for value in vars(algorithm).values()]
    for value in itertools.chain.from_iterable(held):
        if isinstance(value, Algorithm | LinearSolver | Preconditioner | hg.InnerSolver):
            yield from parts(value)


def test_every_public_class_has_a_row() -> None:
    bases = (Algorithm, LinearSolver, Preconditioner, hg.InnerSolver)
    public = {
        value
        for value in (getattr(hg, name) for name in dir(hg))
        if inspect.isclass(value) and issubclass(value, bases) and not inspect.isabstract(value)
    }
    in_table = {type(part) for row in TABLE for known in known_problems(row) for part in parts(row.build(known))}
    assert public - in_table == set()


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS)
def test_law_a_function_face_equals_the_closed_form(row: Row) -> None:
    for known in known_problems(row):
        check_accuracy(row.build(known), known, row.expected(known), row.tolerance)


@pytest.mark.parametrize("row", EXACT)
def test_exactness_is_claimed_and_kept(row: Row) -> None:
    for known in known_problems(row):
        expected, truth = row.expected(known), known.hypergradient()
        assert relative_error(expected, truth) <= row.tolerance


@pytest.mark.parametrize("row", EXACT)
def test_law_b_autograd_face_passes_gradcheck(row: Row) -> None:
    for known in few(row):
        names = list(known.hparams)

        def response(*values: torch.Tensor, known: KnownProblem = known, names: list[str] = names) -> Any:
            hparams = dict(zip(names, values, strict=True))
            return tuple(hg.solve(known.problem, known.params, hparams, row.build(known)).values())

        inputs = tuple(leaves(known.hparams).values())
        loose = max(1e-5, 10 * row.tolerance)
        assert torch.autograd.gradcheck(response, inputs, eps=1e-5, atol=loose, rtol=max(1e-4, loose), fast_mode=True)


@pytest.mark.parametrize("row", ROWS)
def test_law_c_loop_reaches_the_optimum(row: Row) -> None:
    """On problems where biased rows are stationary at the optimum as well: there the outer gradient vanishes."""
    rates = {"scalar": 0.6, "singular": 0.9, "fixed_point": 0.6, "maml": 10.0}
    known = next(known for known in known_problems(row) if known.name in rates)
    assert known.optimum is not None
    move = hg.outer.Torch(torch.optim.SGD, lr=rates[known.name])
    run = hg.Run(known.problem, row.build(known), known.params, known.hparams, move)
    start = relative_error(run.hparams, known.optimum)
    for _ in range(15):
        run.step()
    assert relative_error(run.hparams, known.optimum) < (1e-3 if row.exact else 0.5) * start


@pytest.mark.parametrize("row", ROWS)
def test_laws_d_e_h_conformance(row: Row) -> None:
    for known in few(row):
        check_conformance(row.build(known), known)


@pytest.mark.parametrize("row", ROWS)
def test_law_f_counted_cost_is_claimed_cost(row: Row) -> None:
    looked = 0
    for known in known_problems(row):
        if not (known.symmetric and known.definite):
            continue  # the counter sees second-order passes of an objective, through its first tensor
        problem, counter = counted(merged(known.problem))
        algorithm = row.build(known)
        state = algorithm.init(problem, known.params, known.hparams)
        before = counter.cost()
        assert before.inner_gradients == before.products == 0, "init makes passes"
        hypergradient, _ = algorithm.step(problem, state, leaves(known.hparams))
        reported, claimed = (
            hypergradient.report.cost,
            algorithm.budget(Layout.of(known.params).size, Layout.of(known.hparams).size),
        )
        assert counter.cost() == reported, known.name
        looked += 1
        if row.opaque:
            continue
        for field in ("inner_gradients", "products", "outer_gradients", "outer_values"):
            seen, bound = getattr(reported, field), getattr(claimed, field)
            fewer = row.adaptive or known.name == "envelope"  # a zero right-hand side needs no solve
            assert seen <= bound if fewer else seen == bound, f"{known.name}: {field} {seen}, claimed {bound}"
    assert looked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", ROWS)
def test_law_g_float32(row: Row, device: str) -> None:
    torch.set_default_device(device)
    try:
        for known in known_problems(row, torch.float32):
            check_accuracy(row.build(known), known, row.expected(known), row.tolerance32)
    finally:
        torch.set_default_device("cpu")
