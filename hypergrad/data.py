"""Samplers: where an algorithm gets its batches from.

An algorithm asks the problem for data and never sees a loader. A sampler gives a random batch, the whole data
set, and its own position as plain data, so that a run can be replayed and resumed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from hypergrad.errors import InputError

BLOCK = 256
"""Draws of a :class:`Partition` that one generator makes."""


@runtime_checkable
class Sampler(Protocol):
    """A source of batches."""

    def draw(self) -> Any:
        """Return the next batch."""
        ...

    def full(self) -> Any:
        """Return the whole data set as one batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position as a copy: numbers, strings and tensors, nested in dicts, lists and tuples."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position that :meth:`state_dict` returned; to the present one at little cost, as it is common."""
        ...


@runtime_checkable
class Partitioned(Sampler, Protocol):
    """A sampler of a finite number of batches that stay the same, which a method can remember things of."""

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        ...

    def batch(self, place: int) -> Any:
        """Return batch number ``place``, from 0."""
        ...


def check_sampler(name: str, sampler: object) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what is neither a sampler nor ``None``."""
    if sampler is None or (isinstance(sampler, Sampler) and not isinstance(sampler, type)):
        return
    remedy = "pass hypergrad.TensorSampler(x, y, batch_size=...), or hypergrad.Fixed(batch) for one batch"
    if hasattr(sampler, "__iter__") and hasattr(sampler, "dataset"):
        remedy = "wrap the loader: hypergrad.LoaderSampler(loader)"
    raise InputError(
        passed=f"{name} of type {type(sampler).__name__}",
        expected="a sampler, with the methods draw, full, state_dict and load_state_dict",
        do=remedy,
    )


def drawn(name: str, sampler: Sampler | None) -> Any:
    """Return the next batch of a sampler, ``None`` without one.

    Raises:
        InputError: a sampler that has no further batch.
    """
    try:
        return None if sampler is None else sampler.draw()
    except StopIteration as error:
        raise InputError(
            passed=f"{name}, whose {type(sampler).__name__} has no batch left",
            expected="a sampler without end, which starts again where the data ends",
            do="let draw() start a new epoch instead of raising StopIteration; is the data empty?",
        ) from error
    except InputError as error:
        raise InputError(f"{name}: {error.passed}", error.expected, error.do) from error


@final
class Fixed:
    """The same batch every time.

    Raises:
        InputError: a tensor, or a tuple or list of them, without a single row.

    >>> Fixed(7).draw()
    7
    """

    def __init__(self, batch: Any) -> None:
        """Keep the batch."""
        self.batch = batch
        if self.examples == 0:
            raise InputError(
                passed="Fixed of a batch without examples",
                expected="at least one row",
                do="look at how the data is loaded, filtered and split: this part is empty",
            )

    @property
    def examples(self) -> int | None:
        """Number of rows, if the batch is a tensor, or a tuple or list of tensors with one number of rows."""
        parts = list(self.batch) if isinstance(self.batch, list | tuple) else [self.batch]
        if not parts or not all(isinstance(part, Tensor) and part.ndim for part in parts):
            return None
        rows = {part.shape[0] for part in parts}
        return rows.pop() if len(rows) == 1 else None

    def draw(self) -> Any:
        """Return the batch."""
        return self.batch

    def full(self) -> Any:
        """Return the batch."""
        return self.batch

    def state_dict(self) -> dict[str, int]:
        """Return an empty position."""
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Accept an empty position."""


@final
class Partition:
    """Batches of equal size that stay the same, drawn at random with replacement, for methods that remember batches.

    Draw number k is a batch that depends on ``seed`` and k only, so the position is one integer.

    Args:
        tensors: tensors with one row per example.
        batch_size: number of examples in a batch; it divides the number of examples.
        seed: seed of the draws, and of which example is in which batch.
        index: whether a batch starts with the row numbers, as per-example hyperparameters need.

    Raises:
        InputError: no tensors, different numbers of rows, or a batch size that does not divide them.

    Example:
        >>> import torch
        >>> partition = Partition(torch.arange(6.0), batch_size=2)
        >>> partition.batches, bool((partition.batch(1)[0] == partition.batch(1)[0]).all())
        (3, True)
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int = 0, index: bool = False) -> None:
        """Deal the examples out."""
        self.rows = _rows("Partition", tensors)
        if not (isinstance(batch_size, int) and 1 <= batch_size <= self.rows and self.rows % batch_size == 0):
            raise InputError(
                passed=f"batch_size={batch_size} for {self.rows} examples",
                expected=f"a number that divides {self.rows}, so that every batch weighs the same",
                do="choose a divisor, or leave some examples out",
            )
        self.tensors, self.batch_size, self.seed, self.index = tensors, batch_size, seed, index
        generator = torch.Generator().manual_seed(seed % 2**63)
        self._order = torch.randperm(self.rows, generator=generator).to(tensors[0].device).view(-1, batch_size)
        self._drawn = 0
        self._block: tuple[int, list[int]] | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.rows

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self._order)

    def batch(self, place: int) -> tuple[Tensor, ...]:
        """Return batch number ``place``, from 0."""
        rows = self._order[place]
        picked = tuple(tensor.index_select(0, rows) for tensor in self.tensors)
        return (rows, *picked) if self.index else picked

    def draw(self) -> tuple[Tensor, ...]:
        """Return a random batch."""
        block, place = divmod(self._drawn, BLOCK)
        if self._block is None or self._block[0] != block:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + block + 1) % 2**63)
            self._block = block, torch.randint(self.batches, (BLOCK,), generator=generator).tolist()
        self._drawn += 1
        return self.batch(self._block[1][place])

    def full(self) -> tuple[Tensor, ...]:
        """Return all examples in their own order."""
        rows = torch.arange(self.rows, device=self.tensors[0].device)
        return (rows, *self.tensors) if self.index else self.tensors

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a number of batches drawn.

        Raises:
            InputError: not a position of this sampler.
        """
        drawn = state.get("drawn")
        if not (isinstance(drawn, int) and drawn >= 0):
            raise InputError(
                passed=f"samplers' position {dict(state)}",
                expected="the number of batches drawn, at least 0",
                do="resume with the sampler that the position belongs to",
            )
        self._drawn = drawn


