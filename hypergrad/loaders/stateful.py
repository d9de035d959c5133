"""Batches of torchdata's ``StatefulDataLoader``, which keeps its own position."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hypergrad.errors import InputError
from hypergrad.loaders.reading import (
    SAME_LOADER,
    WHOLE,
    are_counts,
    dry,
    generators_of,
    mix,
    seed_everything,
    unfit,
    whole,
)

_END = object()


@final
class Stateful:
    """Batches of torchdata's ``StatefulDataLoader``.

    Two things are done here that the loader gets wrong when it is resumed. It draws the seed of its workers from
    ``loader.generator``, which shuffles, too, but does not draw it again: the epochs after that would differ. So that
    seed comes from elsewhere. And of an iterable-style data set without a state it counts the batches twice that it
    reads to get to its position: the next position would be wrong. So these are read here.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        if loader.num_workers and not loader.in_order:
            raise InputError(
                passed="a StatefulDataLoader with in_order=False",
                expected="batches in one order, without which a run cannot be repeated or resumed",
                do="leave in_order out",
            )
        self.loader, self.seed = loader, mix(seed)
        self.drawn = self.start = 0
        self._generators = generators_of(loader)
        self._first = self._now()
        self._saved: dict[str, Any] | None = copy.deepcopy(loader.next_iter_state)
        self._batches: Any = None
        self._own_state = hasattr(loader.dataset, "load_state_dict")
        self._unread = copy.deepcopy(loader.dataset.state_dict()) if self._own_state else None
        self._skips = isinstance(loader.dataset, IterableDataset) and not (
            self._own_state or hasattr(iter(loader.dataset), "load_state_dict")
        )

    def next(self) -> tuple[int, Any]:
        """Return the next batch and a seed for its transform."""
        if self._batches is None and self._saved is not None:
            self._restore(self._saved)
        batch: Any = _END
        if self._batches is not None:
            seed_everything(mix(self.seed, self.drawn))
            batch = next(self._batches, _END)
        if batch is _END:  # the seed stays from here to the batch, since samplers may draw an order in between
            self._batches = None
            self.start, self._first = self.drawn, self._now()
            self._batches = self._iterate()
            batch = next(self._batches, _END)
        if batch is _END:
            self._leave(None)
            raise dry(self.loader)
        self.drawn += 1
        return mix(self.seed, self.drawn - 1, 1), batch

    def parts(self) -> Iterable[Any]:
        """Return the batches of the whole data set."""
        if not isinstance(self.loader.dataset, IterableDataset):
            return whole(self.loader, self.seed)
        return self._pass()

    def _pass(self) -> Iterator[Any]:
        """Yield the batches of a pass over an iterable-style data set, and put its own state back."""
        data, loader = self.loader.dataset, self.loader
        here = self._position() if self._own_state and self._batches is not None else None
        before = copy.deepcopy(data.state_dict()) if self._own_state else None
        try:
            if self._own_state:
                data.load_state_dict(copy.deepcopy(self._unread))
            if iter(data) is iter(data):
                raise InputError(
                    passed=f"full() of {type(data).__name__}, whose iterator is the same one every time",
                    expected="a data set that can be iterated again, from its start",
                    do="return a new iterator from __iter__, or use a method that needs no full batch",
                )
            seed_everything(mix(self.seed, WHOLE))
            yield from DataLoader(data, loader.batch_size, collate_fn=loader.collate_fn, generator=torch.Generator())
        finally:
            if self._own_state:
                data.load_state_dict(before)
            if here is not None:
                self._leave(here)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state, and what is needed to shuffle on as it would have."""
        state = {
            "seed": self.seed,
            "drawn": self.drawn,
            "start": self.start,
            "workers": self.loader.num_workers,
            "first": [first.clone() for first in self._first],
            "now": self._now(),
            "loader": self._position(),
        }
        _check_plain("loader", state["loader"])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the loader does so at the next draw."""
        numbers, workers = ("seed", "drawn", "start"), self.loader.num_workers
        states = [state.get("first"), state.get("now")]
        if (
            not are_counts(state, (*numbers, "workers"))
            or not isinstance(state.get("loader"), dict | None)
            or not all(isinstance(part, list) and len(part) == len(self._generators) for part in states)
        ):
            raise unfit(state, "the position of a StatefulDataLoader, with the states of its generators")
        if state["workers"] != workers:
            raise unfit(state, f"a position of a loader with num_workers={workers}")
        if _equal(dict(state), self.state_dict()):
            return
        self._set(state["now"])
        self._leave(copy.deepcopy(state["loader"]))
        if state["loader"] is None and self._own_state:  # iterating may have moved it on
            self.loader.dataset.load_state_dict(copy.deepcopy(self._unread))
        self.seed, self.drawn, self.start = (state[name] for name in numbers)
        self._first = [first.clone() for first in state["first"]]

    def close(self) -> None:
        """End the workers."""
        self._leave(self._position())

    def _position(self) -> dict[str, Any] | None:
        if self._skips and self.drawn:
            return {}
        position: dict[str, Any] | None = self._saved if self._batches is None else self._batches.state_dict()
        return copy.deepcopy(position)

    def _leave(self, position: dict[str, Any] | None) -> None:
        self._batches, self._saved = None, position
        self.loader.load_state_dict({})  # lets its iterator go

    def _restore(self, position: dict[str, Any]) -> None:
        now = self._now()
        self._set(self._first)
        try:
            self.loader.load_state_dict(copy.deepcopy(position))
            self._batches = self._iterate()
            for place in range(self.start, self.drawn if self._skips else self.start):
                if place > self.start:
                    seed_everything(mix(self.seed, place))
                next(self._batches)
        except Exception as error:  # asserts and lookups inside torchdata and the data set
            self._leave(position)
            raise InputError(
                passed=f"a saved position that the loader cannot go to ({type(error).__name__}: {error})",
                expected="a position of this loader",
                do=SAME_LOADER,
            ) from error
        finally:
            self._set(now)

    def _iterate(self) -> Any:
        seed_everything(mix(self.seed, self.start))
        generator = self.loader.generator
        self.loader.generator = torch.Generator().manual_seed(mix(self.seed, self.start, 2))
        try:
            return iter(self.loader)
        finally:
            self.loader.generator = generator

    def _now(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu())


def _check_plain(name: str, value: Any) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what a checkpoint cannot hold."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            _check_plain(f"{name}[{key!r}]", item)
    elif not (value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes)):
        raise InputError(
            passed=f"a position of which {name} is of type {type(value).__name__}",
            expected="tensors, numbers, strings and bytes in dicts, lists and tuples, as a checkpoint holds them",
            do="let the state_dict() of the data set or sampler return those: float(x), torch.as_tensor(array)",
        )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)
