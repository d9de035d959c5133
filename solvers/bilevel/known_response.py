"""Hypergradients without a linear solve: the response's derivative is not needed, or the user knows it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import (
    Cost,
    Hypergradient,
    Report,
    Stopwatch,
    check_finite,
    check_reached,
    refuse_second_order,
)
from hypergrad.linear import Status
from hypergrad.problem import OuterGradients, Problem
from hypergrad.tree import Tree


class Judge(Protocol):
    """The settings of an algorithm that matter here."""

    @property
    def stationarity(self) -> float:
        """Return how far the rest of training may move the outer loss."""
        ...


def is_known(problem: Problem) -> bool:
    """Return whether the problem says what its response's derivative does."""
    return problem.is_envelope or problem.response_vjp is not None


def known_response(
    algorithm: Judge,
    problem: Problem,
    params: Tree,
    hparams: Tree,
    outer: OuterGradients,
    cost: Cost,
    watch: Stopwatch,
    *,
    first: bool,
) -> Hypergradient:
    """Return ∂f/∂λ where the envelope theorem holds, else ∂f/∂λ + response_vjp(∂f/∂θ).

    Args:
        algorithm: whose report it is.
        problem: with ``is_envelope`` or ``response_vjp``.
        params: θ*, where training ended.
        hparams: λ.
        outer: f there with its gradients.
        cost: passes of training.
        watch: started with the step.
        first: whether tensors that nothing depends on are looked for, which costs an evaluation of the inner problem.

    Raises:
        UnreachedError: a hyperparameter that enters nothing, or a parameter that the inner problem does not use.
        NonFiniteError: NaN or infinity.
    """
    envelope = problem.is_envelope
    check_finite("the outer loss", {"f": outer.value}, when="where training ended")
    check_finite("the outer gradient of params", outer.params, when="where training ended")
    pulled = {} if envelope else problem.pull_back(params, tree.detached(hparams), outer.params, problem.draw_inner())
    grads = {key: torch.zeros_like(value).detach() for key, value in hparams.items()}
    for part in (outer.hparams, pulled):
        grads |= {key: grads[key] + value for key, value in part.items()}
    check_finite("the hypergradient", grads, when="where training ended")
    if first:
        problem.check_reach(params, tree.detached(hparams))
        check_reached(
            hparams,
            outer.hparams.keys() | pulled.keys(),
            advice="use them in outer, or drop envelope=True if the outer objective is not the inner one"
            if envelope
            else "use them in outer, or return their part of the product from response_vjp",
        )
    loss, slope = float(outer.value), float(tree.norm(outer.params))
    report = Report(
        algorithm=repr(algorithm),
        status=str(Status.COMPLETED),
        outer_loss=loss,
        cost=cost + Cost(outer_gradients=1),
        seconds=watch.seconds(),
        peak_bytes=watch.peak_bytes(),
        inner_gradient_norm=slope if envelope else float("nan"),
        notes=_far_from_the_envelope(algorithm.stationarity, loss, slope, params, hparams, grads) if envelope else {},
    )
    return Hypergradient(grads, params, outer.value, report)


def _far_from_the_envelope(
    share: float, loss: float, slope: float, params: Tree, hparams: Tree, grads: Tree
) -> dict[str, str]:
    """Return a note where ∂f/∂θ is not zero: where a change of θ by a tenth of its length would move f by much."""
    reach = 0.1 * slope * float(tree.norm(params))
    scale = max(abs(loss), float(tree.norm(grads)) * float(tree.norm(tree.detached(hparams))))
    if reach <= share * scale:
        return {}
    return {
        "stationarity": f"the outer gradient of params has the norm {slope:.3g} where the envelope theorem needs zero, "
        "so this hypergradient is biased: train longer; if the outer objective is not the inner one, drop envelope=True"
    }


def attach_known(algorithm: Any, problem: Problem, params: Tree, hparams: Tree) -> Tree:
    """Return θ*(λ) with a backward pass by ``response_vjp``."""
    device = tree.device_of(params)
    with guards.pinned_rng(device):
        state = algorithm.init(problem, params, tree.detached(hparams))
        trained = algorithm.response(problem, state, tree.detached(hparams))
        batch = problem.draw_inner()
    apply: Any = _AttachKnown.apply
    values = apply(problem, trained, list(hparams), batch, *hparams.values())
    return dict(zip(trained, values, strict=True))


class _AttachKnown(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, trained: Tree, names: list[str], batch: Any, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.problem, ctx.trained, ctx.names, ctx.batch = problem, trained, names, batch
        ctx.save_for_backward(*values)
        return tuple(value.detach().clone() for value in trained.values())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        hparams = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        cotangent = dict(zip(ctx.trained, cotangents, strict=True))
        pulled = ctx.problem.pull_back(ctx.trained, hparams, cotangent, ctx.batch)
        check_finite("the value of response_vjp", pulled, when="in the backward pass")
        return (None, None, None, None, *(pulled.get(name) for name in ctx.names))
