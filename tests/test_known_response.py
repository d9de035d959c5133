"""Hypergradients without a linear solve (the envelope, a known response) and inner problems with inequalities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import (
    ActiveSetWarning,
    InputError,
    NonFiniteError,
    NumericalError,
    StationarityWarning,
    TreeError,
    UnreachedError,
    UnsupportedError,
)
from hypergrad.testing import problems
from hypergrad.testing.conformance import relative_error
from hypergrad.testing.problems.known import maker
from hypergrad.tree import Tree

DOUBLE = torch.float64
TEMPERATURE = 0.5
LEADER = torch.tensor([1.0, 0.0, 2.0], dtype=DOUBLE)
REWARDS = {"x": torch.tensor([0.2, -0.1, 0.4], dtype=DOUBLE)}
START = {"policy": torch.full((3,), 1 / 3, dtype=DOUBLE)}


def choose(params: Tree, hparams: Tree) -> Tree:
    return {"policy": torch.softmax(hparams["x"] / TEMPERATURE, dim=-1)}


def pull(params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], cotangent: Mapping[str, Tensor]) -> Tree:
    """(∂π/∂x)ᵀ c = π ⊙ (c − ⟨π, c⟩) / temperature."""
    pi, c = params["policy"], cotangent["policy"]
    return {"x": pi * (c - pi @ c) / TEMPERATURE}


def bandit(**options: object) -> hg.Problem:
    """A follower who chooses by softmax, and a leader who earns by the follower's choice."""
    settings: dict[str, object] = {
        "outer": lambda params, _: LEADER @ params["policy"],
        "response_vjp": pull,
        **options,
    }
    return hg.Problem(None, **settings)  # type: ignore[arg-type]


FOLLOWER = hg.Implicit(inner=hg.Training(choose))


def test_bandit_has_its_closed_form() -> None:
    found = hg.hypergradient(bandit(), START, REWARDS, FOLLOWER)
    policy = torch.tensor([0.32887853, 0.18049236, 0.49062911], dtype=DOUBLE)
    assert torch.allclose(found.params["policy"], policy, atol=5e-9, rtol=0)
    assert float(found.outer_loss) == pytest.approx(1.310136747, abs=5e-10)
    exact = found.params["policy"] * (LEADER - found.outer_loss) / TEMPERATURE
    expected = torch.tensor([-0.20399463, -0.47293935, 0.67693399], dtype=DOUBLE)
    assert torch.allclose(found.grads["x"], expected, atol=5e-9, rtol=0)
    assert torch.allclose(found.grads["x"], exact, atol=1e-15, rtol=0)
    assert found.report.cost == hg.Cost(outer_gradients=1)
    assert found.report.status == "completed"


def test_solve_and_differentiable_go_backwards_through_the_given_product() -> None:
    x = REWARDS["x"].clone().requires_grad_()
    params = hg.solve(bandit(), START, {"x": x}, FOLLOWER)
    value = LEADER @ params["policy"] + x.square().sum()
    (slope,) = torch.autograd.grad(value, [x])
    found = hg.hypergradient(bandit(), START, REWARDS, FOLLOWER).grads["x"] + 2 * REWARDS["x"]
    assert torch.allclose(slope, found, atol=1e-15, rtol=0)


def test_given_product_serves_runs_and_checks() -> None:
    assert hg.check(bandit(), START, REWARDS, FOLLOWER, verbose=False).passed
    wrong = bandit(response_vjp=lambda params, hparams, c: {"x": 2 * pull(params, hparams, c)["x"]})
    assert not hg.check(wrong, START, REWARDS, FOLLOWER, verbose=False).passed
    run = hg.Run(bandit(), FOLLOWER, START, REWARDS, hg.outer.Torch(torch.optim.SGD, lr=1.0, maximize=True))
    before = float(LEADER @ choose({}, REWARDS)["policy"])
    for _ in range(5):
        run.step()
    assert float(LEADER @ choose({}, run.hparams)["policy"]) > before + 0.1


