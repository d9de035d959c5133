"""The whole data set of a loader as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
)

from hypergrad.errors import InputError
from hypergrad.loaders import LoaderSampler
from tests.loaders.common import LOADERS, WORKERS, Buffered, Squares, Stream, drawn, plain, stateful, weighted
from tests.loop.common import same

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13


@pytest.mark.parametrize("make", [*LOADERS.values(), *WORKERS.values()], ids=[*LOADERS, *WORKERS])
def test_the_whole_data_set_is_one_batch_and_disturbs_nothing(make: Callable[[], Any]) -> None:
    loader, expected = make(), drawn(LoaderSampler(make()), 7)
    sampler = LoaderSampler(loader)
    if hasattr(loader.sampler, "weights"):
        with pytest.raises(InputError, match="weighs the same"):
            sampler.full()
        return
    found = [sampler.full()]
    for place, batch in enumerate(expected):
        assert same(sampler.draw(), batch), place
        position = sampler.state_dict()
        found.append(sampler.full())
        assert same(sampler.state_dict(), position)
    assert all(same(batch, found[0]) for batch in found)
    again = LoaderSampler(make())
    assert same(drawn(again, 1), expected[:1])
    again.full()
    assert same(drawn(again, 6), expected[1:])
    whole = found[0] if isinstance(found[0], Tensor) else found[0][0]
    subset = {"SubsetRandomSampler": [1, 2, 3, 5], "list": [0, 2, 4], "DistributedSampler": whole.tolist()}
    if isinstance(loader.dataset, Buffered):
        assert whole.tolist() != sorted(whole.tolist()) == list(range(14))
        return
    size = getattr(loader.dataset, "size", 7)
    assert whole.tolist() == subset.get(type(loader.sampler).__name__, list(range(size)))
    if isinstance(loader.sampler, DistributedSampler):
        assert len(whole) == 4


class Ragged(Squares):
    def __getitem__(self, row: int) -> Any:
        return torch.zeros(row)


class Named(Squares):
    def __getitem__(self, row: int) -> Any:
        return {"name": str(row)}


class Once(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.iterator: Iterator[Tensor] = iter(torch.arange(7))

    def __iter__(self) -> Iterator[Tensor]:
        return self.iterator


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: plain(Ragged(), batch_size=1), ("cannot be joined", "pad to a fixed length")),
        (lambda: plain(Named()), ("cannot be joined", "rows")),
        (lambda: plain(shuffle=None, sampler=weighted()), ("WeightedRandomSampler", "put the weights")),
        (lambda: stateful(Once(), shuffle=None), ("Once", "same one every time", "__iter__")),
    ],
)
def test_what_has_no_full_batch_says_so(loader: Callable[[], Any], words: tuple[str, ...]) -> None:
    sampler = LoaderSampler(loader())
    with pytest.raises(InputError) as caught:
        sampler.full()
    assert all(word in str(caught.value) for word in words)
    sampler.draw()


@pytest.mark.parametrize("begun", [False, True])
def test_a_pass_that_breaks_off_leaves_the_stream_where_it_was(begun: bool) -> None:
    broken = list[bool]()

    def collate(items: list[Tensor]) -> Tensor:
        if broken and int(items[0]) == 3:
            raise OSError("disk")
        return torch.stack(items)

    sampler = LoaderSampler(stateful(Stream(), shuffle=None, collate_fn=collate))
    expected = [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]
    if begun:
        assert sampler.draw().tolist() == expected.pop(0)
    broken.append(True)
    with pytest.raises(OSError, match="disk"):
        sampler.full()
    broken.clear()
    assert [sampler.draw().tolist() for _ in expected] == expected
