"""Hyperparameters with names and domains: values, gradients, every face, saving, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError, TreeError, UnreachedError, UnsupportedError
from hypergrad.solvers.best_response import Choice, Integer, Logit
from hypergrad.tree import Tree
from tests.hyperparameters.common import FIT, differences

F64 = torch.float64
CASES: dict[str, tuple[hg.Hyperparameter, Any]] = {
    "none": (hg.Hyperparameter([-1.0, 2.0]), lambda raw: raw),
    "log": (hg.Hyperparameter([1e-5, 3.0], hg.Positive()), lambda raw: raw.exp()),
    "log above a floor": (hg.Hyperparameter([0.6, 3.0], hg.Positive(0.5)), lambda raw: 0.5 + raw.exp()),
    "softplus": (
        hg.Hyperparameter([1e-5, 50.0], hg.Positive(), by="softplus"),
        lambda raw: torch.log1p(raw.exp()),
    ),
    "unit": (hg.Hyperparameter([0.01, 0.7], hg.UnitInterval()), lambda raw: 1 / (1 + (-raw).exp())),
    "box": (hg.Hyperparameter([-0.9, 2.5], hg.Box(-1, 3)), lambda raw: -1 + 4 / (1 + (-raw).exp())),
    "half line": (hg.Hyperparameter([0.0, 9.0], hg.Box(low=0)), lambda raw: raw),
    "simplex": (
        hg.Hyperparameter([[0.2, 0.8], [1.0 - 0.3, 0.3]], hg.Simplex()),
        lambda raw: raw.exp() / raw.exp().sum(-1, keepdim=True),
    ),
    "simplex of 2": (hg.Hyperparameter([0.5, 1.5], hg.Simplex(2)), lambda raw: 2 * raw.exp() / raw.exp().sum()),
    "projected simplex": (hg.Hyperparameter([0.0, 1.0], hg.Simplex(), by="projection"), lambda raw: raw),
    "ball": (hg.Hyperparameter([3.0, 4.0], hg.Ball(5.0)), lambda raw: raw),
    "whole": (hg.Hyperparameter([3, 7], Integer(0, 9)), None),
    "choice": (hg.Hyperparameter(0.1, Choice((0.1, 0.3, 0.9))), None),
}


@pytest.mark.parametrize("case", CASES)
def test_starts_at_its_initial_value(case: str) -> None:
    declared, _ = CASES[case]
    hparams = hg.Hyperparameters(x=declared, dtype=F64)
    assert torch.allclose(hparams["x"].detach(), torch.as_tensor(declared.initial, dtype=F64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [case for case, (_, formula) in CASES.items() if formula])
def test_value_is_the_formula_with_its_derivatives(case: str) -> None:
    declared, formula = CASES[case]
    hparams = hg.Hyperparameters(x=declared, dtype=F64)
    raw = hparams.tree()["x"]
    with torch.no_grad():
        raw.add_(torch.linspace(-0.3, 0.4, raw.numel(), dtype=F64).view_as(raw))
    other = raw.detach().clone().requires_grad_()
    direction = torch.linspace(1, 2, raw.numel(), dtype=F64).view_as(raw)
    (hparams.x * direction).sum().backward()
    (formula(other) * direction).sum().backward()
    assert torch.allclose(hparams.x, formula(other), rtol=1e-12, atol=1e-12)
    assert torch.allclose(raw.grad, other.grad, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["whole", "choice"])
def test_discrete_ones_have_no_gradient(case: str) -> None:
    hparams = hg.Hyperparameters(x=CASES[case][0], y=1.0)
    assert not hparams.x.requires_grad
    assert list(hparams.tree()) == ["y"]
    assert list(hparams.state_dict()) == ["x", "y"]


def test_shape_and_dtype() -> None:
    hparams = hg.Hyperparameters({"rates": hg.Hyperparameter(0.1, hg.Positive(), shape=(2, 3))}, dtype=F64)
    assert hparams["rates"].shape == (2, 3)
    assert hparams["rates"].dtype == F64
    assert len(hparams) == 1
    assert "rates" in hparams
    assert list(hparams) == list(hparams.values()) == ["rates"]
    assert "rates" in dir(hparams)


def problem() -> tuple[hg.Hyperparameters, Any, Any, Any]:
    torch.manual_seed(0)
    x, y = torch.randn(2, 20, 4, dtype=F64), torch.randn(2, 20, 1, dtype=F64)
    hparams = hg.Hyperparameters(
        decay=hg.Hyperparameter(0.05, hg.Positive()),
        mixture=hg.Hyperparameter([0.3, 0.7], hg.Simplex()),
        units=hg.Hyperparameter(3, Integer(1, 9)),
        dtype=F64,
    )
    model = nn.Linear(4, 1, bias=False, dtype=F64)

    def inner(w: Tensor, values: Tree) -> Tensor:
        errors = (x[0] @ w.T - y[0]).square()
        losses = torch.stack([errors[:10].mean(), errors[10:].mean()])
        return (values["mixture"] * losses).sum() + values["decay"] * w.square().sum()

    def outer(w: Tensor) -> Tensor:
        return (x[1] @ w.T - y[1]).square().mean()

    return hparams, model, inner, outer


def trained(hparams: hg.Hyperparameters, inner: Any, outer: Any) -> float:
    values = {name: value.detach() for name, value in hparams.values().items()}
    task = hg.Problem(lambda p, _: inner(p["w"], values), lambda p, _: outer(p["w"]))
    found = FIT.run(task, {"w": torch.zeros(1, 4, dtype=F64)}, {"x": torch.zeros((), dtype=F64)})
    return float(outer(found.params["w"]))


def test_live_gives_the_slope_of_retrained_models() -> None:
    hparams, model, inner, outer = problem()
    algorithm = hg.Implicit(hg.Dense(), inner=FIT)
    hyper = hg.Live(model, hparams, lambda: inner(model.weight, hparams), lambda: outer(model.weight), algorithm)
    hyper.backward()
    for raw in hparams.tree().values():
        expected = differences(lambda: trained(hparams, inner, outer), raw)
        assert raw.grad is not None
        assert torch.allclose(raw.grad, expected, rtol=1e-5, atol=1e-8)


def test_all_faces_agree() -> None:
    hparams, model, inner, outer = problem()
    algorithm = hg.Implicit(hg.Dense(), inner=FIT)
    start = {"w": torch.zeros(1, 4, dtype=F64)}
    task = hg.Problem(lambda p, raw: inner(p["w"], hparams.read(raw)), lambda p, raw: outer(p["w"]))
    found = hg.hypergradient(task, start, hparams.tree(), algorithm).grads
    for passed in (hparams, hparams.tree()):
        hg.Live(
            model, passed, lambda: inner(model.weight, hparams.values()), lambda: outer(model.weight), algorithm
        ).backward()
        for name, raw in hparams.tree().items():
            assert raw.grad is not None
            assert torch.allclose(raw.grad, found[name], rtol=1e-6, atol=1e-9)
            raw.grad = None
    run = hg.Run(task, algorithm, start, hparams.tree(), hg.outer.Torch(torch.optim.SGD, lr=0.1))
    before = {name: raw.detach().clone() for name, raw in hparams.tree().items()}
    run.step()
    for name, moved in run.hparams.items():
        assert torch.allclose(moved, before[name] - 0.1 * found[name], rtol=1e-6, atol=1e-9)


def test_a_hyperparameter_that_no_loss_uses_is_named() -> None:
    hparams, model, inner, outer = problem()
    more = hg.Hyperparameters({**hparams.settings, "idle": hg.Hyperparameter(0.0)}, dtype=F64)
    hyper = hg.Live(
        model, more, lambda: inner(model.weight, more), lambda: outer(model.weight), hg.Implicit(hg.Dense())
    )
    with pytest.raises(UnreachedError, match="idle"):
        hyper.backward()


def test_algorithms_that_look_elsewhere_reach_the_values() -> None:
    hparams, model, inner, outer = problem()
    hyper = hg.Live(
        model,
        hparams,
        lambda: inner(model.weight, hparams),
        lambda: outer(model.weight),
        hg.ZerothOrder(FIT, step_size=1e-4),
    )
    hyper.backward()
    for raw in hparams.tree().values():
        assert raw.grad is not None
        assert torch.allclose(raw.grad, differences(lambda: trained(hparams, inner, outer), raw), rtol=1e-4, atol=1e-7)


def test_bounds_are_projected_in_raw_units() -> None:
    hparams = hg.Hyperparameters(
        decay=hg.Hyperparameter(1e-2, hg.Positive(), bounds=(1e-4, 1.0)),
        rate=hg.Hyperparameter(0.5, hg.UnitInterval(), bounds=(None, 0.9)),
        share=hg.Hyperparameter([0.5, 0.5], hg.Simplex(), by="projection"),
        free=0.0,
        dtype=F64,
    )
    domains = hparams.domains()
    assert list(domains) == ["decay", "rate", "share"]
    with torch.no_grad():
        for raw, value in zip(hparams.tree().values(), (-99.0, 99.0, torch.tensor([2.0, 0.0]), 99.0), strict=True):
            raw.copy_(torch.as_tensor(value))
    places = [raw.data_ptr() for raw in hparams.parameters()]
    hparams.project_()
    assert [raw.data_ptr() for raw in hparams.parameters()] == places
    found = [hparams[name].tolist() for name in hparams]
    assert found == [pytest.approx(1e-4), pytest.approx(0.9), [1.0, 0.0], 99.0]


def test_moving_by_hand() -> None:
    hparams = hg.Hyperparameters(decay=hg.Hyperparameter(1e-2, hg.Positive(), bounds=(1e-4, 1.0)), dtype=F64)
    raw = hparams.tree()["decay"]
    hparams["decay"] = 0.5
    assert float(raw.detach().exp()) == pytest.approx(0.5)
    for wrong in (2.0, -1.0, float("nan"), [0.1, 0.2]):
        with pytest.raises(InputError, match="decay"):
            hparams["decay"] = wrong
    assert float(raw.detach().exp()) == pytest.approx(0.5)


def test_saved_and_copied() -> None:
    hparams, *_ = problem()
    hparams["decay"] = 0.7
    fresh, *_ = problem()
    fresh.load_state_dict(hparams.state_dict())
    for other in (fresh, copy.deepcopy(hparams), pickle.loads(pickle.dumps(hparams))):
        assert {name: value.tolist() for name, value in other.values().items()} == {
            name: value.tolist() for name, value in hparams.values().items()
        }
    with pytest.raises(RuntimeError, match="decay"):
        hg.Hyperparameters(other=1.0).load_state_dict(hparams.state_dict())


def test_to_another_dtype() -> None:
    hparams, *_ = problem()
    assert hparams.to(torch.float32)["decay"].dtype == torch.float32


def test_repr_shows_values_domains_bounds_and_kinds() -> None:
    hparams = hg.Hyperparameters(
        decay=hg.Hyperparameter(1e-3, hg.Positive(), bounds=(1e-6, 1)), rates=hg.Hyperparameter(0.5, shape=(20,))
    )
    hparams.kinds = {"decay": "inner"}
    text = repr(hparams)
    assert "decay = 0.001   Positive(floor=0.0) by log, bounds (1e-06, 1)   [inner]" in text
    assert "rates = 0.5 to 0.5, shape (20,)   any number" in text


def test_kinds() -> None:
    hparams = hg.Hyperparameters(decay=1.0)
    assert hparams.kinds is None
    hparams.kinds = {"decay": "outer"}
    assert hparams.kinds == {"decay": "outer"}
    with pytest.raises(TreeError, match="did you mean 'decay'"):
        hparams.kinds = {"decai": "outer"}
    hparams.kinds = None
    assert hparams.kinds is None


def test_kinds_are_found() -> None:
    hparams = hg.Hyperparameters(
        decay=hg.Hyperparameter(0.1, hg.Positive()),
        target=0.0,
        rate=hg.Hyperparameter(0.1, hg.Positive()),
        layers=hg.Hyperparameter(2, hg.best_response.Integer(1, 4)),
    )
    problem = hg.Problem(
        lambda params, raw: (params["w"] - 1).square().sum() + hparams.read(raw)["decay"] * params["w"].square().sum(),
        lambda params, raw: (params["w"] - raw["target"]).square().sum(),
    )
    rule = hg.GradientDescent(lr=hg.Tuned(lambda raw: hparams.read(raw)["rate"]), steps=3)
    found = hparams.find_kinds(problem, {"w": torch.zeros(2)}, inner=rule)
    assert found == {"decay": "inner", "target": "outer", "rate": "optimizer", "layers": "discrete"} == hparams.kinds
    with pytest.raises(hg.errors.UnreachedError, match="rate"):
        hparams.find_kinds(problem, {"w": torch.zeros(2)})
    assert hparams.kinds == found


WRONG: dict[str, tuple[Any, str]] = {
    "negative": (lambda: hg.Hyperparameter(-1.0, hg.Positive()), "above 0"),
    "at the floor": (lambda: hg.Hyperparameter(0.5, hg.Positive(0.5)), "above 0.5"),
    "one of many": (lambda: hg.Hyperparameter([1.0, -1.0], hg.Positive()), "above 0"),
    "end of the unit interval": (lambda: hg.Hyperparameter(1.0, hg.UnitInterval()), "strictly between 0 and 1"),
    "outside a box": (lambda: hg.Hyperparameter(3.0, hg.Box(0, 1)), "strictly between 0 and 1"),
    "outside a projected box": (lambda: hg.Hyperparameter(3.0, hg.Box(0, 1), by="projection"), "outside Box"),
    "no simplex": (lambda: hg.Hyperparameter([0.5, 0.6], hg.Simplex()), "sum to 1"),
    "number for a simplex": (lambda: hg.Hyperparameter(1.0, hg.Simplex()), "vector"),
    "no whole number": (lambda: hg.Hyperparameter(2.5, Integer(0, 9)), "whole number"),
    "no option": (lambda: hg.Hyperparameter(5, Choice((1, 2))), "1, 2"),
    "NaN": (lambda: hg.Hyperparameter(float("nan")), "finite"),
    "infinity": (lambda: hg.Hyperparameter([1.0, float("inf")], hg.Positive()), "finite"),
    "text": (lambda: hg.Hyperparameter("0.1"), "a number"),  # type: ignore[arg-type]
    "nothing": (lambda: hg.Hyperparameter([]), "at least one number"),
    "truth": (lambda: hg.Hyperparameter(True), "at least one number"),  # noqa: FBT003
    "shape": (lambda: hg.Hyperparameter([1.0, 2.0], shape=(3,)), "expanded to the shape"),
    "class": (lambda: hg.Hyperparameter(1.0, hg.Positive), "a domain"),  # type: ignore[arg-type]
    "no domain": (lambda: hg.Hyperparameter(1.0, "positive"), "a domain"),  # type: ignore[arg-type]
    "misspelt": (lambda: hg.Hyperparameter(1.0, hg.Positive(), by="sofplus"), "did you mean 'softplus'"),
    "bounds in the wrong order": (lambda: hg.Hyperparameter(1.0, bounds=(2, 0)), "low < high"),
    "one bound": (lambda: hg.Hyperparameter(1.0, bounds=(2,)), "low < high"),  # type: ignore[arg-type]
    "bounds outside": (lambda: hg.Hyperparameter(1.0, hg.Positive(), bounds=(0, 2)), "above 0"),
    "bounds on a simplex": (lambda: hg.Hyperparameter([0.5, 0.5], hg.Simplex(), bounds=(0.1, 1)), "single entries"),
    "bounds twice": (
        lambda: hg.Hyperparameter(0.5, hg.Box(0, 1), by="projection", bounds=(0, 0.6)),
        "into the domain",
    ),
    "outside its bounds": (lambda: hg.Hyperparameter(5.0, hg.Positive(), bounds=(1, 2)), "within its bounds"),
    "none": (hg.Hyperparameters, "at least one"),
    "no pairs": (lambda: hg.Hyperparameters(3), "a mapping"),  # type: ignore[arg-type]
    "twice": (lambda: hg.Hyperparameters({"x": 1.0}, x=2.0), "'x' twice"),
    "twice in pairs": (lambda: hg.Hyperparameters([("x", 1.0), ("x", 2.0)]), "'x' twice"),
    "dot": (lambda: hg.Hyperparameters({"a.b": 1.0}), "without dots"),
    "taken": (lambda: hg.Hyperparameters(train=1.0), "for itself"),
    "taken by the parameters": (lambda: hg.Hyperparameters(_parameters=1.0), "for itself"),
    "NaN under a name": (lambda: hg.Hyperparameters(x=float("nan")), "'x'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_declarations_are_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()


def test_unknown_names() -> None:
    hparams = hg.Hyperparameters(weight_decay=1.0)
    with pytest.raises(TreeError, match="did you mean 'weight_decay'"):
        hparams["weight_decai"]
    with pytest.raises(AttributeError, match="did you mean 'weight_decay'"):
        _ = hparams.weight_decai
    with pytest.raises(TreeError, match="did you mean 'weight_decay'"):
        hparams.read(hparams.tree())["weight_decai"]
    with pytest.raises(TreeError, match="did you mean 'weight_decay'"):
        hparams["weight_decai"] = 1.0


def test_read_leaves_other_tensors_out() -> None:
    hparams = hg.Hyperparameters(decay=hg.Hyperparameter(1.0, hg.Positive()))
    assert list(hparams.read({"other": torch.zeros(3), **hparams.tree()})) == ["decay"]


def test_handed_to_best_response() -> None:
    hparams = hg.Hyperparameters(
        rate=hg.Hyperparameter(0.3, hg.UnitInterval()),
        decay=hg.Hyperparameter([1e-3, 1e-2], hg.Positive()),
        width=hg.Hyperparameter(0.3, Choice((0.1, 0.3, 0.9))),
        holes=hg.Hyperparameter(5, Integer(0, 9)),
        dtype=F64,
    )
    found = hparams.best_response(scale=0.2, shared=["decay"])
    assert isinstance(found, hg.best_response.Hyperparameters)
    assert found.size == 5
    for name in hparams:
        assert torch.allclose(found[name], hparams[name], rtol=1e-12)
    assert torch.allclose(found.scales, torch.tensor(0.2, dtype=F64))
    assert found.per_example.tolist() == [True, False, False, True, True]
    assert found.settings["rate"].domain == Logit(0.0, 1.0)


@pytest.mark.parametrize(
    "declared",
    [
        hg.Hyperparameter([0.5, 0.5], hg.Simplex()),
        hg.Hyperparameter(1.0, hg.Positive(0.5)),
        hg.Hyperparameter(1.0, hg.Positive(), by="projection"),
        hg.Hyperparameter(1.0, hg.Positive(), bounds=(0.5, 2)),
        hg.Hyperparameter(1.0, shape=(2, 2)),
    ],
    ids=["simplex", "floor", "projection", "bounds", "matrix"],
)
def test_not_for_best_response(declared: hg.Hyperparameter) -> None:
    with pytest.raises(UnsupportedError, match="'x'"):
        hg.Hyperparameters(x=declared).best_response()


def test_searched_by_optuna() -> None:
    optuna = pytest.importorskip("optuna")
    hparams = hg.Hyperparameters(
        decay=hg.Hyperparameter(1e-2, hg.Positive(), bounds=(1e-4, 1.0)),
        rate=hg.Hyperparameter(0.3, hg.Box(0.0, 0.9)),
        share=hg.Hyperparameter(0.3, hg.UnitInterval()),
        units=hg.Hyperparameter(3, Integer(1, 9)),
        width=hg.Hyperparameter(16, Choice((8, 16, 32))),
    )
    trial = optuna.trial.FixedTrial({"decay": 0.5, "rate": 0.1, "share": 0.2, "units": 7, "width": 32})
    found = hparams.suggest(trial)
    assert found == {"decay": 0.5, "rate": 0.1, "share": 0.2, "units": 7, "width": 32}
    assert trial.distributions["decay"].log
    assert not trial.distributions["rate"].log
    for name, value in found.items():
        hparams[name] = value
        assert float(hparams[name].detach()) == pytest.approx(value)
    with pytest.raises(UnsupportedError, match="finite range"):
        hg.Hyperparameters(x=hg.Hyperparameter(1.0, hg.Positive())).suggest(trial)
