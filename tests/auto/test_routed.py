"""Hyperparameters of several kinds in one run, each with the algorithm that sees it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import CutError, InputError, UnreachedError, UnsupportedError
from hypergrad.testing import check_conformance, counted
from hypergrad.testing.conformance import relative_error
from hypergrad.testing.problems import equality, outer_only, ridge
from hypergrad.tree import Tree

DOUBLE = torch.float64
RULE = hg.GradientDescent(lr=hg.Tuned("lr"))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def three_kinds() -> hg.Problem:
    """g = (w − x/2)² and f = ½ t (w − 1)²: one hyperparameter of each objective, and a step size."""
    return hg.Problem(
        inner=lambda params, hparams: (params["w"] - hparams["x"] / 2).square(),
        outer=lambda params, hparams: 0.5 * hparams["t"] * (params["w"] - 1).square(),
    )


def hyperparameters() -> Tree:
    return {"t": number(3.0), "lr": number(0.1), "x": number(1.0)}


def start() -> Tree:
    return {"w": number(0.0)}


def closed_form(hparams: Tree, steps: int) -> Tree:
    """w_T = (1 − (1 − 2η)^T) x / 2, with dw_T/dη of all steps, dw*/dx = 1/2 of the optimum at w_T, and ∂f/∂t."""
    t, lr, x = hparams["t"], hparams["lr"], hparams["x"]
    w = (1 - (1 - 2 * lr) ** steps) * x / 2
    slope = t * (w - 1)
    return {"t": 0.5 * (w - 1) ** 2, "lr": slope * steps * (1 - 2 * lr) ** (steps - 1) * x, "x": slope / 2}


def routes(steps: int = 5, **options: Any) -> hg.Routed:
    return hg.Routed({"lr": hg.Unrolled(steps, RULE, **options), "x": hg.Implicit(stationarity=99.0), "t": hg.Direct()})


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_each_kind_has_its_own_closed_form(steps: int) -> None:
    hparams = hyperparameters()
    found = hg.hypergradient(three_kinds(), start(), hparams, routes(steps))
    assert relative_error(found.grads, closed_form(hparams, steps)) < 1e-12
    assert list(found.grads) == list(hparams)
    assert float(found.params["w"]) == pytest.approx((1 - 0.8**steps) / 2)
    assert float(found.outer_loss) == pytest.approx(1.5 * (float(found.params["w"]) - 1) ** 2)


def test_the_figures_of_the_acceptance_test() -> None:
    """Curvature 2, step 0.1, five steps from 0: w_T = 0.33616 and the derivative in the step size −1.35954432."""
    hparams = {**hyperparameters(), "t": number(1.0)}
    found = hg.hypergradient(three_kinds(), start(), hparams, routes())
    assert float(found.params["w"]) == pytest.approx(0.33616, abs=1e-12)
    assert float(found.grads["lr"]) == pytest.approx(-1.35954432, abs=1e-10)


@pytest.mark.parametrize("mode", ["exact", "unrolled", "differences"])
def test_several_names_in_one_route_and_other_algorithms(mode: str) -> None:
    hparams = hyperparameters()
    fit = hg.Training(lambda _, hparams: {"w": (1 - (1 - 2 * hparams["lr"]) ** 5) * hparams["x"] / 2})
    algorithm: Any = {
        "exact": hg.ForwardMode(5, RULE),
        "unrolled": hg.Unrolled(5, RULE, keep="sqrt"),
        "differences": hg.ZerothOrder(fit, step_size=1e-4),
    }[mode]
    found = hg.hypergradient(three_kinds(), start(), hparams, hg.Routed({("lr", "x"): algorithm, "t": hg.Direct()}))
    expected = closed_form(hparams, 5)
    expected["x"] = 2 * expected["x"] * (1 - 0.8**5) / 2  # through training: dw_T/dx in place of dw*/dx
    assert relative_error(found.grads, expected) < (1e-6 if mode == "differences" else 1e-12)


def test_training_is_shared_and_its_cost_counted_once() -> None:
    problem, counter = counted(three_kinds())
    found = hg.hypergradient(problem, start(), hyperparameters(), routes(7))
    assert found.report.cost == hg.Cost(inner_gradients=7 + 1, products=7 + 1 + 1, outer_gradients=3)
    unseen = hg.Cost(products=1)  # a step size does not need the curvature at the start, where autograd ends
    assert counter.cost() + unseen == found.report.cost


def test_two_routes_that_train_see_the_same_batches() -> None:
    """The second one goes back to where the first began, so that both differentiate one function."""
    data = hg.TensorSampler(torch.arange(1.0, 9.0, dtype=DOUBLE), batch_size=2, seed=3)
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (params["w"] - hparams["x"] * batch[0].mean()).square(),
        outer=lambda params, _: 0.5 * (params["w"] - 1).square(),
        inner_data=data,
    )
    hparams = {"x": number(0.3), "lr": number(0.05)}
    whole = hg.hypergradient(problem, start(), hparams, hg.Unrolled(6, RULE)).grads
    data.load_state_dict(hg.TensorSampler(torch.zeros(8), batch_size=2, seed=3).state_dict())
    apart = hg.Routed({"lr": hg.Unrolled(6, RULE), "x": hg.ForwardMode(6, RULE)})
    assert relative_error(hg.hypergradient(problem, start(), hparams, apart).grads, whole) < 1e-12


def test_routes_share_the_outer_batch() -> None:
    data = hg.TensorSampler(torch.arange(1.0, 9.0, dtype=DOUBLE), batch_size=2, seed=1)
    problem = hg.Problem(
        inner=lambda params, hparams: (params["w"] - hparams["x"]).square(),
        outer=lambda params, hparams, batch: (hparams["t"] * params["w"] - batch[0].mean()).square(),
        outer_data=data,
    )
    exact = hg.Implicit(inner=hg.Newton())
    routed = hg.Routed({"x": exact, "t": hg.Direct()})
    hparams = {"x": number(0.3), "t": number(2.0)}
    before = data.state_dict()
    split = hg.hypergradient(problem, start(), hparams, routed)
    after = data.state_dict()
    data.load_state_dict(before)
    whole = hg.hypergradient(problem, start(), hparams, exact)
    assert relative_error(split.grads, whole.grads) < 1e-12
    assert data.state_dict() == after, "one outer batch was drawn"


def test_a_run_moves_all_kinds_and_resumes_bit_for_bit() -> None:
    def run() -> hg.Run:
        move = hg.outer.Torch(torch.optim.Adam, lr=0.02)
        return hg.Run(three_kinds(), routes(warm_start=True), start(), hyperparameters(), move)

    straight, first, second = run(), run(), run()
    for _ in range(6):
        straight.step()
    for _ in range(3):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        second.step()
    assert all(torch.equal(second.hparams[name], straight.hparams[name]) for name in straight.hparams)
    assert torch.equal(second.params["w"], straight.params["w"])
    assert all(not torch.equal(second.hparams[name], value) for name, value in hyperparameters().items())
    assert second.step_number == 6


def test_laws_on_a_problem_with_three_kinds() -> None:
    known = outer_only()
    check_conformance(hg.Routed({"x": hg.Implicit(inner=hg.Newton()), "z": hg.Direct()}), known, tolerance=1e-8)


def test_the_live_face_uses_the_model_that_is_trained() -> None:
    model = torch.nn.Linear(2, 1).double()
    x, y = torch.randn(6, 2, dtype=DOUBLE), torch.randn(6, 1, dtype=DOUBLE)
    decay = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    scale = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)

    def train_loss() -> Any:
        return (model(x) - y).square().mean() + decay * sum(p.square().sum() for p in model.parameters())

    def valid_loss() -> Any:
        return (scale * model(x) - y).square().mean()

    implicit = hg.Implicit(stationarity=float("inf"))
    named = {"decay": decay, "scale": scale}
    hg.Live(model, named, train_loss, valid_loss, hg.Routed({"decay": implicit, "scale": hg.Direct()})).backward()
    found = [decay.grad, scale.grad]
    decay.grad = scale.grad = None
    hg.Live(model, named, train_loss, valid_loss, implicit).backward()
    for split, whole in zip(found, (decay.grad, scale.grad), strict=True):
        assert split is not None
        assert whole is not None
        assert torch.allclose(split, whole, rtol=1e-10)


def test_the_multipliers_of_a_constrained_problem_stay_in_place() -> None:
    known = equality()
    extra = hg.Problem.constrained(
        inner=lambda params, hparams: params["w"].square().sum() * hparams["scale"],
        outer=lambda params, hparams: (params["w"] - hparams["t"]).square().sum(),
        equality=lambda params, hparams: params["w"].sum() - hparams["b"],
    )
    params = {"w": torch.zeros(2, dtype=DOUBLE), "equality_multiplier": number(0.0)}
    hparams = {"scale": number(1.0), "t": number(0.5), "b": number(3.0)}
    exact = hg.Implicit(hg.Dense(), inner=hg.Newton())
    whole = hg.hypergradient(extra, params, hparams, exact).grads
    split = hg.hypergradient(extra, params, hparams, hg.Routed({("scale", "b"): exact, "t": hg.Direct()})).grads
    assert relative_error(split, whole) < 1e-10
    assert known.problem.saddle


def test_by_kind_routes_every_name() -> None:
    algorithms: dict[Any, Any] = {
        "optimizer": hg.Unrolled(5, RULE),
        "inner": hg.Implicit(stationarity=99.0),
        "outer": hg.Direct(),
    }
    routed = hg.Routed.by_kind(three_kinds(), start(), hyperparameters(), algorithms)
    assert {key: type(value).__name__ for key, value in routed.routes.items()} == {
        ("t",): "Direct",
        ("lr",): "Unrolled",
        ("x",): "Implicit",
    }
    with pytest.raises(InputError, match=r"no algorithm for \{'outer': \['t'\]\}"):
        hg.Routed.by_kind(
            three_kinds(), start(), hyperparameters(), {k: v for k, v in algorithms.items() if k != "outer"}
        )
    with pytest.raises(InputError, match="nonsense"):
        hg.Routed.by_kind(three_kinds(), start(), hyperparameters(), {**algorithms, "nonsense": hg.Direct()})


def test_two_routes_for_one_name_and_none() -> None:
    with pytest.raises(InputError, match=r"two routes for the hyperparameters \['x'\]"):
        hg.Routed({("lr", "x"): hg.Unrolled(5, RULE), "x": hg.Implicit()})
    with pytest.raises(InputError, match=r"no route for the hyperparameters \['t'\]"):
        hg.hypergradient(three_kinds(), start(), hyperparameters(), hg.Routed({("lr", "x"): hg.Unrolled(5, RULE)}))
    extra = hg.Routed({("lr", "x", "t", "y"): hg.Unrolled(5, RULE)})
    with pytest.raises(InputError, match=r"routes for \['y'\], which are none"):
        hg.hypergradient(three_kinds(), start(), hyperparameters(), extra)


@pytest.mark.parametrize("routes", [{}, [], {"x": hg.Implicit}, {(): hg.Direct()}, {3: hg.Direct()}])
def test_what_is_no_routing(routes: Any) -> None:
    with pytest.raises(InputError):
        hg.Routed(routes)


def test_an_algorithm_that_does_not_see_its_hyperparameter_is_refused_by_name() -> None:
    problem, hparams = three_kinds(), hyperparameters()
    blind = hg.Routed({"x": hg.Unrolled(5, RULE), "lr": hg.Implicit(), "t": hg.Direct()})
    with pytest.raises(UnsupportedError, match=r"\['lr'\] with Implicit"):
        hg.hypergradient(problem, start(), hparams, blind)
    with pytest.raises(UnsupportedError, match=r"\['x'\] with Direct"):
        hg.hypergradient(problem, start(), hparams, hg.Routed({"lr": hg.Unrolled(5, RULE), ("x", "t"): hg.Direct()}))
    with pytest.raises(UnsupportedError, match=r"\['x'\] with Direct"):
        hg.hypergradient(problem, start(), {"x": hparams["x"], "t": hparams["t"]}, hg.Direct())


def test_a_decay_that_the_rule_reads_as_well_is_refused_by_an_implicit_route() -> None:
    """Implicit differentiation would see the objective's part and lose the rule's."""
    rule = hg.GradientDescent(lr=0.1, weight_decay=hg.Tuned("x"))
    routed = hg.Routed({"t": hg.Unrolled(5, rule), "x": hg.Implicit()})
    hparams = {"t": number(3.0), "x": number(1.0)}
    with pytest.raises(UnsupportedError, match="optimizer"):
        hg.hypergradient(three_kinds(), start(), hparams, routed)


def test_what_nothing_reads_and_what_is_cut() -> None:
    problem, hparams = three_kinds(), {**hyperparameters(), "lost": number(1.0)}
    with pytest.raises(UnreachedError, match="lost"):
        hg.hypergradient(problem, start(), hparams, hg.Routed({("lr", "lost"): hg.Unrolled(5, RULE), **rest()}))
    with pytest.raises(UnreachedError, match="lost"):
        hg.hypergradient(
            problem, start(), hparams, hg.Routed({"lr": hg.Unrolled(5, RULE), "lost": hg.Direct(), **rest()})
        )
    cut = hg.Problem(lambda p, h: h["x"].detach() * p["w"].square(), problem.outer)
    with pytest.raises(CutError, match="x"):
        hg.hypergradient(cut, start(), hyperparameters(), routes())


def rest() -> dict[Any, Any]:
    return {"x": hg.Implicit(stationarity=99.0), "t": hg.Direct()}


def test_a_failed_step_changes_nothing() -> None:
    known = ridge()
    data = hg.TensorSampler(torch.arange(6.0, dtype=DOUBLE), batch_size=2)
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (params["w"] - hparams["x"] * batch[0].mean()).square(),
        outer=lambda params, hparams: hparams["t"] * params["w"] / 0.0,
        inner_data=data,
    )
    move = hg.outer.Torch(torch.optim.SGD, lr=0.1)
    hparams = {"x": number(0.1), "t": number(1.0)}
    routed = hg.Routed({"x": hg.Implicit(inner=hg.GradientDescent(lr=0.1, steps=3)), "t": hg.Direct()})
    run = hg.Run(problem, routed, start(), hparams, move)
    before = data.state_dict()
    with pytest.raises(hg.errors.NonFiniteError):
        run.step()
    assert data.state_dict() == before
    assert torch.equal(run.hparams["x"], hparams["x"])
    assert known.name == "ridge"