def soft_values(reward: Tensor, transition: Tensor, discount: float, temperature: float) -> Tensor:
    value = torch.zeros(len(reward), dtype=DOUBLE)
    for _ in range(400):
        value = temperature * torch.logsumexp((reward + discount * transition @ value) / temperature, dim=-1)
    return value


def test_policy_of_a_markov_decision_process_by_its_advantage_gradients() -> None:
    """x moves rewards and transitions; the product follows from the envelope of the soft values."""
    normal = maker(DOUBLE, 3)
    reward, reward_slope, logits, logit_slope = normal(3, 2), normal(3, 2, 2), normal(3, 2, 3), 0.5 * normal(3, 2, 3, 2)
    leader, discount, temperature = normal(3, 2), 0.6, 0.5

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        return reward + reward_slope @ x, torch.softmax(logits + logit_slope @ x, dim=-1)

    def train(params: Tree, hparams: Tree) -> Tree:
        r, transition = model(hparams["x"])
        value = soft_values(r, transition, discount, temperature)
        return {"policy": torch.softmax((r + discount * transition @ value) / temperature, dim=-1)}

    def vjp(params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], c: Mapping[str, Tensor]) -> Tree:
        policy = params["policy"]
        r, transition = model(hparams["x"])
        value = soft_values(r, transition, discount, temperature)
        slope_of_transition = transition[..., None] * (
            logit_slope - (transition[..., None] * logit_slope).sum(-2, keepdim=True)
        )
        own = reward_slope + discount * torch.einsum("satx,t->sax", slope_of_transition, value)
        flow = torch.einsum("sa,sat->st", policy, transition)
        of_states: Tensor = torch.linalg.solve(
            torch.eye(3, dtype=DOUBLE) - discount * flow, torch.einsum("sa,sax->sx", policy, own)
        )
        slope = own + discount * torch.einsum("sat,tx->sax", transition, of_states)
        advantage = slope - torch.einsum("sa,sax->sx", policy, slope)[:, None]
        return {"x": torch.einsum("sa,sax,sa->x", policy, advantage, c["policy"]) / temperature}

    def earned(params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> Tensor:
        _, transition = model(hparams["x"])
        flow = torch.einsum("sa,sat->st", params["policy"], transition)
        total: Tensor = torch.linalg.solve(torch.eye(3, dtype=DOUBLE) - 0.8 * flow, (params["policy"] * leader).sum(-1))
        return total.mean()

    problem = hg.Problem(None, earned, response_vjp=vjp)
    hparams = {"x": 0.3 * normal(2)}
    start = {"policy": torch.full((3, 2), 0.5, dtype=DOUBLE)}
    found = hg.hypergradient(problem, start, hparams, hg.Implicit(inner=hg.Training(train))).grads["x"]
    for place in range(2):
        shift = torch.zeros(2, dtype=DOUBLE)
        shift[place] = 1e-5
        points = [{"x": hparams["x"] + sign * shift} for sign in (1, -1)]
        values = [float(earned(train({}, point), point)) for point in points]
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_discounted_cost_by_geometric_truncation_is_unbiased() -> None:
    """T with Pr(T ≥ t) = γ^(t/2) and the sum of γ^(t/2) c_t up to T: the mean is the discounted cost."""
    gamma, costs = 0.9, torch.tensor([1.0, 0.5, -0.3], dtype=DOUBLE)
    steps = torch.arange(3000)
    exact = (gamma ** steps.double() * costs[steps % 3]).sum()
    assert float(exact) == pytest.approx(4.453875, abs=1e-6)
    root = math.sqrt(gamma)
    sums = (root ** steps.double() * costs[steps % 3]).cumsum(0)
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    lengths = (uniform.log() / math.log(root)).floor().long()
    draws = sums[lengths]
    assert abs(float(draws.mean() - exact)) < 4 * float(draws.std()) / 200_000**0.5
    assert float(draws.std()) / 200_000**0.5 < 0.01


def test_hyperparameters_that_the_response_leaves_out_get_their_direct_part() -> None:
    problem = bandit(outer=lambda params, hparams: LEADER @ params["policy"] + hparams["y"] ** 2)
    hparams = {**REWARDS, "y": torch.tensor(3.0, dtype=DOUBLE)}
    found = hg.hypergradient(problem, START, hparams, FOLLOWER).grads
    assert float(found["y"]) == 6
    with pytest.raises(UnreachedError, match="'y'"):
        hg.hypergradient(bandit(), START, hparams, FOLLOWER)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda p, h, c: {"y": c["policy"]}, TreeError, "'y'"),
    (lambda p, h, c: {"x": c["policy"][:2]}, TreeError, r"\(2,\)"),
    (lambda p, h, c: {"x": c["policy"].float()}, TreeError, "float32"),
    (lambda p, h, c: {"x": [1.0, 2.0, 3.0]}, TreeError, "list"),
    (lambda p, h, c: c["policy"], InputError, "response_vjp"),
    (lambda p, h, c: {"x": c["policy"] * math.nan}, NonFiniteError, "'x'"),
    (lambda p, h, c: {"x": c["polcy"]}, TreeError, "did you mean 'policy'"),
]


