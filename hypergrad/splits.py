"""Training, validation and held-out examples: three parts without a common row."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from hypergrad.errors import InputError
from hypergrad.settings import check_count

PARTS = ("train", "validation", "held_out")


@final
@dataclass(frozen=True)
class Split:
    """What :func:`split` returns.

    Attributes:
        train: for the inner objective: what was passed, restricted to some rows; a tuple if several things were passed.
        validation: the same for the outer objective.
        held_out: the same for early stopping and for the comparison of runs, which neither objective sees.
        rows: the row numbers of each part, under ``"train"``, ``"validation"`` and ``"held_out"``, ascending.
    """

    train: Any
    validation: Any
    held_out: Any
    rows: dict[str, Tensor]

    def __iter__(self) -> Iterator[Any]:
        """Yield the three parts."""
        return iter((self.train, self.validation, self.held_out))


def split(
    *data: Any,
    train: float | int | None = None,
    validation: float | int = 0.2,
    held_out: float | int = 0.2,
    labels: Any = None,
    seed: int = 0,
) -> Split:
    """Return training, validation and held-out parts of data, at random and without a common row.

    Hyperparameters are tuned on the validation part, so its loss is no honest measure any more; the held-out part is
    what :class:`~hypergrad.EarlyStopping` and :class:`~hypergrad.Population` judge by. Keep a test set apart from all
    three.

    Args:
        data: tensors, NumPy arrays, data frames, map-style data sets, all with the same number of rows; or one whole
            number, the number of rows, to get row numbers. A data set becomes a :class:`torch.utils.data.Subset`.
        train: share of the rows, above 0 and below 1, or a number of rows, at least 1; the rest by default.
        validation: the same for the validation part.
        held_out: the same for the held-out part.
        labels: one label for each row (tensor, array or list): every part then has each label in its share, up to one
            row for each rounding.
        seed: seed of the split, at least 0. The random state is not touched.

    Raises:
        InputError: nothing to split, or different numbers of rows; sizes that do not fit; labels of another length or
            with fewer than three rows of one label.

    Example:
        >>> import torch
        >>> x, y = torch.randn(100, 3), torch.arange(100) % 4
        >>> parts = split(x, y, validation=0.25, held_out=15, labels=y)
        >>> [len(part[0]) for part in parts], parts.validation[1].bincount().tolist()
        ([60, 25, 15], [6, 6, 6, 7])
    """
    check_count("split", "seed", seed, least=0)
    count = _count(data)
    sizes = _sizes(count, train, validation, held_out)
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.randperm(count, generator=generator)
    groups = [order] if labels is None else _groups(labels, order)
    rows = {}
    for name in ("held_out", "validation", "train"):
        taken = _shares([len(group) for group in groups], sizes[name])
        pieces = [group[:share] for group, share in zip(groups, taken, strict=True)]
        groups = [group[share:] for group, share in zip(groups, taken, strict=True)]
        rows[name] = torch.cat(pieces).sort().values
    parts: dict[str, Any] = {}
    for name in PARTS:
        found = [_restricted(each, rows[name]) for each in data]
        parts[name] = tuple(found) if len(found) > 1 else found[0]
    return Split(**parts, rows=rows)


def _is_length(each: Any) -> bool:
    return isinstance(each, Integral) and not isinstance(each, bool)


def _count(data: tuple[Any, ...]) -> int:
    """Return the number of rows."""
    lengths = [_length(each) for each in data]
    if not lengths or len(set(lengths)) > 1:
        raise InputError(
            passed=f"split of things with {lengths} rows" if lengths else "split of nothing",
            expected="tensors, arrays or data sets with the same number of rows, or one number of rows",
            do="pass them so that row i of each belongs to example i",
        )
    return lengths[0]


def _length(each: Any) -> int:
    if _is_length(each):
        return int(each)
    if isinstance(each, Tensor | np.ndarray) and each.ndim:
        return int(each.shape[0])
    rowed = isinstance(each, Dataset) or hasattr(each, "iloc")
    if rowed and isinstance(each, Sized) and not isinstance(each, IterableDataset):
        return len(each)
    raise InputError(
        passed=f"split of {type(each).__name__}",
        expected="tensors, arrays, data frames or map-style data sets with rows, or a number of rows",
        do="convert lists with torch.as_tensor or numpy.asarray; split streams where they are made, or pass the number "
        "of rows and use the row numbers",
    )


def _sizes(count: int, train: Any, validation: Any, held_out: Any) -> dict[str, int]:
    given = {"train": train, "validation": validation, "held_out": held_out}
    sizes = {name: _size(name, value, count) for name, value in given.items() if value is not None}
    if train is None:
        sizes["train"] = count - sum(sizes.values())
    elif all(_is_share(value) for value in given.values()) and abs(sum(map(float, given.values())) - 1) < 1e-9:
        sizes["train"] = count - sizes["validation"] - sizes["held_out"]  # shares of all rows leave none over
    if min(sizes.values()) < 1 or sum(sizes.values()) > count:
        shown = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise InputError(
            passed=f"split of {count} rows with {shown}, which makes parts of { ({n: sizes[n] for n in PARTS}) }",
            expected=f"three parts of at least one row and of at most {count} together",
            do="lower the sizes, and leave train out to give it the rest",
        )
    return sizes


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, Integral)


def _size(name: str, value: Any, count: int) -> int:
    if _is_length(value) and value >= 1:
        return int(value)
    if _is_share(value) and 0 < value < 1:
        return round(float(value) * count)
    raise InputError(
        passed=f"split({name}={value!r})",
        expected="a share of the rows, above 0 and below 1, or a whole number of rows, at least 1",
        do=f"pass {name}=0.2 for a fifth, {name}=100 for a hundred rows",
    )


def _groups(labels: Any, order: Tensor) -> list[Tensor]:
    """Return the rows of each label, in random order."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (len(order),):
        raise InputError(
            passed=f"split of {len(order)} rows with labels of shape {values.shape}",
            expected=f"one label for each row, shape ({len(order)},)",
            do="pass class numbers or names: one_hot.argmax(dim=1) for one-hot rows",
        )
    names, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places)
    if counts.min() < len(PARTS):
        rare = names[counts.argmin()]
        raise InputError(
            passed=f"split with labels, of which {rare!r} has {counts.min()} rows",
            expected="at least three rows of each label, one for each part",
            do="join rare labels, leave them out, or split without labels=; numbers to predict are no labels",
        )
    label_of = torch.as_tensor(places)[order]
    return [order[label_of == place] for place in range(len(names))]


def _shares(counts: list[int], size: int) -> list[int]:
    """Return how many rows each group gives to a part, by largest remainders."""
    total = sum(counts)
    shares = [size * count // total for count in counts]
    remainders = [size * count % total for count in counts]
    largest = sorted(range(len(counts)), key=lambda place: -remainders[place])
    for place in largest[: size - sum(shares)]:
        shares[place] += 1
    return shares


def _restricted(each: Any, rows: Tensor) -> Any:
    if _is_length(each):
        return rows
    if isinstance(each, Tensor):
        return each[rows.to(each.device)]
    if isinstance(each, np.ndarray):
        return each[rows.numpy()]
    if hasattr(each, "iloc"):
        return each.iloc[rows.numpy()]
    return Subset(each, rows.tolist())
