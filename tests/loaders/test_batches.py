"""Batches of a loader: which they are, what they do to random states, and how workers end."""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DistributedSampler,
)

from hypergrad import guards
from hypergrad.loaders import LoaderSampler
from tests.loaders.common import (
    LOADERS,
    WORKERS,
    Fragile,
    Noisy,
    Squares,
    drawn,
    epoch,
    no_workers,
    plain,
    rows,
    seeded,
    stateful,
)
from tests.loop.common import same

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13


@pytest.mark.parametrize("make", [plain, stateful])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_loader(make: Callable[..., Any], drop_last: bool) -> None:
    sampler = LoaderSampler(make(shuffle=False, drop_last=drop_last))
    expected = [[0, 1, 2], [3, 4, 5], [6]][: 2 if drop_last else 3]
    assert rows(sampler, 2 * len(expected)) == 2 * expected


@pytest.mark.parametrize("make", [plain, stateful])
def test_every_epoch_has_an_order_of_its_own(make: Callable[..., Any]) -> None:
    sampler = LoaderSampler(make())
    epochs = [epoch(sampler) for _ in range(3)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_first_epoch_of_a_stateful_loader_is_in_its_own_order() -> None:
    assert rows(LoaderSampler(stateful()), 3) == [batch[0].tolist() for batch in stateful()]


def test_orders_follow_the_seeds_of_the_sampler_and_of_the_loader() -> None:
    def order(*, generator: int, seed: int = 0) -> list[list[int]]:
        return rows(LoaderSampler(plain(Squares(30), generator=seeded(generator)), seed=seed), 10)

    assert order(generator=1) == order(generator=1)
    assert order(generator=1) != order(generator=2)
    assert order(generator=1, seed=0) != order(generator=1, seed=1)


@pytest.mark.parametrize("make", [*LOADERS.values(), WORKERS["plain-noisy-workers"]])
def test_global_random_states_neither_move_nor_matter(make: Callable[[], Any]) -> None:
    expected = drawn(LoaderSampler(make()), 4)
    loader = make()
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    sampler = LoaderSampler(loader)
    batches = drawn(sampler, 2)
    with guards.pinned_rng(torch.device("cpu"), 5):
        batches += drawn(sampler, 1)
    position = sampler.state_dict()
    sampler.draw()
    sampler.load_state_dict(position)
    batches += drawn(sampler, 1)
    if not hasattr(loader.sampler, "weights"):
        sampler.full()
    sampler.close()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]  # noqa: NPY002
    assert same(batches, expected)


def test_augmentation_is_the_same_with_any_number_of_workers_and_new_in_every_epoch() -> None:
    alone, helped = (LoaderSampler(plain(Noisy(), num_workers=count)) for count in (0, 2))
    first, second = drawn(alone, 3), drawn(alone, 3)
    assert same(first + second, drawn(helped, 6))
    noise = [torch.cat([batch[1] for batch in part]) for part in (first, second)]
    assert len(torch.cat(noise).unique()) == 2 * 7 * 2


def test_a_loader_stays_as_it_is() -> None:
    generator = seeded()
    loader = plain(generator=generator)
    state = generator.get_state()
    sampler = LoaderSampler(loader)
    drawn(sampler, 5)
    sampler.full()
    assert torch.equal(generator.get_state(), state)
    distributed: DistributedSampler[Any] = DistributedSampler(Squares(), 2, 1)
    drawn(LoaderSampler(plain(shuffle=None, sampler=distributed)), 9)
    assert distributed.epoch == 0
    held = stateful()
    drawn(LoaderSampler(held), 5)
    assert isinstance(held.generator, torch.Generator)
    assert held.generator is held.sampler.generator


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("make", [plain, stateful])
def test_workers_end_with_the_sampler_and_when_it_is_closed(make: Callable[..., Any], persistent: bool) -> None:
    assert no_workers()
    sampler = LoaderSampler(make(num_workers=2, persistent_workers=persistent))
    sampler.draw()
    assert len(multiprocessing.active_children()) == 2
    sampler.close()
    assert no_workers()
    sampler.draw()
    sampler.full()
    del sampler
    assert no_workers()


class Pair(NamedTuple):
    x: Tensor
    name: str


class Movable:
    """What another library's batch looks like."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = torch.device(device)

    def to(self, device: Any) -> Movable:
        return Movable(device)


@pytest.mark.parametrize("make", [plain, stateful])
def test_batches_are_trees_that_move_to_the_device(make: Callable[..., Any]) -> None:
    def collate(items: list[Any]) -> Any:
        return {"pair": Pair(torch.stack([item[0] for item in items]), "a"), "rest": [Movable(), torch.zeros(2)]}

    sampler = LoaderSampler(make(collate_fn=collate), device="meta")
    batch = sampler.draw()
    assert type(batch["pair"]) is Pair
    assert batch["pair"].name == "a"
    assert {batch["pair"].x.device.type, batch["rest"][0].device.type, batch["rest"][1].device.type} == {"meta"}


@pytest.mark.parametrize("make", [plain, stateful])
def test_a_transform_has_random_numbers_of_its_own(make: Callable[..., Any]) -> None:
    def noisy(batch: Any) -> Any:
        return batch[0], torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002

    samplers = [LoaderSampler(make(num_workers=count, shuffle=False), transform=noisy) for count in (0, 2)]
    batches = drawn(samplers[0], 4)
    assert same(batches, drawn(samplers[1], 4))
    assert not same(batches[0][1:], batches[1][1:])
    position = samplers[0].state_dict()
    expected = drawn(samplers[0], 2)
    samplers[0].load_state_dict(position)
    assert same(drawn(samplers[0], 2), expected)
    assert same(samplers[0].full(), samplers[0].full())


@pytest.mark.parametrize("make", [plain, stateful])
def test_workers_end_at_once_when_an_example_cannot_be_read(make: Callable[..., Any]) -> None:
    """Not when garbage is collected, which may be in the workers that come after them."""
    assert no_workers()
    sampler = LoaderSampler(make(Fragile(), shuffle=False, num_workers=2))
    position = sampler.state_dict()
    gc.disable()
    try:
        for read in (sampler.full, partial(drawn, sampler, 2)):
            with pytest.raises(OSError, match="disk"):
                read()
        sampler.load_state_dict(position)
        begun = time.monotonic()
        sampler.close()
        assert no_workers(collect=False)
        assert time.monotonic() - begun < 4
    finally:
        gc.enable()
    assert rows(sampler, 1) == [[0, 1, 2]]
