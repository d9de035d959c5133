"""Trees with other keys, types, shapes, dtypes or devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import (
    InputError,
    TreeError,
)
from hypergrad.tree import Tree
from tests.bad_input.common import (
    EVERY,
    NEWTON,
    PROBLEM,
    ROLES,
    SGD,
    SOURCES,
    STEP,
    ZEROTH_ORDER,
    each_algorithm,
    inner,
    outer,
    refused,
    start,
    trained,
)

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
    problem = hg.Problem.constrained(inner, outer, equality=lambda params, hparams: params["weight"].sum())
    with refused(TreeError, params, hparams, passed="params['equality_multiplier']", do="add the tensor to params"):
        hg.hypergradient(problem, params, hparams, hg.Implicit(hg.MINRES()))


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
    "refined-solver": (lambda: hg.Refined("cg"), ("Refined(solver=", "cg")),  # type: ignore[arg-type]
    "recycled-preconditioner": (lambda: hg.Recycled("jacobi"), ("Recycled(preconditioner=", "jacobi")),  # type: ignore[arg-type]
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
