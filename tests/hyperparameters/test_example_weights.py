"""Weights of examples and soft labels: sparse gradients equal dense ones, and no work in the size of the table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hypergrad as hg
from hypergrad.errors import InputError, LeftoverWarning, NonFiniteError, TreeError
from tests.hyperparameters.common import FIT, differences

F64 = torch.float64
N = 30
ROWS = torch.tensor([3, 7, 7, 1, 20, 29, 5, 6, 0])
QUIET = float("inf")
GENERATOR = torch.Generator().manual_seed(0)
X, XV = torch.randn(2, N, 5, dtype=F64, generator=GENERATOR)
Y, YV = torch.randint(3, (2, N), generator=GENERATOR)
GD = hg.GradientDescent(lr=0.1)
STAY_SPARSE: dict[str, hg.Algorithm[Any]] = {
    "cg": hg.Implicit(hg.CG(), stationarity=QUIET),
    "neumann": hg.Implicit(hg.Neumann(5), stationarity=QUIET),
    "identity": hg.Implicit(hg.Identity(0.1), stationarity=QUIET),
    "inner solver": hg.Implicit(hg.Dense(), inner=FIT),
    "unrolled": hg.Unrolled(4, GD),
    "unrolled, from snapshots": hg.Unrolled(4, GD, keep="sqrt"),
    "truncated": hg.Unrolled(4, GD, truncate=2),
}
GET_DENSE: dict[str, hg.Algorithm[Any]] = {
    "forward": hg.ForwardMode(2, GD, max_exact=200),
    "differences": hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=3), step_size=0.1),
    "soba": hg.SOBA(step_size=0.05),
    "saba": hg.SABA(step_size=0.05),
    "amigo": hg.AmIGO(step_size=0.05),
    "f2sa": hg.F2SA(step_size=0.05),
    "lvhba": hg.LVHBA(),
}


class Case:
    """A classifier on a regularised loss, with weights and soft labels in the training loss, and in the outer one."""

    def __init__(self, *, sparse: bool, link: Any = "sigmoid", outer_too: bool = False) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(5, 3, dtype=F64)
        self.weights = hg.ExampleWeights(N, link, sparse=sparse, dtype=F64)
        self.labels = hg.SoftLabels(N, 3, Y, sparse=sparse, dtype=F64)
        self.hparams = nn.ModuleDict({"weights": self.weights, "labels": self.labels})
        self.outer_too = outer_too
        with torch.no_grad():
            for table in self.hparams.parameters():
                table.add_(torch.randn(table.shape, dtype=F64))

    def inner(self, rows: Tensor) -> Tensor:
        losses = cross_entropy(self.model(X[rows]), self.labels(rows), reduction="none")
        shrink = torch.stack([tensor.square().sum() for tensor in self.model.parameters()]).sum()
        value: Tensor = (self.weights(rows) * losses).mean() + 0.1 * shrink
        return value

    def outer(self) -> Tensor:
        value = cross_entropy(self.model(XV), YV)
        if self.outer_too:
            rows = torch.tensor([2, 3, 3])
            value = value + self.weights(rows).square().mean() + cross_entropy(self.model(X[rows]), self.labels(rows))
        return value

    def gradients(self, algorithm: hg.Algorithm[Any], calls: int = 2) -> list[Tensor]:
        """What several calls add up to."""
        torch.manual_seed(2)
        live = hg.Live(self.model, self.hparams, self.inner, self.outer, algorithm)
        for _ in range(calls):
            live.backward(ROWS)
        found = [table.grad for table in self.hparams.parameters()]
        assert all(grad is not None for grad in found)
        return [grad for grad in found if grad is not None]


@pytest.mark.parametrize("outer_too", [False, True], ids=["inner", "outer, too"])
@pytest.mark.parametrize("name", STAY_SPARSE)
def test_sparse_gradients_equal_dense_ones(name: str, outer_too: bool) -> None:
    dense = Case(sparse=False, outer_too=outer_too).gradients(STAY_SPARSE[name])
    sparse = Case(sparse=True, outer_too=outer_too).gradients(STAY_SPARSE[name])
    touched = len(set(ROWS.tolist()) | ({2, 3} if outer_too else set()))
    for one, other in zip(dense, sparse, strict=True):
        assert not one.is_sparse
        assert other.is_sparse
        assert other.coalesce().indices().shape[1] == touched
        assert torch.allclose(one, other.to_dense(), rtol=1e-10, atol=1e-14)
        assert bool(one.abs().max() > 0)


@pytest.mark.parametrize("name", GET_DENSE)
def test_other_algorithms_give_the_same_numbers(name: str) -> None:
    dense, sparse = (Case(sparse=sparse).gradients(GET_DENSE[name]) for sparse in (False, True))
    for one, other in zip(dense, sparse, strict=True):
        assert torch.allclose(one, other.to_dense(), rtol=1e-10, atol=1e-14)
        assert bool(one.abs().max() > 0)


@pytest.mark.parametrize("link", ["sigmoid", "softmax", "identity"])
def test_hypergradient_is_the_slope_of_retrained_models(link: Any) -> None:
    case = Case(sparse=True, link=link)
    with torch.no_grad():
        case.weights.example_weights.abs_()  # weights above 0, so that the training loss has one minimum
    found = case.gradients(hg.Implicit(hg.Dense(), inner=FIT), calls=1)

    def retrained() -> float:
        twin = copy.deepcopy(case.model)
        names = [name for name, _ in twin.named_parameters()]
        weights, labels = case.weights(ROWS).detach(), case.labels(ROWS).detach()

        def call(params: dict[str, Tensor], x: Tensor) -> Any:
            return torch.func.functional_call(twin, params, x)

        def inner(params: dict[str, Tensor], _: Any) -> Tensor:
            losses = cross_entropy(call(params, X[ROWS]), labels, reduction="none")
            shrink = torch.stack([params[name].square().sum() for name in names]).sum()
            value: Tensor = (weights * losses).mean() + 0.1 * shrink
            return value

        start = {name: value.detach() for name, value in twin.named_parameters()}
        done = FIT.run(hg.Problem(inner, inner), start, {"x": torch.zeros((), dtype=F64)})
        return float(cross_entropy(call(done.params, XV), YV))

    expected = differences(retrained, case.weights.example_weights)
    assert torch.allclose(found[0].to_dense(), expected, rtol=1e-4, atol=1e-8)


def test_gradients_of_both_kinds_add_up() -> None:
    """A dense gradient that is there, and one that comes: sums in either order."""
    case, other = Case(sparse=True), Case(sparse=False)
    algorithm = STAY_SPARSE["cg"]
    one = other.gradients(algorithm, calls=1)
    for table in case.hparams.parameters():
        table.grad = torch.ones_like(table)
    with pytest.warns(LeftoverWarning):
        found = case.gradients(algorithm, calls=1)
    for grad, alone in zip(found, one, strict=True):
        assert torch.allclose(grad, 1 + alone)
    for table in other.hparams.parameters():
        table.grad = torch.zeros_like(table).to_sparse()
    for grad, alone in zip(other.gradients(algorithm, calls=1), one, strict=True):
        assert torch.allclose(grad, alone)


BUILDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sgd": (torch.optim.SGD, torch.optim.SGD),
    "adam": (torch.optim.SparseAdam, torch.optim.Adam),
}


@pytest.mark.parametrize("name", BUILDS)
def test_moves_are_those_of_dense_gradients(name: str) -> None:
    """SGD on any batch; the lazy Adam is Adam where every batch has all rows, and eps is next to 0."""
    batches = [torch.randperm(N) if name == "adam" else torch.randint(N, (9,)) for _ in range(6)]
    tables = []
    for sparse, build in zip((True, False), BUILDS[name], strict=True):
        case = Case(sparse=sparse)
        options = {"eps": 1e-30} if name == "adam" else {}
        optimizer = build(list(case.hparams.parameters()), lr=0.1, **options)
        live = hg.Live(case.model, case.hparams, case.inner, case.outer, STAY_SPARSE["cg"])
        for rows in batches:
            optimizer.zero_grad()
            live.backward(rows)
            optimizer.step()
        tables.append([table.detach() for table in case.hparams.parameters()])
    for one, other in zip(*tables, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def test_lazy_adam_leaves_other_rows_alone() -> None:
    weights = hg.ExampleWeights(5, dtype=F64)
    optimizer = torch.optim.SparseAdam(weights.parameters(), lr=0.1)
    for rows in (torch.tensor([0, 1]), torch.tensor([1, 2])):
        optimizer.zero_grad()
        weights(rows).sum().backward()
        optimizer.step()
        held = weights.example_weights.detach().clone()
    assert bool((held[:3] < 0).all())
    assert held[3:].tolist() == [0.0, 0.0]
    assert float(held[0]) == pytest.approx(-0.1, rel=1e-5)


class Large(TorchDispatchMode):
    """Names the operations on dense tensors of at least so many entries."""

    def __init__(self, entries: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries, self.made, self.seen = entries, 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))

        def large(value: Any) -> bool:
            return isinstance(value, Tensor) and not value.is_sparse and value.numel() >= self.entries

        given = [value for value in tree_leaves((args, kwargs or {})) if large(value)]
        if given or any(large(value) for value in tree_leaves(out)):
            self.seen.add(func.overloadpacket.__name__)
        memory = {value.untyped_storage().data_ptr() for value in given}
        self.made += sum(value.untyped_storage().data_ptr() not in memory for value in tree_leaves(out) if large(value))
        return out


VIEWS = {"detach", "alias", "view", "_unsafe_view", "expand"}
ROW_WISE = {"gather", "embedding", "add_", "sparse_mask", "index_select", "_sparse_mask_helper"}


@pytest.mark.parametrize("name", ["cg", "neumann", "inner solver", "unrolled"])
@pytest.mark.parametrize("build", [torch.optim.SparseAdam, torch.optim.SGD])
def test_an_outer_step_does_nothing_on_the_whole_table(name: str, build: Any) -> None:
    """After the first step, which makes the optimizer's state: no new large tensor, and row-wise operations only."""
    n = 4000
    torch.manual_seed(0)
    model, weights = nn.Linear(5, 3, dtype=F64), hg.ExampleWeights(n, dtype=F64)
    labels = hg.SoftLabels(n, 3, dtype=F64)
    both = nn.ModuleDict({"weights": weights, "labels": labels})

    def inner(rows: Tensor) -> Tensor:
        losses = cross_entropy(model(X), labels(rows), reduction="none")
        value: Tensor = (weights(rows) * losses).mean() + 0.1 * model.weight.square().sum()
        return value + 0.1 * model.bias.square().sum()

    optimizer = build(list(both.parameters()), lr=0.1)
    live = hg.Live(model, both, inner, lambda: cross_entropy(model(XV), YV), STAY_SPARSE[name])

    def step() -> None:
        rows = torch.randint(n, (N,))
        optimizer.zero_grad()
        live.backward(rows)
        optimizer.step()

    step()
    with Large(n) as watched:
        step()
    assert watched.seen
    assert watched.seen - VIEWS - ROW_WISE == set()
    assert watched.made == 0


