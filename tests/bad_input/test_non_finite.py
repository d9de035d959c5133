"""NaN and infinity are named: which tensor, at which step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import (
    DivergenceError,
    NonFiniteError,
)
from hypergrad.tree import Tree
from tests.bad_input.common import (
    EVERY,
    KEEPS,
    NAN,
    NEWTON,
    PROBLEM,
    STEP,
    at_optimum,
    inner,
    outer,
    refused,
    start,
    trained,
    unchanged,
)

SOLVERS: dict[str, hg.LinearSolver] = {
    "cg": hg.CG(),
    "cg-jacobi": hg.CG(preconditioner=hg.Jacobi()),
    "cg-nystrom": hg.CG(preconditioner=hg.NystromPreconditioner(rank=2)),
    "cg-recycled": hg.CG(preconditioner=hg.Recycled()),
    "minres": hg.MINRES(),
    "gmres": hg.GMRES(),
    "normal-cg": hg.NormalCG(),
    "dense": hg.Dense(),
    "neumann": hg.Neumann(5),
    "neumann-step": hg.Neumann(5, step=0.1),
    "nystrom": hg.Nystrom(rank=2),
    "stochastic": hg.Stochastic(partial(torch.optim.SGD, lr=0.1), steps=5),
    "scipy": hg.Scipy(scipy.sparse.linalg.gmres),
}


each_solver = pytest.mark.parametrize("linear", SOLVERS.values(), ids=SOLVERS)


def refused_at_optimum(problem: hg.Problem, algorithm: Any, *names: str) -> None:
    params, hparams = at_optimum()
    with refused(NonFiniteError, params, hparams, passed=names, expected="finite"):
        hg.hypergradient(problem, params, hparams, algorithm)


@each_solver
def test_nan_in_the_data_of_the_inner_loss_names_the_parameter(linear: hg.LinearSolver) -> None:
    def loss(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) + (NAN * params["bias"]).square()

    refused_at_optimum(hg.Problem(loss, outer), hg.Implicit(linear), "the inner gradient of params 'bias'")


@each_solver
def test_nan_in_the_inner_gradient_alone_names_the_parameter(linear: hg.LinearSolver) -> None:
    def loss(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) + NAN * params["bias"]  # its Hessian is finite

    refused_at_optimum(hg.Problem(loss, outer), hg.Implicit(linear), "the inner gradient of params 'bias'")


def test_nan_in_the_value_of_the_outer_loss_alone_is_refused() -> None:
    problem = hg.Problem(inner, lambda params, hparams: outer(params, hparams) + NAN)
    refused_at_optimum(problem, hg.Implicit(), "the outer loss")


@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY)
def test_nan_in_the_outer_loss_is_refused_by_every_algorithm(algorithm: Any) -> None:
    params, hparams = start()
    problem = hg.Problem(inner, lambda params, hparams: outer(params, hparams) * NAN)
    with refused(NonFiniteError, params, hparams, passed="the outer loss"):
        hg.hypergradient(problem, params, hparams, algorithm)


@each_solver
def test_an_infinite_outer_gradient_names_the_parameter(linear: hg.LinearSolver) -> None:
    root = trained(start()[1])["bias"]
    problem = hg.Problem(inner, lambda params, hparams: outer(params, hparams) + (params["bias"] - root).sqrt())
    refused_at_optimum(problem, hg.Implicit(linear), "the outer gradient of params 'bias'")


def test_an_infinite_direct_part_names_the_hyperparameter() -> None:
    problem = hg.Problem(inner, lambda params, hparams: outer(params, hparams) + (hparams["decay"] + 0.5).sqrt())
    refused_at_optimum(problem, hg.Implicit(), "the outer gradient of hparams 'decay'")


@each_solver
def test_nan_in_a_hessian_product_names_the_product_and_the_parameter(linear: hg.LinearSolver) -> None:
    root = trained(start()[1])["bias"]

    def loss(params: Tree, hparams: Tree) -> Tensor:
        kink = (params["bias"] - root).abs().pow(1.5)  # slope 0 and infinite curvature where it vanishes
        return inner(params, hparams) + kink

    refused_at_optimum(hg.Problem(loss, outer), hg.Implicit(linear), "product", "params 'bias'")


@each_solver
def test_an_infinite_mixed_product_names_the_hyperparameter(linear: hg.LinearSolver) -> None:
    root = trained(start()[1])["bias"]

    def loss(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) + (hparams["decay"] + 0.5).sqrt() * (params["bias"] - root)

    refused_at_optimum(hg.Problem(loss, outer), hg.Implicit(linear), "mixed product", "'decay'")


class Poisoned:
    """A sampler whose batch number ``bad``, counted from 1, is NaN; the others are 1."""

    def __init__(self, bad: int) -> None:
        self.bad, self.drawn = bad, 0

    def draw(self) -> float:
        self.drawn += 1
        return NAN if self.drawn == self.bad else 1.0

    def full(self) -> float:
        return 1.0

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = state["drawn"]


def poisoned(step: int) -> hg.Problem:
    """The bias alone becomes NaN, in the update of this step, counted from 1."""

    def loss(params: Tree, hparams: Tree, batch: float) -> Tensor:
        return inner(params, hparams) + (batch - 1) * params["bias"].square()

    return hg.Problem(loss, outer, inner_data=Poisoned(step))


def trains(solver: hg.InnerSolver) -> dict[str, Any]:
    return {"implicit": hg.Implicit(inner=solver), "zeroth-order": hg.ZerothOrder(solver)}


TRAINING: dict[str, tuple[Any, int, str]] = {
    "gradient-descent": (hg.GradientDescent(lr=0.3, steps=9), 4, "after step 4 of training"),
    "momentum": (hg.GradientDescent(lr=0.1, momentum=0.5, steps=9), 4, "after step 4 of training"),
    "gradient-descent-to-tolerance": (
        hg.GradientDescent(lr=0.3, steps=9, tolerance=1e-30),
        4,
        "at step 3 of training",  # the gradient at the parameters that three steps led to
    ),
    "adam": (hg.Adam(lr=0.1, steps=9), 4, "after step 4 of training"),
    "adam-to-tolerance": (hg.Adam(lr=0.1, steps=9, tolerance=1e-30), 4, "at step 3 of training"),
    "torch-rule": (hg.TorchRule(partial(torch.optim.SGD, lr=0.3), steps=9), 4, "after step 4 of training"),
    "torch-optimizer": (hg.TorchOptimizer(partial(torch.optim.SGD, lr=0.3), steps=9), 4, "after step 4"),
    "lbfgs": (hg.LBFGS(), 1, "L-BFGS"),
    "newton": (hg.Newton(), 1, "at step 0 of Newton's method"),
}


@pytest.mark.parametrize("face", ["implicit", "zeroth-order"])
@pytest.mark.parametrize("case", TRAINING)
def test_nan_in_training_names_the_tensor_and_the_step(case: str, face: str) -> None:
    solver, step, said = TRAINING[case]
    params, hparams = start()
    with refused(NonFiniteError, params, hparams, passed=("params 'bias'", said), do="learning rate"):
        hg.hypergradient(poisoned(step), params, hparams, trains(solver)[face])


@pytest.mark.parametrize("window", [None, 8, 3])
@pytest.mark.parametrize("step", [1, 4, 9])
@pytest.mark.parametrize("keep", KEEPS)
def test_nan_in_unrolled_training_names_the_tensor_and_the_step(keep: Any, step: int, window: int | None) -> None:
    params, hparams = start()
    algorithm = hg.Unrolled(9, STEP, truncate=window, keep=keep)
    with refused(NonFiniteError, params, hparams, passed=("params 'bias'", f"after step {step} of training")):
        hg.hypergradient(poisoned(step), params, hparams, algorithm)


@pytest.mark.parametrize("step", [1, 4, 9])
@pytest.mark.parametrize("mode", ["exact", "random", "guided"])
def test_nan_in_training_with_tangents_names_the_tensor_and_the_step(mode: Any, step: int) -> None:
    params, hparams = start()
    algorithm = hg.ForwardMode(9, STEP, mode=mode, directions=2 if mode == "random" else None)
    with refused(NonFiniteError, params, hparams, passed=("params 'bias'", f"after step {step} of training")):
        hg.hypergradient(poisoned(step), params, hparams, algorithm)


@pytest.mark.parametrize("face", ["implicit", "zeroth-order"])
def test_nan_in_what_a_training_function_returns_names_the_tensor(face: str) -> None:
    params, hparams = start()
    solver = hg.Training(lambda params, hparams: {**trained(hparams), "bias": torch.tensor(NAN)})
    with refused(NonFiniteError, params, hparams, passed=("the trained params 'bias'", "returned by train")):
        hg.hypergradient(PROBLEM, params, hparams, trains(solver)[face])


def test_nan_that_appears_in_a_line_search_is_reported_and_not_returned() -> None:
    params, hparams = start()

    def loss(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) - 40 * (params["bias"] - 0.25).log()  # NaN left of 0.25

    for solver in (hg.LBFGS(), hg.Newton()):
        with unchanged(params, hparams):
            result = hg.hypergradient(hg.Problem(loss, outer), params, hparams, hg.Implicit(inner=solver))
        assert all(bool(value.isfinite().all()) for value in [*result.params.values(), *result.grads.values()])
        assert result.report.inner_gradient_norm < 1e-6


def test_newton_with_an_infinite_hessian_names_the_parameter() -> None:
    params, hparams = start()

    def loss(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, hparams) + (params["bias"] - 0.3).abs().pow(1.5)

    with refused(NonFiniteError, params, hparams, passed="'bias'"):
        hg.hypergradient(hg.Problem(loss, outer), params, hparams, NEWTON)


def test_training_that_explodes_is_told_from_derivatives_that_overflow() -> None:
    params, hparams = start(torch.float32)
    with refused(NonFiniteError, params, hparams, passed=("params 'weight'", "of training"), do="learning rate"):
        hg.hypergradient(PROBLEM, params, hparams, hg.Unrolled(300, hg.GradientDescent(lr=9.0)))


@pytest.mark.parametrize("keep", KEEPS)
def test_derivatives_that_overflow_in_a_finite_training_name_the_hyperparameter(keep: Any) -> None:
    # the parameters stay at zero for ever while the derivative grows tenfold at every step
    problem = hg.Problem(
        lambda params, hparams: (-100 * params["w"].square() - hparams["x"] * params["w"]).sum() / 2,
        lambda params, hparams: params["w"].sum(),
    )
    params, hparams = {"w": torch.zeros(1)}, {"x": torch.zeros(1)}
    with refused(DivergenceError, params, hparams, passed="hparams['x']", do=("learning rate", "truncate=")):
        hg.hypergradient(problem, params, hparams, hg.Unrolled(50, hg.GradientDescent(lr=0.1), keep=keep))


def test_nan_returned_to_a_differentiable_function_is_refused_forwards() -> None:
    params, hparams = start()
    fit = hg.differentiable(lambda _, hparams: {k: v * NAN for k, v in trained(hparams).items()}, inner)
    with refused(NonFiniteError, params, hparams, passed=("'weight'", "returned by train")):
        fit(params, hparams)


def test_a_nan_cotangent_is_refused_backwards_and_leaves_no_grad() -> None:
    params, hparams = start()
    leaves = {key: value.requires_grad_() for key, value in hparams.items()}
    fitted = hg.differentiable(lambda _, hparams: trained(hparams), inner)(params, leaves)
    with refused(NonFiniteError, params, leaves, passed=("the cotangent of params 'bias'", "backward pass")):
        (fitted["weight"].sum() + NAN * fitted["bias"]).backward()
