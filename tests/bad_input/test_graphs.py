"""Graphs that lose their curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import (
    ObjectiveError,
    WrappedModuleError,
)
from hypergrad.tree import Tree
from tests.bad_input.common import (
    NEWTON,
    PROBLEM,
    STEP,
    ZEROTH_ORDER,
    each_differentiating,
    inner,
    outer,
    refused,
    start,
    unchanged,
)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 2 * x * grads[0]
        return slope


def once(params: Tree, hparams: Tree) -> Tensor:
    apply: Any = OnceOnly.apply
    square: Tensor = apply(params["weight"]).sum()
    return inner(params, hparams) + square


@each_differentiating
def test_a_function_that_can_be_differentiated_once_only_is_refused(algorithm: Any) -> None:
    params, hparams = start()
    with refused(
        ObjectiveError,
        params,
        hparams,
        passed=("inner", "OnceOnly", "once_differentiable"),
        expected="silently",
        do="backward in torch operations",
    ):
        hg.hypergradient(hg.Problem(once, outer), params, hparams, algorithm)


def test_first_derivatives_of_such_a_function_serve_differences_of_training() -> None:
    params, hparams = start()

    def twice(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) + params["weight"].square().sum()

    found = hg.hypergradient(hg.Problem(once, outer), params, hparams, ZEROTH_ORDER).grads
    expected = hg.hypergradient(hg.Problem(twice, outer), params, hparams, ZEROTH_ORDER).grads
    assert all(torch.allclose(found[key], expected[key], rtol=1e-9) for key in expected)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    result: Callable[..., Tensor] = torch.compile(function, backend="aot_eager")
    return result


@pytest.mark.parametrize("algorithm", [NEWTON, hg.Unrolled(3, STEP), hg.ForwardMode(3, STEP)])
def test_a_compiled_loss_is_evaluated_eagerly_and_right(algorithm: Any) -> None:
    params, hparams = start()
    with unchanged(params, hparams):
        found = hg.hypergradient(hg.Problem(compiled(inner), compiled(outer)), params, hparams, algorithm).grads
    expected = hg.hypergradient(PROBLEM, params, hparams, algorithm).grads
    assert all(torch.allclose(found[key], expected[key], rtol=1e-9) for key in expected)


def test_a_graph_that_a_compiled_function_recorded_outside_is_refused() -> None:
    params, hparams = start()
    feature = torch.ones(3, dtype=torch.float64, requires_grad=True)
    recorded = compiled(lambda x: x.sin().exp())(feature)
    problem = hg.Problem(lambda params, hparams: inner(params, hparams) + recorded @ params["weight"].square(), outer)
    with refused(
        WrappedModuleError,
        params,
        hparams,
        {"feature": feature},
        passed=("inner", "torch.compile"),
        expected="twice",
        do="inside the call",
    ):
        hg.hypergradient(problem, params, hparams, NEWTON)


def test_hyperparameters_that_a_compiled_function_made_are_an_input_like_any_other() -> None:
    params, _ = start()
    raw = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)

    def network(x: Tensor) -> Tensor:
        return torch.tanh(2 * x)

    def made(function: Callable[[Tensor], Tensor]) -> Tensor:
        hparams = {"decay": function(raw)[0], "shift": function(raw)[1].expand(3)}
        fitted = hg.solve(PROBLEM, params, hparams, NEWTON)
        (slope,) = torch.autograd.grad(outer(fitted, hparams), raw)
        return slope

    assert torch.allclose(made(compiled(network)), made(network), rtol=1e-9)
