"""A live object that is saved and loaded, printed, and given batches of any kind."""

from __future__ import annotations

import io
import math
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError, ReachWarning
from tests.bad_input.common import refused
from tests.live.common import QUICK, X, Y, decay, losses, net, shrinkage

ALGORITHMS: dict[str, hg.Algorithm[Any]] = {
    "neumann": hg.Implicit(hg.Neumann(5), damping=3.0, stationarity=math.inf),
    "cg": hg.Implicit(hg.CG(), damping=3.0, stationarity=math.inf),
    "nystrom": hg.Implicit(hg.CG(preconditioner=hg.NystromPreconditioner(rank=2)), damping=3.0, stationarity=math.inf),
    "recycled": hg.Implicit(hg.CG(preconditioner=hg.Recycled(keep=5)), damping=3.0, stationarity=math.inf),
    "trained": hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.05, steps=3), damping=3.0, stationarity=math.inf),
    "unrolled": hg.Unrolled(3, hg.Adam(lr=0.1), warm_start=True),
    "forward": hg.ForwardMode(3, hg.GradientDescent(lr=0.1), mode="random", directions=2),
    "zeroth-order": hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=3), mode="RGE"),
    "zord": hg.ZoRD(hg.GradientDescent(lr=0.1, steps=3), candidates=3),
    "soba": hg.SOBA(step_size=0.05),
    "saba": hg.SABA(step_size=0.05),
    "amigo": hg.AmIGO(step_size=0.05),
    "stocbio": hg.StocBiO(step_size=0.05),
    "f2sa": hg.F2SA(step_size=0.05),
    "bome": hg.BOME(step_size=0.05),
    "bo-rep": hg.BOREP(step_size=0.05, linear_step_size=0.05),
    "fsla": hg.FSLA(step_size=0.05),
    "sustain": hg.SUSTAIN(step_size=0.05),
    "mrbo": hg.MRBO(step_size=0.05),
    "srba": hg.SRBA(step_size=0.05),
    "vrbo": hg.VRBO(step_size=0.05),
    "pzobo": hg.PZOBO(step_size=0.05),
}


class Loop:
    """A training loop with a hypergradient at every step."""

    def __init__(self, algorithm: hg.Algorithm[Any]) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2), nn.Tanh(), nn.Linear(3, 1)).double()
        self.hparams = nn.ParameterDict({"decay": nn.Parameter(torch.tensor(0.3, dtype=torch.float64))})
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *self.hparams.parameters()], lr=0.01)
        self.hyper = hg.Live(self.model, self.hparams, self.train, self.valid, algorithm)

    def train(self) -> Tensor:
        loss: Tensor = (self.model(X) - Y).square().mean() + self.hparams["decay"].exp() * shrinkage(self.model)
        return loss

    def valid(self) -> Tensor:
        loss: Tensor = (self.model(X) - 2 * Y).square().mean()
        return loss

    def go(self, steps: int) -> list[Tensor]:
        found = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.train().backward()
            self.hparams["decay"].grad = None
            self.hyper.backward()
            found.append(self.hparams["decay"].detach().clone())
            self.optimizer.step()
        return found

    def save(self) -> io.BytesIO:
        parts = (self.model, self.hparams, self.optimizer, self.hyper)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in parts] + [torch.get_rng_state()], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        *states, random = torch.load(file, weights_only=True)
        parts: tuple[Any, ...] = (self.model, self.hparams, self.optimizer, self.hyper)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loaded_object_goes_on_bit_for_bit(name: str) -> None:
    whole = Loop(ALGORITHMS[name])
    whole.go(3)
    saved = whole.save()
    expected = whole.go(3)
    resumed = Loop(ALGORITHMS[name])
    resumed.load(saved)
    assert resumed.hyper.calls == 3
    assert all(torch.equal(a, b) for a, b in zip(resumed.go(3), expected, strict=True))
    assert resumed.hyper.calls == 6
    assert resumed.hyper.probe_cost == hg.Cost(), "a resumed object does not look again"


def test_an_object_that_was_never_called_is_saved_as_well() -> None:
    fresh, other = Loop(ALGORITHMS["cg"]), Loop(ALGORITHMS["cg"])
    other.load(fresh.save())
    torch.manual_seed(0)
    expected = fresh.go(2)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.go(2), strict=True))


def test_a_saved_state_is_a_copy_and_holds_no_model() -> None:
    loop = Loop(ALGORITHMS["cg"])
    loop.go(1)
    state = loop.hyper.state_dict()
    kept = state["algorithm_state"]["solution"].clone()
    loop.go(2)
    assert torch.equal(state["algorithm_state"]["solution"], kept)
    assert state["algorithm_state"]["params"] == {}


def test_unused_parameters_and_warnings_given_are_remembered() -> None:
    model, weight = net(), decay()
    layers: Any = [*model.children()]
    model.spare = nn.Linear(1, 1).double()

    def lean() -> Tensor:
        shrink = torch.stack([p.square().sum() for layer in layers for p in layer.parameters()]).sum()
        loss: Tensor = (nn.Sequential(*layers)(X) - Y).square().mean() + weight.exp() * shrink
        return loss

    def score() -> Tensor:
        loss: Tensor = (nn.Sequential(*layers)(X) - 2 * Y).square().mean()
        return loss

    algorithm = hg.Implicit(hg.Identity(0.1), stationarity=0.0)
    hyper = hg.Live(model, [weight], lean, score, algorithm)
    with pytest.warns() as caught:
        hyper.backward()
    assert {entry.category for entry in caught} == {ReachWarning, hg.errors.StationarityWarning}
    other = hg.Live(model, [weight], lean, score, algorithm)
    other.load_state_dict(hyper.state_dict())
    other.backward()  # filterwarnings = error


