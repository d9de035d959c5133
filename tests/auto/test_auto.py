"""The choice of an algorithm: what decides, what it says, that it adapts and resumes, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.algorithm import Algorithm
from hypergrad.errors import CutError, InputError, OutOfMemoryError, UnreachedError, UnsupportedError
from hypergrad.memory import smaller_plan
from hypergrad.shortage import is_shortage
from hypergrad.solvers.linear.krylov import curvature
from hypergrad.testing import counted
from hypergrad.testing.conformance import relative_error
from hypergrad.testing.problems import equality, fixed_point, outer_only, ridge
from hypergrad.tree import Tree

DOUBLE = torch.float64


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def quadratic(curvatures: list[float], target: float = 1.0) -> tuple[hg.Problem, Tree, Tree]:
    """g = ½ wᵀ D w − x · w with a diagonal D, f = ½ ‖w − t‖²."""
    diagonal = torch.tensor(curvatures, dtype=DOUBLE)
    problem = hg.Problem(
        inner=lambda params, hparams: (
            0.5 * (diagonal * params["w"].square()).sum() - (hparams["x"] * params["w"]).sum()
        ),
        outer=lambda params, _: 0.5 * (params["w"] - target).square().sum(),
    )
    x = torch.linspace(0.5, 1.5, len(curvatures), dtype=DOUBLE)
    return problem, {"w": x / diagonal}, {"x": x}


def choose(problem: hg.Problem, params: Tree, hparams: Any, **options: Any) -> hg.Choice:
    return hg.choose(problem, params, hparams, measure=False, **options)


# --- what decides -------------------------------------------------------------------------------------------------


def test_a_definite_hessian_gets_conjugate_gradients_with_enough_terms() -> None:
    problem, params, hparams = quadratic([1.0, 2.0, 3.0, 4.0] * 75)
    choice = choose(problem, params, hparams, accuracy=1e-9)
    assert (choice.plan.estimator, choice.plan.linear) == ("implicit", "CG")
    found = hg.hypergradient(problem, params, hparams, choice.algorithm)
    assert found.report.status == "converged"
    assert found.report.cost.products == choice.forecast.cost.products == 4 + 1
    assert "curvature 1 to 4 (condition 4)" in choice.reason
    assert "about 4 products to a residual of 1e-09" in choice.reason


def test_a_small_hessian_that_needs_all_products_is_made_dense() -> None:
    problem, params, hparams = quadratic([1.0, 10.0, 100.0, 1000.0, 1e4])
    choice = choose(problem, params, hparams, accuracy=1e-10)
    assert choice.plan.linear == "Dense"
    assert relative_error(hg.hypergradient(problem, params, hparams, choice.algorithm).grads, truth(problem)) < 1e-10


def truth(problem: hg.Problem) -> Tree:
    diagonal = torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4], dtype=DOUBLE)
    x = torch.linspace(0.5, 1.5, 5, dtype=DOUBLE)
    assert problem.penalty is None
    return {"x": (x / diagonal - 1) / diagonal}


@pytest.mark.parametrize(("bottom", "linear", "damped"), [(-0.05, "CG", True), (-2.0, "MINRES", False)])
def test_negative_curvature_is_damped_if_slight_and_left_to_minres_if_not(
    bottom: float, linear: str, damped: bool
) -> None:
    problem, params, hparams = quadratic([bottom, 1.0, 2.0, 3.0])
    choice = choose(problem, params, hparams)
    assert choice.plan.linear == linear
    assert choice.plan.damping == pytest.approx(2 * abs(bottom) if damped else 0.0)
    assert f"negative curvature {bottom:.3g} against 3" in choice.reason


def test_roots_and_constraints_get_solvers_for_their_matrices() -> None:
    known = fixed_point()
    fit = hg.Training(lambda _, hparams: known.solution(hparams))
    assert choose(known.problem, known.params, known.hparams, inner=fit).plan.linear == "Dense"
    wide = hg.Problem.fixed_point(
        lambda params, hparams: {"w": 0.5 * params["w"].roll(1) + hparams["x"]},
        lambda params, _: params["w"].square().sum(),
    )
    point = {"w": torch.ones(40, dtype=DOUBLE)}, {"x": torch.ones(40, dtype=DOUBLE)}
    assert choose(wide, *point).plan.linear == "GMRES"
    saddle = equality()
    choice = choose(saddle.problem, saddle.params, saddle.hparams, inner=hg.Newton())
    assert choice.plan.linear == "MINRES"


def test_what_only_the_outer_objective_reads_is_direct() -> None:
    known = outer_only()
    problem = hg.Problem(known.problem.inner, known.problem.outer)
    held = known.hparams["x"]
    only = hg.Problem(
        inner=lambda params, _: (params["w"] - held).square().sum(),
        outer=lambda params, hparams: known.problem.outer(params, {**known.hparams, **hparams}),
    )
    choice = choose(only, known.params, {"z": known.hparams["z"]}, inner=hg.Newton())
    assert isinstance(choice.algorithm, hg.Direct)
    found = hg.hypergradient(only, known.params, {"z": known.hparams["z"]}, choice.algorithm)
    assert relative_error(found.grads, {"z": known.hypergradient()["z"]}) < 1e-10
    assert problem.penalty is None


def with_learning_rate(steps: int = 30) -> tuple[hg.Problem, Tree, Tree, hg.GradientDescent]:
    problem, _, hparams = quadratic([1.0, 2.0])
    rule = hg.GradientDescent(lr=hg.Tuned("lr"), steps=steps)
    return problem, {"w": torch.zeros(2, dtype=DOUBLE)}, {**hparams, "lr": number(0.1)}, rule


def test_a_learning_rate_is_unrolled_or_carried_forwards_as_memory_allows() -> None:
    problem, params, hparams, rule = with_learning_rate(steps=120)
    ample = choose(problem, params, hparams, inner=rule)
    assert ample.algorithm == hg.Unrolled(120, dataclasses.replace(rule, steps=None))
    scarce = choose(problem, params, hparams, inner=rule, memory=1e-4)
    assert isinstance(scarce.algorithm, hg.Routed)
    assert {key: type(part) for key, part in scarce.algorithm.routes.items()} == {
        ("lr",): hg.ForwardMode,
        ("x",): hg.Implicit,
    }
    exact = hg.hypergradient(problem, params, hparams, ample.algorithm).grads
    routed = hg.hypergradient(problem, params, hparams, hg.Auto(inner=rule, memory=1e-4)).grads
    assert relative_error({"lr": routed["lr"]}, {"lr": exact["lr"]}) < 1e-10
    assert "no implicit hypergradient" in scarce.reason


def test_many_settings_of_the_rule_are_unrolled_over_snapshots_where_memory_is_short() -> None:
    problem, params, hparams, _ = with_learning_rate()
    rule = hg.GradientDescent(lr=hg.Tuned(lambda hparams, step: hparams["lr"][step]), steps=30)
    choice = choose(problem, params, {**hparams, "lr": torch.full((30,), 0.1, dtype=DOUBLE)}, inner=rule, memory=1e-4)
    assert choice.plan.estimator == "unrolled"
    assert choice.plan.keep in ("sqrt", "log")


@pytest.mark.parametrize(("steps", "estimator"), [(3, "unrolled"), (400, "implicit")])
def test_short_training_is_differentiated_and_long_training_is_not(steps: int, estimator: str) -> None:
    problem, params, hparams = quadratic([1.0, 2.0])
    start = {"w": torch.zeros_like(params["w"])}
    choice = choose(problem, start, hparams, inner=hg.GradientDescent(lr=0.1, steps=steps))
    assert choice.plan.estimator == estimator
    assert f"{'more than 1%' if estimator == 'unrolled' else 'θ is an optimum'}" in choice.reason


def test_the_reason_is_a_few_lines_with_the_numbers() -> None:
    known = ridge()
    choice = hg.choose(known.problem, known.params, known.hparams, inner=hg.LBFGS())
    lines = str(choice).splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0] == "hyperparameters by where they enter, with their entries: inner: log_penalty (10)"
    assert "preconditioned Hessian" in choice.reason
    assert lines[-1].startswith("forecast: ")
    assert choice.forecast.seconds > 0
    assert choice.forecast.mebibytes > 0


def test_measuring_changes_no_choice() -> None:
    """Seconds go into the forecast only."""
    for problem, params, hparams, rule in (with_learning_rate(), (*quadratic([1.0, 5.0, 9.0]), None)):
        measured = hg.choose(problem, params, hparams, inner=rule)
        counted_only = choose(problem, params, hparams, inner=rule)
        assert measured.plan == counted_only.plan
        assert measured.reason == counted_only.reason
        assert math.isnan(counted_only.forecast.seconds)


def test_random_numbers_and_batches_stay_where_they_are() -> None:
    data = hg.TensorSampler(torch.arange(8.0, dtype=DOUBLE), batch_size=3)
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (
            (params["w"] - hparams["x"] * batch[0].mean()).square() + 0 * torch.rand(())
        ),
        outer=lambda params, _: params["w"].square(),
        inner_data=data,
    )
    before, position = torch.get_rng_state(), data.state_dict()
    rule = hg.GradientDescent(lr=0.1, steps=4)
    hg.choose(problem, {"w": number(1.0)}, {"x": number(0.3)}, inner=rule)
    assert torch.equal(torch.get_rng_state(), before)
    assert data.state_dict() == position


# --- the curvature ------------------------------------------------------------------------------------------------


def test_the_curvature_of_a_full_krylov_space_is_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=DOUBLE)).Q
    values = torch.tensor([-0.5, 0.2, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0], dtype=DOUBLE)
    matrix = root @ torch.diag(values) @ root.mT
    b = torch.randn(8, generator=generator, dtype=DOUBLE)
    seen = curvature(hg.Operator(lambda y, v, alpha, scale, shift: product(matrix, y, v, alpha, scale, shift), b), b, 8)
    assert seen.bottom == pytest.approx(-0.5, rel=1e-6)
    assert seen.top == pytest.approx(13.0, rel=1e-6)
    assert torch.allclose(matrix @ seen.solution, b, atol=1e-8)


def product(matrix: torch.Tensor, y: torch.Tensor, v: torch.Tensor, alpha: float, scale: Any, shift: Any) -> None:
    image = matrix @ v
    if scale is not None:
        y.mul_(scale)
    if shift is not None:
        y.add_(shift)
    y.add_(image, alpha=alpha)


def test_the_number_of_terms_is_seen_or_extrapolated() -> None:
    diagonal = torch.linspace(1, 2500, 400, dtype=DOUBLE)
    b = torch.ones(400, dtype=DOUBLE)
    operator = hg.Operator(lambda y, v, a, s, t: product(torch.diag(diagonal), y, v, a, s, t), b)
    seen = curvature(operator, b, 20)
    exact = hg.CG(rtol=1e-2, max_steps=400).solve(operator, b).products
    assert seen.terms(seen.residuals[9], 400) == 10
    assert seen.terms(1e-2, 400) == pytest.approx(exact, rel=0.5)
    assert seen.terms(1e-30, 400) == 400


# --- as an algorithm ----------------------------------------------------------------------------------------------


def test_the_terms_adapt_to_the_measured_residuals() -> None:
    """The first solve is given too little at first, then more until it converges."""
    diagonal = torch.logspace(0, 3, 60, dtype=DOUBLE)
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (diagonal * (params["w"] - hparams["x"]).square()).sum(),
        outer=lambda params, _: 0.5 * (params["w"] - 1).square().sum(),
    )
    x = torch.zeros(60, dtype=DOUBLE)
    algorithm = hg.Auto(accuracy=1e-8, most=200)
    state = algorithm.init(problem, {"w": x}, {"x": x})
    state = algorithm.step(problem, state, {"x": x})[1]
    short = dataclasses.replace(state, plan={**state.plan, "linear": "CG", "terms": 20}, part=None)
    terms, statuses = [], []
    for _ in range(6):
        result, short = algorithm.step(problem, short, {"x": x})
        terms.append(short.plan["terms"])
        statuses.append(result.report.status)
    assert terms[:2] == [30, 45]
    assert statuses[0] == "max_steps"
    assert statuses[-1] == "converged"
    assert "terms 20 -> 30" in short.reason


def test_terms_that_are_not_needed_are_given_back() -> None:
    plan = hg.Plan("implicit", terms=100)
    assert plan.after(1e-9, 20, bent=False, most=200, top=1.0).terms == 50
    assert plan.after(1e-9, 30, bent=False, most=200, top=1.0).terms == 100
    assert plan.after(1e-1, 100, bent=False, most=120, top=1.0).terms == 120
    assert plan.after(1e-1, 3, bent=True, most=120, top=10.0).damping == pytest.approx(0.01)


def test_a_run_resumes_bit_for_bit_across_an_adaptation() -> None:
    known = ridge()

    def run() -> hg.Run:
        move = hg.outer.Torch(torch.optim.Adam, lr=0.1)
        algorithm = hg.Auto(inner=hg.LBFGS(tolerance=1e-7), accuracy=1e-9, most=40)
        return hg.Run(known.problem, algorithm, known.params, known.hparams, move)

    straight, first, second = run(), run(), run()
    for _ in range(5):
        straight.step()
    for _ in range(2):
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        second.step()
    assert torch.equal(second.hparams["log_penalty"], straight.hparams["log_penalty"])
    assert torch.equal(second.params["w"], straight.params["w"])


def test_the_first_step_counts_the_probe_and_trains_once() -> None:
    problem, params, hparams = quadratic([1.0, 2.0, 3.0, 4.0] * 75)
    problem, counter = counted(problem)
    algorithm = hg.Auto(inner=hg.GradientDescent(lr=0.4, steps=60))
    found = hg.hypergradient(problem, {"w": torch.zeros_like(params["w"])}, hparams, algorithm)
    assert found.report.cost == counter.cost()
    assert found.report.cost.inner_gradients == 60 + 2 + 1


# --- faces --------------------------------------------------------------------------------------------------------


def test_the_function_face() -> None:
    known = ridge()
    found = hg.hypergradient(known.problem, known.trained(), known.hparams, "auto")
    assert relative_error(found.grads, known.hypergradient()) < 1e-3
    assert found.report.algorithm.startswith("Auto: Implicit(")


def test_the_loop_faces_train_by_themselves() -> None:
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        outer=lambda params, _: 0.5 * (params["w"] - 3).square().sum(),
    )
    point = {"w": torch.zeros(2, dtype=DOUBLE)}, {"x": torch.zeros(2, dtype=DOUBLE)}
    move = hg.outer.Torch(torch.optim.SGD, lr=0.5)
    fitted = hg.Trainer(problem, "auto", outer=move).fit(*point, steps=25)
    *_, last = hg.iterate(problem, "auto", *point, outer=move, steps=25)
    for hparams in (fitted.hparams, last.moved):
        assert torch.allclose(hparams["x"], torch.full((2,), 3.0, dtype=DOUBLE), atol=1e-3)


def test_the_autograd_face() -> None:
    known = ridge()
    x = known.hparams["log_penalty"].clone().requires_grad_()
    trained = hg.solve(known.problem, known.params, {"log_penalty": x}, "auto")
    known.problem.outer_value(trained, {"log_penalty": x}).backward()
    assert x.grad is not None
    assert relative_error({"log_penalty": x.grad}, known.hypergradient()) < 1e-3


def test_the_live_face() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    weight = torch.zeros(8, dtype=DOUBLE, requires_grad=True)
    x, y = torch.randn(8, 3, dtype=DOUBLE), torch.randn(8, 1, dtype=DOUBLE)

    def train_loss() -> Any:
        return (weight.exp()[:, None] * (model(x) - y).square()).mean() + model.weight.square().sum()

    def valid_loss() -> Any:
        return (model(x) - y.flip(0)).square().mean()

    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    hyper = hg.Live(model, [weight], train_loss, valid_loss, "auto")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = train_loss()
        loss.backward()
        return loss

    found: list[torch.Tensor] = []
    for algorithm in (hyper, hg.Live(model, [weight], train_loss, valid_loss, hg.Implicit(hg.CG(rtol=1e-10)))):
        optimizer.step(closure)
        weight.grad = None
        algorithm.backward()
        assert weight.grad is not None
        found.append(weight.grad.clone())
    assert relative_error({"w": found[0]}, {"w": found[1]}) < 1e-3
    assert not hyper.backward().notes, "a second call goes on with the plan"


@pytest.mark.parametrize("word", ["Auto", "automatic", "implicit"])
def test_another_word_is_refused(word: str) -> None:
    known = ridge()
    with pytest.raises(InputError, match='the word "auto"'):
        hg.hypergradient(known.problem, known.params, known.hparams, word)  # type: ignore[arg-type]


def test_sampled_training_data_need_an_inner_solver() -> None:
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (params["w"] - hparams["x"] * batch[0].mean()).square(),
        outer=lambda params, _: params["w"].square(),
        inner_data=hg.TensorSampler(torch.arange(4.0, dtype=DOUBLE), batch_size=2),
    )
    move = hg.outer.Torch(torch.optim.SGD, lr=0.5)
    with pytest.raises(InputError, match=r"Auto\(inner="):
        hg.Run(problem, "auto", {"w": number(1.0)}, {"x": number(1.0)}, move)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_impossible_pairs_are_refused_by_name() -> None:
    problem, params, hparams, rule = with_learning_rate()
    with pytest.raises(UnreachedError, match="'lr'") as unread:
        choose(problem, params, hparams, inner=hg.LBFGS())
    assert "A learning rate has no implicit hypergradient" in unread.value.do
    assert "hypergrad.best_response" in unread.value.do
    with pytest.raises(UnsupportedError, match=r"\['layers'\], which are whole numbers") as discrete:
        choose(problem, params, {**hparams, "layers": 3}, inner=rule)
    assert "best_response" in discrete.value.do
    started = dataclasses.replace(problem, initial=lambda hparams: {"w": hparams["x"]})
    with pytest.raises(UnsupportedError, match="without an inner solver"):
        choose(started, params, {"x": hparams["x"]})
    with pytest.raises(UnsupportedError, match="an update rule with steps"):
        choose(problem, params, hparams, inner=dataclasses.replace(rule, steps=None))


def test_a_cut_path_is_refused() -> None:
    problem, params, hparams = quadratic([1.0, 2.0])
    cut = hg.Problem(lambda p, h: problem.inner_value(p, {"x": h["x"].detach()}), problem.outer)
    with pytest.raises(CutError, match="x"):
        hg.hypergradient(cut, params, hparams, "auto")


@pytest.mark.parametrize(
    "options", [{"accuracy": 0.0}, {"most": 0}, {"memory": -1.0}, {"inner": hg.LBFGS}, {"accuracy": "fine"}]
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    problem, params, hparams = quadratic([1.0, 2.0])
    with pytest.raises(InputError):
        choose(problem, params, hparams, **options)
    with pytest.raises(InputError):
        hg.Auto(**options)


# --- out of memory ------------------------------------------------------------------------------------------------

SHORTAGES: dict[str, Callable[[], BaseException]] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "python": MemoryError,
}


class _Fails(torch.autograd.Function):
    """The identity, whose second derivative runs out of memory while ``error`` is set."""

    error: Any = None

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        product: Any = _FailsInProduct.apply
        return product(grads[0])


class _FailsInProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        if _Fails.error is not None:
            raise _Fails.error()
        return grads[0]


def failing() -> tuple[hg.Problem, Tree, Tree, hg.TensorSampler]:
    data = hg.TensorSampler(torch.arange(1.0, 9.0, dtype=DOUBLE), batch_size=2)
    identity: Any = _Fails.apply
    problem = hg.Problem(
        inner=lambda params, hparams, batch: (identity(params["w"]) - hparams["x"] * batch[0].mean()).square().sum(),
        outer=lambda params, _: params["w"].square().sum(),
        inner_data=data,
    )
    return problem, {"w": torch.ones(3, dtype=DOUBLE)}, {"x": number(0.5)}, data


@pytest.fixture
def shortage(request: pytest.FixtureRequest) -> Any:
    yield lambda kind: setattr(_Fails, "error", SHORTAGES[kind])
    _Fails.error = None


@pytest.mark.parametrize("kind", SHORTAGES)
@pytest.mark.parametrize(
    ("algorithm", "advice"),
    [
        (hg.Implicit(inner=hg.GradientDescent(lr=0.1, steps=3), stationarity=99.0), "a smaller inner batch"),
        (hg.Unrolled(4, hg.GradientDescent(lr=0.1)), 'keep="sqrt"'),
        (hg.Auto(inner=hg.GradientDescent(lr=0.1, steps=300)), "a smaller inner batch"),
    ],
)
def test_a_lack_of_memory_is_answered_with_a_smaller_plan_and_changes_nothing(
    kind: str, algorithm: Algorithm[Any], advice: str, shortage: Any
) -> None:
    problem, params, hparams, data = failing()
    run = hg.Run(problem, algorithm, params, hparams, hg.outer.Torch(torch.optim.SGD, lr=0.1))
    before = run.state_dict()
    position = data.state_dict()
    shortage(kind)
    with pytest.raises(OutOfMemoryError) as caught:
        run.step()
    assert advice in caught.value.do
    assert data.state_dict() == position
    after = run.state_dict()
    assert after["step_number"] == before["step_number"] == 0
    assert torch.equal(after["params"]["w"], before["params"]["w"])
    assert torch.equal(after["hparams"]["x"], before["hparams"]["x"])
    _Fails.error = None
    assert run.step().step == 1, "the same step can be tried again"


def test_the_function_and_the_live_face_answer_as_well(shortage: Any) -> None:
    problem, params, hparams, data = failing()
    shortage("device")
    position = data.state_dict()
    with pytest.raises(OutOfMemoryError, match="CUDA out of memory") as caught:
        hg.hypergradient(problem, params, hparams, hg.Unrolled(4, hg.GradientDescent(lr=0.1)))
    assert data.state_dict() == position
    assert caught.value.smaller == hg.Unrolled(4, hg.GradientDescent(lr=0.1), keep="sqrt")
    _Fails.error = None
    hg.hypergradient(problem, params, hparams, caught.value.smaller)
    model = torch.nn.Linear(1, 1).double()
    weight = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    identity: Any = _Fails.apply
    hyper = hg.Live(
        model,
        [weight],
        lambda: (weight.exp() * identity(model.weight).square()).sum() + model.bias.square().sum(),
        lambda: (model.weight - 1).square().sum(),
        hg.Implicit(stationarity=float("inf")),
    )
    shortage("cpu")
    with pytest.raises(OutOfMemoryError):
        hyper.backward()
    assert weight.grad is None


def test_smaller_plans() -> None:
    rule = hg.GradientDescent(lr=0.1)
    assert smaller_plan(hg.Unrolled(9, rule, keep="sqrt"))[0] == hg.Unrolled(9, rule, keep="log")
    assert smaller_plan(hg.Unrolled(9, rule, keep="log"))[0] is None
    forward = hg.ForwardMode(9, rule, mode="random", directions=8)
    assert smaller_plan(forward)[0] == dataclasses.replace(forward, directions=4)
    assert smaller_plan(hg.Implicit(hg.GMRES(restart=30)))[0] == hg.Implicit(hg.GMRES(restart=15))
    sketched = hg.Implicit(hg.CG(preconditioner=hg.NystromPreconditioner(rank=8)))
    halved = hg.Implicit(hg.CG(preconditioner=hg.NystromPreconditioner(rank=4)))
    assert smaller_plan(sketched)[0] == halved


def test_other_errors_are_left_alone() -> None:
    assert not is_shortage(RuntimeError("size mismatch"))
    assert not is_shortage(ValueError("out of memory"))
    problem, params, hparams = quadratic([1.0, 2.0])

    def inner(params: Tree, _: Tree) -> torch.Tensor:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        hg.hypergradient(hg.Problem(inner, problem.outer), params, hparams, hg.Implicit())