@pytest.mark.parametrize(("function", "error", "words"), WRONG)
def test_wrong_values_of_the_product_are_named(function: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        hg.hypergradient(bandit(response_vjp=function), START, REWARDS, FOLLOWER)


def test_signature_of_the_product_is_read_at_the_door() -> None:
    wrong: list[Any] = [lambda params: {}, 3]
    for function in wrong:
        with pytest.raises(InputError, match="cotangent"):
            bandit(response_vjp=function)


def test_product_gets_the_inner_batch_where_it_asks() -> None:
    seen = []

    def vjp(params: Tree, hparams: Tree, cotangent: Tree, batch: Tensor) -> Tree:
        seen.append(batch)
        return pull(params, hparams, cotangent)

    problem = bandit(response_vjp=vjp, inner_data=hg.Fixed(torch.ones(2)))
    hg.hypergradient(problem, START, REWARDS, FOLLOWER)
    assert [batch.tolist() for batch in seen] == [[1.0, 1.0]]


def test_other_algorithms_say_that_they_need_an_objective() -> None:
    for algorithm in (hg.Unrolled(2, hg.GradientDescent(lr=0.1)), hg.Implicit(inner=hg.LBFGS())):
        with pytest.raises(UnsupportedError, match="Training"):
            hg.hypergradient(bandit(), START, REWARDS, algorithm)


def minimax(*, envelope: bool = False) -> hg.Problem:
    """max over x of min over w of g: the outer loss to minimise is −g."""

    def g(params: Tree, hparams: Tree) -> Tensor:
        return (params["w"] - hparams["x"]).square().sum() + params["w"].square().sum() + params["w"].sum()

    return hg.Problem(g, lambda p, h: -g(p, h) + h["x"].square().sum(), envelope=envelope)


def test_envelope_that_is_said_leaves_the_solve_out() -> None:
    x = {"x": torch.tensor([1.0, -2.0], dtype=DOUBLE)}
    trained = {"w": (2 * x["x"] - 1) / 4}
    exact = hg.hypergradient(minimax(), trained, x, hg.Implicit(hg.CG(rtol=1e-13)))
    found = hg.hypergradient(minimax(envelope=True), trained, x, hg.Implicit(hg.CG()))
    assert relative_error(found.grads, exact.grads) < 1e-14
    assert found.report.cost == hg.Cost(outer_gradients=1)
    assert exact.report.cost.products > 0
    assert found.report.notes == {}


def test_wrong_envelope_is_noted() -> None:
    """A validation loss is no envelope of the training loss: its gradient at the optimum is not zero."""
    problem = hg.Problem(
        inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        outer=lambda params, hparams: (params["w"] - 1).square().sum() + 0.1 * hparams["x"].square().sum(),
        envelope=True,
    )
    x = torch.tensor([3.0, 2.0], dtype=DOUBLE)
    with pytest.warns(StationarityWarning, match="drop envelope=True"):
        found = hg.hypergradient(problem, {"w": x}, {"x": x}, hg.Implicit())
    assert torch.equal(found.grads["x"], 0.2 * x), "which is not 2 (x - 1) + 0.2 x"
    known = problems.ridge()
    with pytest.raises(UnreachedError, match="drop envelope=True"):
        hg.hypergradient(replace(known.problem, envelope=True), known.trained(), known.hparams, hg.Implicit())


def test_envelope_is_seen_only_where_nothing_can_differ() -> None:
    known = problems.envelope().problem
    assert known.is_envelope
    assert not known.with_batches(inner=torch.zeros(1)).is_envelope
    assert not known.with_outer(lambda params, hparams: params["w"]).is_envelope
    assert not replace(known, penalty=lambda params, hparams: params["w"] ** 2).is_envelope
    assert not minimax(envelope=True).with_outer(lambda params, hparams: params["w"].sum()).is_envelope


def test_solve_goes_backwards_through_an_envelope_problem_for_any_loss() -> None:
    """The loss behind ``solve`` is another one than the problem's, so nothing may be left out there."""
    known = problems.envelope()
    x = known.hparams["x"].clone().requires_grad_()
    params = hg.solve(known.problem, known.params, {"x": x}, hg.Implicit(hg.CG(rtol=1e-13), inner=hg.Newton()))
    (slope,) = torch.autograd.grad(params["w"] * 3, [x])
    assert float(slope) == pytest.approx(1.5)


@pytest.mark.parametrize("linear", [hg.MINRES(rtol=1e-13), hg.Dense()], ids=lambda s: type(s).__name__)
def test_active_set_finds_the_projection_and_its_derivative(linear: hg.LinearSolver) -> None:
    known = problems.inequality()
    algorithm = hg.Implicit(linear, inner=hg.Newton(tolerance=1e-13))
    found = hg.hypergradient(known.problem, known.params, known.hparams, algorithm)
    for key, value in known.trained().items():
        assert torch.allclose(found.params[key], value, atol=1e-12, rtol=0)
    assert relative_error(found.grads, known.hypergradient()) < 1e-11
    halfspace = problems.halfspace()
    same = hg.hypergradient(
        halfspace.problem, halfspace.trained(), halfspace.hparams, hg.Implicit(hg.GMRES(rtol=1e-13))
    )
    assert relative_error(found.grads, same.grads) < 1e-11, "the fixed point of projected steps says the same"


def test_inactive_inequality_does_nothing() -> None:
    known = problems.inequality()
    hparams = {**known.hparams, "r": torch.tensor(50.0, dtype=DOUBLE)}
    algorithm = hg.Implicit(hg.Dense(), inner=hg.Newton(tolerance=1e-13))
    found = hg.hypergradient(known.problem, known.params, hparams, algorithm)
    assert torch.allclose(found.params["w"], hparams["x"], atol=1e-13)
    assert float(found.params["inequality_multiplier"].abs().max()) == 0
    assert float(found.grads["r"]) == 0


def test_equality_and_inequality_together_against_differences() -> None:
    """Mean and variance of a portfolio without short sales: weights that sum to x, none negative, two at zero."""
    q = torch.tensor(
        [[2.0, 0.3, 0.1, 0.0], [0.3, 1.0, 0.2, 0.1], [0.1, 0.2, 3.0, 0.4], [0.0, 0.1, 0.4, 1.5]], dtype=DOUBLE
    )
    problem = hg.Problem.constrained(
        inner=lambda params, hparams: 0.5 * params["w"] @ q @ params["w"] - hparams["mean"] @ params["w"],
        outer=lambda params, _: (params["w"] * torch.arange(1.0, 5.0, dtype=DOUBLE)).square().sum(),
        equality=lambda params, hparams: params["w"].sum() - hparams["x"],
        inequality=lambda params, _: -params["w"],
    )
    start = {"w": torch.full((4,), 0.25, dtype=DOUBLE)}
    start |= {
        "equality_multiplier": torch.zeros((), dtype=DOUBLE),
        "inequality_multiplier": torch.zeros(4, dtype=DOUBLE),
    }
    hparams = {"mean": torch.tensor([1.5, 0.2, 0.9, -0.6], dtype=DOUBLE), "x": torch.tensor(1.0, dtype=DOUBLE)}
    algorithm = hg.Implicit(hg.MINRES(rtol=1e-13), inner=hg.Newton(tolerance=1e-12))
    found = hg.hypergradient(problem, start, hparams, algorithm)
    assert (found.params["w"] > 1e-9).tolist() == [True, False, True, False]
    assert (found.params["inequality_multiplier"] > 1e-9).tolist() == [False, True, False, True]
    assert hg.check(problem, start, hparams, algorithm, verbose=False).passed


def test_weakly_active_constraint_is_noted() -> None:
    known = problems.inequality()
    hparams = {**known.hparams, "r": torch.tensor(5.0, dtype=DOUBLE)}  # aᵀx = r: the projection stops doing anything
    trained = {"w": hparams["x"], "inequality_multiplier": torch.zeros(2, dtype=DOUBLE)}
    with pytest.warns(ActiveSetWarning, match=r"places \[0\]"):
        hg.hypergradient(known.problem, trained, hparams, hg.Implicit(hg.Dense()))


def test_constraints_without_multipliers_or_of_another_shape_are_named() -> None:
    known = problems.inequality()
    algorithm = hg.Implicit(hg.Dense())
    with pytest.raises(TreeError, match="inequality_multiplier"):
        hg.hypergradient(known.problem, {"w": known.params["w"]}, known.hparams, algorithm)
    wrong = {**known.params, "inequality_multiplier": torch.zeros(3, dtype=DOUBLE)}
    with pytest.raises(TreeError, match=r"\(3,\)"):
        hg.hypergradient(known.problem, wrong, known.hparams, algorithm)
    with pytest.raises(InputError, match="without a constraint"):
        hg.Problem.constrained(lambda params, hparams: params["w"], lambda params, hparams: params["w"])


@pytest.mark.parametrize(
    "algorithm",
    [
        hg.Unrolled(3, hg.GradientDescent(lr=0.1)),
        hg.ForwardMode(3, hg.GradientDescent(lr=0.1)),
        hg.Implicit(hg.MINRES(), inner=hg.LBFGS()),
        hg.Implicit(hg.MINRES(), inner=hg.GradientDescent(lr=0.1, steps=3)),
        hg.SOBA(step_size=0.1),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_methods_that_descend_refuse_a_saddle(algorithm: Any) -> None:
    known = problems.inequality()
    with pytest.raises(UnsupportedError, match="Newton"):
        hg.hypergradient(known.problem, known.params, known.hparams, algorithm)


def test_constraints_that_say_the_same_leave_newton_without_a_step() -> None:
    problem = hg.Problem.constrained(
        inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        outer=lambda params, _: params["w"].sum(),
        equality=lambda params, _: torch.stack([params["w"].sum(), 2 * params["w"].sum()]),
    )
    start = {"w": torch.ones(2, dtype=DOUBLE), "equality_multiplier": torch.zeros(2, dtype=DOUBLE)}
    with pytest.raises(NumericalError, match="independent"):
        hg.hypergradient(problem, start, {"x": torch.ones(2, dtype=DOUBLE)}, hg.Implicit(hg.Dense(), inner=hg.Newton()))
