"""Batches of a map-style loader, each of which can be read at any time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from hypergrad.errors import InputError
from hypergrad.loaders.reading import (
    STATEFUL,
    are_counts,
    dry,
    generators_of,
    mix,
    order_of,
    reader,
    samplers_of,
    unfit,
    whole,
)

USE_STATEFUL = f'use {STATEFUL}.StatefulDataLoader: pip install "hypergrad-engine[loader]"'
REPEATABLE = (
    *(BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler),
)
"""Samplers of torch, whose orders are functions of a seed and of the epoch."""


@final
class Replayed:
    """Batches of a map-style loader, read by a loader of our own from any epoch and place on."""

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        _refuse_what_cannot_be_replayed(loader)
        self.loader, self.examples = loader, _length(loader.dataset)
        self.seed = mix(seed, *(generator.initial_seed() for generator in generators_of(loader)))
        self.walk = _Walk(loader, self.seed)
        self._at = (0, 0)
        self._reader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] | None = None
        if not self.walk.order(0):
            raise dry(loader)
        if any(type(part) not in REPEATABLE for part in samplers_of(loader)):
            _check_repeatable(loader, self.seed, self.walk.order(0))

    def next(self) -> tuple[int, Any]:
        """Return the next batch and a seed for its transform."""
        here = self._at
        if self._reader is None:
            self._reader = reader(self.loader, self.walk, ahead=True)
        if self._batches is None:
            self.walk.start = here
            self._batches = iter(self._reader)
        try:
            after, batch = next(self._batches)
        except BaseException as error:
            self.close()
            if isinstance(error, StopIteration):  # the walk has no end: the data set or its collate_fn raised it
                raise dry(self.loader) from error
            raise
        self._at = (after[0], after[1])
        return mix(self.seed, *here, 1), batch

    def parts(self) -> Iterable[Any]:
        """Return the batches of the whole data set."""
        return whole(self.loader, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return seed, epoch, batch, and the size of the data set."""
        epoch, batch = self._at
        return {"seed": self.seed, "epoch": epoch, "batch": batch, "examples": self.examples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        if dict(state) == self.state_dict():
            return
        numbers = ("seed", "epoch", "batch")
        if not are_counts(state, (*numbers, "examples")) or state["examples"] != self.examples:
            raise unfit(state, f"seed, epoch and batch of a loader with {self.examples} examples")
        seed, epoch, batch = (state[name] for name in numbers)
        walk = self.walk if seed == self.seed else _Walk(self.loader, seed)
        if batch >= len(walk.order(epoch)):
            raise unfit(state, f"a batch from 0 to {len(walk.order(epoch)) - 1}")
        if walk is not self.walk:
            self.close()
            self.seed, self.walk = seed, walk
        self._at, self._batches = (epoch, batch), None

    def close(self) -> None:
        """Stop reading ahead, and end the workers."""
        self._batches = self._reader = None


@final
class _Walk:
    """Batches to read, from a place on and without end: their seed, their rows, and the place after them."""

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed
        self.start = (0, 0)
        self._known: tuple[int, list[Any]] | None = None

    def order(self, epoch: int) -> list[Any]:
        """Return the rows of each batch of an epoch."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, order_of(self.loader, self.seed, epoch))
        return self._known[1]

    def __iter__(self) -> Iterator[tuple[int, Any, tuple[int, int]]]:
        epoch, first = self.start
        while True:
            order = self.order(epoch)
            if not order:
                raise dry(self.loader)
            for place in range(first, len(order)):
                after = (epoch, place + 1) if place + 1 < len(order) else (epoch + 1, 0)
                yield mix(self.seed, epoch, place), order[place], after
            epoch, first = epoch + 1, 0


def _refuse_what_cannot_be_replayed(loader: DataLoader[Any]) -> None:
    if isinstance(loader.dataset, IterableDataset):
        raise InputError(
            passed=f"a plain DataLoader of {type(loader.dataset).__name__}, an iterable-style data set",
            expected="a map-style data set, or a loader that knows its position: runs are repeated and resumed exactly",
            do=USE_STATEFUL,
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise InputError(
            passed=f"a {type(loader).__name__}, a DataLoader with an __iter__ of its own",
            expected="a loader whose batches follow from its data set, samplers and collate_fn",
            do="pass the plain DataLoader, and what is done to its batches as transform=",
        )
    first = samplers_of(loader)[0]
    if not hasattr(type(first), "__len__"):
        raise InputError(
            passed=f"a loader of {type(first).__name__}, a sampler without a length",
            expected="epochs that end, whose order can be listed",
            do=f"give the sampler __len__, or {USE_STATEFUL}",
        )


def _check_repeatable(loader: DataLoader[Any], seed: int, order: list[Any]) -> None:
    """Refuse samplers whose order is another one when it is asked for again."""
    if repr(order_of(loader, seed, 0)) != repr(order):
        raise InputError(
            passed=f"a loader of {', '.join(type(part).__name__ for part in samplers_of(loader))}, which gives another "
            "order under the same seeds",
            expected="an order that follows from torch's, NumPy's or Python's global generator, from the sampler's "
            "attribute generator, or from set_epoch(epoch)",
            do=f"draw from one of these, or give the sampler state_dict() and load_state_dict(), and {USE_STATEFUL}",
        )


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        return 0
