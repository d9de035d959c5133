"""Products that preconditioners save, on multinomial logistic regression with one penalty per weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import hypergrad as hg
from hypergrad import tree
from hypergrad.preconditioner import Preconditioner
from hypergrad.solvers.linear.dense import materialise
from hypergrad.stationarity import Stationarity, rescale
from hypergrad.tree import Tree

DATA, TARGET = load_digits(return_X_y=True)
X, Y = torch.tensor(DATA / 16), torch.tensor(TARGET)
ORDER = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
TRAIN, VALID = ORDER[:900], ORDER[900:]
START = {"weight": torch.zeros(64, 10, dtype=X.dtype), "bias": torch.zeros(10, dtype=X.dtype)}


def loss(params: Tree, rows: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(X[rows] @ params["weight"] + params["bias"], Y[rows])


PROBLEM = hg.Problem(
    inner=lambda params, _: loss(params, TRAIN),
    outer=lambda params, _: loss(params, VALID),
    penalty=lambda params, hparams: 0.5 * sum((hparams[k].exp() * v.square()).sum() for k, v in params.items()),
)


@dataclass
class System:
    """H q = b at one point, with the exact solution."""

    stationarity: Stationarity
    matrix: Tensor
    b: Tensor
    solution: Tensor

    @property
    def condition(self) -> float:
        values = torch.linalg.eigvalsh(self.matrix)
        return float(values[-1] / values[0])

    def products(self, preconditioner: Preconditioner | None, *, prepared: bool = False) -> int:
        """Products until the relative error of the solution is at most 1e-4, those for building included."""
        memory: hg.linear.Memory = {}
        if prepared:
            first = hg.CG(max_steps=1, preconditioner=preconditioner).solve(self.operator, self.b)
            memory = first.memory
        low, high = 0, 1024
        while high - low > 1:
            steps = (low + high) // 2
            low, high = (low, steps) if self._error(preconditioner, steps, memory) <= 1e-4 else (steps, high)
        known = self.operator
        return (
            hg.CG(rtol=1e-15, max_steps=high, preconditioner=preconditioner)
            .solve(known, self.b, memory=memory)
            .products
        )

    @property
    def operator(self) -> hg.Operator:
        return hg.Operator.of(self.stationarity)

    def _error(self, preconditioner: Preconditioner | None, steps: int, memory: hg.linear.Memory) -> float:
        solver = hg.CG(rtol=1e-15, max_steps=steps, preconditioner=preconditioner)
        value = solver.solve(self.operator, self.b, memory=memory).value
        return float((value - self.solution).norm() / self.solution.norm())


def system(trained_with: Tree, penalties: Tree) -> System:
    params = hg.Newton(tolerance=1e-10, steps=100).run(PROBLEM, START, trained_with).params
    point = PROBLEM.linearise(params, penalties)
    matrix = materialise(hg.Operator.of(point))
    b = point.layout.flatten(PROBLEM.outer_gradients(params, penalties).params)
    solution: Tensor = torch.linalg.solve(matrix, b)
    return System(point, matrix, b, solution)


def penalties(low: float, high: float) -> Tree:
    generator = torch.Generator().manual_seed(0)
    return {k: low + (high - low) * torch.rand(v.shape, generator=generator, dtype=v.dtype) for k, v in START.items()}


@pytest.fixture(scope="module")
def spread() -> System:
    """Penalties over e^-10 … e^0, at the weights of a model trained with a small shared penalty."""
    return system({k: torch.full_like(v, -9.0) for k, v in START.items()}, penalties(-10.0, 0.0))


@pytest.fixture(scope="module")
def spread_optimum() -> System:
    """The same penalties at their own optimum."""
    return system(penalties(-10.0, 0.0), penalties(-10.0, 0.0))


@pytest.fixture(scope="module")
def nearly_equal() -> System:
    return system(penalties(-12.1, -11.9), penalties(-12.1, -11.9))


def test_spread_penalties(spread: System) -> None:
    assert spread.condition == pytest.approx(2e4, rel=0.1)
    assert spread.products(None) > 400
    assert spread.products(hg.PenaltyDiagonal()) <= 60
    assert spread.products(hg.CG().preconditioner) <= 60, "the default"
    assert spread.products(hg.NystromPreconditioner(rank=50), prepared=True) <= 15


def test_spread_penalties_at_their_own_optimum(spread_optimum: System) -> None:
    assert spread_optimum.condition == pytest.approx(2e4, rel=0.1)
    assert spread_optimum.products(None) > 400
    assert spread_optimum.products(hg.PenaltyDiagonal()) <= 75
    assert spread_optimum.products(hg.NystromPreconditioner(rank=50), prepared=True) <= 25


def test_nearly_equal_penalties(nearly_equal: System) -> None:
    plain = nearly_equal.products(None)
    assert nearly_equal.condition == pytest.approx(5e3, rel=0.2)
    assert plain == pytest.approx(98, abs=8)
    assert nearly_equal.products(hg.NystromPreconditioner(rank=50), prepared=True) <= 30
    assert nearly_equal.products(hg.PenaltyDiagonal()) <= plain + 1
    assert nearly_equal.products(hg.Jacobi(probes=5)) > plain, "Jacobi is worse than none here"


def test_nystrom_keeps_its_sketch_over_outer_steps(spread: System) -> None:
    solver = hg.CG(rtol=1e-6, max_steps=200, preconditioner=hg.NystromPreconditioner(rank=50, oversample=10))
    first = solver.solve(spread.operator, spread.b)
    second = solver.solve(spread.operator, spread.b, memory=first.memory)
    assert first.products - second.products == 60
    assert torch.equal(first.value, second.value)


def test_nystrom_refreshes_when_asked(spread: System) -> None:
    solver = hg.CG(rtol=1e-2, preconditioner=hg.NystromPreconditioner(rank=5, oversample=0, refresh=2))
    memory: hg.linear.Memory = {}
    costs = []
    for _ in range(4):
        result = solver.solve(spread.operator, spread.b, memory=memory)
        memory = result.memory
        costs.append(result.products)
    assert costs[0] - costs[1] >= 4
    assert costs[2] - costs[3] >= 4


NARROW = dataclasses.replace(
    PROBLEM,
    inner=lambda params, _: torch.nn.functional.cross_entropy(X[TRAIN][:, ::3] @ params["weight"], Y[TRAIN]),
    outer=lambda params, _: torch.nn.functional.cross_entropy(X[VALID][:, ::3] @ params["weight"], Y[VALID]),
)


def moving(*preconditioners: Preconditioner) -> list[tuple[list[int], list[float]]]:
    """Return the products and errors of four outer steps whose penalties move, retrained."""
    generator = torch.Generator().manual_seed(1)
    params = {"weight": torch.zeros(22, 10, dtype=X.dtype)}
    hparams = {"weight": torch.full_like(params["weight"], -12.0)}
    algorithms = [hg.Implicit(hg.CG(rtol=1e-6, max_steps=1000, preconditioner=p)) for p in preconditioners]
    states = [algorithm.init(NARROW, params, hparams) for algorithm in algorithms]
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in algorithms]
    for _ in range(4):
        params = hg.Newton(tolerance=1e-9, steps=100).run(NARROW, params, hparams).params
        exact = hg.hypergradient(NARROW, params, hparams, hg.Implicit(hg.Dense())).grads["weight"]
        for place, algorithm in enumerate(algorithms):
            state = dataclasses.replace(states[place], params=params)
            result, states[place] = algorithm.step(NARROW, state, tree.leaves(hparams))
            found[place][0].append(result.report.cost.products)
            found[place][1].append(float((result.grads["weight"] - exact).norm() / exact.norm()))
        moved = 0.1 * torch.randn(22, 10, generator=generator, dtype=X.dtype)
        hparams = {"weight": hparams["weight"] + moved}
    return found


def test_recycled_products_shorten_the_solves_of_a_moving_point() -> None:
    sketched = hg.Recycled(hg.NystromPreconditioner(rank=20, oversample=0), keep=200)
    (plain, _), (recycled, errors) = moving(hg.PenaltyDiagonal(), sketched)
    assert max(errors) < 1e-5
    assert recycled == sorted(recycled, reverse=True)
    assert 3 * sum(recycled[1:]) < sum(plain[1:])


def test_a_refined_preconditioner_is_the_inverse_on_what_it_has_seen(spread: System) -> None:
    """M⁻¹ A s = s for the directions of the last solve, and M⁻¹ is symmetric and positive definite."""
    preconditioner = hg.Recycled(keep=40)
    memory: hg.linear.Memory = {}
    for steps in (10, 15):
        solver = hg.CG(rtol=1e-15, max_steps=steps, preconditioner=preconditioner)
        memory = solver.solve(spread.operator, spread.b, memory=memory).memory
    assert memory["sizes"] == [10, 15]
    apply, _ = preconditioner.build(spread.operator, memory)
    assert apply is not None
    for direction in memory["directions"][10:]:
        image = apply(spread.matrix @ direction)
        assert float((image - direction).norm()) < 1e-8
    inverse = torch.stack([apply(column) for column in torch.eye(len(spread.b), dtype=spread.b.dtype)])
    assert torch.allclose(inverse, inverse.mT, atol=1e-9 * float(inverse.abs().max()))
    assert float(torch.linalg.eigvalsh((inverse + inverse.mT) / 2)[0]) > 0


def test_a_refined_preconditioner_follows_the_penalty(spread: System) -> None:
    """The penalty's part of what was kept is that of the present penalty, so that no product is needed for it."""
    solver = hg.CG(rtol=1e-15, max_steps=12, preconditioner=hg.Recycled(keep=12))
    memory = solver.solve(spread.operator, spread.b, memory={}).memory
    assert spread.stationarity.diagonal is not None
    diagonal = 3 * spread.stationarity.diagonal.clone()
    data = spread.matrix - torch.diag(diagonal / 3)

    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        rescale(y, scale, shift)
        y.add_(data @ v, alpha=alpha)

    other = hg.Operator(product, spread.b, diagonal=diagonal)
    apply, _ = hg.Recycled(keep=12).build(other, memory)
    assert apply is not None
    for direction in memory["directions"]:
        assert float((apply(data @ direction + diagonal * direction) - direction).norm()) < 1e-8
    assert other.products == 0, "the probe of the penalty's diagonal is kept as well"


