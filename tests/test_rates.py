"""The errors of noisy methods fall at the rates of their papers, and twins without what makes the rate do not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import hypergrad as hg
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.testing import KNOWN_PROBLEMS
from tests.algorithms import TABLE
from tests.rates import RATES
from tests.row import Row
from tests.stochastic_quadratic import OPTIMUM, SIZE, A, decay, gradient, inner, outer, response, slopes

NO_RATE = {
    "zord": "its estimate is the slope of a fit, without noise once the runs are made",
    "forward-orthonormal-complete": "a complete set of directions leaves no error",
    "forward-guided-complete": "a complete set of directions leaves no error",
}
"""Rows that draw something at random, but whose papers claim no rate that noise would set."""


def noisy(row: Row) -> bool:
    """Whether a row draws random directions or follows the solution over iterations, where noise gets in."""
    known = next(known for known in (make(torch.float64) for make in KNOWN_PROBLEMS) if row.applies(known))
    algorithm = row.build(known)
    return isinstance(algorithm, SingleLoop) or algorithm.stochastic


def test_every_noisy_row_states_its_rate() -> None:
    silent = {row.name for row in TABLE if noisy(row) and row.rate is None}
    assert silent == NO_RATE.keys()
    assert [row.name for row in TABLE if row.rate is not None and not noisy(row)] == []


def test_no_rate_is_measured_for_nothing() -> None:
    stated = [row.rate for row in TABLE if row.rate is not None]
    idle = [name for name, rate in RATES.items() if not any(rate is other for other in stated)]
    assert idle == ["f2sa-without-noise"]


def test_the_closed_form_of_the_problem_is_what_autograd_says() -> None:
    x = OPTIMUM + torch.arange(2 * SIZE, dtype=torch.float64).view(2, SIZE)
    problem, solver = hg.Problem(inner, outer), hg.Implicit(hg.Dense(), inner=hg.Newton())
    found = hg.hypergradient(problem, {"w": torch.zeros_like(x)}, {"x": x}, solver)
    assert torch.allclose(found.params["w"], response(x), rtol=1e-10)
    assert torch.allclose(found.grads["x"], gradient(x), rtol=1e-10)
    assert float(gradient(OPTIMUM).norm()) < 1e-12
    assert float(torch.linalg.cond(A)) < 1.3, "a Neumann series with step 1 is short"


def test_the_fit_finds_the_exponent_of_a_power() -> None:
    times = torch.arange(1, 1001, dtype=torch.float64)
    errors = torch.stack([times**-0.5, 3 * times**-0.7], dim=1)
    assert slopes(times, errors).tolist() == pytest.approx([-0.5, -0.7], abs=1e-12)
    assert decay(errors, 50, 0).tolist() == pytest.approx([-0.5, -0.7], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_the_error_falls_at_least_at_the_rate_of_the_paper(name: str) -> None:
    rate, found = RATES[name], RATES[name].measure()
    mean, spread = float(found.mean()), float((found - found.mean()).abs().max())
    assert mean <= rate.claimed + rate.tolerance, f"{found.tolist()} for a claim of {rate.claimed:.2f}"
    assert mean == pytest.approx(rate.measured, abs=0.03, rel=0.03), "the table is out of date"
    assert spread == pytest.approx(rate.spread, abs=0.03, rel=0.1), "the table is out of date"


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_without_what_makes_the_rate_it_falls_more_slowly(name: str) -> None:
    rate = RATES[name]
    assert float(rate.measure_broken().mean()) > rate.claimed + 1.5 * rate.tolerance, rate.broken


def test_the_generated_table_states_every_rate() -> None:
    pages = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "tables.py"))
    lines = pages["TABLES"]["rates"]().splitlines()[2:]
    assert len(lines) == len(RATES)
    for rate, line in zip(RATES.values(), lines, strict=True):
        assert f"{rate.measured:.2f}".replace("-", "−") in line
