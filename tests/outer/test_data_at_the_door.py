"""Samplers that are empty or endless, what is no sampler, and batches that a loss cannot unpack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hypergrad as hg
from hypergrad.errors import InputError, ObjectiveError
from tests.bad_input.common import refused
from tests.loaders.common import stateful
from tests.loop.common import XV, YV, X, Y, inner, outer, start

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13

FIT = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=5), stationarity=1e9)
NONE = torch.zeros(0, 3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: hg.TensorSampler(NONE, batch_size=4), "TensorSampler"),
        (lambda: hg.Partition(NONE, torch.zeros(0), batch_size=2), "Partition"),
        (lambda: hg.Fixed(NONE), "Fixed"),
        (lambda: hg.Fixed((NONE, torch.zeros(0))), "Fixed"),
        (lambda: hg.LoaderSampler(DataLoader(TensorDataset(NONE))), "TensorDataset"),
    ],
)
def test_an_empty_sampler_is_refused_by_name(make: Callable[[], object], name: str) -> None:
    with refused(InputError, passed=name, expected="at least one"):
        make()


@pytest.mark.parametrize("batch", [None, 7, "text", [], torch.tensor(1.0), {"x": NONE}, (torch.ones(2, 2), NONE)])
def test_a_fixed_batch_of_another_form_is_taken_as_it_is(batch: Any) -> None:
    assert hg.Fixed(batch).draw() is batch


class Finite:
    """A sampler that does not start again."""

    def __init__(self) -> None:
        self.left = iter([(XV, YV)])

    def draw(self) -> Any:
        return next(self.left)

    def full(self) -> Any:
        return XV, YV

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@pytest.mark.parametrize("name", ["inner_data", "outer_data"])
def test_a_sampler_that_ends_is_named(name: str) -> None:
    data: dict[str, Any] = {name: Finite()}
    run = hg.Run(hg.Problem(inner, outer, **data), FIT, *start(), hg.outer.Torch(torch.optim.SGD, lr=0.1))
    with refused(InputError, passed=(name, "Finite"), do="new epoch"):
        run.step()
        run.step()


@pytest.mark.parametrize("name", ["inner_data", "outer_data"])
@pytest.mark.parametrize(
    ("data", "do"),
    [
        ((X, Y), "TensorSampler"),
        (DataLoader(TensorDataset(X, Y)), "LoaderSampler(loader)"),
        (hg.Fixed, "TensorSampler"),
    ],
)
def test_what_is_no_sampler_is_refused_by_the_problem(name: str, data: Any, do: str) -> None:
    given: dict[str, Any] = {name: data}
    with refused(InputError, passed=(name, type(data).__name__) if data is not hg.Fixed else name, do=do):
        hg.Problem(inner, outer, **given)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for row in itertools.count():
            yield X[row % len(X)], Y[row % len(X)]


class Ending(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def stream(data: IterableDataset[Any], longest: int) -> hg.LoaderSampler:
    return hg.LoaderSampler(stateful(data, shuffle=None, batch_size=3), longest=longest)


def test_an_endless_stream_has_no_full_batch() -> None:
    sampler = stream(Endless(), 20)
    before = sampler.draw()
    problem = hg.Problem(inner, outer, inner_data=sampler)
    with refused(InputError, passed=("Endless", "20 batches"), do=("no full batch", "longest=")):
        hg.hypergradient(problem, *start(), hg.BOME(step_size=0.01, inner_steps=2))
    after = sampler.draw()
    assert torch.equal(before[0], X[:3])
    assert torch.equal(after[0], X[3:6]), "the position stays"


def test_a_stream_that_ends_in_time_has_a_full_batch() -> None:
    assert torch.equal(stream(Ending(), 3).full()[0], X)
    with pytest.raises(InputError, match="after 2 batches"):
        stream(Ending(), 2).full()


def unpacking(params: Any, hparams: Any, batch: Any) -> Tensor:
    x, y = batch
    return outer(params, hparams, (x, y))


@pytest.mark.parametrize("role", ["inner", "outer"])
@pytest.mark.parametrize("algorithm", [FIT, hg.Unrolled(2, hg.GradientDescent(lr=0.1)), hg.SOBA(step_size=0.1)])
def test_a_batch_without_labels_is_described(role: str, algorithm: Any) -> None:
    functions: dict[str, Any] = {"inner": inner, "outer": outer} | {role: unpacking}
    data: dict[str, Any] = {f"{role}_data": hg.TensorSampler(X, batch_size=4)}
    problem = hg.Problem(**functions, **data)
    params, hparams = start()
    with refused(
        ObjectiveError,
        params,
        hparams,
        passed=(f"{role}, which raised ValueError", "(float64 of shape (4, 3),)"),
        do="labels",
    ):
        hg.hypergradient(problem, params, hparams, algorithm)


def test_the_failure_itself_is_the_cause() -> None:
    problem = hg.Problem(inner, unpacking)
    with pytest.raises(ObjectiveError, match=r"got no batch \(None\)[^\0]*outer_data of the problem") as caught:
        hg.hypergradient(problem, *start(), FIT)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_live_loss_that_fails_on_its_batch_says_which() -> None:
    model, weight = torch.nn.Linear(3, 1), torch.zeros((), requires_grad=True)

    def loss(batch: Any) -> Tensor:
        gap: Tensor = model(batch["x"]) - batch["y"]
        return gap.square().mean() + weight.exp() * model.weight.square().sum()

    hyper = hg.Live(model, [weight], loss, loss, FIT)
    with pytest.raises(ObjectiveError, match=r"KeyError.*\{'x': float32 of shape \(2, 3\)\}"):
        hyper.backward({"x": torch.zeros(2, 3)}, {"x": torch.zeros(2, 3)})


def test_a_live_loss_without_a_batch_is_not_blamed_on_one() -> None:
    model, weight = torch.nn.Linear(3, 1), torch.zeros((), requires_grad=True)

    def loss() -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        hg.Live(model, [weight], loss, loss, FIT).backward()


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize("name", ["inner_data", "outer_data"])
def test_an_empty_stream_is_named(name: str) -> None:
    given: dict[str, Any] = {name: hg.LoaderSampler(stateful(Nothing(), shuffle=None))}
    with refused(InputError, passed=(f"{name}: ", "Nothing", "runs dry"), expected="at least one batch"):
        hg.hypergradient(hg.Problem(inner, outer, **given), *start(), FIT)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt(), ZeroDivisionError()])
def test_other_failures_stay_what_they_are(error: BaseException) -> None:
    def failing(params: Any, hparams: Any, batch: Any) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        hg.hypergradient(hg.Problem(failing, outer), *start(), FIT)
    assert caught.value is error


def test_a_failure_of_a_loss_without_a_batch_is_not_blamed_on_one() -> None:
    def failing(params: Any, hparams: Any) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        hg.hypergradient(hg.Problem(failing, outer), *start(), FIT)
