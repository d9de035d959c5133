"""What cannot be compiled, or is compiled wrongly, is computed eagerly and said so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

import hypergrad as hg
from hypergrad.errors import CompileWarning, InputError, UnsupportedError
from hypergrad.solvers.bilevel import compiler
from hypergrad.solvers.bilevel.hypergradient_graph import System
from tests.compiled.common import Point, Tree, difference, fast, implicit, penalty, point, program, traced

__all__ = ["fast"]
NEUMANN = hg.Neumann(3, step=0.2)
STOPS = pytest.mark.filterwarnings("ignore:the linear solve stopped")


def fallen_back(at: Point, reason: str, algorithm: hg.Implicit | None = None) -> hg.Hypergradient:
    """Take the hypergradient, which has to be the eager one with a warning, now and the next time."""
    algorithm = algorithm or implicit(NEUMANN)
    with pytest.warns(CompileWarning, match=reason):
        found = hg.hypergradient(*at, algorithm)
    with pytest.warns(CompileWarning, match=reason):
        again = hg.hypergradient(*at, algorithm)
    eager = hg.hypergradient(*at, dataclasses.replace(algorithm, compile=False))
    for result in (found, again):
        assert all(torch.equal(value, eager.grads[key]) for key, value in result.grads.items())
        assert result.report.cost == eager.report.cost
        assert result.report.algorithm == repr(algorithm)
    return found


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("method", "reason"), [("product", "its product"), ("mixed", "its mixed product")])
def test_a_wrong_kernel_is_caught(method: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(System, method)

    def wrong(self: System, v: Tree) -> Tree:
        return {key: 1.02 * value for key, value in right(self, v).items()}

    monkeypatch.setattr(System, method, wrong)
    fallen_back(point("tanh", dtype=torch.float32), reason)
    loose = implicit(NEUMANN, compile=hg.Compiled(tolerance=0.1))
    at = point("tanh", dtype=torch.float32)
    hg.hypergradient(*at, loose)
    assert program(at[0]).refused is None


@STOPS
@pytest.mark.usefixtures("fast")
def test_a_penalty_that_gets_lost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "product", lambda self, v: self._pull(v)[0])
    fallen_back(point("logistic", apart=True), "its product", implicit(hg.CG(rtol=0.0, max_steps=3)))


@pytest.mark.usefixtures("fast")
def test_an_objective_that_leaves_the_graph_runs_eagerly() -> None:
    problem, params, hparams = point("logistic")

    def inner(params: Tree, hparams: Tree) -> Tensor:
        value: Tensor = problem.inner(params, hparams)  # type: ignore[misc]
        return value if float(value.detach()) > 0 else 2 * value

    fallen_back((hg.Problem(inner, problem.outer), params, hparams), "it failed")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        fallen_back(point("logistic"), "C.. compiler")


def noisy(rate: float = 0.5) -> Point:
    """Dropout in the inner objective."""
    problem, params, hparams = point("logistic")
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.arange(40) % 3

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return cross_entropy(dropout(x, rate) @ params["weight"], y) + penalty(params, hparams)

    return hg.Problem(inner, problem.outer), params, hparams


@STOPS
@pytest.mark.usefixtures("fast")
def test_dropout_is_the_mask_of_eager_mode_in_every_product() -> None:
    at = noisy()
    algorithm = implicit(hg.CG(rtol=0.0, max_steps=5, preconditioner=None))
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        compiled = hg.hypergradient(*at, algorithm)
        assert torch.equal(before, torch.get_rng_state())
        eager = hg.hypergradient(*at, dataclasses.replace(algorithm, compile=False))
        assert difference(compiled.grads, eager.grads) < 1e-9
    assert program(at[0]).refused is None
    assert program(at[0]).random


def test_another_dropout_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_number_late(self: Any, graph: Any, inputs: Any) -> Any:
        code = traced(self, graph, inputs)

        def run(*args: Any) -> Any:
            torch.rand(1)
            return code(*args)

        return run

    monkeypatch.setattr(compiler.Compiler, "backend", one_number_late)
    torch.manual_seed(0)
    fallen_back(noisy(), "its product")


@pytest.mark.usefixtures("fast")
def test_dropout_over_several_graphs_runs_eagerly() -> None:
    fallen_back(noisy(), "random numbers", implicit(hg.Neumann(21, step=0.1)))


@pytest.mark.usefixtures("fast")
def test_statistics_of_batch_norm_stay() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    params = {key: value.detach() for key, value in model.named_parameters()}
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3

    def loss(params: Tree, hparams: Tree) -> Tensor:
        value = cross_entropy(torch.func.functional_call(model, params, (x,)), y)
        return value + hparams["decay"].exp() * params["0.weight"].square().sum()

    before = {key: value.clone() for key, value in model.named_buffers()}
    hparams = {"decay": torch.zeros((), dtype=torch.float64)}
    problem = hg.Problem(loss, lambda params, _: params["2.weight"].square().sum())
    fallen_back((problem, params, hparams), "it failed", implicit(NEUMANN, damping=1.0))
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())
    assert all(value.grad is None for value in model.parameters())


REFUSED: dict[str, Callable[[], Any]] = {
    "solver": lambda: implicit(hg.MINRES()),
    "preconditioner": lambda: implicit(hg.CG(preconditioner=hg.Jacobi())),
    "live": lambda: hg.Live(nn.Linear(1, 1), [torch.zeros(1, requires_grad=True)], _none, _none, implicit(NEUMANN)),
    "autograd": lambda: implicit(NEUMANN).attach(*point("logistic")),
    "root": lambda: implicit(hg.Neumann(3)).init(
        hg.Problem.fixed_point(lambda params, hparams: params, _two), {"w": torch.ones(1)}, {"x": torch.ones(1)}
    ),
    "several outer batches": lambda: hg.hypergradient(
        *point("logistic"), implicit(NEUMANN), outer_batch=hg.Batches([1])
    ),
}


def _none() -> Tensor:
    return torch.zeros(())


def _two(params: Tree, hparams: Tree) -> Tensor:
    return params["w"].sum()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_never_compiled_is_refused_by_name(case: str) -> None:
    with pytest.raises(UnsupportedError, match="compile"):
        REFUSED[case]()


def test_cuda_graphs_need_a_cuda_device() -> None:
    settings = hg.Compiled(cuda_graphs=True)
    with pytest.raises(InputError, match="no CUDA graphs"):
        implicit(NEUMANN, compile=settings).init(*point("logistic"))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert settings.options(cuda)["triton.cudagraphs"] is True
    assert "triton.cudagraphs" not in hg.Compiled().options(cuda)
    assert "cpp_wrapper" not in settings.options(cuda)
    assert hg.Compiled().options(cpu)["cpp_wrapper"] is True
    assert (settings.probes, hg.Compiled().probes) == (3, 1)


@pytest.mark.parametrize("value", ["yes", 1, hg.Compiled])
def test_a_wrong_setting_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="compile"):
        hg.Implicit(NEUMANN, compile=value)
