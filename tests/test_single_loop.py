"""Single-loop and variance-reduced methods on a finite sum with a known optimum: floors, seeds, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError, NonFiniteError, UnsupportedError
from tests.finite_sums import D, P, descend, finite_sum

METHODS: dict[str, Callable[[], Any]] = {
    "soba": lambda: hg.SOBA(step_size=0.2),
    "saba": lambda: hg.SABA(step_size=0.2),
    "srba": lambda: hg.SRBA(step_size=0.2, period=16),
    "spaba": lambda: hg.SPABA(step_size=0.2, probability=1 / 16),
    "fsla": lambda: hg.FSLA(step_size=0.2),
    "amigo": lambda: hg.AmIGO(step_size=0.2, inner_steps=2, linear_steps=2),
    "stocbio": lambda: hg.StocBiO(step_size=0.2, inner_steps=2, terms=3),
    "ttsa": lambda: hg.TTSA(step_size=0.2, terms=4),
    "bsa": lambda: hg.BSA(step_size=0.2, inner_steps=2, terms=4),
    "mrbo": lambda: hg.MRBO(step_size=0.2, terms=3),
    "sustain": lambda: hg.SUSTAIN(step_size=0.2, terms=4),
    "vrbo": lambda: hg.VRBO(step_size=0.2, terms=3, period=2),
    "pzobo": lambda: hg.PZOBO(step_size=0.2, inner_steps=3),
    "f2sa": lambda: hg.F2SA(step_size=0.2, inner_steps=2),
    "bome": lambda: hg.BOME(step_size=0.1, inner_steps=2),
}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
SGD = hg.outer.Torch(torch.optim.SGD, lr=0.02)


def test_the_closed_form_of_the_problem_is_what_autograd_says() -> None:
    case = finite_sum()
    rows = torch.arange(16), torch.arange(12)
    problem = case.problem.with_batches((rows[0],), (rows[1],))
    found = hg.hypergradient(problem, case.params, case.hparams, hg.Implicit(hg.Dense(), inner=hg.Newton()))
    assert torch.allclose(found.grads["x"], case.gradient(case.hparams["x"]), rtol=1e-10)
    assert float(case.gradient(case.optimum).norm()) < 1e-12


@pytest.mark.parametrize("make", [METHODS["saba"], METHODS["srba"]], ids=["saba", "srba"])
def test_variance_reduction_reaches_any_accuracy_with_constant_steps_at_a_linear_rate(make: Callable[[], Any]) -> None:
    errors, _ = descend(finite_sum(), make(), lambda step: 0.02, 700)
    assert errors[-1] <= 1e-9
    half, whole = math.log10(errors[300]), math.log10(errors[600])
    assert whole - half < 0.7 * (half - math.log10(errors[0])) < 0, "as many digits in the second half as in the first"


def test_without_it_noise_keeps_constant_steps_from_the_optimum() -> None:
    errors, _ = descend(finite_sum(), METHODS["soba"](), lambda step: 0.02, 500)
    assert min(errors[250:]) > 1e-4


@pytest.mark.parametrize("kind", [hg.StocBiO, hg.MRBO], ids=["stocbio", "mrbo"])
def test_a_truncated_series_stalls_at_the_floor_of_its_bias(kind: Any) -> None:
    """Where the biased hypergradient vanishes ‖dF/dλ‖² has a closed form, which more steps do not get below."""
    case, step, terms = finite_sum(noise=0.0), 0.2, 3
    settings: dict[str, Any] = {"inner_steps": 5} if kind is hg.StocBiO else {}
    algorithm = kind(step_size=step, terms=terms, **settings)
    errors, _ = descend(case, algorithm, lambda step: 0.06, 350)
    rows = torch.arange(16), torch.arange(12)
    problem = case.problem.with_batches((rows[0],), (rows[1],))
    series = hg.Implicit(hg.Neumann(terms, step=step), inner=hg.Newton())

    def biased(x: torch.Tensor) -> torch.Tensor:
        return hg.hypergradient(problem, case.params, {"x": x}, series).grads["x"]

    zero, basis = torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    offset = biased(zero)
    slope = torch.stack([biased(row) - offset for row in basis], dim=1)  # the biased hypergradient is affine
    floor = float(case.gradient(torch.linalg.solve(slope, -offset)).square().sum())
    assert floor > 1e-4
    assert errors[-1] == pytest.approx(floor, rel=1e-5)


def make_steps(run: hg.Run, count: int) -> None:
    for _ in range(count):
        run.step()


@each_method
def test_the_same_seed_is_the_same_run(make: Callable[[], Any]) -> None:
    first, second = (descend(finite_sum(), make(), lambda step: 0.01, 5)[0] for _ in range(2))
    assert first == second
    other = descend(finite_sum(seed=5), make(), lambda step: 0.01, 5)[0]
    assert first != other or make().__class__ is hg.BOME, "BOME sees the whole data"


@each_method
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(make: Callable[[], Any]) -> None:
    def run() -> hg.Run:
        case = finite_sum()
        return hg.Run(case.problem, make(), case.params, case.hparams, SGD, seed=3)

    whole = run()
    for _ in range(6):
        whole.step()
    first = run()
    for _ in range(3):
        first.step()
    second = run()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step()
    assert torch.equal(whole.hparams["x"], second.hparams["x"])
    assert torch.equal(whole.params["w"], second.params["w"])


@each_method
def test_steps_that_are_too_long_are_an_error_and_the_run_stays(make: Callable[[], Any]) -> None:
    case, algorithm = finite_sum(), make()
    settings = {**vars(algorithm), "step_size": 1e6}
    run = hg.Run(case.problem, type(algorithm)(**settings), case.params, case.hparams, SGD)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        make_steps(run, 200)
    assert bool(run.hparams["x"].isfinite().all())
    assert bool(run.params["w"].isfinite().all())


@each_method
def test_a_schedule_that_returns_a_negative_step_is_refused(make: Callable[[], Any]) -> None:
    case, algorithm = finite_sum(), make()
    settings = {**vars(algorithm), "step_size": lambda step: 0.1 - 0.1 * step}
    run = hg.Run(case.problem, type(algorithm)(**settings), case.params, case.hparams, SGD)
    with pytest.raises(InputError, match=r"step_size=\.\.\.\), which returned .* at iteration 1"):
        make_steps(run, 3)


def test_masks_are_shared_by_the_two_points_of_a_difference() -> None:
    """With one batch and dropout the difference of two oracles at one point vanishes, so nothing but the mask moves."""
    seen: list[float] = []

    def inner(params: dict[str, torch.Tensor], hparams: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = torch.nn.functional.dropout(torch.ones(P, dtype=torch.float64), 0.5)
        seen.append(float(mask.sum()))
        return ((params["w"] - hparams["x"]) * mask).square().sum()

    problem = hg.Problem(inner, lambda params, hparams: params["w"].square().sum())
    start = {"w": torch.ones(P, dtype=torch.float64)}, {"x": torch.zeros(P, dtype=torch.float64)}
    algorithm = hg.SRBA(step_size=0.1, period=100)
    state = algorithm.init(problem, *start)
    for _ in range(4):
        seen.clear()
        _, state = algorithm.step(problem, state, start[1])
        assert len(set(seen[-2:])) == 1


def test_tables_want_batches_that_stay_the_same() -> None:
    case = finite_sum(sampler=hg.TensorSampler)
    with pytest.raises(InputError, match=r"hypergrad\.Partition"):
        hg.hypergradient(case.problem, case.params, case.hparams, hg.SABA(step_size=0.1))


def test_a_batch_size_that_does_not_divide_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="divides 5"):
        hg.Partition(torch.arange(5), batch_size=2)


@pytest.mark.parametrize("algorithm", [hg.F2SA(step_size=0.1), hg.BOME(step_size=0.1)])
def test_a_root_has_no_value_for_methods_of_first_order(algorithm: Any) -> None:
    problem = hg.Problem.fixed_point(
        lambda params, hparams: {"w": 0.5 * params["w"] + hparams["x"]}, lambda params, hparams: params["w"].sum()
    )
    with pytest.raises(UnsupportedError, match="root"):
        hg.hypergradient(problem, {"w": torch.zeros(2)}, {"x": torch.ones(2)}, algorithm)


def test_a_partition_goes_on_from_a_saved_position() -> None:
    first, second = (hg.Partition(torch.arange(6), batch_size=2, seed=3) for _ in range(2))
    for _ in range(4):
        first.draw()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.draw()[0], second.draw()[0])
    assert sorted(torch.cat([first.batch(place)[0] for place in range(3)]).tolist()) == list(range(6))
    with pytest.raises(InputError, match="position"):
        second.load_state_dict({"drawn": -1})


def test_the_coin_of_spaba_falls_as_often_as_it_should() -> None:
    algorithm = hg.SPABA(step_size=0.1, probability=0.25)
    assert algorithm.renews(0)
    assert sum(algorithm.renews(made) for made in range(1, 4001)) == pytest.approx(1000, abs=100)
    assert [algorithm.renews(made) for made in range(50)] != [
        hg.SPABA(step_size=0.1, probability=0.25, seed=1).renews(made) for made in range(50)
    ]


def test_spaba_is_what_its_coin_says() -> None:
    """Passes over the whole data and differences, against SRBA with a period that has them at the same iterations."""
    always, never = 1 - 1e-12, 1e-12
    for probability, period in ((always, 1), (never, 1000)):
        found, _ = descend(finite_sum(), hg.SPABA(step_size=0.2, probability=probability), lambda step: 0.02, 8)
        expected, _ = descend(finite_sum(), hg.SRBA(step_size=0.2, period=period), lambda step: 0.02, 8)
        assert found == expected


def test_the_inner_loop_of_bsa_starts_its_steps_anew_and_grows() -> None:
    """On ½ (θ − 1)² steps 1/(2 + t) from θ = 0 leave 1/(T + 1) of the distance after T of them."""
    problem = hg.Problem(
        lambda params, hparams: 0.5 * (params["w"] - 1).square().sum() + 0 * hparams["x"].sum(),
        lambda params, hparams: (params["w"] * hparams["x"]).sum(),
    )
    algorithm = hg.BSA(step_size=lambda t: 1 / (2 + t), linear_step_size=1.0, inner_steps=lambda k: 1.5 + k, terms=1)
    x = {"x": torch.ones(1, dtype=torch.float64)}
    state, left = algorithm.init(problem, {"w": torch.zeros(1, dtype=torch.float64)}, x), 1.0
    for rounds in (2, 3, 4):
        found, state = algorithm.step(problem, state, x)
        left /= rounds + 1
        assert float(1 - state.params["w"]) == pytest.approx(left, rel=1e-12)
        assert found.report.cost == hg.Cost(inner_gradients=rounds + 1, products=1, outer_gradients=1)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: hg.SPABA(step_size=0.1, probability=0.0), "probability"),
        (lambda: hg.SPABA(step_size=0.1, probability=1.0), "probability"),
        (lambda: hg.SPABA(step_size=-0.1), "step_size"),
        (lambda: hg.BSA(step_size=0.1, inner_steps=2.5), "inner_steps"),
        (lambda: hg.BSA(step_size=0.1, terms=0), "terms"),
        (lambda: hg.BSA(step_size=0.0), "step_size"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


def test_a_problem_may_be_met_again_with_other_names() -> None:
    def inner(params: dict[str, torch.Tensor], hparams: dict[str, torch.Tensor]) -> torch.Tensor:
        return (params["w"] - sum(hparams.values())).square().sum()

    problem = hg.Problem(inner, lambda params, _hparams: params["w"].square().sum())
    params, one = {"w": torch.zeros(2)}, {"x": torch.ones(2)}
    for hparams in (one, {"y": torch.ones(2), "z": torch.ones(2)}, one, {"y": torch.ones(2)}):
        run = hg.Run(problem, hg.SOBA(step_size=0.1), params, hparams, outer=SGD)
        for _ in range(3):
            run.step()
        assert all(bool((value != 1).all()) for value in run.hparams.values())
