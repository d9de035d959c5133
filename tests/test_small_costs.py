"""What keeps a hypergradient cheap gives the answers of the plain way: reverse passes, images, views, scalars."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad import guards
from hypergrad.backward import pulled_back
from hypergrad.linear import Operator
from hypergrad.problem import Problem
from hypergrad.stationarity import Stationarity, rescale
from hypergrad.tree import Tree, numbers

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


X = draw(12, 3)


def loss(params: Tree, hparams: Tree) -> Tensor:
    return ((X @ params["weight"] + params["bias"]).tanh() ** 2).sum() + hparams["x"].exp() * params["bias"].sum()


def shrinkage(params: Tree, _hparams: Tree) -> Tensor:
    return 0.5 * sum((value.pow(2).sum() for value in params.values()), start=torch.zeros((), dtype=torch.float64))


def linearised(*, apart: bool) -> Stationarity:
    params = {"weight": draw(3, 2), "bias": draw(2), "free": draw(2, 2)}
    data = loss if apart else lambda params, hparams: loss(params, hparams) + shrinkage(params, hparams)
    problem = Problem(data, loss, penalty=shrinkage if apart else None)
    return problem.linearise(params, {"x": draw(1)})


class Traced(Tensor):
    """A tensor whose operations torch hands to its own class."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def test_a_pass_is_that_of_torch_and_leaves_out_what_is_not_used() -> None:
    a, b, c = draw(3).requires_grad_(), draw(3).requires_grad_(), draw(2).requires_grad_()
    y, weight = a.sin() * b, draw(3)
    expected = torch.autograd.grad(y, [a, b], weight, retain_graph=True)
    for _ in range(2):
        found = pulled_back([y], [a, c, b], [weight], keep=True)
        assert found[1] is None
        torch.testing.assert_close((found[0], found[2]), expected, rtol=0, atol=0)
    pulled_back([y], [a], [weight])
    with pytest.raises(RuntimeError, match="second time"):
        pulled_back([y], [a], [weight])


def test_a_recorded_pass_can_be_differentiated() -> None:
    a = draw(3).requires_grad_()
    (slope,) = pulled_back([a.pow(3).sum()], [a], record=True)
    assert slope is not None
    (curvature,) = pulled_back([slope.sum()], [a])
    torch.testing.assert_close(curvature, 6 * a.detach())


def test_a_tensor_class_of_its_own_is_asked() -> None:
    a = draw(3).as_subclass(Traced).requires_grad_()
    Traced.seen.clear()
    (slope,) = pulled_back([(a * a).sum()], [a])
    assert "grad" in Traced.seen
    assert slope is not None
    torch.testing.assert_close(slope.as_subclass(Tensor), 2 * a.detach().as_subclass(Tensor))


@pytest.mark.parametrize("apart", [False, True])
def test_products_with_changing_vectors_are_the_hessian_s(apart: bool) -> None:
    if apart:
        with pytest.raises(hg.errors.UnreachedError):  # "free" enters the penalty only: the data's part has no slope
            Problem(loss, loss).linearise({"weight": draw(3, 2), "bias": draw(2), "free": draw(1)}, {"x": draw(1)})
    point = linearised(apart=apart)
    size = point.layout.size
    columns = [point.hvp(column) for column in torch.eye(size, dtype=torch.float64)]
    hessian = torch.stack(columns)
    torch.testing.assert_close(hessian, hessian.mT)
    leaves = list(point.params.values())

    def whole(*values: Tensor) -> Tensor:
        tree = dict(zip(point.params, values, strict=True))
        return loss(tree, point.hparams) + shrinkage(tree, point.hparams)

    blocks = torch.autograd.functional.hessian(whole, tuple(leaves))
    rows = [[block.reshape(a.numel(), b.numel()) for block, b in zip(row, leaves, strict=True)]
            for row, a in zip(blocks, leaves, strict=True)]  # fmt: skip
    torch.testing.assert_close(hessian, torch.cat([torch.cat(row, dim=1) for row in rows]).detach())
    v = draw(size)  # one vector that changes in place, as a solver's does
    for _ in range(3):
        y = torch.full((size,), float("nan"), dtype=torch.float64)
        operator = Operator.of(point, damping=0.5)
        operator.multiply(y, v)
        torch.testing.assert_close(y, hessian @ v + 0.5 * v)
        v.add_(y)
    torch.testing.assert_close(point.slope(v), point.residual() @ v)


def test_multiply_serves_operators_without_an_image() -> None:
    a = draw(4, 4)
    d = draw(4)

    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        image = a @ v
        rescale(y, scale, shift)
        y.add_(image, alpha=alpha)

    operator, v, y = Operator(product, d, diagonal=d, symmetric=False), draw(4), draw(4)
    operator.multiply(y, v)
    torch.testing.assert_close(y, a @ v + d * v)
    torch.testing.assert_close(operator(v), y)
    assert operator.products == 2


def definite(size: int, spread: float) -> Tensor:
    basis: Tensor = torch.linalg.qr(draw(size, size)).Q
    return basis * torch.logspace(0, spread, size, dtype=torch.float64) @ basis.mT


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_finds_the_same_with_scalars_on_the_device_and_off_it(start: bool, preconditioned: bool) -> None:
    a, b = definite(30, 3.0), draw(30)
    x0 = draw(30) if start else None
    found = []
    for every in (1, 2):
        solver = hg.CG(rtol=1e-10, max_steps=12, preconditioner=hg.Jacobi() if preconditioned else None)
        solver = hg.CG(solver.rtol, 0.0, solver.max_steps, solver.preconditioner, check_every=every)
        found.append(solver.solve(lambda v: a @ v, b, None if x0 is None else x0.clone()))
    watched, seldom = found
    assert watched.status == seldom.status
    assert watched.products == seldom.products
    assert watched.residual == pytest.approx(seldom.residual, rel=1e-6)  # later on rounding takes over
    torch.testing.assert_close(watched.value, seldom.value, rtol=1e-6, atol=1e-9)
    residual = float((b - a @ watched.value).norm() / b.norm())
    assert residual == pytest.approx(watched.residual, rel=1e-3)


def test_cg_whose_step_leaves_the_range_of_the_dtype_says_so() -> None:
    tiny = torch.full((3,), 1e-42)
    result = hg.CG(max_steps=3, preconditioner=None).solve(lambda v: tiny * v, torch.full((3,), 1e2))
    assert result.status in (hg.Status.NON_FINITE, hg.Status.NEGATIVE_CURVATURE)


def test_a_graph_is_judged_by_the_types_of_its_nodes_every_time() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return slope * 2

    a = draw(2).requires_grad_()
    apply: Any = Once.apply
    for _ in range(2):
        with pytest.raises(hg.errors.ObjectiveError, match="Once"):
            guards.inspect_graph([apply(a).sum()], [a], name="inner")


def test_numbers_come_back_in_order() -> None:
    assert numbers(torch.tensor(1.0), torch.tensor(2.5, requires_grad=True)) == [1.0, 2.5]
