"""Memory that runs out in any pass: said plainly, nothing changed, and the next call is as if nothing had happened."""

from __future__ import annotations

import gc
import math
import random
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import OutOfMemoryError
from tests.bad_input.common import refused, start, unchanged
from tests.live.common import X, Y

ERRORS: dict[str, BaseException] = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nDetails"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    ),
    "python": MemoryError("Unable to allocate 20 GiB"),
}


class Bomb:
    """An identity whose backward pass fails in its ``at``-th run, counted over all passes."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.runs, self.at = error, 0, 0

    def tick(self) -> None:
        self.runs += 1
        if self.error is not None and self.runs == self.at:
            raise self.error

    def __call__(self, x: Tensor) -> Tensor:
        apply: Any = _Pass.apply
        out: Tensor = apply(x, self)
        return out


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bomb: Bomb) -> Tensor:
        ctx.bomb = bomb
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.bomb.tick()
        return ctx.bomb(grads[0]), None


class Net(nn.Module):
    def __init__(self, bomb: Bomb) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.2)
        self.last, self.bomb = nn.Linear(2, 1), bomb

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(self.norm(self.bomb(self.first(x))).tanh()))
        return out


def build(bomb: Bomb, algorithm: Any) -> tuple[hg.Live, Net, nn.ParameterDict]:
    torch.manual_seed(0)
    model = Net(bomb).double()
    hparams = nn.ParameterDict({"decay": nn.Parameter(torch.tensor(0.5, dtype=torch.float64))})

    def train() -> Tensor:
        shrink = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        error: Tensor = (model(X) - Y).square().mean()
        loss: Tensor = error + hparams["decay"].exp() * shrink
        return loss

    def valid() -> Tensor:
        error: Tensor = (model(X) - 2 * Y).square().mean()
        return error

    return hg.Live(model, hparams, train, valid, algorithm, probe=False), model, hparams


LINEAR: dict[str, Any] = {
    "cg": hg.CG(),
    "cg-nystrom": hg.CG(preconditioner=hg.NystromPreconditioner(rank=2)),
    "cg-recycled": hg.CG(preconditioner=hg.Recycled(hg.NystromPreconditioner(rank=2), keep=4)),
    "minres": hg.MINRES(),
    "gmres": hg.GMRES(),
    "normal-cg": hg.NormalCG(),
    "neumann": hg.Neumann(6),
    "identity": hg.Identity(0.1),
    "dense": hg.Dense(),
    "nystrom": hg.Nystrom(rank=3),
}
ALGORITHMS: dict[str, Any] = {
    **{name: hg.Implicit(linear, damping=0.5, stationarity=math.inf) for name, linear in LINEAR.items()},
    "unrolled": hg.Unrolled(3, hg.GradientDescent(lr=0.1, momentum=0.5), warm_start=True),
    "unrolled-log": hg.Unrolled(5, hg.Adam(lr=0.1), keep="log", warm_start=True),
    "forward": hg.ForwardMode(3, hg.GradientDescent(lr=0.1)),
    "zeroth-order": hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=3)),
    "soba": hg.SOBA(step_size=0.05),
    "amigo": hg.AmIGO(step_size=0.05),
    "stocbio": hg.StocBiO(step_size=0.05),
    "f2sa": hg.F2SA(step_size=0.05),
    "bome": hg.BOME(step_size=0.05),
    "ttsa": hg.TTSA(step_size=0.05),
    "fsla": hg.FSLA(step_size=0.05),
    "sustain": hg.SUSTAIN(step_size=0.05),
    "mrbo": hg.MRBO(step_size=0.05),
    "srba": hg.SRBA(step_size=0.05),
}


def grad(hparams: nn.ParameterDict) -> Tensor:
    found = hparams["decay"].grad
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_shortage_in_any_pass_changes_nothing(name: str) -> None:
    """Three calls, a shortage before the second at a pass early, in the middle, or late in it."""
    calm, bomb = Bomb(), Bomb(ERRORS["cuda"])
    twin, _, expected = build(calm, ALGORITHMS[name])
    hyper, model, hparams = build(bomb, ALGORITHMS[name])
    for live in (twin, hyper):
        torch.manual_seed(1)
        live.backward()
    before = calm.runs
    twin.backward()
    passes = calm.runs - before
    assert passes > 0
    for share in (0.0, 0.4, 0.7, 1.0):
        bomb.at = bomb.runs + 1 + int(share * (passes - 1))
        random.seed(5)
        with refused(OutOfMemoryError, model, hparams, passed=("Live.backward", "CUDA out of memory"), do="use"):
            hyper.backward()
        assert random.getstate() == random.Random(5).getstate()
    bomb.at = 0
    hyper.backward()
    assert torch.equal(grad(hparams), grad(expected)), "the algorithm's memory was touched"
    assert hyper.calls == twin.calls == 2
    for live in (twin, hyper):
        live.backward()
    assert torch.equal(grad(hparams), grad(expected))


@pytest.mark.parametrize("kind", ERRORS)
def test_every_allocator_is_understood(kind: str) -> None:
    bomb = Bomb(ERRORS[kind])
    hyper, model, hparams = build(bomb, ALGORITHMS["cg"])
    bomb.at = 6  # after the gradients of both objectives
    first_line = str(ERRORS[kind]).partition("\n")[0]
    with (
        refused(
            OutOfMemoryError,
            model,
            hparams,
            passed=("Live.backward: product", "of a linear solve", first_line),
            do=("smaller inner batch", "CG", "F2SA"),
        ),
    ):
        hyper.backward()
    assert issubclass(OutOfMemoryError, torch.OutOfMemoryError)


def test_another_runtime_error_passes_as_it_is() -> None:
    bomb = Bomb(RuntimeError("a device-side assert"))
    hyper, model, hparams = build(bomb, ALGORITHMS["cg"])
    bomb.at = 6
    with unchanged(model, hparams), pytest.raises(RuntimeError, match=r"^a device-side assert$"):
        hyper.backward()


def test_the_graph_is_free_while_the_error_is_handled() -> None:
    """So that a smaller plan finds the memory inside ``except``."""
    kept: list[weakref.ref[Tensor]] = []
    bomb = Bomb(ERRORS["cuda"])
    hyper, model, _ = build(bomb, ALGORITHMS["cg"])

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(weakref.ref(output))

    bomb.at = 8
    model.last.register_forward_hook(watch)
    try:
        hyper.backward()
    except OutOfMemoryError:
        gc.collect()
        assert kept
        assert all(ref() is None for ref in kept)
    else:
        pytest.fail("no error")


def test_unrolling_says_how_to_keep_less() -> None:
    bomb = Bomb(ERRORS["cpu"])
    hyper, model, hparams = build(bomb, ALGORITHMS["unrolled"])
    bomb.at = 5
    with refused(OutOfMemoryError, model, hparams, passed="alloc_cpu", do=('keep="sqrt"', "ForwardMode")):
        hyper.backward()


def faulty(bomb: Bomb) -> hg.Problem:
    def inner(params: Any, hparams: Any) -> Tensor:
        fit = (bomb(params["weight"]) - hparams["shift"]).square().sum() + (params["bias"] - 1).square()
        loss: Tensor = fit + hparams["decay"].exp() * params["weight"].square().sum()
        return loss

    return hg.Problem(inner, lambda params, _: params["weight"].square().sum() + params["bias"])


def test_a_run_stays_before_its_step() -> None:
    move = hg.outer.Torch(torch.optim.Adam, lr=0.1)
    algorithm = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=3), stationarity=math.inf)
    bomb, calm = Bomb(ERRORS["cuda"]), Bomb()
    run, twin = (hg.Run(faulty(b), algorithm, *start(), move, probe=False) for b in (bomb, calm))
    run.step()
    twin.step()
    bomb.at = bomb.runs + 9
    with refused(OutOfMemoryError, passed=("step 2 of a run", "CUDA out of memory"), do="smaller inner batch"):
        run.step()
    assert run.step_number == 1
    assert run.whole
    assert torch.equal(run.step().moved["shift"], twin.step().moved["shift"])


def test_the_function_face_says_it_plainly() -> None:
    bomb = Bomb(ERRORS["cuda"])
    bomb.at = 4
    params, hparams = start()
    with refused(OutOfMemoryError, params, hparams, passed=("hypergrad.hypergradient", "out of memory")):
        hg.hypergradient(faulty(bomb), params, hparams, hg.Implicit(hg.CG(), stationarity=math.inf))
