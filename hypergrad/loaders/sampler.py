"""Sampler of any torch ``DataLoader``."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data import DataLoader

from hypergrad.errors import InputError
from hypergrad.loaders.reading import STATEFUL, WHOLE, bounded, joined, mix, seed_everything
from hypergrad.loaders.replayed import Replayed
from hypergrad.loaders.stateful import Stateful
from hypergrad.settings import check_count, check_function

R = TypeVar("R")


@final
class LoaderSampler:
    """Batches of a ``torch.utils.data.DataLoader``; a new epoch starts when the loader runs dry.

    The loader tells which examples make a batch (its samplers), how they are collated, and how many workers read them.
    What it is decides how a position is kept:

    * A loader of a map-style data set: epoch and batch number. The order of an epoch depends on the seeds and the
      epoch's number only, and so do the random numbers of a batch: before each one torch's, NumPy's and Python's global
      generators are seeded, in the workers, too. So batches with random augmentation come again bit for bit, with any
      number of workers, and no example is read only to be skipped. The loader itself is never iterated.
    * torchdata's ``StatefulDataLoader``: the loader's own state, with the states of its samplers' generators. Random
      augmentation comes again after a jump or a resume if ``num_workers`` is 0; with workers it does not, since the
      loader does not save their random states. Do not iterate the loader elsewhere meanwhile.

    The global random states are as before after every call, and random numbers drawn elsewhere change no batch.
    Nothing of the data set is kept, but for what the loader's workers read ahead.

    Args:
        loader: the loader.
        seed: seed of the orders and of augmentation, at least 0. For a plain loader the seed of its generator counts as
            well; a ``StatefulDataLoader`` shuffles by its own generator.
        device: where the batch's tensors are moved to; from pinned memory without waiting. By default they stay.
        transform: ``batch -> batch``, called after the move. Its random numbers on the CPU and on ``device`` (CUDA)
            depend on the position only.
        longest: most batches of an iterable-style data set that :meth:`full` reads before it takes it for endless, at
            least 1.

    Raises:
        InputError: a loader without batches, or one whose position cannot be kept: a plain loader of an iterable-style
            data set, of samplers with a memory of their own, or with an ``__iter__`` of its own; a stateful one with
            ``in_order=False``; a setting out of range.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from hypergrad.loaders import LoaderSampler
        >>> data = TensorDataset(torch.arange(6.0), torch.arange(6.0) ** 2)
        >>> sampler = LoaderSampler(DataLoader(data, batch_size=4, shuffle=True))
        >>> x, y = sampler.draw()
        >>> len(x), bool((y == x**2).all())
        (4, True)
        >>> [len(sampler.draw()[0]) for _ in range(3)], sampler.full()[0].tolist()
        ([2, 4, 2], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        transform: Callable[[Any], Any] | None = None,
        longest: int = 100_000,
    ) -> None:
        """Check the loader and stand before its first batch."""
        if not isinstance(loader, DataLoader):
            raise InputError(
                passed=f"LoaderSampler(loader={loader!r})",
                expected="a torch.utils.data.DataLoader",
                do="wrap the data set in a DataLoader, or use hypergrad.TensorSampler for tensors",
            )
        check_count("LoaderSampler", "seed", seed, least=0)
        check_count("LoaderSampler", "longest", longest)
        self.loader, self.device, self.transform, self.longest = loader, _device(device), transform, longest
        check_function(self, "transform", "a function of a batch", "pass a function, or leave transform out")
        stateful = any(kind.__module__.startswith(STATEFUL) for kind in type(loader).__mro__)
        with self._random_numbers_put_back():
            self._source = Stateful(loader, seed) if stateful else Replayed(loader, seed)

    @property
    def examples(self) -> int | None:
        """Number of examples in an epoch; ``None`` where the loader does not know it."""
        try:
            return len(self.loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None

    def draw(self) -> Any:
        """Return the loader's next batch; the last one of an epoch may be smaller.

        Raises:
            InputError: an epoch without batches, or a saved position that the loader cannot go to.
        """
        with self._random_numbers_put_back():
            seed, batch = self._read(self._source.next)
            return self._ready(batch, seed)

    def full(self) -> Any:
        """Return the data set as one batch: each example that the loader serves once, in the data set's order.

        The pass has an iterator and random numbers of its own, so that neither the position nor later batches change,
        and always gives the same batch. Nothing is kept: every call reads the data set, and holds it twice while the
        pieces are joined. For methods that ask for the whole data set often, keep it in a
        :class:`~hypergrad.TensorSampler`.

        Raises:
            InputError: batches that cannot be joined; draws that are weighted; an iterable-style data set that can
                be iterated only once, or has more than ``longest`` batches.
        """
        with self._random_numbers_put_back():
            parts = self._read(lambda: bounded(self._source.parts(), self.loader, self.longest))
            return self._ready(joined(parts), mix(self._source.seed, WHOLE))

    def state_dict(self) -> dict[str, Any]:
        """Return the position: numbers, and for a ``StatefulDataLoader`` its state with tensors, as a copy.

        Raises:
            InputError: a stateful data set whose state ``torch.load(weights_only=True)`` would not read.
        """
        with self._random_numbers_put_back():
            return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position that :meth:`state_dict` returned; the seed goes along. Nothing is done if it is this one.

        Raises:
            InputError: not a position of this sampler.
        """
        with self._random_numbers_put_back():
            self._source.load_state_dict(state)

    def close(self) -> None:
        """End the loader's workers, if any; the next draw starts new ones. It happens by itself with the sampler."""
        with self._random_numbers_put_back():
            self._source.close()

    def _read(self, read: Callable[[], R]) -> R:
        try:
            return read()
        except BaseException as error:
            failure: BaseException | None = error
            while failure is not None and self.loader.num_workers:  # torch's frames would keep the workers alive
                traceback.clear_frames(failure.__traceback__)
                failure = failure.__cause__
            raise

    def _ready(self, batch: Any, seed: int) -> Any:
        if self.device is not None:
            batch = _pytree.tree_map(self._moved, batch)
        if self.transform is None:
            return batch
        seed_everything(seed)
        if self.device is not None and self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        return self.transform(batch)

    def _moved(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(self.device, non_blocking=leaf.is_pinned())
        move = getattr(leaf, "to", None)  # graphs and encodings of other libraries
        return move(self.device) if callable(move) else leaf

    @contextmanager
    def _random_numbers_put_back(self) -> Iterator[None]:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        drawing = self.transform is not None and self.device is not None and self.device.type == "cuda"
        try:
            with torch.random.fork_rng([self.device] if drawing else []):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            passed=f"LoaderSampler(device={device!r})", expected="a device of torch", do='pass "cuda", or leave it out'
        ) from error
