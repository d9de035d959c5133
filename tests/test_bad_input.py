"""Bad input gets a clear error at the door, in three parts, and nothing is lost.

Every refusal is checked for its class, for what its parts name, and for what it leaves behind: no tensor is changed, no
``.grad`` is filled, and the random state stays where it was.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import (
    ConvergenceWarning,
    CurvatureWarning,
    DivergenceError,
    HypergradError,
    InputError,
    NonFiniteError,
    ObjectiveError,
    ReachWarning,
    StationarityWarning,
    TreeError,
    UnreachedError,
    UnsupportedError,
    WrappedModuleError,
)
from hypergrad.tree import Tree

# ----------------------------------------------------------------------------------------------------------------------
# What is left behind, and what is said
# ----------------------------------------------------------------------------------------------------------------------


def tensors_of(thing: Mapping[str, Tensor] | nn.Module) -> list[Tensor]:
    if isinstance(thing, nn.Module):
        return [*thing.parameters(), *thing.buffers()]
    return [value for value in thing.values() if isinstance(value, Tensor)]


@contextmanager
def unchanged(*things: Mapping[str, Tensor] | nn.Module) -> Iterator[None]:
    """Fail if a tensor, its ``.grad``, the random state or the grad mode is another afterwards."""
    tensors = [tensor for thing in things for tensor in tensors_of(thing)]
    before = [(t.detach().clone(), t._version, t.requires_grad, t.grad) for t in tensors]
    grads = [None if t.grad is None else t.grad.clone() for t in tensors]
    random, enabled = torch.get_rng_state(), torch.is_grad_enabled()
    yield
    for tensor, (value, version, requires_grad, grad), grad_value in zip(tensors, before, grads, strict=True):
        assert tensor._version == version, "a tensor was written to"
        assert tensor.device.type == "meta" or torch.equal(tensor.detach().nan_to_num(), value.nan_to_num())
        assert tensor.requires_grad == requires_grad
        assert tensor.grad is grad
        assert grad is None or (grad_value is not None and torch.equal(grad, grad_value))
    assert torch.equal(torch.get_rng_state(), random), "the random state moved"
    assert torch.is_grad_enabled() == enabled


def says(error: HypergradError, part: str, wanted: str | tuple[str, ...]) -> None:
    """Check that a part of the message is there and names everything that is wanted."""
    text = getattr(error, part)
    assert text, f"the part {part!r} is empty"
    for word in (wanted,) if isinstance(wanted, str) else wanted:
        assert word in text, f"{word!r} is not in {part}: {text}"


@contextmanager
def refused(
    kind: type[HypergradError],
    *things: Mapping[str, Tensor] | nn.Module,
    passed: str | tuple[str, ...] = "",
    expected: str | tuple[str, ...] = "",
    do: str | tuple[str, ...] = "",
) -> Iterator[None]:
    """Expect an error of exactly this class whose parts name the right things, and nothing changed."""
    with unchanged(*things), pytest.raises(HypergradError) as caught:
        yield
    error = caught.value
    assert type(error) is kind, repr(error)
    says(error, "passed", passed)
    says(error, "expected", expected)
    says(error, "do", do)
    assert str(error) == f"passed: {error.passed}\nexpected: {error.expected}\ndo: {error.do}"


# ----------------------------------------------------------------------------------------------------------------------
# One problem with two tensors of each kind, and every way to differentiate it
# ----------------------------------------------------------------------------------------------------------------------


def inner(params: Tree, hparams: Tree) -> Tensor:
    weight, bias = params["weight"], params["bias"]
    shrink = hparams["decay"].exp() * (weight.square().sum() + bias.square())
    return ((weight - hparams["shift"]).square().sum() + (bias - 1).square() + shrink) / 2


def outer(params: Tree, hparams: Tree) -> Tensor:
    return ((params["weight"] - 0.3).square().sum() + (params["bias"] - 0.2).square()) / 2


def penalty(params: Tree, hparams: Tree) -> Tensor:
    return hparams["decay"].exp() * (params["weight"].square().sum() + params["bias"].square())


PROBLEM = hg.Problem(inner, outer)


def start(dtype: torch.dtype = torch.float64) -> tuple[Tree, Tree]:
    params = {"weight": torch.tensor([0.5, 0.1, -0.2], dtype=dtype), "bias": torch.tensor(0.3, dtype=dtype)}
    hparams = {"decay": torch.tensor(-0.5, dtype=dtype), "shift": torch.tensor([1.0, -2.0, 0.5], dtype=dtype)}
    return params, hparams


def trained(hparams: Tree) -> Tree:
    shrunk = 1 / (1 + hparams["decay"].exp())
    return {"weight": hparams["shift"] * shrunk, "bias": shrunk}


def named(problem: hg.Problem, algorithm: Any) -> hg.Hypergradient:
    return hg.hypergradient(problem, *start(), algorithm)


STEP = hg.GradientDescent(lr=0.3)
NEWTON = hg.Implicit(hg.CG(), inner=hg.Newton())
KEEPS: tuple[Any, ...] = ("graph", "iterates", "sqrt", "log")
DIFFERENTIATING: dict[str, Any] = {
    "implicit": NEWTON,
    **{f"unrolled-{keep}": hg.Unrolled(4, STEP, keep=keep) for keep in KEEPS},
    "unrolled-truncated": hg.Unrolled(4, STEP, truncate=2),
    "forward-exact": hg.ForwardMode(4, STEP),
    "forward-random": hg.ForwardMode(4, STEP, mode="random", directions=2),
    "forward-guided": hg.ForwardMode(4, STEP, mode="guided"),
}
ZEROTH_ORDER = hg.ZerothOrder(hg.GradientDescent(lr=0.3, steps=4))
EVERY: dict[str, Any] = {**DIFFERENTIATING, "zeroth-order": ZEROTH_ORDER}

each_differentiating = pytest.mark.parametrize("algorithm", DIFFERENTIATING.values(), ids=DIFFERENTIATING)
each_algorithm = pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY)


# ----------------------------------------------------------------------------------------------------------------------
# Losses that are no differentiable scalar
# ----------------------------------------------------------------------------------------------------------------------

ROLES: dict[str, Callable[[Tree, Tree], Tensor]] = {"inner": inner, "outer": outer, "penalty": penalty}

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


@pytest.mark.parametrize(
    "algorithm",
    [algorithm for name, algorithm in EVERY.items() if name != "forward-random"],  # its directions are new every time
    ids=[name for name in EVERY if name != "forward-random"],
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


# ----------------------------------------------------------------------------------------------------------------------
# Signatures
# ----------------------------------------------------------------------------------------------------------------------

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
    "equality": lambda function: hg.Problem.equality_constrained(inner, function, outer),
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


# ----------------------------------------------------------------------------------------------------------------------
# Hyperparameters and parameters that nothing reaches
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# Keys: missing, extra, misspelt
# ----------------------------------------------------------------------------------------------------------------------

HINT = "did you mean 'weight'?"


@pytest.mark.parametrize("role", ROLES)
@each_algorithm
def test_a_misspelt_parameter_in_an_objective_gets_the_nearest_name(algorithm: Any, role: str) -> None:
    params, hparams = start()
    functions: dict[str, Any] = {"inner": inner, "outer": outer}
    functions[role] = lambda params, hparams: params["wieght"].square().sum()
    with refused(
        TreeError, params, hparams, passed=("params['wieght']", HINT), expected="['weight', 'bias']", do="rename"
    ):
        hg.hypergradient(hg.Problem(**functions), params, hparams, algorithm)


@pytest.mark.parametrize("role", ROLES)
@each_algorithm
def test_a_misspelt_hyperparameter_in_an_objective_gets_the_nearest_name(algorithm: Any, role: str) -> None:
    params, hparams = start()
    functions: dict[str, Any] = {"inner": inner, "outer": outer}
    functions[role] = lambda params, hparams: hparams["dceay"] * params["weight"].square().sum()
    with refused(TreeError, params, hparams, passed=("hparams['dceay']", "did you mean 'decay'?"), do="rename"):
        hg.hypergradient(hg.Problem(**functions), params, hparams, algorithm)


def test_a_name_like_no_other_gets_the_list_of_names_and_no_guess() -> None:
    params, hparams = start()
    problem = hg.Problem(inner, lambda params, hparams: params["zzz"].sum())
    with refused(TreeError, params, hparams, passed="params['zzz']", expected="['weight', 'bias']"):
        hg.hypergradient(problem, params, hparams, NEWTON)
    with pytest.raises(TreeError) as caught:
        hg.hypergradient(problem, params, hparams, NEWTON)
    assert "did you mean" not in str(caught.value)


def test_a_misspelt_setting_read_from_the_hyperparameters_gets_the_nearest_name() -> None:
    params, hparams = start()
    algorithm = hg.Unrolled(3, hg.GradientDescent(lr=hg.Tuned("dekay")))
    with refused(TreeError, params, hparams, passed=("hparams['dekay']", "did you mean 'decay'?")):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


def missing(value: Tree) -> Any:
    return {"bias": value["bias"]}


def extra(value: Tree) -> Any:
    return {**value, "bonus": value["bias"]}


def misspelt(value: Tree) -> Any:
    return {"wieght": value["weight"], "bias": value["bias"]}


WRONG_KEYS: dict[str, tuple[Callable[[Tree], Any], tuple[str, ...]]] = {
    "missing": (missing, ("missing keys ['weight']",)),
    "extra": (extra, ("extra keys ['bonus']",)),
    "misspelt": (misspelt, ("missing keys ['weight']", "extra keys ['wieght']", HINT)),
}

SOURCES: dict[str, Callable[[Callable[[Tree], Any]], Callable[[], object]]] = {
    "train": lambda spoil: partial(
        named, PROBLEM, hg.Implicit(inner=hg.Training(lambda params, hparams: spoil(trained(hparams))))
    ),
    "condition": lambda spoil: partial(
        named,
        hg.Problem(
            None,
            outer,
            condition=lambda params, hparams: spoil({k: params[k] - v for k, v in trained(hparams).items()}),
        ),
        hg.Implicit(hg.Dense()),
    ),
    "map": lambda spoil: partial(
        named,
        hg.Problem.fixed_point(
            lambda params, hparams: spoil({k: v + 0.1 * params[k] for k, v in trained(hparams).items()}), outer
        ),
        hg.Implicit(hg.GMRES(), inner=hg.GradientDescent(lr=1.0, steps=3)),
    ),
    "initial": lambda spoil: partial(
        named,
        hg.Problem(inner, outer, initial=lambda hparams: spoil(trained(hparams))),
        hg.Unrolled(3, STEP),
    ),
}


@pytest.mark.parametrize("fault", WRONG_KEYS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_returned_tree_with_other_keys_is_refused(source: str, fault: str) -> None:
    spoil, found = WRONG_KEYS[fault]
    with refused(TreeError, passed=(f"the value of {source}", *found), expected="['weight', 'bias']", do="names"):
        SOURCES[source](spoil)()


@pytest.mark.parametrize("value", ["tensor", "none"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_returned_value_that_is_no_tree_is_refused(source: str, value: str) -> None:
    def spoil(tree: Tree) -> Any:
        return tree["weight"] if value == "tensor" else None

    with refused(InputError, passed=(source, "Tensor" if value == "tensor" else "NoneType"), do="return"):
        SOURCES[source](spoil)()


@pytest.mark.parametrize("source", SOURCES)
def test_a_returned_tensor_of_another_shape_is_refused(source: str) -> None:
    def spoil(tree: Tree) -> Any:
        return {**tree, "weight": tree["weight"][:2]}

    with refused(TreeError, passed=(f"the value of {source}", "'weight'", "(2,)"), expected="(3,)"):
        SOURCES[source](spoil)()


@pytest.mark.parametrize("source", SOURCES)
def test_a_returned_tensor_that_would_be_broadcast_is_refused(source: str) -> None:
    def spoil(tree: Tree) -> Any:
        return {**tree, "weight": tree["weight"][:1]}

    with refused(TreeError, passed=(f"the value of {source}", "'weight'", "(1,)"), expected="(3,)"):
        SOURCES[source](spoil)()


@pytest.mark.parametrize("source", SOURCES)
def test_a_returned_entry_that_is_no_tensor_is_refused(source: str) -> None:
    def spoil(tree: Tree) -> Any:
        return {**tree, "bias": None}

    with refused(TreeError, passed=(f"the value of {source}", "'bias'", "NoneType")):
        SOURCES[source](spoil)()


def test_a_start_of_training_of_another_dtype_is_refused() -> None:
    params, hparams = start()
    problem = hg.Problem(inner, outer, initial=lambda hparams: {k: v.float() for k, v in trained(hparams).items()})
    with refused(TreeError, params, hparams, passed=("the value of initial", "float32"), expected="float64"):
        hg.hypergradient(problem, params, hparams, hg.Unrolled(3, STEP))


def test_a_constrained_problem_without_its_multiplier_says_which_tensor_is_missing() -> None:
    params, hparams = start()
    problem = hg.Problem.equality_constrained(inner, lambda params, hparams: params["weight"].sum(), outer)
    with refused(TreeError, params, hparams, passed="params['multiplier']", do="add the tensor to params"):
        hg.hypergradient(problem, params, hparams, hg.Implicit(hg.MINRES()))


SGD = hg.outer.Torch(torch.optim.SGD, lr=0.1)
MISSPELT_HYPERPARAMETER: dict[str, tuple[hg.Problem, Any]] = {
    "groups": (PROBLEM, hg.outer.Torch(torch.optim.SGD, lr=0.1, groups={"dekay": {"lr": 1.0}})),
    "bounds": (PROBLEM, hg.outer.LBFGSB(bounds={"dekay": (0.0, 1.0)})),
    "hparams_domain": (hg.Problem(inner, outer, hparams_domain={"dekay": hg.Positive()}), SGD),
}


@pytest.mark.parametrize("place", MISSPELT_HYPERPARAMETER)
def test_a_setting_under_a_name_that_no_hyperparameter_has_gets_the_nearest_name(place: str) -> None:
    params, hparams = start()
    problem, move = MISSPELT_HYPERPARAMETER[place]
    with refused(
        TreeError, params, hparams, passed=(place, "'dekay'", "did you mean 'decay'?"), expected="['decay', 'shift']"
    ):
        hg.Run(problem, NEWTON, params, hparams, move)


@pytest.mark.parametrize("place", MISSPELT_HYPERPARAMETER)
def test_a_setting_of_an_unknown_hyperparameter_is_not_answered_with_advice_about_models(place: str) -> None:
    params, hparams = start()
    problem, move = MISSPELT_HYPERPARAMETER[place]
    with pytest.raises(TreeError) as caught:
        hg.Run(problem, NEWTON, params, hparams, move)
    assert "named_parameters" not in caught.value.do


def test_a_misspelt_domain_is_refused_by_the_function_face_too() -> None:
    params, hparams = start()
    problem, _ = MISSPELT_HYPERPARAMETER["hparams_domain"]
    with refused(TreeError, params, hparams, passed=("hparams_domain", "'dekay'")):
        hg.hypergradient(problem, params, hparams, ZEROTH_ORDER)


def test_a_domain_that_is_a_pair_of_numbers_is_refused() -> None:
    params, hparams = start()
    pair: Any = {"decay": (0.0, 1.0)}
    with refused(InputError, params, hparams, passed=("'decay'", "(0.0, 1.0)"), do="Box"):
        hg.Run(hg.Problem(inner, outer, hparams_domain=pair), NEWTON, params, hparams, SGD)


def renamed(saved: dict[str, Any], name: str, old: str, new: str) -> dict[str, Any]:
    return {**saved, name: {new if key == old else key: value for key, value in saved[name].items()}}


@pytest.mark.parametrize(
    ("name", "old", "new"), [("params", "weight", "wieght"), ("hparams", "decay", "dekay")], ids=["params", "hparams"]
)
def test_a_saved_run_with_other_names_is_refused_and_the_run_stays(name: str, old: str, new: str) -> None:
    params, hparams = start()
    run = hg.Run(PROBLEM, NEWTON, params, hparams, SGD)
    saved = run.state_dict()
    run.step()
    before = run.state_dict()
    with refused(TreeError, params, hparams, passed=(f"the saved {name}", repr(new), f"did you mean {old!r}?")):
        run.load_state_dict(renamed(saved, name, old, new))
    assert str(run.state_dict()) == str(before)


# ----------------------------------------------------------------------------------------------------------------------
# Trees
# ----------------------------------------------------------------------------------------------------------------------

TREES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "list": ([torch.ones(2)], ("list",), ("mapping",), ('{"name": tensor}',)),
    "tensor": (torch.ones(2), ("Tensor",), ("mapping",), ('{"name": tensor}',)),
    "none": (None, ("NoneType",), ("mapping",), ('{"name": tensor}',)),
    "empty": ({}, ("no tensors",), ("at least one",), ()),
    "float": ({"weight": 1.5}, ("'weight'", "float"), ("torch.Tensor",), ("torch.as_tensor", "'weight'")),
    "nested": ({"weight": {"a": torch.ones(1)}}, ("'weight'", "dict"), ("torch.Tensor",), ("'weight'",)),
    "integer": ({"weight": torch.ones(2, dtype=torch.int64)}, ("'weight'", "int64"), ("floating",), (".float()",)),
    "boolean": ({"weight": torch.ones(2, dtype=torch.bool)}, ("'weight'", "bool"), ("floating",), (".float()",)),
    "complex": ({"weight": torch.ones(2, dtype=torch.complex64)}, ("'weight'", "complex64"), ("floating",), ()),
    "number-as-key": ({0: torch.ones(2)}, ("[0]",), ("string key",), ("string",)),
    "dtypes": (
        {"weight": torch.ones(2, dtype=torch.float64), "bias": torch.ones(2, dtype=torch.float32)},
        ("'weight' is torch.float64", "'bias' is torch.float32"),
        ("one floating-point dtype",),
        (".to(",),
    ),
    "devices": (
        {"weight": torch.ones(2), "bias": torch.ones(2, device="meta")},
        ("'weight' is torch.float32 on cpu", "'bias' is torch.float32 on meta"),
        ("one device",),
        (".to(",),
    ),
}


@pytest.mark.parametrize("face", ["hypergradient", "solve", "differentiable", "run", "check"])
@pytest.mark.parametrize("name", ["params", "hparams"])
@pytest.mark.parametrize("fault", TREES)
def test_a_tree_that_is_none_is_refused_by_every_face(fault: str, name: str, face: str) -> None:
    tree, passed, expected, do = TREES[fault]
    params, hparams = start()
    given: dict[str, Any] = {"params": params, "hparams": hparams, name: tree}
    faces: dict[str, Callable[[], object]] = {
        "hypergradient": lambda: hg.hypergradient(PROBLEM, given["params"], given["hparams"], NEWTON),
        "solve": lambda: hg.solve(PROBLEM, given["params"], given["hparams"], NEWTON),
        "differentiable": lambda: hg.differentiable(lambda _, hparams: trained(hparams), inner)(**given),
        "run": lambda: hg.Run(PROBLEM, NEWTON, given["params"], given["hparams"], SGD),
        "check": lambda: hg.check(PROBLEM, given["params"], given["hparams"], NEWTON, verbose=False),
    }
    with refused(TreeError, params, hparams, passed=(name, *passed), expected=expected, do=do):
        faces[face]()


@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("fault", ["list", "none", "empty", "integer"])
def test_every_algorithm_checks_its_own_inputs(fault: str, algorithm: Any) -> None:
    tree, passed, expected, _ = TREES[fault]
    params, hparams = start()
    with refused(TreeError, params, hparams, passed=("params", *passed), expected=expected):
        algorithm.init(PROBLEM, tree, hparams)
    with refused(TreeError, params, hparams, passed=("hparams", *passed), expected=expected):
        algorithm.init(PROBLEM, params, tree)


@each_algorithm
def test_params_and_hyperparameters_of_different_dtypes_are_refused(algorithm: Any) -> None:
    params, _ = start(torch.float64)
    _, hparams = start(torch.float32)
    with refused(
        TreeError,
        params,
        hparams,
        passed=("params and hparams", "'params.weight' is torch.float64", "'hparams.decay' is torch.float32"),
        do=".to(",
    ):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


@each_algorithm
def test_params_and_hyperparameters_on_different_devices_are_refused(algorithm: Any) -> None:
    params, hparams = start()
    hparams = {key: value.to("meta") for key, value in hparams.items()}
    with refused(
        TreeError, params, hparams, passed=("'params.weight'", "on cpu", "'hparams.decay'", "on meta"), do=".to("
    ):
        hg.hypergradient(PROBLEM, params, hparams, algorithm)


NO_ALGORITHM: dict[str, Any] = {
    "linear solver": hg.CG(),
    "inner solver": hg.LBFGS(),
    "class": hg.Implicit,
    "none": None,
}


@pytest.mark.parametrize("face", ["hypergradient", "solve", "run", "check"])
@pytest.mark.parametrize("algorithm", NO_ALGORITHM.values(), ids=NO_ALGORITHM)
def test_what_is_no_algorithm_is_refused_by_every_face(algorithm: Any, face: str) -> None:
    params, hparams = start()
    faces: dict[str, Callable[[], object]] = {
        "hypergradient": lambda: hg.hypergradient(PROBLEM, params, hparams, algorithm),
        "solve": lambda: hg.solve(PROBLEM, params, hparams, algorithm),
        "run": lambda: hg.Run(PROBLEM, algorithm, params, hparams, SGD),
        "check": lambda: hg.check(PROBLEM, params, hparams, algorithm, verbose=False),
    }
    with refused(InputError, params, hparams, passed="algorithm", do="Implicit"):
        faces[face]()


MIXED_UP_PARTS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "implicit-linear": (lambda: hg.Implicit(hg.Newton()), ("Implicit(linear=", "Newton")),  # type: ignore[arg-type]
    "implicit-inner": (lambda: hg.Implicit(inner=torch.optim.SGD), ("Implicit(inner=", "SGD")),  # type: ignore[arg-type]
    "cg-preconditioner": (lambda: hg.CG(preconditioner="jacobi"), ("CG(preconditioner=", "jacobi")),  # type: ignore[arg-type]
    "zeroth-order-inner": (lambda: hg.ZerothOrder(hg.CG()), ("ZerothOrder(inner=", "CG")),  # type: ignore[arg-type]
    "unrolled-inner": (lambda: hg.Unrolled(3, hg.LBFGS()), ("Unrolled(inner=", "LBFGS")),  # type: ignore[arg-type]
    "forward-inner": (lambda: hg.ForwardMode(3, hg.Newton()), ("ForwardMode(inner=", "Newton")),  # type: ignore[arg-type]
    "torch-optimizer": (lambda: hg.TorchOptimizer("sgd", 3), ("TorchOptimizer(optimizer=", "sgd")),  # type: ignore[arg-type]
    "scipy": (lambda: hg.Scipy("cg"), ("Scipy(function=", "cg")),  # type: ignore[arg-type]
    "stochastic": (lambda: hg.Stochastic("sgd"), ("Stochastic(optimizer=", "sgd")),  # type: ignore[arg-type]
    "torch-move": (
        lambda: hg.outer.Torch(torch.optim.SGD([torch.zeros(1)], lr=0.1)),  # type: ignore[arg-type]
        ("Torch(optimizer=", "SGD"),
    ),
    "outer-move": (
        lambda: hg.Run(PROBLEM, NEWTON, *start(), torch.optim.SGD),  # type: ignore[arg-type]
        ("outer=", "SGD"),
    ),
}


@pytest.mark.parametrize("case", MIXED_UP_PARTS)
def test_a_part_of_another_kind_is_refused_where_it_is_passed(case: str) -> None:
    build, passed = MIXED_UP_PARTS[case]
    with refused(InputError, passed=passed):
        build()


# ----------------------------------------------------------------------------------------------------------------------
# NaN and infinity: which tensor, at which step
# ----------------------------------------------------------------------------------------------------------------------

NAN = float("nan")
SOLVERS: dict[str, hg.LinearSolver] = {
    "cg": hg.CG(),
    "cg-jacobi": hg.CG(preconditioner=hg.Jacobi()),
    "cg-nystrom": hg.CG(preconditioner=hg.NystromPreconditioner(rank=2)),
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


def at_optimum() -> tuple[Tree, Tree]:
    _, hparams = start()
    return trained(hparams), hparams


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


# ----------------------------------------------------------------------------------------------------------------------
# Far from the optimum, indefinite, not converged
# ----------------------------------------------------------------------------------------------------------------------


def test_far_from_the_optimum_the_report_and_the_warning_say_how_far() -> None:
    params, hparams = start()
    points = {key: value.clone().requires_grad_() for key, value in params.items()}
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(inner(points, hparams), list(points.values()))])
    judged = torch.cat([g.reshape(-1) for g in torch.autograd.grad(outer(points, hparams), list(points.values()))])
    moved = float((judged @ slope).abs() / (1 + hparams["decay"].exp()))  # the Hessian is a multiple of the identity
    with unchanged(params, hparams), pytest.warns(StationarityWarning) as caught:
        report = hg.hypergradient(PROBLEM, params, hparams, hg.Implicit()).report
    assert report.inner_gradient_norm == pytest.approx(float(slope.norm()), rel=1e-9)
    assert report.implied_error == pytest.approx(moved, rel=1e-6)
    text = str(caught[0].message)
    assert f"gradient norm is {report.inner_gradient_norm:.3g}" in text
    assert f"by about {report.implied_error:.3g}" in text
    assert "train longer" in text
    assert report.notes == {"stationarity": text}


def test_at_the_optimum_nothing_is_warned_of() -> None:
    report = hg.hypergradient(PROBLEM, *at_optimum(), hg.Implicit()).report
    assert report.notes == {}
    assert report.inner_gradient_norm < 1e-12
    assert report.implied_error < 1e-12


def test_how_far_is_too_far_can_be_set() -> None:
    params, hparams = start()
    result = hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(stationarity=math.inf))
    assert result.report.notes == {}
    assert result.report.inner_gradient_norm > 0.1


SADDLE = hg.Problem(
    lambda params, hparams: (
        params["w"][0].square() - params["w"][1].square() / 2 - hparams["x"] @ params["w"]  # Hessian diag(2, -1)
    ),
    lambda params, hparams: (params["w"] - 3).square().sum() / 2,
)


def saddle() -> tuple[Tree, Tree]:
    x = torch.tensor([0.4, 0.8], dtype=torch.float64)
    return {"w": torch.stack([x[0] / 2, -x[1]])}, {"x": x}


SADDLE_ANSWER = torch.tensor([(0.2 - 3) / 2, -(-0.8 - 3)], dtype=torch.float64)


def test_conjugate_gradients_stop_at_negative_curvature_and_say_so() -> None:
    params, hparams = saddle()
    with unchanged(params, hparams), pytest.warns(CurvatureWarning, match=r"not positive definite.*hypergrad\.MINRES"):
        report = hg.hypergradient(SADDLE, params, hparams, hg.Implicit(hg.CG())).report
    assert (report.status, report.negative_curvature) == ("negative_curvature", True)


def test_the_neumann_series_diverges_on_an_indefinite_hessian_and_says_what_to_use() -> None:
    params, hparams = saddle()
    with refused(
        DivergenceError, params, hparams, passed="Neumann(", expected="positive definite", do=("CG", "MINRES")
    ):
        hg.hypergradient(SADDLE, params, hparams, hg.Implicit(hg.Neumann(30)))


@pytest.mark.parametrize("linear", [hg.MINRES(), hg.Dense()])
def test_a_solver_for_indefinite_systems_is_right_at_a_saddle_and_notes_it(linear: hg.LinearSolver) -> None:
    result = hg.hypergradient(SADDLE, *saddle(), hg.Implicit(linear))
    assert torch.allclose(result.grads["x"], SADDLE_ANSWER)
    assert result.report.notes == {}
    assert (result.report.status, result.report.negative_curvature) == ("converged", True)


@pytest.mark.parametrize("linear", [hg.MINRES(), hg.Dense()])
def test_an_equality_constrained_problem_is_a_saddle_by_design_and_gives_no_warning(linear: hg.LinearSolver) -> None:
    problem = hg.Problem.equality_constrained(
        inner=lambda params, _: params["w"].square().sum() / 2,
        equality=lambda params, hparams: params["w"].sum() - hparams["x"],
        outer=lambda params, _: params["w"][0].square(),
    )
    x = torch.tensor(3.0, dtype=torch.float64)
    params, hparams = {"w": x.expand(2) / 2, "multiplier": -x / 2}, {"x": x}
    result = hg.hypergradient(problem, params, hparams, hg.Implicit(linear))
    assert float(result.grads["x"]) == pytest.approx(1.5)


STEEP = hg.Problem(
    lambda params, hparams: (
        (torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64) * params["w"].square()).sum() / 2
        - hparams["x"] @ params["w"]
    ),
    lambda params, hparams: (params["w"] - 1).square().sum() / 2,
)


def steep() -> tuple[Tree, Tree]:
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    return {"w": x / torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)}, {"x": x}


def test_a_neumann_step_that_is_too_long_gets_the_longest_that_works() -> None:
    params, hparams = steep()
    with unchanged(params, hparams), pytest.raises(DivergenceError) as caught:
        hg.hypergradient(STEEP, params, hparams, hg.Implicit(hg.Neumann(40, step=0.3)))
    says(caught.value, "passed", ("Neumann(", "step=0.3", "curvature up to 8"))
    found = re.search(r"a step below 2 / (\S+) = (\S+)$", caught.value.expected)
    assert found, caught.value.expected
    curvature, longest = float(found[1]), float(found[2])
    assert curvature == pytest.approx(8.0, rel=0.02)
    assert longest == pytest.approx(2 / 8, rel=0.02)
    says(caught.value, "do", "leave step out")
    good = hg.Implicit(hg.Neumann(400, step=0.95 * longest))
    exact = hg.hypergradient(STEEP, params, hparams, hg.Implicit(hg.Dense())).grads["x"]
    assert torch.allclose(hg.hypergradient(STEEP, params, hparams, good).grads["x"], exact, rtol=1e-6)
    unset = hg.Implicit(hg.Neumann(400))  # the remedy
    assert torch.allclose(hg.hypergradient(STEEP, params, hparams, unset).grads["x"], exact, rtol=1e-6)


@pytest.mark.parametrize(
    "linear", [hg.CG(max_steps=1), hg.MINRES(max_steps=1), hg.GMRES(max_steps=1), hg.NormalCG(max_steps=1)]
)
def test_a_linear_solve_that_runs_out_of_steps_says_how_far_it_came(linear: hg.LinearSolver) -> None:
    params, hparams = steep()
    with unchanged(params, hparams), pytest.warns(ConvergenceWarning, match="raise max_steps") as caught:
        report = hg.hypergradient(STEEP, params, hparams, hg.Implicit(linear)).report
    assert report.status == "max_steps"
    assert 1e-3 < report.residual < 1
    assert f"relative residual of {report.residual:.3g}" in str(caught[0].message)


# ----------------------------------------------------------------------------------------------------------------------
# Combinations that an algorithm cannot serve
# ----------------------------------------------------------------------------------------------------------------------


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


def root(params: Tree, hparams: Tree) -> Tree:
    turned = params["weight"].roll(1)  # not symmetric
    return {
        "weight": params["weight"] - 0.3 * turned - hparams["shift"],
        "bias": params["bias"] * hparams["decay"].exp(),
    }


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


# ----------------------------------------------------------------------------------------------------------------------
# Settings out of range
# ----------------------------------------------------------------------------------------------------------------------

FIRST: dict[Any, dict[str, Any]] = {
    hg.Unrolled: {"steps": 5, "inner": STEP},
    hg.ForwardMode: {"steps": 5, "inner": STEP},
    hg.ZerothOrder: {"inner": hg.Newton()},
    hg.GradientDescent: {"lr": 0.1},
    hg.Adam: {"lr": 0.1},
    hg.TorchOptimizer: {"optimizer": torch.optim.SGD, "steps": 5},
    hg.Stochastic: {"optimizer": torch.optim.SGD},
    hg.Checkpoint: {"directory": "nowhere"},
    hg.outer.Torch: {"optimizer": torch.optim.SGD},
}
COUNTS: dict[Any, tuple[str, ...]] = {
    hg.CG: ("max_steps", "check_every"),
    hg.MINRES: ("max_steps", "check_every"),
    hg.GMRES: ("max_steps", "restart", "check_every"),
    hg.NormalCG: ("max_steps", "check_every"),
    hg.Dense: ("max_size",),
    hg.Jacobi: ("probes", "refresh"),
    hg.PenaltyDiagonal: ("refresh",),
    hg.NystromPreconditioner: ("rank", "refresh"),
    hg.Nystrom: ("rank",),
    hg.Neumann: ("power_steps",),
    hg.Stochastic: ("steps",),
    hg.Newton: ("steps", "max_size"),
    hg.LBFGS: ("steps", "memory"),
    hg.TorchOptimizer: ("steps",),
    hg.GradientDescent: ("steps",),
    hg.Adam: ("steps",),
    hg.Unrolled: ("steps", "truncate"),
    hg.ForwardMode: ("steps", "guide", "max_exact"),
    hg.ZerothOrder: ("directions", "max_runs"),
    hg.EarlyStopping: ("patience",),
    hg.Checkpoint: ("every",),
    hg.outer.LBFGSB: ("iterations", "memory"),
}
ABOVE_ZERO: dict[Any, tuple[str, ...]] = {
    hg.Identity: ("scale",),
    hg.Neumann: ("step",),
    hg.Newton: ("tolerance",),
    hg.LBFGS: ("tolerance",),
    hg.GradientDescent: ("lr",),
    hg.Adam: ("lr", "eps"),
    hg.ZerothOrder: ("step_size",),
    hg.ProgressBar: ("interval",),
    hg.outer.Torch: ("clip",),
    hg.Simplex: ("total",),
    hg.Ball: ("radius",),
}
NOT_NEGATIVE: dict[Any, tuple[str, ...]] = {
    hg.CG: ("rtol", "atol"),
    hg.MINRES: ("rtol", "atol"),
    hg.GMRES: ("rtol", "atol"),
    hg.NormalCG: ("rtol", "atol"),
    hg.Neumann: ("terms",),
    hg.Nystrom: ("damping",),
    hg.NystromPreconditioner: ("oversample",),
    hg.Implicit: ("damping", "stationarity"),
    hg.GradientDescent: ("weight_decay", "tolerance"),
    hg.Adam: ("weight_decay", "tolerance"),
    hg.EarlyStopping: ("min_delta",),
    hg.Positive: ("floor",),
    hg.outer.LBFGSB: ("gtol", "ftol"),
}
BELOW_ONE: dict[Any, tuple[str, ...]] = {hg.GradientDescent: ("momentum",), hg.Adam: ("beta1", "beta2")}
CHOICES: dict[Any, tuple[str, ...]] = {
    hg.Unrolled: ("keep",),
    hg.ForwardMode: ("mode", "distribution"),
    hg.ZerothOrder: ("mode",),
}
TESTED_APART = {
    ("Box", "low"),
    ("Box", "high"),
    ("ForwardMode", "directions"),
    ("TensorSampler", "batch_size"),
    ("LBFGSB", "bounds"),
    ("Scipy", "function"),
}


def cases(*groups: tuple[dict[Any, tuple[str, ...]], tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(cls, name, value, id=f"{cls.__name__}-{name}={value!r}")
        for settings, values in groups
        for cls, names in settings.items()
        for name in names
        for value in values
    ]


OUT_OF_RANGE = cases(
    (COUNTS, (0, -1)),
    (ABOVE_ZERO, (0.0, -1.0, NAN)),
    (NOT_NEGATIVE, (-1, NAN)),
    (BELOW_ONE, (-0.1, 1.0, NAN)),
    (CHOICES, ("most",)),
)


@pytest.mark.parametrize(("cls", "name", "value"), OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused_where_it_is_passed(cls: Any, name: str, value: Any) -> None:
    with refused(InputError, passed=(cls.__name__, f"{name}={value!r}")):
        cls(**{**FIRST.get(cls, {}), name: value})


@pytest.mark.parametrize(
    ("cls", "name"),
    [(hg.Unrolled, "steps"), (hg.ForwardMode, "steps"), (hg.TorchOptimizer, "steps"), (hg.GradientDescent, "lr")],
)
def test_a_setting_without_a_default_is_not_to_be_left_out(cls: Any, name: str) -> None:
    with pytest.raises(InputError) as caught:
        cls(**{**FIRST.get(cls, {}), name: -1})
    assert "leave" not in caught.value.do


NO_COUNT = cases(
    (
        {
            hg.CG: ("max_steps",),
            hg.LBFGS: ("steps",),
            hg.TorchOptimizer: ("steps",),
            hg.GradientDescent: ("steps",),
            hg.Unrolled: ("steps",),
            hg.ForwardMode: ("steps",),
            hg.EarlyStopping: ("patience",),
            hg.Checkpoint: ("every",),
        },
        (2.5, "3"),
    ),
    (
        {hg.CG: ("max_steps",), hg.TorchOptimizer: ("steps",), hg.Unrolled: ("steps",), hg.Checkpoint: ("every",)},
        (None,),
    ),
)


@pytest.mark.parametrize(("cls", "name", "value"), NO_COUNT)
def test_a_count_that_is_no_whole_number_is_refused_where_it_is_passed(cls: Any, name: str, value: Any) -> None:
    with refused(InputError, passed=(cls.__name__, f"{name}={value!r}")):
        cls(**{**FIRST.get(cls, {}), name: value})


@pytest.mark.parametrize(("mode", "directions"), [("random", 0), ("random", -1), ("guided", -1)])
def test_a_number_of_directions_out_of_range_is_refused(mode: Any, directions: int) -> None:
    with refused(InputError, passed=f"ForwardMode(directions={directions})"):
        hg.ForwardMode(5, STEP, mode=mode, directions=directions)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (1.0, 1.0), (NAN, 1.0), (0.0, NAN)])
def test_an_empty_box_is_refused(low: float, high: float) -> None:
    with refused(InputError, passed=(f"low={low}", f"high={high}"), expected="low < high", do="hold it fixed"):
        hg.Box(low, high)


def test_nesterovs_form_needs_momentum() -> None:
    with refused(InputError, passed="nesterov=True", expected="momentum > 0", do="momentum=0.9"):
        hg.GradientDescent(lr=0.1, nesterov=True)


@pytest.mark.parametrize("size", [0, -1, 5])
def test_a_batch_size_out_of_range_is_refused(size: int) -> None:
    with refused(InputError, passed=(f"batch_size={size}", "4 examples"), expected="1 to 4", do="Fixed"):
        hg.TensorSampler(torch.ones(4), batch_size=size)


@pytest.mark.parametrize(
    "tensors", [(), (torch.ones(3), torch.ones(4)), (torch.tensor(1.0),)], ids=["none", "rows", "scalar"]
)
def test_data_that_cannot_be_batched_is_refused(tensors: tuple[Tensor, ...]) -> None:
    with refused(InputError, passed="shapes", expected="same number of rows", do="row i"):
        hg.TensorSampler(*tensors, batch_size=1)


def test_a_training_rule_without_a_length_cannot_be_run() -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed="GradientDescent without a number of steps", do="steps=100"):
        hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(inner=STEP))


LOOPS: dict[str, Callable[..., object]] = {
    "iterate": lambda params, hparams, steps: hg.iterate(PROBLEM, NEWTON, params, hparams, outer=SGD, steps=steps),
    "fit": lambda params, hparams, steps: hg.Trainer(PROBLEM, NEWTON, SGD).fit(params, hparams, steps),
}


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_of_no_steps_is_refused_at_the_call(loop: str, steps: int) -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed=f"steps={steps}", expected="steps > 0"):
        LOOPS[loop](params, hparams, steps)


def test_bad_inputs_of_an_iterator_are_refused_at_the_call() -> None:
    params, hparams = start()
    with refused(TreeError, params, hparams, passed="params"):
        hg.iterate(PROBLEM, NEWTON, {}, hparams, outer=SGD)


def test_negative_damping_of_a_differentiable_function_is_refused() -> None:
    with refused(InputError, passed="damping=-0.5"):
        hg.differentiable(lambda _, hparams: trained(hparams), inner, damping=-0.5)


def numeric_settings() -> set[tuple[str, str]]:
    """Every setting of a public class that is a number or a choice, by its annotation."""
    results = {"Cost", "Report", "Hypergradient", "LinearResult", "CheckResult", "Fitted", "Progress", "Operator"}
    public = {v for m in (hg, hg.outer) for v in vars(m).values() if inspect.isclass(v) and "hypergrad" in v.__module__}
    found = set()
    for cls in public - {hg.Run, hg.outer.Oracle}:
        if cls.__name__ in results or cls.__name__.startswith("_") or issubclass(cls, Exception | str):
            continue
        for name, parameter in inspect.signature(cls).parameters.items():
            text = str(parameter.annotation)
            if name != "seed" and re.search(r"\b(int|float|Setting|Literal|Keep|Mode|Distribution)\b", text):
                found.add((cls.__name__, name))
    return {(cls, name) for cls, name in found if (cls, name) != ("EarlyStopping", "monitor")}


def test_every_public_setting_that_has_a_range_is_in_these_lists() -> None:
    listed = {
        (cls.__name__, name)
        for settings in (COUNTS, ABOVE_ZERO, NOT_NEGATIVE, BELOW_ONE, CHOICES)
        for cls, names in settings.items()
        for name in names
    }
    assert numeric_settings() - listed - TESTED_APART == set()


# ----------------------------------------------------------------------------------------------------------------------
# Graphs that lose their curvature
# ----------------------------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------------------------
# The live face
# ----------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.head(self.norm(self.body(x)).tanh())
        return value


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2).sin()
Y = X.sum(1, keepdim=True).cos()
IDENTITY = hg.Implicit(hg.Identity(0.1), stationarity=math.inf)


def live(
    model: Any, hparams: Any, algorithm: Any = IDENTITY, *, train: Callable[..., Any] | None = None, **options: Any
) -> hg.Live:
    weight = next(iter(hparams.parameters() if isinstance(hparams, nn.Module) else hparams))

    def train_loss() -> Tensor:
        shrink: Tensor = weight.exp().sum() * sum(p.square().sum() for p in model.parameters())
        loss: Tensor = (model(X) - Y).square().mean()
        return loss + shrink

    def valid_loss() -> Tensor:
        value: Tensor = (model(X) - 2 * Y).square().mean()
        return value

    return hg.Live(model, hparams, train or train_loss, valid_loss, algorithm, **options)


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def decay() -> Tensor:
    return torch.zeros((), dtype=torch.float64, requires_grad=True)


def test_a_live_module_keeps_its_buffers_grads_and_random_state() -> None:
    model, weight = net(), decay()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with unchanged(model):
        live(model, [weight]).backward()
    assert weight.grad is not None


def test_a_live_model_wrapped_in_data_parallel_is_refused() -> None:
    model, weight = nn.DataParallel(net()), decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed="DataParallel", do="pass model.module"):
        live(model, [weight])


def test_a_live_model_wrapped_in_ddp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, weight = nn.parallel.DistributedDataParallel(net()), decay()
        with refused(
            WrappedModuleError, model, {"w": weight}, passed="DistributedDataParallel", do="pass model.module"
        ):
            live(model, [weight])
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_live_model_is_refused() -> None:
    model: Any = torch.compile(net(), backend="eager")
    weight = decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed="OptimizedModule", do="model._orig_mod"):
        live(model, [weight])


def test_a_compiled_part_of_a_live_model_is_named() -> None:
    model = net()
    model.body = torch.compile(model.body, backend="eager")  # type: ignore[assignment]
    weight = decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed=("model.body", "OptimizedModule")):
        live(model, [weight])


def test_a_live_model_that_is_no_module_is_refused() -> None:
    weight = decay()
    with refused(
        InputError, {"w": weight}, passed="function", expected="torch.nn.Module", do="hypergrad.hypergradient"
    ):
        hg.Live(inner, [weight], lambda: weight, lambda: weight, IDENTITY)  # type: ignore[arg-type]


BAD_LIVE_HPARAMS: dict[str, tuple[Callable[[], Any], tuple[str, ...], tuple[str, ...]]] = {
    "no-grad": (
        lambda: [torch.zeros(2, dtype=torch.float64)],
        ("'0'", "does not require grad"),
        ("requires_grad=True",),
    ),
    "no-leaf": (lambda: {"w": decay() * 2}, ("'w'", "no leaf tensor"), ("that very tensor",)),
    "bare-tensor": (lambda: torch.zeros(3, dtype=torch.float64, requires_grad=True), ("Tensor",), ("[",)),
    "integer": (lambda: [torch.zeros(2, dtype=torch.int64)], ("'0'", "int64"), (".float()",)),
    "number": (lambda: {"w": 0.5}, ("'w'", "float"), ("torch.as_tensor",)),
    "empty": (list, ("no tensors",), ()),
    "frozen-module": (lambda: nn.Linear(1, 1).requires_grad_(requires_grad=False), ("no tensors",), ()),
}


@pytest.mark.parametrize("fault", BAD_LIVE_HPARAMS)
def test_live_hyperparameters_are_leaf_tensors_that_require_grad(fault: str) -> None:
    make, passed, do = BAD_LIVE_HPARAMS[fault]
    model, hparams = net(), make()
    with refused(TreeError, model, passed=("hparams", *passed), do=do):
        hg.Live(model, hparams, lambda: model(X).mean(), lambda: model(X).mean(), IDENTITY)


@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_live_hyperparameters_share_the_models_dtype_and_device(kind: str) -> None:
    model = net()
    weight = torch.zeros((), dtype=torch.float32, requires_grad=True)
    if kind == "device":
        weight = torch.zeros((), dtype=torch.float64, device="meta", requires_grad=True)
    with refused(TreeError, model, {"w": weight}, passed="float32" if kind == "dtype" else "meta", do=".to("):
        live(model, [weight]).backward()


def test_zeroth_order_wants_live_hyperparameters_that_can_be_replaced() -> None:
    model, weight = net(), decay()
    with refused(UnsupportedError, model, {"w": weight}, passed="ZerothOrder", do=("torch.nn.Module", "Implicit")):
        live(model, [weight], ZEROTH_ORDER)


def test_zeroth_order_moves_the_hyperparameters_of_a_module() -> None:
    model = net()
    hparams = nn.ParameterDict({"w": nn.Parameter(torch.zeros((), dtype=torch.float64))})

    def train() -> Tensor:
        value: Tensor = (model(X) - Y).square().mean() + hparams["w"].exp() * model.head.weight.square().sum()
        return value

    with unchanged(model):
        live(model, hparams, ZEROTH_ORDER, train=train).backward()
    assert hparams["w"].grad is not None
    assert float(hparams["w"].grad) != 0


@pytest.mark.parametrize("role", ["inner", "outer", "penalty"])
def test_a_live_loss_with_another_signature_is_refused_where_it_is_passed(role: str) -> None:
    model, weight = net(), decay()
    losses: dict[str, Any] = {"inner": lambda: weight, "outer": lambda: weight, role: lambda a, b: weight}
    with refused(InputError, model, {"w": weight}, passed=f"{role}=", expected=f"{role}(batch)", do="close over"):
        hg.Live(model, [weight], algorithm=IDENTITY, **losses)


@pytest.mark.parametrize("role", ["inner", "outer"])
def test_a_live_loss_that_is_no_function_is_refused_where_it_is_passed(role: str) -> None:
    model, weight = net(), decay()
    losses: dict[str, Any] = {"inner": lambda: weight, "outer": lambda: weight, role: weight.detach()}
    with refused(InputError, model, {"w": weight}, passed=f"{role}=", expected="function"):
        hg.Live(model, [weight], algorithm=IDENTITY, **losses)


def test_a_live_loss_that_is_no_scalar_leaves_the_random_state() -> None:
    model, weight = net(), decay()
    hyper = live(model, [weight], train=lambda: nn.functional.dropout(model(X), 0.5))
    with refused(ObjectiveError, model, {"w": weight}, passed=("inner", "(6, 1)"), do=".mean()"):
        hyper.backward()


def test_a_live_hyperparameter_that_no_loss_uses_is_named_and_gets_no_grad() -> None:
    model, weight, ghost = net(), decay(), decay()
    with refused(UnreachedError, model, {"w": weight, "g": ghost}, passed="['1']"):
        live(model, [weight, ghost]).backward()


def test_nan_leaves_the_grads_of_live_hyperparameters_alone() -> None:
    model, weight = net(), decay()
    weight.grad = torch.tensor(7.0, dtype=torch.float64)
    hyper = live(model, [weight], train=lambda: (model(X) * weight).mean() * NAN)
    with refused(NonFiniteError, model, {"w": weight}, passed="'body.weight'"):
        hyper.backward()


def test_an_unused_parameter_of_a_live_model_is_left_out_and_the_rest_is_right() -> None:
    model, weight = net(), decay()
    reference = live(model, [weight])
    reference.backward()
    expected, weight.grad = weight.grad, None
    model.spare = nn.Linear(3, 3).double()
    spare = {f"spare.{name}" for name, _ in model.spare.named_parameters()}

    def train() -> Tensor:
        used = [p for name, p in model.named_parameters() if name not in spare]
        value: Tensor = (model(X) - Y).square().mean() + weight.exp() * sum(p.square().sum() for p in used)
        return value

    hyper = live(model, [weight], train=train)
    with unchanged(model), pytest.warns(ReachWarning, match=r"\['spare.weight', 'spare.bias'\].*left out"):
        hyper.backward()
    assert expected is not None
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)
    hyper.backward()  # said once
    assert torch.equal(weight.grad, 2 * expected)


def test_an_unused_parameter_is_found_without_moving_the_random_state() -> None:
    model, weight = net(), decay()
    model.spare = nn.Linear(3, 3).double()

    def train() -> Tensor:
        dropped = nn.functional.dropout(model(X), 0.5)
        value: Tensor = (dropped - Y).square().mean() + weight.exp() * model.body.weight.square().sum()
        return value

    with unchanged(model), pytest.warns(ReachWarning, match="spare"):
        live(model, [weight], train=train).backward()


def test_a_live_model_of_which_the_training_loss_uses_nothing_is_refused() -> None:
    model, weight = net(), decay()

    def train() -> Tensor:
        return weight.square()

    hyper = live(model, [weight], train=train)
    with refused(UnreachedError, model, {"w": weight}, passed="'head.weight'", do="names"):
        hyper.backward()
