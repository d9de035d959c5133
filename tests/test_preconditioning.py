"""Products that preconditioners save, on multinomial logistic regression with one penalty per weight."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import hypergrad as hg
from hypergrad.linear import Preconditioner
from hypergrad.solvers.linear.dense import materialise
from hypergrad.stationarity import Stationarity
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
    for preconditioner in (None, hg.PenaltyDiagonal(), hg.Jacobi(), hg.NystromPreconditioner(rank=30)):
        value = hg.CG(rtol=1e-12, max_steps=2000, preconditioner=preconditioner).solve(spread.operator, spread.b).value
        assert float((value - spread.solution).norm() / spread.solution.norm()) < 1e-8
