"""Self-tuning refuses what it cannot do at the door, names it, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError, ObjectiveError, TreeError, UnreachedError
from hypergrad.solvers.best_response import (
    Choice,
    Dropout,
    Hyperparameter,
    Hyperparameters,
    Integer,
    Log,
    Logit,
    Real,
    SelfTuning,
    convert,
)
from tests.bad_input.common import refused


def one(*, per_example: bool = True) -> Hyperparameters:
    return Hyperparameters({"rate": Hyperparameter(0.2, Logit(0, 0.9), per_example=per_example)})


def hooked() -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: output)
    return layer


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "lstm": (lambda: nn.LSTM(2, 2), ("part: LSTM",)),
    "attention": (lambda: nn.MultiheadAttention(2, 1), ("part: MultiheadAttention", "part.out_proj: NonDyn")),
    "transposed": (lambda: nn.ConvTranspose1d(2, 2, 1), ("part: ConvTranspose1d",)),
    "prelu": (lambda: nn.Sequential(nn.PReLU()), ("part.0: PReLU",)),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), ("part", "Parametrized")),
    "hooks": (hooked, ("part: Linear with hooks",)),
    "max-norm": (lambda: nn.Embedding(2, 2, max_norm=1.0), ("part: Embedding with max_norm",)),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_layer_that_is_not_known_is_named_with_the_way_round(kind: str) -> None:
    make, names = UNKNOWN[kind]
    hparams, model = one(), nn.ModuleDict({"known": nn.Linear(2, 2), "part": make()})
    with refused(InputError, model, hparams, passed=names, expected=("Linear", "Conv2d"), do=("skip=['part",)):
        convert(model, hparams)
    converted: Any = convert(model, hparams, skip=["part"]).module
    assert type(converted["part"]) is type(model["part"])


BAD_CONVERSIONS: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "no-module": (lambda: convert(len, one()), ("builtin_function",), "module that is trained"),  # type: ignore[arg-type]
    "bare-hparams": (lambda: convert(nn.Linear(1, 1), {"a": 1}), ("dict",), "Hyperparameters("),  # type: ignore[arg-type]
    "gate": (lambda: convert(nn.Linear(1, 1), one(), gate="relu"), ("'relu'",), "pick"),  # type: ignore[arg-type]
    "centred-sigmoid": (
        lambda: convert(nn.Linear(1, 1), one(), gate="sigmoid", centred=True),
        ("centred=True", "sigmoid"),
        "leave gate out",
    ),
    "skip-misspelt": (
        lambda: convert(nn.ModuleDict({"head": nn.Linear(1, 1)}), one(), skip=["haed"]),
        ("'haed'", "did you mean 'head'"),
        "named_modules",
    ),
    "skip-class-absent": (lambda: convert(nn.Linear(1, 1), one(), skip=[nn.LSTM]), ("LSTM",), "leave it out"),
    "nothing-left": (lambda: convert(nn.Sequential(nn.Linear(1, 1)), one(), skip=["0"]), ("Sequential",), "skip"),
    "no-parameters": (lambda: convert(nn.ReLU(), one()), ("ReLU", "without a layer"), "unfreeze"),
    "twice": (lambda: convert(convert(nn.Linear(1, 1), one()), one()), ("already",), "original"),
    "negative-seed": (lambda: convert(nn.Linear(1, 1), one(), seed=-1), ("seed=-1",), "seed"),
    "other-hparams": (
        lambda: convert(nn.Sequential(nn.Linear(1, 1), Dropout(one(), "rate")), one()),
        ("Dropout", "'1'"),
        "same Hyperparameters",
    ),
}


@pytest.mark.parametrize("fault", BAD_CONVERSIONS)
def test_a_conversion_that_makes_no_sense_is_refused(fault: str) -> None:
    call, passed, do = BAD_CONVERSIONS[fault]
    torch.manual_seed(0)
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in caught.value.passed for word in passed), caught.value
    assert do in caught.value.do
    assert type(caught.value) is InputError


def test_hyperparameters_inside_the_model_are_refused() -> None:
    hparams, model = one(), nn.ModuleDict({"body": nn.Linear(1, 1)})
    model["own"] = hparams
    with refused(InputError, model, passed="'own'", do="beside"):
        convert(model, hparams)


BAD_HPARAMS: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "no-domain": (lambda: Hyperparameters({"a": 0.5}), ("'a'", "no domain"), "Hyperparameter("),  # type: ignore[dict-item]
    "domain-left-out": (lambda: Hyperparameter(0.5), ("domain=None",), "Logit(low, high)"),
    "domain-class": (lambda: Hyperparameter(0.5, Log), ("Log",), "Logit(low, high)"),  # type: ignore[arg-type]
    "projection": (lambda: Hyperparameter(0.5, hg.Box(0, 1)), ("Box",), "Logit(low, high)"),  # type: ignore[arg-type]
    "empty": (lambda: Hyperparameters({}), ("{}",), "Hyperparameters("),
    "empty-vector": (lambda: Hyperparameter([], Real()), ("[]",), "starts"),
    "nan": (lambda: Hyperparameter(float("nan"), Real()), ("nan",), "number"),
    "word": (lambda: Hyperparameter(["x"], Real()), ("'x'",), "number"),  # type: ignore[list-item]
    "scale": (lambda: Hyperparameter(0.5, Real(), scale=0.0), ("scale=0.0",), "scale"),
    "scale-negative": (lambda: Hyperparameter(0.5, Real(), scale=-1), ("scale=-1",), "scale"),
    "scale-infinite": (lambda: Hyperparameter(0.5, Real(), scale=float("inf")), ("inf",), "0.5"),
    "log": (lambda: Hyperparameter(0.0, Log()), ("0 for Log()",), "inside the domain"),
    "logit": (lambda: Hyperparameter(0.9, Logit(0, 0.9)), ("0.9",), "inside the domain"),
    "integer": (lambda: Hyperparameter(2.5, Integer(0, 4)), ("2.5",), "inside the domain"),
    "integer-outside": (lambda: Hyperparameter(5, Integer(0, 4)), ("5",), "inside the domain"),
    "choice": (lambda: Hyperparameter(3, Choice((1, 2))), ("3",), "inside the domain"),
    "logit-empty": (lambda: Logit(1, 0), ("Logit",), "swap"),
    "logit-infinite": (lambda: Logit(0, float("inf")), ("inf",), "Log"),
    "integer-empty": (lambda: Integer(3, 3), ("Integer",), "swap"),
    "integer-fraction": (lambda: Integer(0.5, 3), ("0.5",), "Logit"),  # type: ignore[arg-type]
    "choice-single": (lambda: Choice((1,)), ("Choice",), "fixed"),
    "choice-twice": (lambda: Choice((1, 1)), ("Choice",), "fixed"),
    "dropout-domain": (
        lambda: Dropout(Hyperparameters({"p": Hyperparameter(0.5, Real())}), "p"),
        ("'p'",),
        "Logit(0, 0.9)",
    ),
    "dropout-certain": (
        lambda: Dropout(Hyperparameters({"p": Hyperparameter(0.5, Logit(0, 1))}), "p"),
        ("'p'",),
        "Logit(0, 0.9)",
    ),
    "dropout-vector": (
        lambda: Dropout(Hyperparameters({"p": Hyperparameter([0.5], Logit(0, 0.9))}), "p"),
        ("'p'",),
        "Logit(0, 0.9)",
    ),
    "rows": (lambda: one().perturbed(0).__enter__(), ("rows=0",), "examples"),
}


@pytest.mark.parametrize("fault", BAD_HPARAMS)
def test_a_hyperparameter_that_makes_no_sense_is_refused(fault: str) -> None:
    call, passed, do = BAD_HPARAMS[fault]
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in caught.value.passed for word in passed), caught.value
    assert do in caught.value.do, caught.value


def test_a_misspelt_hyperparameter_is_named() -> None:
    hparams = one()
    calls: list[Callable[[], object]] = [
        lambda: hparams["raet"],
        lambda: hparams.unconstrained("raet"),
        lambda: Dropout(hparams, "raet"),
    ]
    for call in calls:
        with refused(TreeError, hparams, passed=("'raet'", "'rate'"), do="rename"):
            call()


def test_a_layer_that_gets_other_examples_than_were_counted_is_named() -> None:
    hparams = one()
    model = convert(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Conv1d(2, 2, 1)}), hparams)
    layers: Any = model.module
    drop = Dropout(hparams, "rate")
    with hparams.perturbed(3):
        inputs = ((layers["a"], (6, 2), "'a'"), (layers["a"], (2,), "'a'"), (layers["b"], (2, 4), "'b'"))
        for layer, shape, name in (*inputs, (drop, (6, 2), "Dropout")):
            with refused(InputError, model, hparams, passed=(name,), expected="3 examples", do="examples="):
                layer(torch.ones(shape))
        with refused(InputError, model, passed=("weights of 'a'",), do="per_example=False"):
            _ = layers["a"].weight


def setup(
    *, centred: bool = False, hparams: Hyperparameters | None = None, **changes: Any
) -> tuple[Any, Hyperparameters, Callable[[], SelfTuning]]:
    hparams = hparams or one()
    plain = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model = convert(plain, hparams, centred=centred)

    def loss(batch: Tensor) -> Tensor:
        value: Tensor = model(batch).square().mean()
        return value

    arguments: dict[str, Any] = {
        "model": model,
        "train_loss": loss,
        "valid_loss": loss,
        "train_data": hg.Fixed(torch.ones(4, 2)),
        "valid_data": hg.Fixed(torch.ones(4, 2)),
        "weights": torch.optim.SGD(model.parameters(), lr=0.1),
        "hyperparameters": torch.optim.SGD([hparams.location], lr=0.1),
    }
    made = {key: change(model, hparams, plain) if callable(change) else change for key, change in changes.items()}
    return model, hparams, lambda: SelfTuning(**{**arguments, **made})


BAD_RUNS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "plain-model": ({"model": lambda m, h, p: p}, ("Sequential",), "convert"),
    "train-period": ({"train_period": 0}, ("train_period=0",), "train_period"),
    "train-period-negative": ({"train_period": -2}, ("train_period=-2",), "train_period"),
    "valid-period": ({"valid_period": -1}, ("valid_period=-1",), "valid_period"),
    "period-fraction": ({"valid_period": 1.5}, ("valid_period=1.5",), "valid_period"),
    "warmup": ({"warmup": -1}, ("warmup=-1",), "warmup"),
    "seed": ({"seed": -1}, ("seed=-1",), "seed"),
    "entropy": ({"entropy_weight": -1e-3}, ("entropy_weight=-0.001",), "entropy_weight"),
    "entropy-nan": ({"entropy_weight": float("nan")}, ("nan",), "entropy_weight"),
    "loss": ({"train_loss": torch.ones(())}, ("train_loss",), "close over"),
    "loss-arguments": ({"valid_loss": lambda m, h, p: lambda a, b: a}, ("valid_loss",), "close over"),
    "data": ({"train_data": [1, 2]}, ("train_data",), "TensorSampler"),
    "examples": ({"examples": 4}, ("examples=4",), "leave it out"),
    "no-optimizer": ({"weights": 0.1}, ("weights=0.1",), "parameters of the converted model"),
    "plain-weights": (
        {"weights": lambda m, h, p: torch.optim.SGD(p.parameters(), lr=0.1)},
        ("weights", "other tensors"),
        "after the conversion",
    ),
    "general-only": (
        {"weights": lambda m, h, p: torch.optim.SGD(m.general_parameters(), lr=0.1)},
        ("none of the response",),
        "model.parameters()",
    ),
    "hparams-with-scales": (
        {"hyperparameters": lambda m, h, p: torch.optim.SGD(h.parameters(), lr=0.1)},
        ("hyperparameters", "other tensors"),
        "hparams.raw_scale",
    ),
    "weights-with-hparams": (
        {"weights": lambda m, h, p: torch.optim.SGD([*m.parameters(), h.location], lr=0.1)},
        ("weights", "other tensors"),
        "[hparams.location]",
    ),
    "scales": (
        {"scales": lambda m, h, p: torch.optim.SGD([h.location], lr=0.1)},
        ("scales", "other tensors"),
        "[hparams.raw_scale]",
    ),
    "lbfgs": (
        {"hyperparameters": lambda m, h, p: torch.optim.LBFGS([h.location])},
        ("hyperparameters", "LBFGS"),
        "SGD",
    ),
}


@pytest.mark.parametrize("fault", BAD_RUNS)
def test_a_run_that_makes_no_sense_is_refused(fault: str) -> None:
    changes, passed, do = BAD_RUNS[fault]
    model, hparams, call = setup(**changes)
    with refused(InputError, model, hparams, passed=passed, do=do):
        call()


BAD_LOSSES: dict[str, tuple[Callable[..., Any], type[InputError], tuple[str, ...]]] = {
    "no-scalar": (lambda m, h, p: lambda x: 2 * m(x), ObjectiveError, ("(4, 1)",)),
    "number": (lambda m, h, p: lambda x: 0.5, ObjectiveError, ("float",)),
    "nothing": (lambda m, h, p: lambda x: None, ObjectiveError, ("NoneType",)),
    "detached": (lambda m, h, p: lambda x: m(x).mean().detach(), ObjectiveError, ("depends on no parameter",)),
}


@pytest.mark.parametrize("fault", BAD_LOSSES)
@pytest.mark.parametrize("centred", [False, True])
def test_a_training_loss_that_is_none_is_refused_and_nothing_moves(fault: str, centred: bool) -> None:
    make, kind, passed = BAD_LOSSES[fault]
    model, hparams, call = setup(centred=centred, train_loss=make)
    tuning = call()
    with refused(kind, model, hparams, passed=("train_loss", *passed)):
        tuning.step()
    assert tuning.step_number == 0


@pytest.mark.parametrize("fault", ["plain", "detached"])
def test_a_validation_loss_without_hyperparameters_is_refused(fault: str) -> None:
    def make(model: Any, _: Any, plain: Any) -> Any:
        return (lambda x: plain(x).mean()) if fault == "plain" else (lambda x: model(x).mean().detach())

    model, hparams, call = setup(valid_loss=make)
    tuning = call()
    tuning.fit(2)
    with refused(UnreachedError, model, hparams, passed="valid_loss", do="convert"):
        tuning.step()


@pytest.mark.parametrize("found", [0, -3, 2.5])
def test_a_wrong_number_of_examples_is_refused(found: Any) -> None:
    model, hparams, call = setup(examples=lambda m, h, p: lambda batch: found)
    with refused(InputError, model, hparams, passed=f"rows={found}", do="examples"):
        call().step()


def test_examples_that_are_counted_wrongly_are_noticed_by_the_first_layer() -> None:
    model, hparams, call = setup(examples=lambda m, h, p: lambda batch: 5)
    with refused(InputError, model, hparams, passed="'0'", expected="5 examples"):
        call().step()


def test_a_part_of_the_model_on_its_own_cannot_be_linearised() -> None:
    model, hparams, call = setup(centred=True, train_loss=lambda m, h, p: lambda x: m.module(x).mean())
    with refused(InputError, model, hparams, passed="outside of the model", do="model(...)"):
        call().step()


def test_a_number_of_steps_is_at_least_one() -> None:
    model, hparams, call = setup()
    with refused(InputError, model, hparams, passed="steps=0"):
        call().fit(0)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no-mapping": (lambda state: [state], "list"),
    "missing": (lambda state: {k: v for k, v in state.items() if k != "weights"}, "entries"),
    "format": (lambda state: {**state, "format": 99}, "99"),
    "steps": (lambda state: {**state, "step_number": -1}, "step_number"),
    "model": (lambda state: {**state, "model": {}}, "'model'"),
    "optimizer": (lambda state: {**state, "hyperparameters": {"param_groups": []}}, "'hyperparameters'"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_state_of_another_run_is_refused_and_nothing_moves(fault: str) -> None:
    spoil, passed = SPOILT[fault]
    model, hparams, call = setup()
    tuning = call()
    state = tuning.state_dict()
    tuning.fit(4)
    before = [value.detach().clone() for value in (*model.parameters(), *hparams.parameters())]
    with pytest.raises(InputError) as caught:
        tuning.load_state_dict(spoil(state))
    assert passed in caught.value.passed
    assert tuning.step_number == 4
    assert all(torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *hparams.parameters()), strict=True))