def _rows(name: str, tensors: tuple[Tensor, ...]) -> int:
    rows = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    if len(rows) != 1 or None in rows:
        raise InputError(
            passed=f"tensors of shapes {[tuple(tensor.shape) for tensor in tensors]}",
            expected="at least one tensor, all with the same number of rows",
            do="stack the data so that row i of every tensor belongs to example i",
        )
    if not tensors[0].shape[0]:
        raise InputError(
            passed=f"{name} of tensors of shapes {[tuple(tensor.shape) for tensor in tensors]}: no examples",
            expected="at least one row",
            do="look at how the data is loaded, filtered and split: this part is empty",
        )
    return tensors[0].shape[0]


@final
class TensorSampler:
    """Shuffled minibatches of tensors that lie on one device, indexed there.

    Every epoch is a new permutation that depends on ``seed`` and the epoch's number only, so the position is two
    integers. The last batch of an epoch is smaller when ``batch_size`` does not divide the number of examples.

    Args:
        tensors: tensors with one row per example.
        batch_size: number of examples in a batch, from 1 to the number of examples.
        seed: seed of the permutations.
        index: whether a batch starts with the row numbers, as per-example hyperparameters need.

    Raises:
        InputError: no tensors, different numbers of rows, or a batch size out of range.

    Example:
        >>> import torch
        >>> sampler = TensorSampler(torch.arange(4.0), batch_size=2, index=True)
        >>> rows, values = sampler.draw()
        >>> bool((rows == values).all())
        True
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int = 0, index: bool = False) -> None:
        """Check the rows and start before the first batch."""
        self.tensors, self.rows = tensors, _rows("TensorSampler", tensors)
        if not 1 <= batch_size <= self.rows:
            raise InputError(
                passed=f"batch_size={batch_size} for {self.rows} examples",
                expected=f"a number from 1 to {self.rows}",
                do="lower batch_size, or use hypergrad.Fixed for the whole data set at once",
            )
        self.batch_size, self.seed, self.index = batch_size, seed, index
        self._epoch, self._batch = 0, 0
        self._order: tuple[int, Tensor] | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.rows

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.rows // self.batch_size)

    def draw(self) -> tuple[Tensor, ...]:
        """Return the next batch as a tuple of tensors."""
        start = self._batch * self.batch_size
        rows = self._permutation()[start : start + self.batch_size]
        self._batch += 1
        if self._batch == self.batches:
            self._epoch, self._batch = self._epoch + 1, 0
        picked = tuple(tensor.index_select(0, rows) for tensor in self.tensors)
        return (rows, *picked) if self.index else picked

    def full(self) -> tuple[Tensor, ...]:
        """Return all examples in their own order."""
        rows = torch.arange(self.rows, device=self.tensors[0].device)
        return (rows, *self.tensors) if self.index else self.tensors

    def state_dict(self) -> dict[str, int]:
        """Return epoch and batch number."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to an epoch and batch number.

        Raises:
            InputError: not a position of this sampler.
        """
        epoch, batch = state.get("epoch"), state.get("batch")
        if not (isinstance(epoch, int) and isinstance(batch, int) and epoch >= 0 and 0 <= batch < self.batches):
            raise InputError(
                passed=f"samplers' position {dict(state)}",
                expected=f"an epoch from 0 and a batch from 0 to {self.batches - 1}",
                do="resume with the data and the batch size that the position belongs to",
            )
        self._epoch, self._batch = epoch, batch

    def _permutation(self) -> Tensor:
        if self._order is None or self._order[0] != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._epoch) % 2**63)
            order = torch.randperm(self.rows, generator=generator).to(self.tensors[0].device)
            self._order = (self._epoch, order)
        return self._order[1]


def count_examples(sampler: object) -> int | None:
    """Return how many examples a sampler draws from, as its attribute ``examples`` tells; ``None`` if it does not."""
    found = getattr(sampler, "examples", None)
    return found if isinstance(found, int) else None