def other_algorithm(state: dict[str, Any]) -> None:
    state["algorithm"] = "SOBA"


def other_shape(state: dict[str, Any]) -> None:
    state["signature"]["params"]["0.weight"][0] = [9, 9]


def missing(state: dict[str, Any]) -> None:
    del state["unused"]


def other_type(state: dict[str, Any]) -> None:
    state["calls"] = "three"


def other_fields(state: dict[str, Any]) -> None:
    del state["algorithm_state"]["memory"]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "algorithm": (other_algorithm, "SOBA"),
    "shape": (other_shape, "[9, 9]"),
    "missing": (missing, "without 'unused'"),
    "type": (other_type, "'calls' is of type str"),
    "fields": (other_fields, "fields"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_does_not_fit_changes_nothing(fault: str) -> None:
    loop = Loop(ALGORITHMS["cg"])
    loop.go(2)
    twin = Loop(ALGORITHMS["cg"])
    twin.go(2)
    state = loop.hyper.state_dict()
    spoil, words = FAULTS[fault]
    spoil(state)
    with pytest.raises(InputError) as caught:
        loop.hyper.load_state_dict(state)
    assert words in caught.value.passed
    torch.manual_seed(0)
    found = loop.go(2)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(found, twin.go(2), strict=True))


def test_the_object_says_what_it_is() -> None:
    loop = Loop(ALGORITHMS["cg"])
    loop.go(2)
    text = repr(loop.hyper)
    assert text.startswith("Live(Sequential, hparams={'decay': ()}, Implicit(linear=CG(")
    assert text.endswith("calls=2)")


def test_a_report_leaves_out_what_is_not_known() -> None:
    loop = Loop(ALGORITHMS["unrolled"])
    loop.hyper.backward()
    report = loop.hyper.backward()
    text = str(report)
    assert "nan" not in text
    assert f"outer loss {report.outer_loss:.6g}" in text
    assert "3 inner gradients" in text
    exact = str(Loop(ALGORITHMS["cg"]).hyper.backward())
    assert "linear residual" in exact
    assert "inner gradient norm" in exact


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Encoding(UserDict[str, Tensor]):
    """What a tokenizer returns: a mapping with attributes, whose truth value says nothing."""

    def __bool__(self) -> bool:
        raise RuntimeError("a batch is not asked whether it is true")


BATCHES: dict[str, tuple[Any, Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "tensor": (torch.cat([X, Y], 1), lambda batch: (batch[:, :2], batch[:, 2:])),
    "tuple": ((X, Y), lambda batch: batch),
    "dict": ({"x": X, "y": Y}, lambda batch: (batch["x"], batch["y"])),
    "named tuple": (Pair(X, Y), lambda batch: (batch.x, batch.y)),
    "mapping": (Encoding(x=X, y=Y), lambda batch: (batch["x"], batch["y"])),
    "nested": ([{"in": (X,)}, Y], lambda batch: (batch[0]["in"][0], batch[1])),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_any_kind_reach_the_losses(kind: str) -> None:
    batch, unpack = BATCHES[kind]
    model, weight = net(), decay()
    seen: list[Any] = []

    def train(given: Any) -> Tensor:
        seen.append(given)
        x, y = unpack(given)
        loss: Tensor = (model(x) - y).square().mean() + weight.exp() * shrinkage(model)
        return loss

    def valid(given: Any) -> Tensor:
        x, y = unpack(given)
        loss: Tensor = (model(x) - 2 * y).square().mean()
        return loss

    hg.Live(model, [weight], train, valid, QUICK).backward(batch, outer_batch=batch)
    assert all(given is batch for given in seen)
    found = weight.grad
    weight.grad = None
    hg.Live(model, [weight], *losses(model, weight), QUICK).backward()
    assert found is not None
    assert weight.grad is not None
    assert torch.equal(found, weight.grad)


def test_a_batch_that_nobody_takes_and_one_that_is_missing_are_refused() -> None:
    model, weight = net(), decay()
    train, valid = losses(model, weight)
    hyper = hg.Live(model, [weight], train, valid, QUICK)
    with refused(InputError, model, {"w": weight}, passed=("batch= of type Tensor", "inner()"), do="second to outer"):
        hyper.backward(X)
    with refused(InputError, model, {"w": weight}, passed=("outer_batch= of type dict", "outer()")):
        hyper.backward(outer_batch={})
    hyper = hg.Live(model, [weight], lambda batch: train(), valid, QUICK)
    with refused(InputError, model, {"w": weight}, passed="without batch", expected="inner", do="backward(batch=...)"):
        hyper.backward()
    hyper.backward(X)


def test_the_default_of_an_optional_argument_stays() -> None:
    """The idiom of binding a loop's variable by a default."""
    model, weight = net(), decay()
    train, valid = losses(model, weight)
    hg.Live(model, [weight], lambda train=train: train(), lambda valid=valid: valid(), QUICK).backward()
    assert weight.grad is not None