def test_the_watch_sees_dense_steps() -> None:
    """The same watch on dense gradients finds what it looks for."""
    weights = hg.ExampleWeights(4000, sparse=False)
    with Large(4000) as watched:
        weights(ROWS).sum().backward()
    assert watched.made > 0
    assert watched.seen - VIEWS - ROW_WISE


def test_read_gives_dense_gradients_and_the_same_values() -> None:
    case = Case(sparse=True)
    for module, table in zip((case.weights, case.labels), case.hparams.parameters(), strict=True):
        module(ROWS).square().sum().backward()
        sparse, table.grad = table.grad, None
        other = {name: value.detach().clone().requires_grad_() for name, value in module.tree().items()}
        module.read(other, ROWS).square().sum().backward()
        (dense,) = (value.grad for value in other.values())
        assert dense is not None
        assert sparse is not None
        assert not dense.is_sparse
        assert torch.allclose(dense, sparse.to_dense())
        with pytest.raises(TreeError, match=r"example_weights|soft_labels"):
            module.read({}, ROWS)


def test_a_run_moves_the_table() -> None:
    weights = hg.ExampleWeights(N, dtype=F64)
    problem = hg.Problem(
        lambda p, raw: (
            (weights.read(raw, ROWS) * cross_entropy(X[ROWS] @ p["w"], Y[ROWS], reduction="none")).mean()
            + 0.1 * p["w"].square().sum()
        ),
        lambda p, raw: cross_entropy(XV @ p["w"], YV),
    )
    run = hg.Run(
        problem,
        hg.Implicit(hg.Dense(), inner=FIT),
        {"w": torch.zeros(5, 3, dtype=F64)},
        weights.tree(),
        hg.outer.Torch(torch.optim.Adam, lr=0.1, clip=1.0),
    )
    losses = [run.step().outer_loss for _ in range(5)]
    assert losses[-1] < losses[0]
    assert sorted(run.hparams["example_weights"].nonzero().flatten().tolist()) == sorted(set(ROWS.tolist()))


