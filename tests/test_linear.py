"""Linear solvers on their own: answers, statuses, residuals, products, forms of the right-hand side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.linear import LinearSolver
from hypergrad.solvers.linear.spectrum import top_curvature
from hypergrad.stationarity import rescale

DTYPES = [torch.float64, torch.float32]


def matrix(size: int, condition: float, *, kind: str = "definite", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "general":
        noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
        general: Tensor = torch.eye(size, dtype=torch.float64) + 0.4 * noise / size**0.5
        return general
    basis: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    values: Tensor = torch.logspace(0, float(np.log10(condition)), size, dtype=torch.float64)
    if kind == "indefinite":
        values[::3] *= -1
    return basis * values @ basis.mT


def operator(a: Tensor, **options: Any) -> hg.Operator:
    def product_with(m: Tensor) -> Callable[..., None]:
        def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
            image = m @ v
            rescale(y, scale, shift)
            y.add_(image, alpha=alpha)

        return product

    symmetric = bool(torch.allclose(a, a.mT))
    return hg.Operator(product_with(a), a[0], symmetric=symmetric, transpose=product_with(a.mT), **options)


def error(result: hg.LinearResult, a: Tensor, b: Tensor) -> float:
    exact: Tensor = torch.linalg.solve(a.double(), b.double())
    return float((result.value.double() - exact).norm() / exact.norm())


SOLVERS: dict[str, tuple[Callable[[float], LinearSolver], str]] = {
    "cg": (lambda tol: hg.CG(rtol=tol, max_steps=300), "definite"),
    "cg-seldom": (lambda tol: hg.CG(rtol=tol, max_steps=300, check_every=9), "definite"),
    "minres": (lambda tol: hg.MINRES(rtol=tol, max_steps=600), "definite"),
    "minres-indefinite": (lambda tol: hg.MINRES(rtol=tol, max_steps=600, check_every=4), "indefinite"),
    "gmres": (lambda tol: hg.GMRES(rtol=tol, max_steps=600), "general"),
    "gmres-short": (lambda tol: hg.GMRES(rtol=tol, max_steps=600, restart=6, check_every=3), "general"),
    "normal-cg": (lambda tol: hg.NormalCG(rtol=tol, max_steps=600), "general"),
    "normal-cg-indefinite": (lambda tol: hg.NormalCG(rtol=tol, max_steps=3000, check_every=5), "indefinite"),
    "dense": (lambda tol: hg.Dense(), "definite"),
    "dense-indefinite": (lambda tol: hg.Dense(), "indefinite"),
    "dense-general": (lambda tol: hg.Dense(), "general"),
    "scipy": (lambda tol: hg.Scipy(scipy.sparse.linalg.bicgstab, {"rtol": tol}), "general"),
    "nystrom-full-rank": (lambda tol: hg.Nystrom(rank=30, damping=0.0), "definite"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_solver_is_right_and_knows_it(name: str, dtype: torch.dtype) -> None:
    build, kind = SOLVERS[name]
    a = matrix(30, 30.0, kind=kind).to(dtype)
    b = torch.linspace(-1, 2, 30).to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    known = operator(a)
    result = build(tolerance).solve(known, b)
    assert error(result, a, b) < 100 * tolerance
    true_residual = float((b - a @ result.value).norm() / b.norm())
    assert true_residual <= 3 * max(result.residual, tolerance)
    assert result.products == known.products or not known.symmetric
    assert result.status in (hg.Status.CONVERGED, hg.Status.TRUNCATED)
    assert result.negative_curvature == (kind == "indefinite" and name.startswith(("minres", "dense")))
    assert torch.equal(b, torch.linspace(-1, 2, 30).to(dtype)), "b stays as it is"


def test_cg_solves_twice_the_identity_in_one_product() -> None:
    result = hg.CG().solve(operator(2 * torch.eye(7)), torch.arange(7.0))
    assert torch.equal(result.value, 0.5 * torch.arange(7.0))
    assert (result.products, result.residual, result.status) == (1, 0.0, hg.Status.CONVERGED)


@given(st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_cg_is_exact_after_as_many_steps_as_unknowns(size: int, seed: int) -> None:
    a = matrix(size, 10.0, seed=seed)
    b = torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    result = hg.CG(rtol=1e-14, max_steps=size, preconditioner=None).solve(operator(a), b)
    assert error(result, a, b) < 1e-8


@pytest.mark.parametrize(
    "solver", [hg.CG(rtol=1e-12), hg.MINRES(rtol=1e-12), hg.GMRES(rtol=1e-12), hg.NormalCG(rtol=1e-12)]
)
def test_start_at_the_solution_needs_no_iteration(solver: LinearSolver) -> None:
    a, b = matrix(20, 20.0), torch.ones(20, dtype=torch.float64)
    solution = solver.solve(operator(a), b).value
    kept = solution.clone()
    warm = solver.solve(operator(a), b, x0=solution)
    assert warm.products <= 3
    assert error(warm, a, b) < 1e-9
    assert torch.equal(solution, kept), "x0 stays as it is"


@pytest.mark.parametrize("name", ["cg", "minres", "gmres", "normal-cg", "dense", "scipy"])
def test_right_hand_sides_of_every_form(name: str) -> None:
    """A list of small tensors, a dict, a matrix and one large vector hold the same numbers."""
    build, kind = SOLVERS[name]
    a = matrix(12, 5.0, kind=kind)
    b = torch.linspace(-1, 1, 12, dtype=torch.float64)
    solver = build(1e-12)
    flat = solver.solve(operator(a), b).value

    def on_parts(parts: list[Tensor]) -> list[Tensor]:
        image = a @ torch.cat([part.reshape(-1) for part in parts])
        return [piece.reshape(part.shape) for piece, part in zip(image.split([1, 5, 6]), parts, strict=True)]

    if kind == "definite":
        pieces = [b[:1].reshape(()), b[1:6], b[6:].reshape(2, 3)]
        listed = solver.solve(on_parts, pieces).value
        assert [part.shape for part in listed] == [part.shape for part in pieces]
        assert torch.allclose(torch.cat([part.reshape(-1) for part in listed]), flat, atol=1e-10)
        named = solver.solve(
            lambda v: dict(zip("abc", on_parts(list(v.values())), strict=True)), dict(zip("abc", pieces, strict=True))
        )
        assert list(named.value) == ["a", "b", "c"]
        square = solver.solve(lambda v: (a @ v.reshape(-1)).reshape(3, 4), b.reshape(3, 4)).value
        assert torch.allclose(square.reshape(-1), flat, atol=1e-10)


def test_zero_right_hand_side_costs_nothing() -> None:
    for solver in (hg.CG(), hg.Neumann(5), hg.MINRES(), hg.GMRES(), hg.NormalCG(), hg.Dense(), hg.Nystrom(2)):
        known = operator(matrix(4, 3.0))
        result = solver.solve(known, torch.zeros(4, dtype=torch.float64))
        assert not result.value.any()
        assert (result.products, known.products, result.status) == (0, 0, hg.Status.CONVERGED)


def test_cg_stops_at_negative_curvature_with_the_best_iterate() -> None:
    a = torch.diag(torch.tensor([3.0, 2.0, 1.0, -0.5], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    result = hg.CG(rtol=1e-12).solve(operator(a), b)
    assert result.status is hg.Status.NEGATIVE_CURVATURE
    assert result.negative_curvature
    assert result.residual < 0.2
    assert float((b - a @ result.value).norm() / b.norm()) == pytest.approx(result.residual)
    seldom = hg.CG(rtol=1e-12, check_every=10).solve(operator(a), b)
    assert seldom.status is hg.Status.NEGATIVE_CURVATURE
    assert seldom.residual < 0.2
    assert float((b - a @ seldom.value).norm() / b.norm()) == pytest.approx(seldom.residual)


def test_cg_out_of_steps_says_so() -> None:
    a, b = matrix(50, 1e4), torch.ones(50, dtype=torch.float64)
    result = hg.CG(rtol=1e-12, max_steps=5).solve(operator(a), b)
    assert (result.status, result.products) == (hg.Status.MAX_STEPS, 5)
    assert result.residual > 1e-3


def test_absolute_tolerance_is_in_units_of_b() -> None:
    a, b = matrix(30, 100.0), 1e-3 * torch.ones(30, dtype=torch.float64)
    result = hg.CG(rtol=0.0, atol=1e-5).solve(operator(a), b)
    assert float((b - a @ result.value).norm()) <= 1e-5
    assert result.products < 30


@pytest.mark.parametrize(
    "solver", [hg.CG(), hg.MINRES(), hg.GMRES(), hg.NormalCG(), hg.Neumann(3), hg.Dense(), hg.Identity()]
)
def test_nan_is_a_status_not_a_value_in_disguise(solver: LinearSolver) -> None:
    a = matrix(5, 3.0)
    a[2, 2] = float("nan")
    b = torch.ones(5, dtype=torch.float64)
    b = b if not isinstance(solver, hg.Identity) else b * float("nan")
    result = solver.solve(hg.Operator(operator(a)._product, b), b)
    assert not result.status.usable


def test_singular_consistent_system_gets_the_least_norm_solution() -> None:
    a = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    for solver in (hg.CG(), hg.MINRES(), hg.NormalCG(), hg.Dense(), hg.GMRES()):
        assert torch.allclose(solver.solve(operator(a), b).value, torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64))


def test_singular_inconsistent_system_is_solved_in_least_squares() -> None:
    a = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    result = hg.NormalCG().solve(operator(a), torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert torch.allclose(result.value, torch.tensor([0.5, 0.0], dtype=torch.float64))
    assert result.residual == pytest.approx(2**-0.5)


def test_known_diagonal_is_part_of_the_matrix() -> None:
    a, diagonal = matrix(10, 5.0), torch.linspace(0, 3, 10, dtype=torch.float64)
    b = torch.ones(10, dtype=torch.float64)
    whole = a + torch.diag(diagonal)
    for solver in (hg.CG(rtol=1e-12), hg.MINRES(rtol=1e-12), hg.GMRES(rtol=1e-12), hg.Dense(), hg.NormalCG(rtol=1e-12)):
        assert error(solver.solve(operator(a, diagonal=diagonal), b), whole, b) < 1e-9
    step = 0.9 / float(torch.linalg.eigvalsh(whole)[-1])
    assert error(hg.Neumann(600, step=step).solve(operator(a, diagonal=diagonal), b), whole, b) < 1e-9
    assert (
        error(
            hg.Nystrom(rank=10, damping=0.0).solve(operator(a, diagonal=diagonal + 0.1), b),
            whole + 0.1 * torch.eye(10),
            b,
        )
        < 1e-9
    )


@pytest.mark.parametrize("terms", [0, 1, 2, 7])
@pytest.mark.parametrize("penalised", [False, True])
def test_neumann_is_its_matrix_polynomial(terms: int, penalised: bool) -> None:
    a, b, step = matrix(8, 6.0), torch.linspace(-1, 1, 8, dtype=torch.float64), 0.05
    diagonal = torch.linspace(0, 2, 8, dtype=torch.float64) if penalised else None
    whole = a if diagonal is None else a + torch.diag(diagonal)
    expected, power = torch.zeros_like(b), b
    for _ in range(terms + 1):
        expected, power = expected + step * power, power - step * whole @ power
    result = hg.Neumann(terms, step=step).solve(operator(a, diagonal=diagonal), b)
    assert torch.allclose(result.value, expected, atol=1e-14)
    assert (result.products, result.status) == (terms, hg.Status.TRUNCATED)
    true_residual = float((b - whole @ result.value).norm() / b.norm())
    assert true_residual <= result.residual + 1e-12


def test_neumann_finds_a_step_that_converges() -> None:
    for condition in (2.0, 50.0, 1e4):
        a, b = matrix(40, condition), torch.ones(40, dtype=torch.float64)
        result = hg.Neumann(30).solve(operator(a), b)
        assert result.status is hg.Status.TRUNCATED
        assert result.products == 40
        again = hg.Neumann(30).solve(operator(a), b, memory=result.memory)
        assert again.products == 31, "the power iteration goes on from where it was"
        assert again.status is hg.Status.TRUNCATED
        assert not result.negative_curvature
        assert not again.negative_curvature


def test_neumann_notices_divergence_before_it_overflows() -> None:
    a, b = matrix(40, 50.0), torch.ones(40, dtype=torch.float64)
    growing = hg.Neumann(10, step=2.2 / 50).solve(operator(a), b)
    assert growing.negative_curvature
    assert growing.residual > 0.2
    assert hg.Neumann(40, step=2.2 / 50).solve(operator(a), b).status is hg.Status.DIVERGED
    assert hg.Neumann(5000, step=1.0).solve(operator(a), b).status is hg.Status.DIVERGED
    indefinite = hg.Neumann(10).solve(operator(matrix(40, 50.0, kind="indefinite")), b)
    assert indefinite.negative_curvature


def test_top_curvature_is_good_enough_for_a_step() -> None:
    """A step of one over it converges if it is more than half the largest eigenvalue."""
    for seed in range(10):
        a = matrix(60, 1e3, seed=seed)
        for steps in (6, 10, 30):
            assert 0.75e3 <= top_curvature(operator(a), None, steps=steps)[0] <= 1.5e3


def test_symmetric_solvers_refuse_general_matrices_by_name() -> None:
    a, b = matrix(4, 1.0, kind="general"), torch.ones(4, dtype=torch.float64)
    for solver in (hg.CG(), hg.MINRES(), hg.Nystrom(2), hg.Stochastic(lambda p: torch.optim.SGD(p, lr=0.1))):
        with pytest.raises(UnsupportedError, match="GMRES"):
            solver.solve(operator(a), b)


def test_normal_equations_need_the_transpose() -> None:
    a = matrix(4, 1.0, kind="general")
    known = hg.Operator(operator(a)._product, a[0], symmetric=False)
    with pytest.raises(UnsupportedError, match="transpose"):
        hg.NormalCG().solve(known, torch.ones(4, dtype=torch.float64))


def test_dense_refuses_what_is_too_large() -> None:
    with pytest.raises(InputError, match="max_size=10"):
        hg.Dense(max_size=10).solve(lambda v: v, torch.ones(11))


def test_scipy_view_serves_any_scipy_solver() -> None:
    a, b = matrix(15, 20.0), np.linspace(-1, 1, 15)
    view = operator(a).to_scipy()
    exact = np.linalg.solve(a.numpy(), b)
    for function in (scipy.sparse.linalg.cg, scipy.sparse.linalg.minres, scipy.sparse.linalg.gmres):
        assert np.allclose(function(view, b, rtol=1e-11)[0], exact, atol=1e-7)
    general = matrix(15, 20.0, kind="general")
    found = scipy.sparse.linalg.lsmr(operator(general).to_scipy(), b, atol=1e-13, btol=1e-13)[0]
    assert np.allclose(found, np.linalg.solve(general.numpy(), b), atol=1e-9)


def test_stochastic_averages_over_fresh_batches() -> None:
    """Each product sees another matrix; their mean is what is solved with, up to the noise of a constant step."""
    a, b = matrix(6, 3.0), torch.ones(6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def draw() -> hg.Operator:
        noise = 0.3 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
        return operator(a + noise + noise.mT)

    known = operator(a, redraw=draw)
    solver = hg.Stochastic(lambda p: torch.optim.SGD(p, lr=0.05), steps=3000, average=True)
    result = solver.solve(known, b)
    assert error(result, a, b) < 0.05
    assert result.products == 3001
    assert known.products == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_vectors_and_thousands_of_small_tensors(dtype: torch.dtype) -> None:
    scales = [1.0 + (place % 7) for place in range(2000)]
    parts = [torch.full((3,), float(place % 5 + 1), dtype=dtype) for place in range(2000)]
    result = hg.CG(rtol=1e-6).solve(lambda v: [s * t for s, t in zip(scales, v, strict=True)], parts)
    gap = max(float((s * x - b).abs().max()) for s, x, b in zip(scales, result.value, parts, strict=True))
    assert result.products <= 8, "seven distinct eigenvalues"
    assert gap < 1e-3


@pytest.mark.parametrize("check_every", [1, 3])
def test_cg_out_of_steps_returns_its_last_iterate(check_every: int) -> None:
    values = torch.logspace(-4, 0, 60, dtype=torch.float64)
    b = torch.linspace(1, 2, 60, dtype=torch.float64)
    errors = []
    for steps in range(1, 40):
        solver = hg.CG(rtol=0.0, max_steps=steps, preconditioner=None, check_every=check_every)
        result = solver.solve(lambda v: values * v, b)
        assert result.residual == pytest.approx(float((b - values * result.value).norm() / b.norm()), rel=1e-6)
        away = result.value - b / values
        errors.append(float((values * away).dot(away)))
    assert errors == sorted(errors, reverse=True)
