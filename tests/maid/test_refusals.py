"""What MAID refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.solvers.bilevel.bounds import solved
from hypergrad.solvers.bilevel.maid import MAID
from tests.loop.common import TARGET
from tests.loop.test_moves import pursuer, pursuit


def saddle(curvature: float) -> hg.Problem:
    scales = torch.tensor([1.0, curvature, 2.0], dtype=torch.float64)
    return hg.Problem(
        lambda params, hparams: (scales * (params["w"] - hparams["x"]).square()).sum() / 2,
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square(),
    )


@pytest.mark.parametrize(("curvature", "measured"), [(-1.0, "-1"), (0.0, "0"), (0.25, "0.25")])
def test_an_inner_problem_that_is_not_strongly_convex_is_named_with_its_curvature(
    curvature: float, measured: str
) -> None:
    run = hg.Run(saddle(curvature), hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(0.5, 1.0))
    with pytest.raises(InputError) as caught:
        run.step()
    assert "strong_convexity=0.5" in caught.value.passed
    found = float(caught.value.passed.rsplit(" ", 1)[1])
    assert found == pytest.approx(float(measured), abs=1e-9)
    assert "hypergrad.HOAG" in caught.value.do
    assert run.step_number == 0
    assert run.whole


def test_negative_curvature_where_training_ends_is_refused_as_well() -> None:
    """Convex where the first step looks, and a saddle where training ends."""
    problem = hg.Problem(
        lambda params, hparams: (
            (params["w"] - hparams["x"]).square().sum() / 2 - 2 * torch.relu(params["w"][0] - 1).pow(3)
        ),
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square(),
    )
    params, hparams = pursuer()
    algorithm = hg.Implicit(hg.CG(preconditioner=None), inner=hg.GradientDescent(lr=1e-6, steps=1))
    state = algorithm.init(problem, {"w": params["w"] + 2}, hparams)
    with pytest.raises(InputError, match="met curvature of at most 0"):
        solved(hg.outer.Oracle(problem, algorithm, state, 0), hparams, 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        (hg.Unrolled(3, hg.GradientDescent(lr=0.1)), "Unrolled"),
        (hg.Implicit(hg.Neumann(3), inner=hg.Newton()), "Neumann"),
        (hg.Implicit(hg.CG(), inner=hg.Newton(), damping=0.1), "damping=0.1"),
        (hg.Implicit(hg.CG()), "inner=None"),
        (hg.Implicit(hg.CG(), inner=hg.TorchOptimizer(torch.optim.SGD, steps=3)), "TorchOptimizer"),
    ],
)
def test_an_algorithm_that_certifies_nothing_is_refused(algorithm: Any, named: str) -> None:
    run = hg.Run(pursuit(), algorithm, *pursuer(), MAID(1.0, 1.0))
    with pytest.raises(UnsupportedError) as caught:
        run.step()
    assert named in caught.value.passed
    assert run.whole


def test_minibatches_and_roots_are_refused() -> None:
    data = hg.TensorSampler(TARGET, batch_size=2)
    problem = hg.Problem(pursuit().inner, pursuit().outer, inner_data=data)
    with pytest.raises(UnsupportedError, match="inner_data=TensorSampler"):
        hg.Run(problem, hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(1.0, 1.0))
    root = hg.Problem.fixed_point(
        lambda params, hparams: {"w": 0.5 * params["w"] + hparams["x"]}, lambda params, hparams: params["w"].sum()
    )
    with pytest.raises(UnsupportedError, match="root"):
        hg.Run(root, hg.Implicit(hg.GMRES(), inner=hg.Newton()), *pursuer(), MAID(1.0, 1.0))


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_a_function_that_returns_no_bound_is_refused(value: float) -> None:
    run = hg.Run(pursuit(), hg.Implicit(inner=hg.LBFGS()), *pursuer(), MAID(lambda hparams: value, 1.0))
    with pytest.raises(InputError) as caught:
        run.step()
    assert "strong_convexity" in caught.value.passed


SETTINGS: list[tuple[str, Any]] = [
    ("strong_convexity", 0.0),
    ("strong_convexity", None),
    ("smoothness", -1.0),
    ("mixed", -1.0),
    ("inverse_lipschitz", -1.0),
    ("mixed_lipschitz", math.nan),
    ("direct_lipschitz", -0.1),
    ("accuracy", 0.0),
    ("linear", -1.0),
    ("step", 0.0),
    ("descent", 1.0),
    ("decrease", 0.5),
    ("shrink", 1.0),
    ("grow", 0.9),
    ("tighten", 0.0),
    ("loosen", 0.9),
    ("backtracks", 0),
    ("budgets", 0),
    ("tolerance", -1e-9),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        MAID(**{"strong_convexity": 1.0, "smoothness": 1.0, name: value})
    assert name in caught.value.passed