def regression(weights: hg.ExampleWeights) -> hg.Problem:
    """Calls the module with other tensors in its place."""

    def inner(params: Any, raw: Any) -> Tensor:
        errors = (X[ROWS] @ params["w"] - Y[ROWS]).square()
        weighted = (torch.func.functional_call(weights, raw, (ROWS,)) * errors).mean()
        value: Tensor = weighted + 0.1 * params["w"].square().sum()
        return value

    return hg.Problem(inner, lambda params, raw: (XV @ params["w"] - YV).square().mean())


@pytest.mark.parametrize(
    "algorithm", [hg.Implicit(hg.Dense(), inner=FIT), hg.Unrolled(3, GD)], ids=["implicit", "unrolled"]
)
def test_sparse_gradients_in_functional_faces(algorithm: hg.Algorithm[Any]) -> None:
    """One call, a run, the autograd face and the check, against dense gradients."""
    found = []
    for sparse, build in ((False, torch.optim.Adam), (True, torch.optim.SparseAdam)):
        weights = hg.ExampleWeights(N, sparse=sparse, dtype=F64)
        problem = regression(weights)
        start = {"w": torch.zeros(5, dtype=F64)}
        one = hg.hypergradient(problem, start, weights.tree(), algorithm).grads["example_weights"]
        trained = hg.solve(problem, start, weights.tree(), algorithm)
        (XV @ trained["w"] - YV).square().mean().backward()
        two = weights.example_weights.grad
        assert two is not None
        assert one.is_sparse == two.is_sparse == sparse
        run = hg.Run(problem, algorithm, start, weights.tree(), hg.outer.Torch(build, lr=0.1, eps=1e-30))
        norm = run.step().norm
        assert norm == pytest.approx(float(one.to_dense().norm()))
        assert hg.check(problem, start, weights.tree(), algorithm, verbose=False).verdict == "agrees"
        found.append((one.to_dense(), two.to_dense(), run.hparams["example_weights"]))
    for dense, rows in zip(*found, strict=True):
        assert torch.allclose(dense, rows, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[0][0], found[0][1], rtol=1e-6, atol=1e-10)


