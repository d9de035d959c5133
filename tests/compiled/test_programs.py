"""Where compiled code lives: with its problem, for as long, and never in what is saved."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout

import hypergrad as hg
from tests.compiled.common import Point, Tree, difference, fast, implicit, penalty, point, program

__all__ = ["fast"]
NEUMANN = hg.Neumann(3, step=0.2)


def batched() -> Point:
    """A logistic regression whose training examples are the batch."""
    problem, params, hparams = point("logistic")

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(batch[0] @ params["weight"], batch[1]) + penalty(params, hparams)

    return hg.Problem(inner, problem.outer), params, hparams


def batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 5, dtype=torch.float64), torch.arange(size) % 3


def compilations(problem: hg.Problem) -> int:
    return program(problem)._compiler.count


@pytest.mark.usefixtures("fast")
def test_one_compilation_serves_all_values_and_each_shape_has_its_own() -> None:
    problem, params, hparams = batched()
    algorithm = implicit(NEUMANN)
    for step in range(3):
        moved = {key: value + 0.1 * step for key, value in params.items()}
        live = {key: (value - 0.1 * step).requires_grad_(step == 1) for key, value in hparams.items()}
        other = dataclasses.replace(algorithm, linear=hg.Neumann(3, step=0.2 + 0.01 * step))
        hg.hypergradient(problem, moved, live, other, batch=batch(12))
        assert compilations(problem) == 1
        assert all(value.grad is None for value in live.values())
    eager = dataclasses.replace(algorithm, compile=False)
    for size in (9, 12, 9):
        given = batch(size)
        found = hg.hypergradient(problem, params, hparams, algorithm, batch=given)
        assert difference(found.grads, hg.hypergradient(problem, params, hparams, eager, batch=given).grads) < 1e-12
    assert compilations(problem) == 2
    assert program(problem).refused is None


@pytest.mark.usefixtures("fast")
def test_more_shapes_than_torch_keeps_run_eagerly() -> None:
    import torch._dynamo.config

    problem, params, hparams = batched()
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (6, 7):
            hg.hypergradient(problem, params, hparams, implicit(NEUMANN), batch=batch(size))
        with pytest.warns(hg.errors.CompileWarning, match="it failed"):
            hg.hypergradient(problem, params, hparams, implicit(NEUMANN), batch=batch(8))


@pytest.mark.usefixtures("fast")
def test_code_goes_with_its_problem_and_is_not_copied() -> None:
    problem, params, hparams = point("logistic")
    hg.hypergradient(problem, params, hparams, implicit(NEUMANN))
    assert problem.memo
    assert not copy.copy(problem.memo)
    assert not copy.deepcopy(problem.memo)
    assert not pickle.loads(pickle.dumps(problem.memo))
    assert problem.with_batches(1).memo is problem.memo
    assert not problem.with_outer(problem.outer).memo
    function = weakref.ref(problem.inner)
    del problem
    gc.collect()
    assert function() is None


def run(algorithm: hg.Implicit, at: Point) -> hg.Run:
    problem, params, hparams = at
    trained = dataclasses.replace(algorithm, inner=hg.GradientDescent(lr=0.2, steps=2))
    return hg.Run(problem, trained, params, hparams, hg.outer.Torch(torch.optim.SGD, lr=0.5))


def plain(value: Any) -> bool:
    """Whether a state holds tensors, numbers and strings only."""
    if isinstance(value, dict):
        return all(plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(plain(part) for part in value)
    return value is None or isinstance(value, Tensor | int | float | str)


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore:the linear solve stopped")
def test_a_run_resumes_bit_for_bit() -> None:
    algorithm = implicit(hg.CG(rtol=0.0, max_steps=3, preconditioner=None))
    whole, first = run(algorithm, point("tanh")), run(algorithm, point("tanh"))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    saved = first.state_dict()
    assert plain(saved)
    second = run(algorithm, point("tanh"))
    second.load_state_dict(pickle.loads(pickle.dumps(saved)))
    for _ in range(2):
        second.step()
    assert program(second.problem).refused is None
    assert all(torch.equal(value, second.hparams[key]) for key, value in whole.hparams.items())


def test_the_compiler_is_loaded_by_its_first_use_only() -> None:
    code = "import sys, hypergrad as hg; hg.Implicit(compile=True); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the linear solve stopped")
def test_generated_code_gives_the_eager_answer_with_the_eager_dropout_mask() -> None:
    problem, params, hparams = point("logistic", dtype=torch.float32)
    x, y = batch(40)
    x = x.float()

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return cross_entropy(dropout(x) @ params["weight"], y) + penalty(params, hparams)

    at = hg.Problem(inner, problem.outer), params, hparams
    algorithm = implicit(hg.CG(rtol=1e-6, max_steps=4, preconditioner=None))
    for seed in (0, 1):
        torch.manual_seed(seed)
        compiled = hg.hypergradient(*at, algorithm)
        eager = hg.hypergradient(*at, dataclasses.replace(algorithm, compile=False))
        assert difference(compiled.grads, eager.grads) < 1e-5
        assert compiled.report.cost == eager.report.cost
    assert program(at[0]).refused is None
    assert program(at[0]).random
