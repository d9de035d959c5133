"""Losses that are no differentiable scalar, other signatures, and tensors that nothing reaches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import (
    InputError,
    ObjectiveError,
    ReachWarning,
    UnreachedError,
)
from hypergrad.tree import Tree
from tests.bad_input.common import (
    EVERY,
    NEWTON,
    PROBLEM,
    ROLES,
    ZEROTH_ORDER,
    each_algorithm,
    each_differentiating,
    inner,
    outer,
    penalty,
    refused,
    start,
    unchanged,
)

NOT_A_SCALAR: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "vector": (lambda loss: loss.expand(2), ("torch.float64", "(2,)")),
    "integer": (lambda loss: loss.detach().long(), ("torch.int64", "()")),
    "python-float": (lambda loss: loss.item(), ("float",)),
    "none": (lambda loss: None, ("NoneType",)),
}


NO_SLOPE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "detach": (lambda loss: loss.detach(), ".detach()"),
    "item": (lambda loss: torch.tensor(loss.item(), dtype=loss.dtype), ".item()"),
    "numpy": (lambda loss: torch.as_tensor(loss.detach().numpy()), ".numpy()"),
}


def spoilt(role: str, fault: Callable[[Tensor], Any]) -> hg.Problem:
    good = ROLES[role]
    functions: dict[str, Any] = {"inner": inner, "outer": outer}
    functions[role] = lambda params, hparams: fault(good(params, hparams))
    return hg.Problem(**functions)


@pytest.mark.parametrize("fault", NOT_A_SCALAR)
@pytest.mark.parametrize("role", ROLES)
@each_differentiating
def test_a_loss_that_is_no_scalar_tensor_is_refused(algorithm: Any, role: str, fault: str) -> None:
    params, hparams = start()
    break_it, found = NOT_A_SCALAR[fault]
    with refused(
        ObjectiveError,
        params,
        hparams,
        passed=(f"{role}, which", *found),
        expected="one floating-point",
        do=(role, ".mean()"),
    ):
        hg.hypergradient(spoilt(role, break_it), params, hparams, algorithm)


@pytest.mark.parametrize("fault", NO_SLOPE)
@pytest.mark.parametrize("role", ROLES)
@each_differentiating
def test_a_loss_that_is_cut_from_its_inputs_is_refused(algorithm: Any, role: str, fault: str) -> None:
    params, hparams = start()
    break_it, culprit = NO_SLOPE[fault]
    with refused(
        ObjectiveError, params, hparams, passed=(f"{role}, which", "depends on no parameter"), do=(culprit, role)
    ):
        hg.hypergradient(spoilt(role, break_it), params, hparams, algorithm)


@pytest.mark.parametrize("role", ROLES)
@each_differentiating
def test_a_loss_computed_under_no_grad_is_refused(algorithm: Any, role: str) -> None:
    params, hparams = start()
    good = ROLES[role]
    functions: dict[str, Any] = {"inner": inner, "outer": outer}

    def under_no_grad(params: Tree, hparams: Tree) -> Tensor:
        with torch.no_grad():
            return good(params, hparams)

    functions[role] = under_no_grad
    with refused(ObjectiveError, params, hparams, passed=role, do=("torch.no_grad()", role)):
        hg.hypergradient(hg.Problem(**functions), params, hparams, algorithm)


@pytest.mark.parametrize("fault", NOT_A_SCALAR)
@pytest.mark.parametrize("role", ["inner", "outer"])
def test_differences_of_training_want_scalar_losses_as_well(role: str, fault: str) -> None:
    params, hparams = start()
    break_it, found = NOT_A_SCALAR[fault]
    with refused(ObjectiveError, params, hparams, passed=(role, *found), do=".mean()"):
        hg.hypergradient(spoilt(role, break_it), params, hparams, ZEROTH_ORDER)


@pytest.mark.parametrize(
    "solver", [hg.LBFGS(), hg.Newton(), hg.Adam(lr=0.1, steps=3), hg.TorchOptimizer(torch.optim.SGD, 3)]
)
def test_every_inner_solver_refuses_a_loss_without_a_slope(solver: hg.InnerSolver) -> None:
    params, hparams = start()
    with refused(ObjectiveError, params, hparams, passed="inner", do=".detach()"):
        hg.hypergradient(spoilt("inner", Tensor.detach), params, hparams, hg.ZerothOrder(solver))


@each_algorithm
def test_a_refusal_under_dropout_puts_the_random_state_back(algorithm: Any) -> None:
    params, hparams = start()

    def vector(params: Tree, hparams: Tree) -> Tensor:
        return nn.functional.dropout(inner(params, hparams).expand(8), 0.5)

    with refused(ObjectiveError, params, hparams, passed=("inner", "(8,)")):
        hg.hypergradient(hg.Problem(vector, outer), params, hparams, algorithm)


@pytest.mark.parametrize("algorithm", [NEWTON, *EVERY.values()])
def test_a_function_face_that_fails_forwards_puts_the_random_state_back(algorithm: Any) -> None:
    params, hparams = start()

    def vector(params: Tree, hparams: Tree) -> Tensor:
        return nn.functional.dropout(inner(params, hparams).expand(8), 0.5)

    with refused(ObjectiveError, params, hparams, passed=("inner", "(8,)")):
        hg.solve(hg.Problem(vector, outer), params, hparams, algorithm)


@each_algorithm
def test_training_inside_autograd_leaves_the_random_state_where_it_was(algorithm: Any) -> None:
    params, hparams = start()

    def noisy(params: Tree, hparams: Tree) -> Tensor:
        kept = nn.functional.dropout(torch.ones(3, dtype=torch.float64), 0.25)
        return inner({**params, "weight": params["weight"] * kept}, hparams) + 0.1 * params["weight"].square().sum()

    with unchanged(params, hparams):
        hg.solve(hg.Problem(noisy, outer), params, hparams, algorithm)


NEW_EVERY_TIME = {"forward-random", "zord"}
"""Algorithms whose second pass draws other directions, or asks at other points."""


@pytest.mark.parametrize(
    "algorithm",
    [algorithm for name, algorithm in EVERY.items() if name not in NEW_EVERY_TIME],
    ids=[name for name in EVERY if name not in NEW_EVERY_TIME],
)
@pytest.mark.parametrize("noise", ["batches", "dropout"])
def test_the_backward_pass_of_a_solve_sees_the_batches_and_masks_of_its_forward_pass(
    noise: str, algorithm: Any
) -> None:
    params, hparams = start()
    x = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)

    def loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        size = nn.functional.dropout(x, 0.5).mean() if noise == "dropout" else batch[0].mean()
        return inner(params, hparams) + size * params["weight"].square().sum()

    def problem() -> hg.Problem:
        sampler = hg.TensorSampler(x, batch_size=1) if noise == "batches" else None
        return hg.Problem(loss, outer, inner_data=sampler)

    steps = hg.GradientDescent(lr=0.2, steps=4)
    algorithm = hg.Implicit(hg.Dense(), inner=steps, stationarity=math.inf) if algorithm is NEWTON else algorithm
    torch.manual_seed(0)
    expected = hg.hypergradient(problem(), params, hparams, algorithm)
    leaves = {key: value.clone().requires_grad_() for key, value in hparams.items()}
    torch.manual_seed(0)
    fitted = hg.solve(problem(), params, leaves, algorithm)
    assert all(torch.equal(fitted[key], expected.params[key]) for key in fitted)
    slopes = torch.autograd.grad(outer(fitted, leaves), list(leaves.values()))
    for slope, key in zip(slopes, leaves, strict=True):
        assert torch.allclose(slope, expected.grads[key], rtol=1e-4, atol=1e-7), key


WRONG_SIGNATURES: dict[str, Callable[..., Any]] = {
    "(params)": lambda params: params,
    "(a, b, c, d)": lambda a, b, c, d: a,
    "(params, hparams, *, batch)": lambda params, hparams, *, batch: params,
}


TAKERS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "inner": lambda function: hg.Problem(function, outer),
    "outer": lambda function: hg.Problem(inner, function),
    "penalty": lambda function: hg.Problem(inner, outer, penalty=function),
    "condition": lambda function: hg.Problem(None, outer, condition=function),
    "map": lambda function: hg.Problem.fixed_point(function, outer),
    "equality": lambda function: hg.Problem.constrained(inner, outer, equality=function),
    "inequality": lambda function: hg.Problem.constrained(inner, outer, inequality=function),
    "train": hg.Training,
}


@pytest.mark.parametrize("signature", WRONG_SIGNATURES)
@pytest.mark.parametrize("role", TAKERS)
def test_a_function_with_another_signature_is_refused_where_it_is_passed(role: str, signature: str) -> None:
    with refused(InputError, passed=(role, signature), expected="(params, hparams)", do="functools.partial"):
        TAKERS[role](WRONG_SIGNATURES[signature])


@pytest.mark.parametrize("role", TAKERS)
def test_what_is_no_function_is_refused_where_it_is_passed(role: str) -> None:
    not_callable: Any = 3.0
    with refused(InputError, passed=(role, "3.0"), expected="a function of (params, hparams)", do=role):
        TAKERS[role](not_callable)


def test_a_start_of_training_with_another_signature_is_refused_where_it_is_passed() -> None:
    two_arguments: Any = lambda params, hparams: params  # noqa: E731 - the signature is the fault
    with refused(InputError, passed=("initial", "(params, hparams)"), expected="(hparams)"):
        hg.Problem(inner, outer, initial=two_arguments)


def test_a_setting_read_from_the_hyperparameters_wants_one_or_two_arguments() -> None:
    with refused(InputError, passed="Tuned(", expected="(hparams, step)", do='Tuned("lr")'):
        hg.Tuned(lambda a, b, c: a)


@pytest.mark.parametrize(
    ("parts", "passed"),
    [
        ({"inner": None}, "neither inner and condition"),
        ({"inner": inner, "condition": lambda params, hparams: params}, "both inner and condition"),
    ],
)
def test_a_problem_has_one_inner_objective_or_one_condition(parts: dict[str, Any], passed: str) -> None:
    with refused(InputError, passed=passed, expected="exactly one", do="fixed_point"):
        hg.Problem(outer=outer, **parts)


def test_a_penalty_needs_an_objective_to_be_added_to() -> None:
    with refused(InputError, passed="penalty without inner", do="condition"):
        hg.Problem(None, outer, penalty=penalty, condition=lambda params, hparams: params)


@each_differentiating
def test_a_hyperparameter_that_no_loss_uses_is_named(algorithm: Any) -> None:
    params, hparams = start()
    hparams["ghost"] = torch.ones(2, dtype=torch.float64)
    with (
        refused(UnreachedError, params, hparams, passed="['ghost']", expected="torch operations", do=".detach()"),
    ):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


@each_differentiating
def test_a_hyperparameter_that_is_used_through_detach_only_is_named(algorithm: Any) -> None:
    params, hparams = start()

    def cut(params: Tree, hparams: Tree) -> Tensor:
        return inner(params, {**hparams, "decay": hparams["decay"].detach()})

    with refused(UnreachedError, params, hparams, passed="['decay']", do=(".detach()", "torch.no_grad()")):
        hg.hypergradient(hg.Problem(cut, outer), params, hparams, algorithm)


def test_the_names_of_what_is_unreached_are_kept() -> None:
    params, hparams = start()
    hparams |= {"ghost": torch.zeros(1, dtype=torch.float64), "ghoul": torch.zeros(1, dtype=torch.float64)}
    with pytest.raises(UnreachedError) as caught:
        hg.hypergradient(PROBLEM, params, hparams, NEWTON)
    assert caught.value.names == ["ghost", "ghoul"]


@pytest.mark.parametrize("mode", ["CGE", "RGE"])
def test_differences_say_which_hyperparameters_changed_nothing(mode: Any) -> None:
    params, hparams = start()
    hparams = {"ghost": torch.ones(2, dtype=torch.float64)}
    frozen = dict(start()[1])
    problem = hg.Problem(lambda params, hparams: inner(params, frozen) + 0 * hparams["ghost"].sum(), outer)
    algorithm = hg.ZerothOrder(hg.GradientDescent(lr=0.3, steps=4), mode=mode)
    with unchanged(params, hparams), pytest.warns(ReachWarning, match=r"\['ghost'\].*raise step_size"):
        result = hg.hypergradient(problem, params, hparams, algorithm)
    assert "ghost" in result.report.notes["reach"]


@each_differentiating
def test_a_parameter_that_the_inner_problem_does_not_use_is_named(algorithm: Any) -> None:
    params, hparams = start()
    params["frozen"] = torch.ones(2, dtype=torch.float64)
    with refused(UnreachedError, params, hparams, passed="params ['frozen']", do="frozen"):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


def test_a_name_that_functional_call_ignores_is_named() -> None:
    module = nn.Linear(2, 1).double()
    params = {"wieght": torch.zeros(1, 2, dtype=torch.float64), "bias": torch.zeros(1, dtype=torch.float64)}
    hparams = {"decay": torch.zeros((), dtype=torch.float64)}

    def loss(params: Tree, hparams: Tree) -> Tensor:
        value: Tensor = torch.func.functional_call(module, dict(params), (torch.ones(3, 2, dtype=torch.float64),))
        return value.square().mean() + hparams["decay"].exp() * params["bias"].square().sum()

    with refused(UnreachedError, params, hparams, module, passed="params ['wieght']", do="functional_call"):
        hg.hypergradient(hg.Problem(loss, loss), params, hparams, hg.Implicit())


def test_an_outer_loss_that_does_not_depend_on_params_is_refused() -> None:
    params, hparams = start()
    with refused(
        ObjectiveError, params, hparams, passed="does not depend on params", do="params argument inside outer"
    ):
        hg.hypergradient(hg.Problem(inner, lambda _, hparams: hparams["decay"].square()), params, hparams, NEWTON)
