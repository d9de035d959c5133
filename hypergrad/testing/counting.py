"""Count passes from inside the objectives, independently of what an algorithm reports."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.tree import Tree


@final
@dataclass
class Counter:
    """Passes seen so far.

    Attributes:
        inner_values: evaluations of the inner objective.
        inner_gradients: backward passes through it.
        products: backward passes through those backward passes.
        outer_values: evaluations of the outer objective.
        outer_gradients: backward passes through it.
    """

    inner_values: int = 0
    inner_gradients: int = 0
    products: int = 0
    outer_values: int = 0
    outer_gradients: int = 0

    def cost(self) -> Cost:
        """Return the passes as a :class:`~hypergrad.Cost`; evaluations with a gradient count as gradients."""
        return Cost(
            inner_gradients=self.inner_gradients,
            products=self.products,
            outer_gradients=self.outer_gradients,
            outer_values=self.outer_values - self.outer_gradients,
        )


class _Evaluation:
    """One evaluation of the inner objective; a product's pass through it must not count as a gradient as well."""

    def __init__(self, counter: Counter) -> None:
        self.counter, self.in_product = counter, False


class _Probe(torch.autograd.Function):
    """The identity on one tensor: counts its backward pass, and through :class:`_Second` the pass through that one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, evaluation: _Evaluation) -> Tensor:
        ctx.evaluation = evaluation
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        evaluation: _Evaluation = ctx.evaluation
        if evaluation.in_product:
            evaluation.in_product = False
            return grad, None
        evaluation.counter.inner_gradients += 1
        second: Any = _Second.apply
        return second(grad, evaluation), None


class _Second(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, evaluation: _Evaluation) -> Tensor:
        ctx.evaluation = evaluation
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        ctx.evaluation.counter.products += _vectors(grad_outputs[0])
        ctx.evaluation.in_product = True
        return grad_outputs[0], None


def _vectors(cotangent: Tensor) -> int:
    """Return how many vectors a reverse pass carries: several where products are taken in a block."""
    inside: Any = torch
    if not inside._C._functorch.is_legacy_batchedtensor(cotangent):
        return 1
    whole: Tensor = inside._remove_batch_dim(cotangent, 1, 0, 0)  # the level of is_grads_batched; the size is not read
    return len(whole)


class _OuterProbe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counter: Counter) -> Tensor:
        ctx.counter = counter
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        ctx.counter.outer_gradients += 1
        return grad_outputs[0], None


def counted(problem: Problem) -> tuple[Problem, Counter]:
    """Return the problem with counting objectives, and the counter.

    The first tensor of the parameters is watched, which every pass through a gradient crosses once: training's
    gradients, Hessian products, mixed products and tangents. A penalty given apart is not counted.
    """
    counter = Counter()

    def watch(params: Tree, *, inner: bool) -> Tree:
        if inner:
            counter.inner_values += 1
        else:
            counter.outer_values += 1
        name = next(iter(params))
        if not params[name].requires_grad:
            return dict(params)
        probe: Any = _Probe if inner else _OuterProbe
        watched = probe.apply(params[name], _Evaluation(counter) if inner else counter)
        return {**params, name: watched}

    name = "inner" if problem.inner is not None else "condition"
    inner, outer = UserFunction(name, getattr(problem, name)), UserFunction("outer", problem.outer)
    changed: dict[str, Any] = {
        name: lambda params, hparams, batch: inner(watch(params, inner=True), hparams, batch),
        "outer": lambda params, hparams, batch: outer(watch(params, inner=False), hparams, batch),
    }
    return dataclasses.replace(problem, **changed), counter