def test_recycling_starts_anew_once_the_point_has_wandered_off() -> None:
    """All goes once the products beyond the fewest add up to more than those of the first solve, 30."""
    preconditioner, row = hg.Recycled(keep=3), torch.ones(1, 4)
    memory = preconditioner.learn({}, row, row, 30)
    for products, excess in ((10, 0), (20, 10), (8, 10), (20, 22), (16, 30)):
        memory = preconditioner.learn(memory, row[:0], row[:0], products)
        assert (memory["excess"], memory["sizes"]) == (excess, [1])
    assert preconditioner.learn(memory, row[:0], row[:0], 9) == {}


def test_recycling_keeps_what_there_is_room_for() -> None:
    a = torch.logspace(-3, 0, 60, dtype=torch.float64)
    solver = hg.CG(rtol=1e-4, max_steps=200, preconditioner=hg.Recycled(keep=25))
    b = torch.ones(60, dtype=torch.float64)
    memory: hg.linear.Memory = {}
    for scale in (1.0, 1.1, 1.2):
        memory = solver.solve(lambda v, scale=scale: scale * a * v, b, memory=memory).memory  # type: ignore[misc]
    assert sum(memory["sizes"]) == len(memory["directions"]) == len(memory["images"]) == 25
    sizes = [*memory["sizes"], 0, 0][:3]
    scales = torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
    assert torch.allclose(memory["images"], scales[:, None] * a * memory["directions"])


