"""Known answers of fixed points, equality constraints and the envelope: three residuals, one adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.testing import problems
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

DOUBLE = torch.float64


@pytest.mark.parametrize(
    "linear", [hg.GMRES(rtol=1e-13), hg.NormalCG(rtol=1e-13), hg.Dense()], ids=lambda s: type(s).__name__
)
def test_fixed_point_adjoint_equals_central_differences(linear: hg.LinearSolver) -> None:
    known = problems.fixed_point()
    found = hg.hypergradient(known.problem, known.trained(), known.hparams, hg.Implicit(linear)).grads["x"]
    for place in range(4):
        shift = torch.zeros(4, dtype=DOUBLE)
        shift[place] = 1e-5
        above, below = ({"x": known.hparams["x"] + sign * shift} for sign in (1, -1))
        values = [float(known.problem.outer_value(known.trained(point), point)) for point in (above, below)]
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-9)


def test_one_step_gradient_of_a_fixed_point_is_an_approximation_and_says_so() -> None:
    """Leaving the inverse out ("Jacobian-free") is off by several per cent, and no algorithm calls that exact."""
    known = problems.fixed_point()
    algorithm = hg.Implicit(hg.Identity())
    found = hg.hypergradient(known.problem, known.trained(), known.hparams, algorithm).grads
    assert relative_error(found, known.hypergradient()) > 0.02
    assert not algorithm.exact


def test_neumann_series_of_a_contraction_is_its_adjoint_iteration() -> None:
    """u ← c + φ_zᵀ u from u = c, which is the series with step 1."""
    known = problems.fixed_point()
    found = hg.hypergradient(known.problem, known.trained(), known.hparams, hg.Implicit(hg.Neumann(60, step=1.0))).grads
    assert relative_error(found, known.hypergradient()) < 1e-12


def test_linear_graph_layer_has_its_closed_form() -> None:
    """z = γ A z + b, so z = (I − γA)⁻¹ b and dF/db = (I − γA)⁻ᵀ ∂f/∂z."""
    matrix = torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    matrix = 0.5 * matrix / matrix.sum(0)
    problem = hg.Problem.fixed_point(
        map=lambda params, hparams: {"z": matrix @ params["z"] + hparams["b"]},
        outer=lambda params, _: params["z"].square().sum() / 2,
    )
    b = torch.linspace(-1, 1, 5, dtype=DOUBLE)
    inverse: Tensor = torch.linalg.inv(torch.eye(5, dtype=DOUBLE) - matrix)
    iteration = hg.GradientDescent(lr=1.0, steps=300, tolerance=1e-14)
    algorithm = hg.Implicit(hg.GMRES(rtol=1e-13), inner=iteration)
    found = hg.hypergradient(problem, {"z": torch.zeros(5, dtype=DOUBLE)}, {"b": b}, algorithm)
    assert float((found.params["z"] - inverse @ b).abs().max()) < 1e-13
    assert float((found.grads["b"] - inverse.mT @ (inverse @ b)).abs().max()) < 1e-12


def test_map_that_contracts_in_no_euclidean_norm_needs_gmres() -> None:
    """The forward iteration converges from everywhere; the Neumann adjoint may not, GMRES does."""
    generator = torch.Generator().manual_seed(1)
    weight = 4 * torch.rand(6, 6, generator=generator, dtype=DOUBLE)

    def layer(params: Tree, hparams: Tree) -> Tree:
        z = torch.tanh(weight @ params["z"]) + hparams["u"].relu() + 1.2
        return {"z": z / z.abs().max()}

    problem = hg.Problem.fixed_point(layer, lambda params, _: (params["z"] * torch.arange(6.0)).sum())
    iteration = hg.GradientDescent(lr=1.0, steps=500, tolerance=1e-13)
    hparams = {"u": torch.linspace(0.1, 1.0, 6, dtype=DOUBLE)}
    ends = [
        iteration.run(problem, {"z": torch.full((6,), start, dtype=DOUBLE)}, hparams).params["z"]
        for start in (0.1, 3.0)
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 1e-11
    start = {"z": torch.ones(6, dtype=DOUBLE)}
    result = hg.check(problem, start, hparams, hg.Implicit(hg.GMRES(rtol=1e-12), inner=iteration), verbose=False)
    assert result.passed


def test_equality_constraint_by_an_indefinite_solve() -> None:
    """min ½‖w‖² with w₁ + w₂ = θ: w = θ/2, multiplier −θ/2, and dF/dθ = θ/2 for F = w₁²."""
    known = problems.equality()
    theta = known.hparams["x"]
    for linear in (hg.MINRES(rtol=1e-13), hg.Dense()):
        found = hg.hypergradient(known.problem, known.trained(), known.hparams, hg.Implicit(linear))
        assert float(found.grads["x"]) == pytest.approx(float(theta) / 2, abs=1e-12)
        assert float(found.grads["x"]) == pytest.approx(1.5, abs=1e-12)
        assert float(found.params["equality_multiplier"]) == pytest.approx(-1.5)


def test_conjugate_gradients_refuse_an_indefinite_system() -> None:
    known = problems.equality()
    with pytest.warns(hg.errors.CurvatureWarning, match="MINRES"):
        found = hg.hypergradient(known.problem, known.trained(), known.hparams, hg.Implicit(hg.CG()))
    assert found.report.status == hg.Status.NEGATIVE_CURVATURE
    assert found.report.negative_curvature


def test_dual_ascent_by_the_envelope() -> None:
    """max over λ ≥ 0 of min over x of x² + λ(1 − x): λ → 2 and x → 1, since dF/dλ is the slack."""
    known = problems.envelope()
    move = hg.outer.Torch(torch.optim.SGD, lr=1.0, maximize=True)
    algorithm = hg.Implicit(hg.CG(), inner=hg.Newton())
    run = hg.Run(known.problem, algorithm, known.params, known.hparams, move)
    for _ in range(60):
        run.step()
    assert float(run.hparams["x"]) == pytest.approx(2, abs=1e-8)
    assert float(run.params["w"]) == pytest.approx(1, abs=1e-8)


def test_implicit_part_vanishes_where_inner_and_outer_are_the_same() -> None:
    known = problems.envelope()
    found = hg.hypergradient(known.problem, known.trained(), known.hparams, hg.Implicit(hg.CG()))
    slack = 1 - float(known.trained()["w"])
    assert float(found.grads["x"]) == slack
    assert found.report.cost == hg.Cost(outer_gradients=1), "neither the solve nor the mixed derivative is made"


def test_batch_of_least_squares_layers_has_its_closed_form() -> None:
    """Three independent systems in one problem: w = A⁺ b, as in a mixture of linear solvers."""
    generator = torch.Generator().manual_seed(2)
    matrices = torch.randn(3, 7, 4, generator=generator, dtype=DOUBLE)
    b, weights = (torch.randn(3, k, generator=generator, dtype=DOUBLE) for k in (7, 4))
    problem = hg.Problem(
        inner=lambda params, hparams: (
            0.5 * (torch.einsum("eij,ej->ei", matrices, params["w"]) - hparams["b"]).square().sum()
        ),
        outer=lambda params, _: (params["w"] * weights).sum(),
    )
    inverse: Tensor = torch.linalg.pinv(matrices)
    solved = {"w": torch.einsum("eij,ej->ei", inverse, b)}
    found = hg.hypergradient(problem, solved, {"b": b}, hg.Implicit(hg.CG(rtol=1e-13))).grads["b"]
    assert float((found - torch.einsum("eij,ei->ej", inverse, weights)).abs().max()) < 1e-11
