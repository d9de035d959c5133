"""Several outer batches as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, final

from hypergrad.data import Sampler, check_sampler, count_examples, drawn
from hypergrad.errors import InputError
from hypergrad.settings import check_count


@final
class Batches(tuple[Any, ...]):
    """Several outer batches as one, for :meth:`~hypergrad.Live.backward`: the outer objective is the mean over them.

    Values and gradients are added up batch by batch, so that only one batch's graph is held at a time, and an algorithm
    trains and solves once for all of them: its answer is the hypergradient of the mean outer loss. Every batch weighs
    the same, whatever its size.

    Args:
        batches: the batches, at least one.

    Raises:
        InputError: no batch.

    Example:
        >>> len(Batches([1, 2, 3]))
        3
    """

    __slots__ = ()

    def __new__(cls, batches: Iterable[Any]) -> Self:
        """Refuse none."""
        found = super().__new__(cls, batches)
        if not found:
            raise InputError("Batches of no batch", "at least one batch", "pass a list of outer batches")
        return found


@final
class Accumulated:
    """Several outer batches of a sampler for each outer step: the outer objective is the mean over them.

    A larger outer batch than fits into memory at once, at one training and one linear solve (see
    :class:`~hypergrad.Batches`). Only for ``outer_data``.

    Args:
        sampler: where the batches come from.
        batches: how many for each draw, at least 1.

    Cost: a counted outer gradient or value is that of the mean, ``batches`` evaluations of the outer objective.

    Raises:
        InputError: no sampler, or a number of batches out of range.

    Example:
        >>> import torch
        >>> from hypergrad.data import TensorSampler
        >>> sampler = Accumulated(TensorSampler(torch.arange(6.0), batch_size=2), batches=3)
        >>> sum(float(values.sum()) for (values,) in sampler.draw())
        15.0
    """

    def __init__(self, sampler: Sampler, batches: int) -> None:
        """Keep the sampler."""
        if sampler is None:
            raise InputError("Accumulated(sampler=None)", "a sampler", "leave outer_data out for data that f holds")
        check_sampler("Accumulated(sampler=...)", sampler)
        check_count("Accumulated", "batches", batches)
        self.sampler, self.batches = sampler, batches

    @property
    def examples(self) -> int | None:
        """Number of examples, where the sampler knows it."""
        return count_examples(self.sampler)

    def draw(self) -> Batches:
        """Return the next batches."""
        return Batches(drawn("Accumulated(sampler=...)", self.sampler) for _ in range(self.batches))

    def full(self) -> Any:
        """Return the whole data set as one batch."""
        return self.sampler.full()

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position of the sampler."""
        self.sampler.load_state_dict(state)


def check_data(inner: object, outer: object) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what cannot be a problem's ``inner_data`` and ``outer_data``."""
    check_sampler("inner_data", inner)
    check_sampler("outer_data", outer)
    if isinstance(inner, Accumulated):
        raise InputError(
            passed="inner_data=Accumulated(...)",
            expected="one batch for each evaluation of inner; only outer batches are accumulated",
            do="pass the sampler itself, with a larger batch_size",
        )