def test_recycling_keeps_nothing_of_a_broken_product() -> None:
    def broken(v: Tensor) -> Tensor:
        return v * torch.nan

    result = hg.CG(preconditioner=hg.Recycled()).solve(broken, torch.ones(3))
    assert result.status is hg.Status.NON_FINITE
    assert not result.memory


def nearly_diagonal() -> tuple[Tensor, Tensor]:
    """A matrix of condition 1e4 that a diagonal explains."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, generator=generator, dtype=torch.float64) / 200**0.5
    root = torch.logspace(-1, 1, 200, dtype=torch.float64)
    matrix = root[:, None] * (torch.eye(200, dtype=torch.float64) + 0.05 * (noise + noise.mT)) * root
    return matrix, torch.randn(200, generator=generator, dtype=torch.float64)


def iterations(matrix: Tensor, b: Tensor, preconditioner: Preconditioner | None) -> int:
    result = hg.CG(rtol=1e-8, max_steps=2000, preconditioner=preconditioner).solve(lambda v: matrix @ v, b)
    return result.products - (0 if preconditioner is None else preconditioner.budget(len(b)))


def test_hutchinson_jacobi_pays_on_a_nearly_diagonal_matrix() -> None:
    matrix, b = nearly_diagonal()
    counts = [iterations(matrix, b, None), *(iterations(matrix, b, hg.Jacobi(probes=k)) for k in (1, 5, 10, 50))]
    assert counts[0] > 300
    assert counts[1] < 0.3 * counts[0]
    assert counts == sorted(counts, reverse=True)
    exact = hg.Jacobi(probes=2000)
    assert iterations(matrix, b, exact) <= 20


def test_hutchinson_diagonal_has_its_variance() -> None:
    """Entry i of v ⊙ Hv has the mean H_ii and the variance Σ_{j≠i} H_ij²."""
    from hypergrad.solvers.linear.preconditioners import rademacher

    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT
    like = hg.Operator(lambda *_: None, matrix[0])
    probes = torch.stack([rademacher(like, seed) for seed in range(20000)])
    samples = probes * (probes @ matrix)
    assert torch.allclose(samples.mean(0), matrix.diagonal(), atol=0.15)
    expected = matrix.square().sum(1) - matrix.diagonal().square()
    assert torch.allclose(samples.var(0), expected, rtol=0.05)


def test_preconditioned_answers_are_as_exact(spread: System) -> None:
    for preconditioner in (None, hg.PenaltyDiagonal(), hg.Jacobi(), hg.NystromPreconditioner(rank=30), hg.Recycled()):
        value = hg.CG(rtol=1e-12, max_steps=2000, preconditioner=preconditioner).solve(spread.operator, spread.b).value
        assert float((value - spread.solution).norm() / spread.solution.norm()) < 1e-8
