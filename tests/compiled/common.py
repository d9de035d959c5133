"""Small problems, and a compiler that traces but leaves code generation out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import hypergrad as hg
from hypergrad.solvers.bilevel.compiled import Program
from hypergrad.solvers.bilevel.compiler import Compiler

Tree = dict[str, Tensor]
Point = tuple[hg.Problem, Tree, Tree]


def traced(self: Compiler, graph: Any, inputs: Any) -> Any:
    """Run the traced graph as it is, which compiles in a second."""
    self.count += 1
    return graph


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace without code generation."""
    monkeypatch.setattr(Compiler, "backend", traced)


def penalty(params: Tree, hparams: Tree) -> Tensor:
    return 0.5 * torch.stack([(hparams[key].exp() * value.square()).sum() for key, value in params.items()]).sum()


def network(name: str, params: Tree, x: Tensor) -> Tensor:
    if name == "logistic":
        return x @ params["weight"]
    hidden = linear(x, params["first"], params["shift"])
    hidden = hidden.tanh() if name == "tanh" else hidden.relu()
    return linear(hidden, params["second"])


SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "logistic": {"weight": (5, 3)},
    "mlp": {"first": (6, 5), "shift": (6,), "second": (3, 6)},
    "tanh": {"first": (6, 5), "shift": (6,), "second": (3, 6)},
}


def point(name: str, *, apart: bool = False, dtype: torch.dtype = torch.float64, decay: float = 0.5) -> Point:
    """Return a problem with one log penalty per weight, and where to take its hypergradient."""
    generator = torch.Generator().manual_seed(1)
    x, xv = (torch.randn(40, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    y, yv = (torch.randint(3, (40,), generator=generator) for _ in range(2))

    def data(params: Tree, _hparams: Tree) -> Tensor:
        return cross_entropy(network(name, params, x), y)

    def whole(params: Tree, hparams: Tree) -> Tensor:
        return data(params, hparams) + penalty(params, hparams)

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return cross_entropy(network(name, params, xv), yv)

    params = {
        key: (0.3 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
        for key, size in SIZES[name].items()
    }
    hparams = {key: torch.full_like(value, math.log(decay)) for key, value in params.items()}
    problem = hg.Problem(data, outer, penalty=penalty) if apart else hg.Problem(whole, outer)
    return problem, params, hparams


def program(problem: hg.Problem) -> Program:
    """Return the one program that a problem keeps."""
    (found,) = problem.memo.values()
    assert isinstance(found, Program)
    return found


def implicit(linear: Any, **options: Any) -> hg.Implicit:
    return hg.Implicit(linear, **{"stationarity": math.inf, "compile": True, **options})


def difference(left: Tree, right: Tree) -> float:
    """Return the relative distance of two trees."""
    gap = sum(float((left[key] - right[key]).square().sum()) for key in left)
    return math.sqrt(gap / sum(float(value.square().sum()) for value in right.values()))


def two_steps(algorithm: hg.Implicit, at: Point) -> list[Any]:
    """Take two hypergradients, the second with the memory of the first at other hyperparameters."""
    problem, params, hparams = at
    state, found = algorithm.init(problem, params, hparams), []
    for shift in (0.0, 0.1):
        result, state = algorithm.step(problem, state, {key: value + shift for key, value in hparams.items()})
        found.append(result)
    return found
