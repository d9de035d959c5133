"""Loaders and positions that cannot be served, and samplers of one's own, which can."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Sampler,
)

import hypergrad as hg
from hypergrad.errors import InputError
from hypergrad.loaders import LoaderSampler
from tests.bad_input.common import refused
from tests.loaders.common import Plain, Squares, Stream, drawn, epoch, plain, rows, seeded, stateful
from tests.loop.common import X, same

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13


class Nothing(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(())


class EndsEarly(Squares):
    def __getitem__(self, row: int) -> Any:
        raise StopIteration


class Vanishing(Sampler[list[int]]):
    """Has no batches from epoch 1 on."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[list[int]]:
        return iter([] if self.epoch else [[0, 1], [2]])


def test_a_loader_without_batches_is_refused() -> None:
    for loader in (plain(Squares(0), shuffle=False), plain(Squares(2), drop_last=True)):
        with refused(InputError, passed="runs dry", expected="at least one batch", do="drop_last"):
            LoaderSampler(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: stateful(Nothing(), shuffle=None, **options),
        lambda **options: stateful(Squares(2), drop_last=True, **options),
        lambda **options: plain(EndsEarly(), **options),
    ],
)
def test_a_sampler_that_runs_dry_says_so_and_never_stops_the_iteration(make: Callable[..., Any], workers: int) -> None:
    sampler = LoaderSampler(make(num_workers=workers))
    for _ in range(2):
        with pytest.raises((InputError, RuntimeError), match=r"runs dry|StopIteration"):
            sampler.draw()


def test_a_later_epoch_without_batches_is_an_error() -> None:
    sampler = LoaderSampler(DataLoader(Squares(), batch_sampler=Vanishing()))
    assert rows(sampler, 2) == [[0, 1], [2]]
    with refused(InputError, passed="runs dry"):
        sampler.draw()


class Own(Sampler[int]):
    """A sampler of one's own; ``draw`` gives the order."""

    def __init__(self, draw: Callable[[Own], list[int]]) -> None:
        self.draw, self.generator, self.memory, self.epoch = draw, seeded(), random.Random(0), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(self))


OWN: dict[str, Callable[[Own], list[int]]] = {
    "generator": lambda own: torch.randperm(7, generator=own.generator).tolist(),
    "torch": lambda own: torch.randperm(7).tolist(),
    "numpy": lambda own: np.random.permutation(7).tolist(),  # noqa: NPY002
    "python": lambda own: random.sample(range(7), 7),
    "set_epoch": lambda own: [(row + own.epoch) % 7 for row in range(7)],
}


@pytest.mark.parametrize("draw", OWN.values(), ids=OWN)
def test_samplers_of_ones_own_are_replayed(draw: Callable[[Own], list[int]]) -> None:
    def make() -> LoaderSampler:
        return LoaderSampler(plain(shuffle=None, sampler=Own(draw)))

    first = make()
    epochs = [epoch(first) for _ in range(2)]
    assert epochs[0] != epochs[1]
    second = make()
    second.load_state_dict({**second.state_dict(), "epoch": 1})
    assert epoch(second) == epochs[1]


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class Bare(DataLoader[Any]):
    def __iter__(self) -> Any:
        return (batch for batch in super().__iter__())


class Odd(Stream):
    def state_dict(self) -> dict[str, Any]:
        return {"at": np.int64(self.at)}


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no-loader": (lambda: LoaderSampler([1, 2]), "[1, 2]", "TensorSampler"),  # type: ignore[arg-type]
    "iterable": (lambda: LoaderSampler(DataLoader(Plain())), "Plain", "StatefulDataLoader: pip install"),
    "memory": (
        lambda: LoaderSampler(plain(shuffle=None, sampler=Own(lambda own: own.memory.sample(range(7), 7)))),
        "Own, which gives another order",
        "StatefulDataLoader",
    ),
    "endless": (lambda: LoaderSampler(DataLoader(Squares(), batch_sampler=Endless())), "Endless", "__len__"),  # type: ignore[arg-type]
    "own-iter": (lambda: LoaderSampler(Bare(Squares())), "Bare", "transform="),
    "out-of-order": (lambda: LoaderSampler(stateful(num_workers=2, in_order=False)), "in_order=False", "leave"),
    "seed": (lambda: LoaderSampler(plain(), seed=-1), "seed=-1", ""),
    "device": (lambda: LoaderSampler(plain(), device="gpu"), "device='gpu'", "cuda"),
    "transform": (lambda: LoaderSampler(plain(), transform=3), "transform=3", ""),  # type: ignore[arg-type]
    "numpy-state": (
        lambda: [sampler := LoaderSampler(stateful(Odd(), shuffle=None)), sampler.draw(), sampler.state_dict()],
        "int64",
        "float(x)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(case: str) -> None:
    call, passed, do = REFUSED[case]
    if case == "out-of-order":
        loader = stateful(num_workers=2)
        loader.in_order = False  # the class only logs a warning
        call = partial(LoaderSampler, loader)
    with refused(InputError, passed=passed, do=do):
        call()


POSITIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda state: {},
    "negative": lambda state: {key: -1 if key in ("batch", "drawn") else value for key, value in state.items()},
    "tensor": lambda state: {**state, "seed": torch.tensor(0)},
    "too-far": lambda state: {**state, "batch": 3} if "batch" in state else {**state, "loader": 3},
    "other-data": lambda state: {**state, "examples": 6} if "batch" in state else {**state, "workers": 2},
    "generators": lambda state: {"now": []} if "batch" in state else {**state, "now": []},
}


@pytest.mark.parametrize("make", [plain, stateful])
@pytest.mark.parametrize("spoil", POSITIONS.values(), ids=POSITIONS)
def test_a_position_of_another_sampler_is_refused(make: Callable[..., Any], spoil: Callable[..., Any]) -> None:
    sampler = LoaderSampler(make())
    sampler.draw()
    position = sampler.state_dict()
    expected = drawn(sampler, 1)
    sampler.load_state_dict(position)
    with refused(InputError, passed="position", do="resume with the loader"):
        sampler.load_state_dict(spoil(position))
    for other in (LoaderSampler(stateful() if make is plain else plain()), hg.TensorSampler(X, batch_size=2)):
        with refused(InputError, passed="position", do="resume"):
            sampler.load_state_dict(other.state_dict())
    assert same(drawn(sampler, 1), expected)


def test_a_position_that_the_loader_cannot_go_to_is_refused_at_the_draw() -> None:
    sampler = LoaderSampler(stateful())
    sampler.draw()
    sampler.load_state_dict({**sampler.state_dict(), "loader": {"junk": 1}})
    with refused(InputError, passed="cannot go to", do="resume with the loader"):
        sampler.draw()
