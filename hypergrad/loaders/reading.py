"""What a loader reads: orders, seeds, and passes over its data set."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hypergrad.errors import InputError

STATEFUL = "torchdata.stateful_dataloader"
"""Where a loader that keeps its own position comes from."""
SAME_LOADER = "resume with the loader that the position belongs to: the same data, batch size and number of workers"
WHOLE = 2**62
"""In the place of an epoch's number: the pass over the whole data set."""


def mix(*numbers: int) -> int:
    """Return one seed that depends on all numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed


def seed_everything(seed: int) -> None:
    """Seed the global generators of the CPU that a data set may draw from; those of accelerators stay."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


def samplers_of(loader: DataLoader[Any]) -> list[Any]:
    """Return what the loader takes its rows from: a batch sampler, the sampler in it, and so on."""
    found: list[Any] = [loader.sampler if loader.batch_sampler is None else loader.batch_sampler]
    while (inside := getattr(found[-1], "sampler", None)) is not None:
        found.append(inside)
    return found


def generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the generators that its samplers draw from, each once."""
    held = [getattr(part, "generator", None) for part in samplers_of(loader)]
    return list({id(generator): generator for generator in held if isinstance(generator, torch.Generator)}.values())


def _seeded(sampler: Any, seed: int, epoch: int) -> Any:
    """Return a copy of a sampler for one epoch; the loader's own one and its generator stay as they are."""
    fresh = copy.copy(sampler)
    if getattr(fresh, "sampler", None) is not None:
        fresh.sampler = _seeded(fresh.sampler, seed, epoch)
    if isinstance(getattr(fresh, "generator", None), torch.Generator):
        fresh.generator = torch.Generator(fresh.generator.device).manual_seed(seed)
    if callable(getattr(fresh, "set_epoch", None)):
        fresh.set_epoch(epoch)
    return fresh


def order_of(loader: DataLoader[Any], seed: int, epoch: int) -> list[Any]:
    """Return the rows of each batch of an epoch."""
    seed = mix(seed, epoch)
    seed_everything(seed)
    return list(_seeded(samplers_of(loader)[0], seed, epoch))


def whole(loader: DataLoader[Any], seed: int) -> Iterator[Any]:
    """Yield the examples that a map-style loader serves in batches, in the data set's order."""
    sampler = samplers_of(loader)[-1]
    if hasattr(sampler, "weights"):
        raise InputError(
            passed=f"full() of a loader with a {type(sampler).__name__}",
            expected="draws in which every example weighs the same: no batch has the objective of weighted draws",
            do="put the weights into the objective, or use a method that needs no full batch",
        )
    if hasattr(sampler, "data_source"):  # of SequentialSampler and RandomSampler, which may draw a part of it
        rows: list[Any] = list(range(len(sampler.data_source)))
    else:
        seed_everything(mix(seed, 0))
        served = list(_seeded(sampler, mix(seed, 0), 0))
        if len(samplers_of(loader)) == 1 and loader.batch_sampler is not None:
            served = [row for batch in served for row in batch]
        rows = sorted(set(served))
    if loader.batch_sampler is not None:
        size = loader.batch_size or 1
        rows = [rows[start : start + size] for start in range(0, len(rows), size)]
    items = [(mix(seed, WHOLE, place), part, None) for place, part in enumerate(rows)]
    return (batch for _, batch in reader(loader, items, ahead=False))


@final
@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """A data set whose items are batches, each with random numbers of its own, in whichever process reads it."""

    dataset: Any
    collate: Callable[[Any], Any]
    batched: bool

    def __getitem__(self, item: tuple[int, Any, Any]) -> tuple[Any, Any]:
        seed, rows, after = item
        seed_everything(seed)
        if not self.batched:
            examples = self.dataset[rows]
        elif getattr(self.dataset, "__getitems__", None):
            examples = self.dataset.__getitems__(rows)
        else:
            examples = [self.dataset[row] for row in rows]
        return after, self.collate(examples)


def reader(loader: DataLoader[Any], items: Iterable[Any], *, ahead: bool) -> DataLoader[Any]:
    """Return a loader of our own that reads these items as ``loader`` would."""
    return DataLoader(
        _Batches(loader.dataset, loader.collate_fn, loader.batch_sampler is not None),
        batch_size=None,
        sampler=items,
        num_workers=loader.num_workers,
        collate_fn=_as_it_is,
        pin_memory=loader.pin_memory and ahead,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers and ahead,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def bounded(parts: Iterable[Any], loader: DataLoader[Any], longest: int) -> list[Any]:
    """Return the batches of a whole data set, which ends; a map-style one always does."""
    if not isinstance(loader.dataset, IterableDataset):
        return list(parts)
    reading = iter(parts)
    found = list(itertools.islice(reading, longest + 1))
    if len(found) <= longest:
        return found
    close = getattr(reading, "close", None)
    if close is not None:
        close()  # puts the data set's own state back
    raise InputError(
        passed=f"full() of {type(loader.dataset).__name__}, which did not end after {longest} batches",
        expected="a data set that ends: the method asks for all examples as one batch",
        do="use a method that needs no full batch (SOBA, StocBiO), give it a data set that ends, or raise longest= of "
        "LoaderSampler if this one does and fits into memory",
    )


def joined(parts: list[Any]) -> Any:
    """Return batches as one, by rows."""
    if not parts:
        raise dry()
    if len(parts) == 1:
        return parts[0]
    try:
        leaves, forms = zip(*(_pytree.tree_flatten(part) for part in parts), strict=True)
        if any(form != forms[0] for form in forms):
            raise TypeError(f"batches of different structure: {forms[0]} and others")
        return _pytree.tree_unflatten([torch.cat(column) for column in zip(*leaves, strict=True)], forms[0])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            passed=f"full() of batches that cannot be joined ({str(error).splitlines()[0]})",
            expected="trees of tensors with one row per example, alike but for the number of rows",
            do="let collate_fn return tensors of one shape (pad to a fixed length), or use a method that needs no full "
            "batch",
        ) from error


def dry(loader: DataLoader[Any] | None = None) -> InputError:
    """Return the error for an epoch without batches."""
    what = "a loader" if loader is None else f"a loader of {type(loader.dataset).__name__}"
    return InputError(
        passed=f"{what} that gave no batch in an epoch: a sampler that runs dry",
        expected="at least one batch in every epoch",
        do="look at the size of the data set, at drop_last with a large batch_size, and at data that can be read once",
    )


def unfit(state: Mapping[str, Any], expected: str) -> InputError:
    """Return the error for a position of another sampler."""
    shown = {name: value for name, value in state.items() if isinstance(value, int | float | str)}
    return InputError(passed=f"samplers' position {shown}", expected=expected, do=SAME_LOADER)


def are_counts(state: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    """Return whether these entries are whole numbers from 0."""
    return all(isinstance(state.get(name), int) and state[name] >= 0 for name in names)
