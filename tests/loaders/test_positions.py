"""Positions of a loader: saved, gone back to, and gone on from, bit for bit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hypergrad import guards
from hypergrad.loaders import LoaderSampler
from tests.loaders.common import (
    LOADERS,
    PLAIN,
    STATEFUL,
    WORKERS,
    Fragile,
    Squares,
    drawn,
    plain,
    rows,
    seeded,
    stateful,
    through_a_file,
)
from tests.loop.common import same

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13


@pytest.mark.parametrize("make", [*LOADERS.values(), *WORKERS.values()], ids=[*LOADERS, *WORKERS])
def test_a_sampler_goes_on_exactly_from_a_saved_position(make: Callable[[], Any], request: Any) -> None:
    """In the middle and at the end of an epoch, in another process's stead: a fresh loader and a file."""
    first, states, batches = LoaderSampler(make()), list[Any](), list[Any]()
    for _ in range(9):
        states.append(through_a_file(first.state_dict()))
        batches.append(first.draw())
    batches += drawn(first, 6)
    stops = (0, 1, 3, 8) if "workers" in request.node.name or "persistent" in request.node.name else range(9)
    for stop in stops:
        torch.manual_seed(stop)
        second = LoaderSampler(make())
        second.load_state_dict(states[stop])
        assert same(second.state_dict(), states[stop])
        assert same(drawn(second, len(batches) - stop), batches[stop:]), stop
    assert not same(batches[0], batches[2])


@pytest.mark.parametrize("make", [*LOADERS.values(), *WORKERS.values()], ids=[*LOADERS, *WORKERS])
def test_a_sampler_jumps_back_and_forth(make: Callable[[], Any]) -> None:
    sampler = LoaderSampler(make())
    begin = sampler.state_dict()
    before = drawn(sampler, 2)
    middle = sampler.state_dict()
    after = drawn(sampler, 3)
    sampler.load_state_dict(begin)
    assert same(drawn(sampler, 5), before + after)
    sampler.load_state_dict(middle)
    assert same(drawn(sampler, 1), after[:1])
    sampler.close()
    assert same(drawn(sampler, 2), after[1:])
    for _ in range(2):
        with guards.again(guards.Draws.capture(torch.device("cpu"), sampler)):
            sampler.draw()
    following = drawn(sampler, 1)
    sampler.load_state_dict(middle)
    assert same(drawn(sampler, 4)[3:], following)


@pytest.mark.parametrize("make", [PLAIN["plain-noisy"], STATEFUL["stateful-noisy"]])
def test_a_position_brings_its_seed_along(make: Callable[[], Any]) -> None:
    first, second = (LoaderSampler(make(), seed=seed) for seed in (0, 1))
    assert not same(drawn(first, 1), drawn(second, 1))
    second.load_state_dict(first.state_dict())
    assert same(drawn(first, 5), drawn(second, 5))


def test_a_resumed_loader_reads_no_example_only_to_skip_it() -> None:
    first = LoaderSampler(plain())
    drawn(first, 5)
    dataset = Squares()
    second = LoaderSampler(plain(dataset))
    second.load_state_dict(first.state_dict())
    assert dataset.read == []
    assert second.draw()[0].tolist() == dataset.read


@pytest.mark.parametrize("make", [plain, stateful])
def test_going_to_the_present_position_costs_nothing(make: Callable[..., Any]) -> None:
    sampler = LoaderSampler(make(Squares(30), num_workers=2))
    sampler.draw()
    before = {process.pid for process in multiprocessing.active_children()}
    for _ in range(3):
        sampler.load_state_dict(sampler.state_dict())
        sampler.draw()
    assert len(before) == 2
    assert {process.pid for process in multiprocessing.active_children()} >= before


def test_two_loaders_may_share_a_generator() -> None:
    def make() -> tuple[LoaderSampler, LoaderSampler]:
        generator = seeded()
        return LoaderSampler(stateful(generator=generator)), LoaderSampler(stateful(generator=generator, batch_size=2))

    def steps(pair: tuple[LoaderSampler, LoaderSampler], count: int) -> list[Any]:
        return [(pair[0].draw(), pair[1].draw(), pair[1].draw()) for _ in range(count)]

    pair = make()
    states, batches = list[Any](), list[Any]()
    for _ in range(8):
        states.append([sampler.state_dict() for sampler in pair])
        batches += steps(pair, 1)
    for stop, positions in enumerate(states):
        fresh = make()
        for sampler, position in zip(fresh, positions, strict=True):
            sampler.load_state_dict(position)
        assert same(steps(fresh, 8 - stop), batches[stop:])


def test_a_loader_that_was_sent_somewhere_starts_there() -> None:
    loader = stateful()
    batches = iter(loader)
    next(batches)
    position = loader.state_dict()
    expected = [batch[0].tolist() for batch in batches]
    sent = stateful()
    sent.load_state_dict(position)
    sampler = LoaderSampler(sent)
    begin = sampler.state_dict()
    assert rows(sampler, 2) == expected
    sampler.load_state_dict(begin)
    assert rows(sampler, 2) == expected


def test_a_batch_that_could_not_be_read_is_read_again() -> None:
    dataset = Fragile()
    sampler = LoaderSampler(plain(dataset, shuffle=False))
    sampler.draw()
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            sampler.draw()
    dataset.broken = False
    assert sampler.draw()[0].tolist() == [3, 4, 5]
