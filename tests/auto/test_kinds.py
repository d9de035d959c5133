"""How hyperparameters enter: found, or refused by name with the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import CutError, TreeError, UnreachedError
from hypergrad.testing import KNOWN_PROBLEMS, KnownProblem, counted
from hypergrad.testing.problems import box, fixed_point, outer_only
from hypergrad.tree import Tree

DOUBLE = torch.float64


def start() -> Tree:
    return {"w": torch.tensor([1.0, -2.0], dtype=DOUBLE)}


def point(value: float = 1.6) -> Tree:
    return {"x": torch.tensor(value, dtype=DOUBLE)}


def squares(params: Tree, _: Tree) -> Tensor:
    return params["w"].square().sum()


def weighted(weight: Callable[[Tree], Any]) -> hg.Problem:
    return hg.Problem(lambda params, hparams: (weight(hparams) * params["w"].square()).sum(), squares)


def without_grad(hparams: Tree) -> Tensor:
    with torch.no_grad():
        return hparams["x"].exp()


CUTS: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "item": (lambda hparams: hparams["x"].item(), ".item()"),
    "float": (lambda hparams: float(hparams["x"]), "float()"),
    "detach": (lambda hparams: hparams["x"].detach(), ".detach()"),
    "data": (lambda hparams: hparams["x"].data, ".data"),
    "detached later": (lambda hparams: (2 * hparams["x"]).exp().detach(), ".detach()"),
    "numpy": (lambda hparams: float(hparams["x"].detach().numpy()), ".detach()"),
    "no_grad": (without_grad, "torch.no_grad()"),
    "branch": (lambda hparams: 2.0 if hparams["x"] > 1 else 1.0, "a comparison in an if"),
    "round": (lambda hparams: hparams["x"].round(), "round()"),
    "sign": (lambda hparams: hparams["x"].sign() + 2, "round()"),
}


@pytest.mark.parametrize("how", CUTS)
def test_a_cut_path_is_named_with_its_cause(how: str) -> None:
    weight, cause = CUTS[how]
    with pytest.raises(CutError) as caught:
        hg.kinds(weighted(weight), start(), point())
    assert caught.value.names == ["x"]
    assert "['x']" in caught.value.passed
    assert "the inner objective" in caught.value.passed
    assert cause in caught.value.passed


def test_a_cut_path_is_found_although_another_function_has_a_whole_one() -> None:
    """The direct term alone would be returned as the hypergradient, without a word."""
    problem = hg.Problem(
        inner=lambda params, hparams: (hparams["x"].detach() * params["w"].square()).sum(),
        outer=lambda params, hparams: hparams["x"] * params["w"].square().sum(),
    )
    with pytest.raises(CutError, match="inner objective"):
        hg.kinds(problem, start(), point())


@pytest.mark.parametrize("place", ["penalty", "outer", "initial", "optimizer"])
def test_every_function_is_looked_at(place: str) -> None:
    def cut(params: Tree, hparams: Tree) -> Tensor:
        return (hparams["x"].detach() * params["w"].square()).sum()

    options: dict[str, Any] = {"inner": squares, "outer": squares}
    rule = None
    if place == "initial":
        options["initial"] = lambda hparams: {"w": hparams["x"].detach().expand(2)}
    elif place == "optimizer":
        rule = hg.GradientDescent(lr=hg.Tuned(lambda hparams: hparams["x"].detach() / 10))
    else:
        options[place] = cut
    names = {"penalty": "inner objective", "outer": "outer objective", "initial": "initial", "optimizer": "update rule"}
    with pytest.raises(CutError, match=names[place]):
        hg.kinds(hg.Problem(**options), start(), point(), inner=rule)


SMOOTH: dict[str, Callable[[Tree], Tensor]] = {
    "clamped and saturated": lambda hparams: hparams["x"].clamp(0, 1),
    "rectified and zero": lambda hparams: (-hparams["x"]).relu(),
    "flat just there": lambda hparams: (hparams["x"] - 1.6).square(),
    "with noise": lambda hparams: hparams["x"] + torch.randn(2, dtype=DOUBLE),
    "with a detached copy beside it": lambda hparams: hparams["x"] / hparams["x"].detach(),
}


@pytest.mark.parametrize("how", SMOOTH)
def test_a_derivative_of_zero_is_no_cut(how: str) -> None:
    assert hg.kinds(weighted(SMOOTH[how]), start(), point())["x"].kind == "inner"


def test_random_numbers_do_not_look_like_a_dependence() -> None:
    """The loss differs at every call, but not for the reason that the hyperparameter moved."""
    problem = hg.Problem(
        inner=lambda params, _: (params["w"] * torch.rand(2, dtype=DOUBLE)).sum(),
        outer=lambda params, hparams: (hparams["x"] * params["w"]).sum() + torch.rand((), dtype=DOUBLE),
    )
    assert hg.kinds(problem, start(), point())["x"].places == ("outer",)


def test_the_kinds_of_one_run() -> None:
    problem = hg.Problem(
        inner=lambda params, hparams: hparams["decay"].exp() * squares(params, hparams) + hparams["both"] * 2,
        outer=lambda params, hparams: squares(params, hparams) * hparams["scale"] * hparams["both"] / hparams["layers"],
        initial=lambda hparams: {"w": hparams["w0"].expand(2)},
    )
    rule = hg.GradientDescent(
        lr=hg.Tuned(lambda hparams, step: hparams["lr"] * (hparams["late"] if step > 3 else 1.0)), steps=6
    )
    hparams = {name: torch.tensor(0.5, dtype=DOUBLE) for name in ("decay", "both", "scale", "w0", "lr", "late")}
    found = hg.kinds(problem, start(), {**hparams, "layers": torch.tensor(3)}, inner=rule)
    assert {name: str(entry.kind) for name, entry in found.items()} == {
        "decay": "inner",
        "both": "inner",
        "scale": "outer",
        "w0": "initial",
        "lr": "optimizer",
        "late": "optimizer",
        "layers": "discrete",
    }
    assert found["both"].places == ("inner", "outer")


@pytest.mark.parametrize("value", [3, True, "relu", torch.tensor(2), torch.tensor([True, False])])
def test_discrete_hyperparameters(value: Any) -> None:
    found = hg.kinds(weighted(lambda hparams: hparams["x"]), start(), {**point(), "choice": value})
    assert found["choice"].kind == "discrete"


def test_what_nothing_reads_is_unreached_with_advice_on_learning_rates() -> None:
    hparams = {**point(), "lr": torch.tensor(0.1, dtype=DOUBLE)}
    with pytest.raises(UnreachedError) as caught:
        hg.kinds(weighted(lambda hparams: hparams["x"]), start(), hparams)
    assert caught.value.names == ["lr"]
    assert not isinstance(caught.value, CutError)
    assert "A learning rate has no implicit hypergradient" in caught.value.do


def test_a_live_closure_that_reads_a_number_is_named() -> None:
    """Closures know the live tensor, which cannot be moved for them; what they call gives them away."""
    weight = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    problem = hg.Problem(lambda params, _: weight.item() * params["w"].square().sum(), squares)
    with pytest.raises(UnreachedError, match=r"'x' is read by \.item\(\)"):
        hg.kinds(problem, start(), {"x": weight})


@pytest.mark.parametrize("make", KNOWN_PROBLEMS)
def test_known_problems(make: Callable[[], KnownProblem]) -> None:
    known = make()
    before = torch.get_rng_state()
    found = hg.kinds(known.problem, known.params, known.hparams)
    assert torch.equal(torch.get_rng_state(), before)
    kinds = {name: str(entry.kind) for name, entry in found.items()}
    if known.name == "outer_only":
        assert kinds == {"x": "inner", "z": "outer"}
    elif known.name == "maml":
        assert kinds == {"x": "initial"}
    else:
        assert set(kinds.values()) == {"inner"}


@pytest.mark.parametrize("make", [outer_only, fixed_point, box])
def test_the_probe_takes_no_gradient_and_leaves_batches_alone(make: Callable[[], KnownProblem]) -> None:
    known = make()
    problem, counter = counted(known.problem)
    hg.kinds(problem, known.params, known.hparams)
    assert (counter.inner_gradients, counter.products, counter.outer_gradients) == (0, 0, 0)
    data = hg.TensorSampler(torch.arange(8.0, dtype=DOUBLE), batch_size=3)
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (hparams["x"] * batch[0].mean() * params["w"]).sum(),
        outer=squares,
        inner_data=data,
    )
    before = data.state_dict()
    hg.kinds(problem, start(), point())
    assert data.state_dict() == before


def test_bad_input() -> None:
    with pytest.raises(TreeError, match="hparams"):
        hg.kinds(weighted(lambda hparams: hparams["x"]), start(), {})
    with pytest.raises(hg.errors.InputError, match="inner"):
        hg.kinds(weighted(lambda hparams: hparams["x"]), start(), point(), inner="sgd")  # type: ignore[arg-type]
