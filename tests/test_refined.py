"""Iterative refinement: answers of full precision from products in a lower one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout

import hypergrad as hg
from hypergrad.errors import InputError, NonFiniteError, UnsupportedError
from hypergrad.solvers.linear.refined import converted
from hypergrad.stationarity import rescale
from hypergrad.tree import Tree

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 8, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(60, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.randint(3, (60,), generator=GENERATOR)
DECAY = {"decay": torch.linspace(-4.0, 0.0, 8, dtype=torch.float64)}


class Pair(NamedTuple):
    x: Tensor
    y: str


def ridge(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (x @ params["w"] - y).square().mean()


def ridge_penalty(params: Tree, hparams: Tree) -> Tensor:
    return (hparams["decay"].exp() * params["w"].square()).sum()


def ridge_problem(dtype: torch.dtype = torch.float64, *, apart: bool = True) -> hg.Problem:
    def together(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return ridge(params, hparams, batch) + ridge_penalty(params, hparams)

    data = hg.Fixed((X.to(dtype), Y.to(dtype)))
    return hg.Problem(
        ridge if apart else together,
        outer=lambda params, hparams: (params["w"] - 1).square().sum(),
        penalty=ridge_penalty if apart else None,
        inner_data=data,
    )


def ridge_answer() -> tuple[Tensor, Tensor]:
    """Return θ* and dF/dλ in closed form: H = 2 XᵀX/60 + 2 diag(e^λ), dF/dλ = −2 e^λ θ* ⊙ H⁻¹ 2 (θ* − 1)."""
    strength = DECAY["decay"].exp()
    hessian = 2 * X.mT @ X / 60 + 2 * torch.diag(strength)
    theta = torch.linalg.solve(hessian, 2 * X.mT @ Y / 60)
    return theta, -2 * strength * theta * torch.linalg.solve(hessian, 2 * (theta - 1))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    "inner", [hg.CG(rtol=1e-4), hg.MINRES(rtol=1e-4), hg.GMRES(rtol=1e-4), hg.Dense(), hg.CG(1e-2, preconditioner=None)]
)
def test_ridge_in_double_precision_with_products_in_single(inner: hg.LinearSolver, apart: bool) -> None:
    theta, expected = ridge_answer()
    algorithm = hg.Implicit(hg.Refined(inner, rtol=1e-13))
    result = hg.hypergradient(ridge_problem(apart=apart), {"w": theta}, DECAY, algorithm)
    assert float((result.grads["decay"] - expected).norm() / expected.norm()) < 1e-10
    assert result.report.status == "converged"
    assert result.report.residual < 1e-13


def test_low_products_alone_would_not_be_enough() -> None:
    """The same solver with a tight tolerance on float32 products stays at their precision."""
    theta, expected = ridge_answer()
    params, decay = {"w": theta.float()}, {"decay": DECAY["decay"].float()}
    result = hg.hypergradient(ridge_problem(torch.float32), params, decay, hg.Implicit(hg.CG(rtol=1e-13)))
    assert float((result.grads["decay"].double() - expected).norm() / expected.norm()) > 1e-9


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_single_precision_with_products_in_half(low: torch.dtype) -> None:
    theta, expected = ridge_answer()
    params, decay = {"w": theta.float()}, {"decay": DECAY["decay"].float()}
    algorithm = hg.Implicit(hg.Refined(hg.CG(rtol=1e-2), low, rtol=1e-6))
    result = hg.hypergradient(ridge_problem(torch.float32), params, decay, algorithm)
    assert float((result.grads["decay"].double() - expected).norm() / expected.norm()) < 1e-5
    assert result.report.status == "converged"


def logistic(x: Callable[[Tree], Tensor]) -> hg.Problem:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        return cross_entropy(x(params) @ params["w"], CLASSES)

    return hg.Problem(
        inner,
        outer=lambda params, hparams: cross_entropy(X[:20] @ params["w"], CLASSES[:20]),
        penalty=lambda params, hparams: (hparams["decay"].exp()[:, None] * params["w"].square()).sum(),
    )


def test_logistic_regression_reaches_the_dense_answer() -> None:
    problem = logistic(lambda params: X.to(params["w"].dtype))
    params = hg.Newton(tolerance=1e-12).run(problem, {"w": torch.zeros(8, 3, dtype=torch.float64)}, DECAY).params
    exact = hg.hypergradient(problem, params, DECAY, hg.Implicit(hg.Dense())).grads["decay"]
    for preconditioner in (hg.PenaltyDiagonal(), hg.Recycled(hg.NystromPreconditioner(rank=6))):
        solver = hg.Refined(hg.CG(rtol=1e-4, preconditioner=preconditioner), rtol=1e-12)
        result = hg.hypergradient(problem, params, DECAY, hg.Implicit(solver))
        assert float((result.grads["decay"] - exact).norm() / exact.norm()) < 1e-11
        assert result.report.cost.inner_gradients == 2, "one graph in each precision"


def test_captured_data_of_double_precision_is_named() -> None:
    params = {"w": torch.zeros(8, 3, dtype=torch.float64)}
    with pytest.raises(UnsupportedError, match=r"x\.to\(params") as caught:
        hg.hypergradient(logistic(lambda _: X), params, DECAY, hg.Implicit(hg.Refined()))
    assert "float32" in str(caught.value)


def test_promotion_to_double_precision_is_named() -> None:
    """Elementwise operations with captured float64 tensors compute in float64 without a word."""
    target = torch.ones(8, dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: ((params["w"] - target).square() * hparams["decay"].exp()).sum(),
        lambda params, hparams: params["w"].square().sum(),
    )
    with pytest.raises(UnsupportedError, match="nothing is gained"):
        hg.hypergradient(problem, {"w": target}, DECAY, hg.Implicit(hg.Refined()))


def test_a_precision_that_is_no_lower_is_refused() -> None:
    theta, _ = ridge_answer()
    problem, params = ridge_problem(torch.float32), {"w": theta.float()}
    decay = {"decay": DECAY["decay"].float()}
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(UnsupportedError, match="product_dtype"):
            hg.hypergradient(problem, params, decay, hg.Implicit(hg.Refined(product_dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.int32, "float32"])
def test_a_precision_that_is_none_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"torch\.float32"):
        hg.Refined(product_dtype=dtype)


def test_nan_in_a_product_is_named() -> None:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(params["w"])
        return (length * hparams["decay"].sum()).square()

    problem = hg.Problem(inner, lambda params, hparams: (params["w"] - 1).square().sum())
    with pytest.raises(NonFiniteError, match="product 1"):
        hg.hypergradient(problem, {"w": torch.zeros(8, dtype=torch.float64)}, DECAY, hg.Implicit(hg.Refined()))


def test_an_operator_without_lower_products_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="lower"):
        hg.Refined().solve(lambda v: 2 * v, torch.ones(3, dtype=torch.float64))


def system(condition: float) -> tuple[Tensor, hg.Operator]:
    """A matrix that is rounded to float32 for its products in float32."""
    basis = torch.linalg.qr(torch.randn(30, 30, generator=GENERATOR, dtype=torch.float64)).Q
    matrix = basis * torch.logspace(0, -float(torch.tensor(condition).log10()), 30, dtype=torch.float64) @ basis.mT
    matrix = (matrix + matrix.mT) / 2

    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        rescale(y, scale, shift)
        y.add_(matrix @ v, alpha=alpha)

    def lower(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        rounded = matrix.to(dtype)
        return lambda v: rounded @ v

    return matrix, hg.Operator(product, matrix[0].clone(), lower=lower)


def test_it_stalls_where_the_products_are_too_coarse_and_says_so() -> None:
    b = torch.ones(30, dtype=torch.float64)
    solver = hg.Refined(hg.CG(rtol=1e-4, max_steps=500), rtol=1e-10)
    _, well = system(1e4)
    found = solver.solve(well, b)
    assert found.status is hg.Status.CONVERGED
    matrix, ill = system(1e12)
    found = solver.solve(ill, b)
    assert found.status is hg.Status.STALLED
    true = float((b - matrix @ found.value).norm() / b.norm())
    assert found.residual == pytest.approx(true, rel=1e-6), "the residual reported is the true one"
    assert true <= 1


def test_the_report_says_that_it_stalled() -> None:
    theta, _ = ridge_answer()
    flat = {"decay": torch.full((8,), -35.0, dtype=torch.float64)}
    narrow = X * torch.logspace(0, -5, 8, dtype=torch.float64)
    problem = ridge_problem().with_batches(inner=(narrow, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hg.errors.HypergradWarning)
        solver = hg.Refined(hg.CG(rtol=1e-6, preconditioner=None), torch.float16, rtol=1e-10)
        report = hg.hypergradient(problem, {"w": theta}, flat, hg.Implicit(solver)).report
    assert report.status == "stalled"
    assert "product_dtype" in report.notes["convergence"]


def test_negative_curvature_is_reported_where_it_stalls() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, -0.5], dtype=torch.float64))

    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        rescale(y, scale, shift)
        y.add_(matrix @ v, alpha=alpha)

    operator = hg.Operator(product, matrix[0], lower=lambda dtype: lambda v: matrix.to(dtype) @ v)
    found = hg.Refined().solve(operator, torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64))
    assert found.status is hg.Status.STALLED
    assert found.negative_curvature


def test_small_vectors_do_not_vanish_in_half_precision() -> None:
    matrix, operator = system(10.0)
    b = torch.full((30,), 1e-30, dtype=torch.float64)
    found = hg.Refined(hg.CG(rtol=1e-2), torch.float16, rtol=1e-10).solve(operator, b)
    assert float((matrix @ found.value - b).norm() / b.norm()) < 1e-10


def test_a_start_at_the_solution_needs_no_solve() -> None:
    matrix, operator = system(100.0)
    x = torch.linspace(0, 1, 30, dtype=torch.float64)
    found = hg.Refined(rtol=1e-10).solve(operator, matrix @ x, x)
    assert (found.status, found.products) == (hg.Status.CONVERGED, 1)


def test_both_graphs_see_the_same_dropout() -> None:
    def inner(params: Tree, hparams: Tree, batch: Tensor) -> Tensor:
        kept = dropout(batch, 0.5)
        return (kept @ params["w"] - 1).square().mean() + (hparams["decay"].exp() * params["w"].square()).sum()

    problem = hg.Problem(inner, lambda params, hparams: params["w"].square().sum(), inner_data=hg.Fixed(X))
    params, state = {"w": torch.ones(8, dtype=torch.float64)}, torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hg.errors.StationarityWarning)
        found = hg.hypergradient(problem, params, DECAY, hg.Implicit(hg.Refined(hg.CG(rtol=1e-4), rtol=1e-12)))
        torch.set_rng_state(state)
        exact = hg.hypergradient(problem, params, DECAY, hg.Implicit(hg.Dense()))
    assert torch.allclose(found.grads["decay"], exact.grads["decay"], rtol=1e-9)
    assert found.report.cost.products < 60, "other masks would take dozens of corrections, or stall"


def test_batches_are_converted_whatever_their_form() -> None:
    batch = {"a": [torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.long)], "b": Pair(X, "name")}
    found = converted(batch, torch.float32)
    assert (found["a"][0].dtype, found["a"][1].dtype) == (torch.float32, torch.long)
    assert (found["b"].x.dtype, found["b"].y) == (torch.float32, "name")
    assert type(found["b"]) is Pair
