"""Data sets and loaders of every kind."""

from __future__ import annotations

import gc
import io
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torchdata.stateful_dataloader.sampler  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from hypergrad.loaders import LoaderSampler


class Blocks(Dataset[tuple[Tensor, Tensor]]):
    """Items that are batches."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([row]), torch.tensor([row]) ** 2


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Row i is (i, i²); remembers what was read."""

    def __init__(self, size: int = 7) -> None:
        self.size, self.read = size, list[int]()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        self.read.append(row)
        return torch.tensor(row), torch.tensor(float(row**2))


class Noisy(Squares):
    """With random augmentation from every global generator."""

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(2) + random.random() + np.random.rand()  # noqa: NPY002
        return torch.tensor(row), noise


class Stream(IterableDataset[Tensor]):
    """Numbers, and where they stand."""

    def __init__(self, size: int = 7) -> None:
        self.size, self.at = size, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < self.size:
            self.at += 1
            yield torch.tensor(self.at - 1)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Deferred(Stream):
    """A loaded position counts from the next iterator on, and the iterator keeps its own."""

    begin = 0

    def __iter__(self) -> Iterator[Tensor]:
        begin, self.begin = self.begin, 0
        for row in range(begin, self.size):
            self.at = row + 1
            yield torch.tensor(row)
        self.at = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin = self.at = state["at"]


class Plain(IterableDataset[Tensor]):
    """Numbers, without a position of their own."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(7))


class Buffered(IterableDataset[Tensor]):
    """Numbers shuffled in a buffer, by the global generator and without a position."""

    def __iter__(self) -> Iterator[Tensor]:
        held = []
        for row in range(14):
            held.append(torch.tensor(row))
            if len(held) == 4:
                yield held.pop(int(torch.randint(4, ())))
        yield from held


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        Squares() if dataset is None else dataset,
        **{"batch_size": 3, "shuffle": True, "generator": seeded(), **options},
    )


def stateful(dataset: Any = None, **options: Any) -> StatefulDataLoader[Any]:
    options = {"batch_size": 3, "shuffle": True, "generator": seeded(), **options}
    return StatefulDataLoader(Squares() if dataset is None else dataset, **options)


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def drawn(sampler: LoaderSampler, count: int) -> list[Any]:
    return [sampler.draw() for _ in range(count)]


def rows(sampler: LoaderSampler, count: int) -> list[list[int]]:
    return [batch[0].tolist() for batch in drawn(sampler, count)]


def epoch(sampler: LoaderSampler) -> list[int]:
    return [row for batch in rows(sampler, 3) for row in batch]


def weighted(**options: Any) -> WeightedRandomSampler:
    return WeightedRandomSampler([0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1], 7, **options)


def with_sampler(make: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    return lambda: stateful(Squares(), shuffle=None, sampler=make(), generator=None, **options)


def chunked(generator: torch.Generator) -> StatefulDataLoader[Any]:
    """Draws rows 32 at a time, from the generator that the loader draws its workers' seed from."""
    data = Squares(40)
    sampler = torchdata.stateful_dataloader.sampler.RandomSampler(data, replacement=True, generator=generator)
    return stateful(data, batch_size=9, shuffle=None, sampler=sampler, generator=generator)


PLAIN: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "plain-in-order": lambda: plain(shuffle=False),
    "plain-unseeded": lambda: plain(generator=None),
    "plain-noisy": lambda: plain(Noisy()),
    "plain-drop-last": lambda: plain(drop_last=True),
    "plain-unbatched": lambda: plain(Blocks(), batch_size=None, shuffle=False, sampler=[4, 2, 0]),
    "plain-subset": lambda: plain(shuffle=None, sampler=SubsetRandomSampler([5, 1, 3, 2])),
    "plain-weighted": lambda: plain(shuffle=None, sampler=weighted()),
    "plain-replacement": lambda: plain(shuffle=None, sampler=RandomSampler(range(7), replacement=True)),
    "plain-distributed": lambda: plain(shuffle=None, sampler=DistributedSampler(Squares(), 2, 1)),
    "plain-batch-sampler": lambda: DataLoader(
        Squares(), batch_sampler=BatchSampler(RandomSampler(range(7)), 2, drop_last=True)
    ),
}


STATEFUL: dict[str, Callable[[], Any]] = {
    "stateful": stateful,
    "stateful-in-order": lambda: stateful(shuffle=False),
    "stateful-noisy": lambda: stateful(Noisy()),
    "stateful-drop-last": lambda: stateful(drop_last=True),
    "stateful-snapshots": lambda: stateful(snapshot_every_n_steps=4),
    "stateful-weighted": with_sampler(lambda: weighted(generator=seeded())),
    "stateful-weighted-unseeded": with_sampler(weighted),
    "stateful-replacement": with_sampler(lambda: RandomSampler(range(7), replacement=True, generator=seeded())),
    "stateful-subset": with_sampler(lambda: SubsetRandomSampler([5, 1, 3, 2], generator=seeded())),
    "stateful-chunks": lambda: chunked(seeded()),
    "stateful-deferred-stream": lambda: stateful(Deferred(), shuffle=None),
    "stateful-stream": lambda: stateful(Stream(), shuffle=None),
    "stateful-buffered-stream": lambda: stateful(Buffered(), shuffle=None),
    "stateful-plain-stream": lambda: stateful(Plain(), shuffle=None),
}


WORKERS: dict[str, Callable[[], Any]] = {
    "plain-workers": lambda: plain(num_workers=2),
    "plain-noisy-workers": lambda: plain(Noisy(), num_workers=2),
    "plain-noisy-persistent": lambda: plain(Noisy(), num_workers=2, persistent_workers=True),
    "stateful-workers": lambda: stateful(num_workers=2),
    "stateful-persistent": lambda: stateful(num_workers=2, persistent_workers=True),
    "stateful-snapshots-workers": lambda: stateful(num_workers=2, snapshot_every_n_steps=3),
    "stateful-stream-workers": lambda: stateful(Stream(), shuffle=None, num_workers=2),
}


LOADERS = {**PLAIN, **STATEFUL}


def no_workers(*, collect: bool = True) -> bool:
    if collect:
        gc.collect()
    until = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.02)
    return not multiprocessing.active_children()


class Fragile(Squares):
    broken = True

    def __getitem__(self, row: int) -> Any:
        if row == 4 and self.broken:
            raise OSError("disk")
        return super().__getitem__(row)
