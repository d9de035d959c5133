"""Several products with one graph in one reverse pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, group_norm, layer_norm

import hypergrad as hg
from hypergrad.backward import widest
from hypergrad.solvers.linear.dense import materialise
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Tree

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(3, (40,), generator=GENERATOR)
SHAPES = {"first": (6, 8), "shift": (8,), "second": (8, 3)}
PARAMS = {key: 0.5 * torch.randn(shape, generator=GENERATOR, dtype=torch.float64) for key, shape in SHAPES.items()}
HPARAMS = {"decay": torch.zeros((), dtype=torch.float64)}
VECTORS = torch.randn(9, 80, generator=GENERATOR, dtype=torch.float64)

HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "smooth": torch.tanh,
    "kinked": torch.relu,
    "layer_norm": lambda h: layer_norm(h, (8,)),
    "group_norm": lambda h: group_norm(h, 2),
}


def problem(hidden: Callable[[Tensor], Tensor], *, penalised: bool = True) -> hg.Problem:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        return cross_entropy(hidden(X @ params["first"] + params["shift"]) @ params["second"], Y)

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        total = torch.stack([value.square().sum() for value in params.values()]).sum()
        return 0.5 * hparams["decay"].exp() * total

    return hg.Problem(inner, outer=inner, penalty=penalty if penalised else None)


def one_by_one(point: Stationarity, vectors: Tensor) -> Tensor:
    rows = torch.zeros_like(vectors)
    for row, v in zip(rows, vectors, strict=True):
        point.update(row, v, 1.0)
    return rows


@pytest.mark.parametrize("name", HIDDEN)
def test_products_of_a_block_are_those_of_its_rows(name: str) -> None:
    point = problem(HIDDEN[name]).linearise(PARAMS, HPARAMS)
    expected = one_by_one(point, VECTORS)
    made = point.products
    assert torch.allclose(point.images(VECTORS), expected, rtol=0, atol=1e-14)
    assert point.products - made == len(VECTORS) == 9
    if name == "group_norm":
        assert point.unbatched, "torch has no batched second derivative of group_norm"
        assert torch.equal(point.images(VECTORS), expected), "one by one from now on"
    else:
        assert point.unbatched is None


def test_a_block_is_cut_by_the_size_of_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows a pass, and fewer where they would have more than 2¹⁶ entries or their activations more than 2²⁰."""
    passes: list[int] = []
    together = Stationarity._together

    def counted(self: Stationarity, vectors: Tensor) -> Tensor:
        passes.append(len(vectors))
        return together(self, vectors)

    monkeypatch.setattr(Stationarity, "_together", counted)
    x, wide = torch.ones(2, 1000), {"w": torch.ones(1000, 2)}

    def loss(rows: Tensor) -> Callable[[Tree, Tree], Tensor]:
        return lambda params, hparams: (rows @ params["w"]).square().sum() * hparams["decay"].exp()

    decay = {"decay": torch.zeros(())}
    few = hg.Problem(loss(x), loss(x)).linearise(wide, decay)
    few.images(torch.ones(70, 2000))
    assert passes == [32, 32, 6]
    passes.clear()
    small = {"w": torch.ones(2, 20)}
    many = hg.Problem(loss(torch.ones(10000, 2)), loss(x)).linearise(small, decay)
    assert widest(list(many.ends().values())) == 200000
    many.images(torch.ones(6, 40))
    assert passes == [5, 1]
    passes.clear()
    huge = hg.Problem(loss(torch.ones(60000, 2)), loss(x)).linearise(small, decay)
    assert torch.equal(huge.images(torch.ones(3, 40)), one_by_one(huge, torch.ones(3, 40)))
    assert passes == []


def test_a_parameter_without_curvature_has_rows_of_zeros() -> None:
    bilinear = hg.Problem(
        lambda params, hparams: (params["a"].square() * hparams["x"]).sum() + params["b"].sum(),
        lambda params, hparams: params["a"].sum(),
    )
    point = bilinear.linearise({"a": torch.ones(2), "b": torch.ones(3)}, {"x": torch.ones(2)})
    rows = point.images(torch.ones(4, 5))
    assert torch.equal(rows, torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0]).expand(4, 5))


def test_a_change_in_place_is_named() -> None:
    params = {key: value.clone() for key, value in PARAMS.items()}
    point = problem(torch.tanh).linearise(params, HPARAMS)
    params["second"].mul_(2)
    with pytest.raises(hg.errors.InputError, match="in place"):
        point.images(VECTORS)


@pytest.mark.parametrize("penalised", [False, True])
def test_solvers_make_as_many_products_in_blocks(penalised: bool) -> None:
    """Dense, the sketch and Hutchinson's diagonal: same counts and same numbers as row by row."""
    solvers = {
        hg.Dense(): 80,
        hg.Nystrom(rank=20, damping=1e-2): 21,
        hg.CG(rtol=1e-8, preconditioner=hg.Jacobi(probes=7), max_steps=1): 8,
    }
    b = VECTORS[0]
    for solver, expected in solvers.items():
        point = problem(torch.tanh, penalised=penalised).linearise(PARAMS, HPARAMS)
        plain = hg.Operator(point.update, b, diagonal=point.diagonal)
        blocks = hg.Operator.of(point)
        found, reference = solver.solve(blocks, b), solver.solve(plain, b)
        assert found.products == reference.products == blocks.products == expected
        assert torch.allclose(found.value, reference.value, rtol=1e-6)
    assert torch.allclose(materialise(blocks), materialise(plain), atol=1e-14)
