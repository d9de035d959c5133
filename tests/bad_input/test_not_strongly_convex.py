"""An inner problem that is not strongly convex, where a method needs it, is measured and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import CurvatureWarning

CURVATURES = torch.tensor([1.0, 2.0, -0.25], dtype=torch.float64)


def problem(curvatures: torch.Tensor) -> hg.Problem:
    return hg.Problem(
        inner=lambda params, hparams: (
            (curvatures * params["w"].square()).sum() / 2 - (hparams["x"] * params["w"]).sum()
        ),
        outer=lambda params, _: (params["w"] - 1).square().sum() / 2,
    )


ALGORITHMS: list[hg.Algorithm[Any]] = [
    hg.SOBA(step_size=0.1),
    hg.SABA(step_size=0.1),
    hg.SRBA(step_size=0.1, period=3),
    hg.FSLA(step_size=0.1),
    hg.AmIGO(step_size=0.1),
    hg.StocBiO(step_size=0.1, terms=4),
    hg.TTSA(step_size=0.1, terms=4, linear_step_size=0.1),
    hg.MRBO(step_size=0.1, terms=4, linear_step_size=0.1),
    hg.SUSTAIN(step_size=0.1, terms=4, linear_step_size=0.1),
    hg.VRBO(step_size=0.1, terms=4, period=3, linear_step_size=0.1),
    hg.BOREP(step_size=0.1, linear_step_size=0.1),
]


def advance(run: hg.Run, steps: int) -> None:
    for _ in range(steps):
        run.step()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: type(algorithm).__name__)
def test_negative_curvature_that_a_single_loop_meets_is_noted(algorithm: hg.Algorithm[Any]) -> None:
    start = {"w": torch.full((3,), 0.5, dtype=torch.float64)}, {"x": torch.ones(3, dtype=torch.float64)}
    run = hg.Run(problem(CURVATURES), algorithm, *start, hg.outer.Torch(torch.optim.SGD, lr=1e-3))
    with pytest.warns(CurvatureWarning, match="strongly convex") as caught:
        advance(run, 40)
    assert len([warning for warning in caught if warning.category is CurvatureWarning]) == 1, "once in a run"
    assert run.params["w"].isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: type(algorithm).__name__)
@pytest.mark.parametrize("least", [0.25, 0.0])
def test_convex_inner_problems_get_no_note(algorithm: hg.Algorithm[Any], least: float) -> None:
    curvatures = torch.tensor([1.0, 2.0, least], dtype=torch.float64)
    start = {"w": torch.full((3,), 0.5, dtype=torch.float64)}, {"x": torch.ones(3, dtype=torch.float64)}
    run = hg.Run(problem(curvatures), algorithm, *start, hg.outer.Torch(torch.optim.SGD, lr=1e-3))
    for _ in range(20):
        assert not run.step().report.negative_curvature
