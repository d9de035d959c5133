"""Combinations that an algorithm cannot serve."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import (
    InputError,
    ObjectiveError,
    UnsupportedError,
)
from hypergrad.tree import Tree
from tests.bad_input.common import (
    NEWTON,
    PROBLEM,
    STEP,
    at_optimum,
    each_algorithm,
    inner,
    outer,
    refused,
    root,
    start,
    trained,
)


@pytest.mark.parametrize(
    "rule",
    [
        hg.GradientDescent(lr=hg.Tuned("lr"), steps=20),
        hg.GradientDescent(lr=hg.Tuned(lambda hparams: hparams["lr"].exp()), steps=20),
        hg.Adam(lr=hg.Tuned("lr"), steps=20),
        hg.Adam(lr=0.1, weight_decay=hg.Tuned("lr"), steps=20),
    ],
)
def test_an_implicit_method_cannot_see_a_setting_of_training(rule: hg.InnerSolver) -> None:
    params, hparams = start()
    hparams["lr"] = torch.tensor(0.05, dtype=torch.float64)
    with refused(
        UnsupportedError,
        params,
        hparams,
        passed=("['lr']", type(rule).__name__, "Implicit"),
        expected="an optimum does not depend",
        do=("Unrolled", "ForwardMode", "ZerothOrder"),
    ):
        hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(inner=rule))


@pytest.mark.parametrize("algorithm", [hg.Unrolled, hg.ForwardMode])
@pytest.mark.parametrize(
    "rule", [hg.GradientDescent(lr=0.1, steps=5), hg.Adam(lr=0.1, tolerance=1e-3)], ids=["steps", "tolerance"]
)
def test_a_rule_with_a_length_of_its_own_is_refused(algorithm: Any, rule: Any) -> None:
    name = algorithm.__name__
    with refused(InputError, passed=(name, repr(rule)), expected="one number of steps", do=type(rule).__name__):
        algorithm(3, rule)


def test_a_window_longer_than_training_is_refused() -> None:
    with refused(InputError, passed=("steps=3", "truncate=4"), expected="truncate <= steps", do="leave truncate out"):
        hg.Unrolled(3, STEP, truncate=4)


@pytest.mark.parametrize("algorithm", [hg.Unrolled(3, STEP, warm_start=True), hg.ForwardMode(3, STEP, warm_start=True)])
def test_a_start_that_depends_on_the_hyperparameters_and_a_warm_start_exclude_each_other(algorithm: Any) -> None:
    params, hparams = start()
    problem = hg.Problem(inner, outer, initial=trained)
    with refused(InputError, params, hparams, passed=("warm_start=True", "initial"), do="drop warm_start"):
        hg.hypergradient(problem, params, hparams, algorithm)


def test_exact_forward_mode_refuses_too_many_hyperparameters_before_training() -> None:
    params, hparams = start()

    def never(params: Tree, hparams: Tree) -> Tensor:
        raise AssertionError("training began")

    with refused(
        InputError, params, hparams, passed=("4 hyperparameter entries", "exact"), expected="max_exact=3", do="Unrolled"
    ):
        hg.hypergradient(hg.Problem(never, outer), params, hparams, hg.ForwardMode(3, STEP, max_exact=3))


def test_zeroth_order_refuses_too_many_runs_before_training() -> None:
    params, hparams = start()

    def never(params: Tree, hparams: Tree) -> Tree:
        raise AssertionError("training began")

    with refused(
        InputError,
        params,
        hparams,
        passed=("9 training runs", "4 hyperparameter entries"),
        expected="max_runs=8",
        do="RGE",
    ):
        hg.hypergradient(PROBLEM, params, hparams, hg.ZerothOrder(hg.Training(never), max_runs=8))


@pytest.mark.parametrize(
    "algorithm",
    [
        hg.ForwardMode(3, STEP, mode="random", directions=5, distribution="orthonormal"),
        hg.ForwardMode(3, STEP, mode="guided", directions=4),
    ],
    ids=["random", "guided"],
)
def test_more_orthonormal_directions_than_there_are_entries_are_refused(algorithm: Any) -> None:
    params, hparams = start()
    with refused(
        InputError, params, hparams, passed=("directions=", "4 hyperparameter entries"), do="lower directions"
    ):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


def test_a_trained_function_needs_an_algorithm_that_trains() -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed="Implicit(", do=("inner=", "differentiable")):
        hg.solve(PROBLEM, params, hparams, hg.Implicit())


@pytest.mark.parametrize("solver", [hg.Newton, hg.Dense], ids=["newton", "dense"])
def test_dense_matrices_have_a_largest_size(solver: Any) -> None:
    params, hparams = start()
    algorithm = hg.Implicit(inner=hg.Newton(max_size=3)) if solver is hg.Newton else hg.Implicit(hg.Dense(max_size=3))
    with refused(InputError, params, hparams, passed="4 parameters", expected="max_size=3", do="use hypergrad."):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


def test_a_singular_nystrom_approximation_is_refused() -> None:
    params, hparams = at_optimum()
    with refused(InputError, params, hparams, passed=("rank=2", "damping=0.0", "4 parameters"), do="damping"):
        hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(hg.Nystrom(rank=2, damping=0.0)))


def test_bounds_want_a_domain_that_is_a_box() -> None:
    params, hparams = start()
    problem = hg.Problem(inner, outer, hparams_domain={"shift": hg.Simplex()})
    with refused(InputError, params, hparams, passed=("LBFGSB", "'shift'", "Simplex"), do="outer.Torch"):
        hg.Run(problem, NEWTON, params, hparams, hg.outer.LBFGSB())


def test_bounds_in_the_wrong_order_are_refused() -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed=("bounds", "'decay'", "(1.0, -1.0)")):
        hg.Run(PROBLEM, NEWTON, params, hparams, hg.outer.LBFGSB(bounds={"decay": (1.0, -1.0)}))


def coupled(params: Tree, hparams: Tree) -> Tensor:
    return hparams["decay"].exp() * (params["weight"].sum().square() + params["bias"].square())


@each_algorithm
def test_a_penalty_that_is_not_elementwise_is_refused(algorithm: Any) -> None:
    params, hparams = start()
    with refused(
        ObjectiveError, params, hparams, passed=("couples", "params['weight']"), expected="elementwise", do="inner"
    ):
        hg.hypergradient(hg.Problem(inner, outer, penalty=coupled), params, hparams, algorithm)


def test_a_penalty_that_couples_two_tensors_is_refused() -> None:
    params, hparams = start()
    problem = hg.Problem(
        inner, outer, penalty=lambda params, hparams: (params["weight"] * params["bias"]).square().sum()
    )
    with refused(ObjectiveError, params, hparams, passed="couples", do="inner"):
        hg.hypergradient(problem, params, hparams, hg.Implicit())


ROOT = hg.Problem(None, outer, condition=root)


@pytest.mark.parametrize(
    "linear", [hg.CG(), hg.MINRES(), hg.Nystrom(), hg.Stochastic(partial(torch.optim.SGD, lr=0.1))]
)
def test_a_symmetric_solver_refuses_a_root(linear: hg.LinearSolver) -> None:
    params, hparams = start()
    name = type(linear).__name__
    with refused(UnsupportedError, params, hparams, passed=(name, "not symmetric"), do=("GMRES", "NormalCG", "Dense")):
        hg.hypergradient(ROOT, params, hparams, hg.Implicit(linear))


def test_l_bfgs_refuses_a_root() -> None:
    params, hparams = start()
    with refused(UnsupportedError, params, hparams, passed="root", do=("GradientDescent", "Newton")):
        hg.hypergradient(ROOT, params, hparams, hg.Implicit(hg.Dense(), inner=hg.LBFGS()))


def test_a_root_has_no_inner_value() -> None:
    params, hparams = start()
    with refused(UnsupportedError, params, hparams, passed="root", expected="inner objective"):
        ROOT.inner_value(params, hparams)


def test_a_matrix_without_its_transpose_is_refused_by_a_solver_that_needs_it() -> None:
    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        raise AssertionError("a product was made")

    b = torch.ones(3)
    operator = hg.Operator(product, b, symmetric=False)
    with refused(UnsupportedError, {"b": b}, passed="transpose", expected="transpose=", do="GMRES"):
        hg.NormalCG().solve(operator, b)


@each_algorithm
def test_second_derivatives_through_a_solve_are_refused(algorithm: Any) -> None:
    params, hparams = start()
    leaves = {key: value.requires_grad_() for key, value in hparams.items()}
    fitted = hg.solve(PROBLEM, params, leaves, algorithm)
    with refused(UnsupportedError, params, leaves, passed="create_graph=True", do="drop create_graph"):
        torch.autograd.grad(fitted["weight"].sum(), list(leaves.values()), create_graph=True)


def test_second_derivatives_through_a_differentiable_function_are_refused() -> None:
    params, hparams = start()
    leaves = {key: value.requires_grad_() for key, value in hparams.items()}
    fitted = hg.differentiable(lambda _, hparams: trained(hparams), inner)(params, leaves)
    with refused(UnsupportedError, params, leaves, passed="create_graph=True", do="differences"):
        fitted["weight"].sum().backward(create_graph=True)
