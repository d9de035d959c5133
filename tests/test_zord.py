"""The Gaussian process behind ZoRD: what it knows exactly, how fast it learns, and what remembering saves."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.solvers.bilevel.zord import DerivativePosterior
from hypergrad.testing import problems
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

LENGTH = 0.7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel(x: Tensor, c: Tensor) -> Tensor:
    return torch.exp(-(x - c).square().sum(-1) / (2 * LENGTH**2))


def test_a_function_of_the_process_itself_has_its_exact_gradient_everywhere() -> None:
    """y_i = k(x_i, c) with c among the points is what the posterior mean reproduces."""
    points = normal(12, 3)
    posterior = DerivativePosterior(points, LENGTH, noise=1e-14)
    for x in (points[0], points[5] + 0.3, normal(3, seed=1)):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(kernel(leaf, points[4]), leaf)
        assert torch.allclose(posterior.mean(x, kernel(points, points[4])), slope, rtol=0, atol=1e-10)


def test_the_mean_is_the_slope_of_the_process_mean() -> None:
    points, values, x = normal(9, 3), normal(9, seed=1), normal(3, seed=2).requires_grad_()
    matrix = torch.stack([kernel(points, point) for point in points]) + 0.01 * torch.eye(9, dtype=torch.float64)
    (slope,) = torch.autograd.grad(kernel(points, x) @ torch.linalg.solve(matrix, values), x)
    assert torch.allclose(DerivativePosterior(points, LENGTH, 0.01).mean(x.detach(), values), slope, atol=1e-12)


def test_what_is_not_known_of_the_gradient_falls_with_points_nearby() -> None:
    """From n/ℓ² = 6.12 without points, to about 0.87 with 12 around it, to 0.008 or less after 6 within 0.05."""
    x, some, much = torch.zeros(3, dtype=torch.float64), [], []
    for seed in range(50):
        far = 0.5 * normal(12, 3, seed=seed)
        near = 0.1 * torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.05
        some.append(DerivativePosterior(far, LENGTH, noise=1e-6).spread(x))
        much.append(DerivativePosterior(torch.cat([far, near]), LENGTH, noise=1e-6).spread(x))
    nothing = DerivativePosterior(1e3 + normal(1, 3), LENGTH, noise=1e-6).spread(x)
    assert nothing == pytest.approx(3 / LENGTH**2)
    assert median(some) == pytest.approx(0.87, rel=0.25)
    assert 0 < median(much) <= 0.008


def test_a_gain_is_what_a_further_value_takes_off_the_trace() -> None:
    points, candidates, x = normal(6, 3), normal(4, 3, seed=1), normal(3, seed=2)
    before = DerivativePosterior(points, LENGTH, 0.01)
    gains = before.gains(x, candidates)
    for gain, candidate in zip(gains, candidates, strict=True):
        after = DerivativePosterior(torch.cat([points, candidate[None]]), LENGTH, 0.01)
        assert float(gain) == pytest.approx(before.spread(x) - after.spread(x), rel=1e-9)


def test_the_estimate_is_close_after_enough_runs_and_too_short_after_few() -> None:
    known = problems.ridge()
    truth = known.hypergradient()
    fit = hg.Training(lambda params, hparams: known.solution(hparams))

    def after(steps: int, **settings: float) -> Tree:
        algorithm = hg.ZoRD(fit, radius=0.05, **settings)  # type: ignore[arg-type]
        state = algorithm.init(known.problem, known.params, known.hparams)
        for _ in range(steps):
            found, state = algorithm.step(known.problem, state, known.hparams)
        return found.grads

    assert relative_error(after(4), truth) < 0.02
    blind = after(1, noise=1.0)
    for key, value in truth.items():
        assert float(blind[key].norm()) < 0.1 * float(value.norm()), "what is not known counts as zero"


def test_runs_are_remembered_and_the_oldest_forgotten() -> None:
    known = problems.ridge()
    size = sum(value.numel() for value in known.hparams.values())
    fit = hg.Training(lambda params, hparams: known.solution(hparams))
    algorithm = hg.ZoRD(fit, queries=2, memory=2 * size + 4, candidates=5)
    state = algorithm.init(known.problem, known.params, known.hparams)
    counts, made = [], []
    for _ in range(3):
        found, state = algorithm.step(known.problem, state, known.hparams)
        counts.append(len(state.values))
        made.append(found.report.cost.outer_values)
    assert made == [2 * size + 1, 3, 3]
    assert counts == [2 * size + 1, 2 * size + 4, 2 * size + 4]


def test_queries_stay_in_the_box_and_in_the_domain() -> None:
    seen: list[Tensor] = []

    def train(params: Tree, hparams: Tree) -> Tree:
        seen.append(hparams["x"].clone())
        return {"w": hparams["x"].clone()}

    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: params["w"].square().sum(),
        hparams_domain={"x": hg.Box(1.0, 3.0)},
    )
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    algorithm = hg.ZoRD(hg.Training(train), radius=0.2)
    hg.hypergradient(problem, {"w": torch.zeros(2, dtype=torch.float64)}, {"x": x}, algorithm)
    places = torch.stack(seen)
    assert torch.equal(places[0], x)
    assert float((places - x).abs().max()) <= 0.2
    assert float(places.min()) >= 1.0


def test_too_many_hyperparameters_are_refused() -> None:
    known = problems.ridge()
    fit = hg.Training(lambda params, hparams: known.solution(hparams))
    with pytest.raises(hg.errors.InputError, match="at most max_size=2"):
        hg.ZoRD(fit, max_size=2).init(known.problem, known.params, known.hparams)