def test_nan_in_a_row_is_named() -> None:
    case = Case(sparse=True)

    def outer() -> Tensor:
        value: Tensor = case.outer() + (case.weights(ROWS) * 0).sqrt().sum()
        return value

    live = hg.Live(case.model, case.weights, case.inner, outer, STAY_SPARSE["cg"])
    with pytest.raises(NonFiniteError, match="example_weights"):
        live.backward(ROWS)
    assert case.weights.example_weights.grad is None


def test_second_derivatives_through_rows() -> None:
    """A gradient penalty over the table, which differentiates the sparse gradient itself."""
    values = []
    for sparse in (False, True):
        weights = hg.ExampleWeights(6, "identity", initial=2.0, sparse=sparse, dtype=F64)
        scale = torch.tensor(3.0, dtype=F64, requires_grad=True)
        rows = torch.tensor([1, 4, 4])
        (slope,) = torch.autograd.grad((scale * weights(rows) ** 2).sum(), weights.example_weights, create_graph=True)
        total = torch.sparse.sum(slope) if sparse else slope.sum()
        values.append(float(torch.autograd.grad(total, scale)[0]))
    assert values == [12.0, 12.0]


def test_starts_and_links() -> None:
    index = torch.tensor([[0, 1], [2, 2]])
    assert hg.ExampleWeights(3, initial=0.8)(index).tolist() == [[pytest.approx(0.8)] * 2] * 2
    assert hg.ExampleWeights(3, "identity")(index).tolist() == [[1.0, 1.0]] * 2
    assert hg.ExampleWeights(3, "softmax")(index[0]).tolist() == [0.5, 0.5]
    assert hg.SoftLabels(3, 4)(index).tolist() == [[[0.25] * 4] * 2] * 2
    soft = hg.SoftLabels(3, 4, torch.tensor([3, 0, 1]), confidence=0.7)(torch.tensor([0]))
    assert soft.tolist() == [[pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.7)]]


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: hg.ExampleWeights(0), "n > 0"),
    "link": (lambda: hg.ExampleWeights(3, "sigmod"), "did you mean 'sigmoid'"),  # type: ignore[arg-type]
    "initial": (lambda: hg.ExampleWeights(3, initial=1.0), "< 1"),
    "nan": (lambda: hg.ExampleWeights(3, "identity", initial=float("nan")), "a number"),
    "mask": (lambda: hg.ExampleWeights(3)(torch.tensor([True, False, True])), "whole numbers"),
    "float": (lambda: hg.ExampleWeights(3)(torch.tensor([1.0])), "whole numbers"),
    "list": (lambda: hg.ExampleWeights(3)([1, 2]), "whole numbers"),
    "no labels": (lambda: hg.SoftLabels(0, 2), "n > 0"),
    "classes": (lambda: hg.SoftLabels(3, 1), "classes >= 2"),
    "confidence": (lambda: hg.SoftLabels(3, 2, confidence=0.5), "> 0.5"),
    "labels": (lambda: hg.SoftLabels(3, 2, torch.tensor([0, 1])), "3 labels"),
    "labels out of range": (lambda: hg.SoftLabels(2, 2, torch.tensor([0, 2])), "from 0 to 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()
