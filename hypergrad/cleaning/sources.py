"""What is cleaned, in whatever form it comes: examples, arrays, data sets and loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hypergrad.cleaning.examples import Examples, Kind, Skipped
from hypergrad.errors import InputError

PIECE = 512
"""Examples that are read at once where a data set is looked through."""


@final
@dataclass(frozen=True)
class Source:
    """Labelled examples whose inputs are read a batch at a time.

    Attributes:
        fetch: rows → their inputs, of shape (rows, …).
        labels: the given classes as whole numbers, of shape (n,).
        classes: names of the classes.
        shape: of one example's inputs.
        index: row of each example in what was passed.
        kind: what the examples were before they became tensors.
        held: all inputs, where they are in memory.
        truth: the right classes where they are known.
        preview: row → what a person would look at.
        skipped: inputs that are left out.
    """

    fetch: Callable[[Tensor], Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    index: np.ndarray[Any, np.dtype[np.int64]]
    kind: Kind = "tensor"
    held: Tensor | None = None
    truth: Tensor | None = None
    preview: Callable[[int], dict[str, Any]] | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: Tensor) -> Source:
        """Return some of the examples, in the order of ``rows``."""
        numbers, fetch, show = rows.tolist(), self.fetch, self.preview
        held = None if self.held is None else self.held[rows]
        return replace(
            self,
            fetch=(lambda some: fetch(rows[some])) if held is None else held.__getitem__,
            held=held,
            labels=self.labels[rows],
            index=self.index[rows.numpy()],
            truth=None if self.truth is None else self.truth[rows],
            preview=None if show is None else lambda row: show(numbers[row]),
        )

    def relabelled(self, labels: Tensor) -> Source:
        """Return the examples with other labels."""
        return replace(self, labels=labels)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Source:
        """Return the examples with other inputs; those in memory are computed once."""
        fetch = self.fetch
        if self.held is None:
            return replace(self, fetch=lambda rows: function(fetch(rows)))
        held = function(self.held)
        return replace(self, held=held, fetch=held.__getitem__, shape=tuple(held.shape[1:]))

    def pieces(self, size: int = PIECE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield row numbers with their inputs, in order."""
        for rows in torch.arange(len(self)).split(size):
            yield rows, self.fetch(rows)


@final
@dataclass
class Raw:
    """A part as it was passed, with labels that are not encoded yet.

    Attributes:
        name: of the argument.
        labels: one of each example.
        names: of the classes, where the labels are whole numbers already.
        source: the rest.
    """

    name: str
    labels: np.ndarray[Any, Any]
    names: tuple[str, ...] | None
    source: Source = field(repr=False)


def sources(**parts: Any) -> dict[str, Source]:
    """Return parts in one form, with the same classes for all; the inputs are not copied.

    Args:
        parts: by the argument's name, ``train`` first; ``None`` where there is none.

    Raises:
        InputError: what is no examples, inputs of other shapes in two parts, other classes in two parts, fewer than
            two classes, or inputs that are not finite.
    """
    raw = [_read(name, part) for name, part in parts.items() if part is not None]
    shapes = {one.name: one.source.shape for one in raw}
    if len(set(shapes.values())) > 1:
        raise InputError(
            passed=f"inputs of one example of shapes {shapes}",
            expected="the same shape in all parts",
            do="read or prepare all parts in the same way",
        )
    names = {one.names for one in raw}
    if len(names) == 1 and None not in names:
        classes = raw[0].names or ()
        return {one.name: replace(one.source, classes=classes) for one in raw}
    if None not in names:
        raise InputError(
            passed=f"parts with the classes {[list(one or ()) for one in names]}",
            expected="the same classes in the same order",
            do="name all classes in each part",
        )
    return _encoded(raw)


def _encoded(raw: Sequence[Raw]) -> dict[str, Source]:
    """Give the classes numbers in the order of their sorted labels."""
    listed = [_named(one) for one in raw]
    try:
        values = np.unique(np.concatenate(listed))
    except TypeError as error:
        raise InputError(
            passed=f"labels that cannot be sorted ({error})",
            expected="labels of one type: all numbers, or all strings",
            do="convert the labels, and leave out rows without one",
        ) from error
    classes = tuple(str(value) for value in values.tolist())
    if len(set(classes)) < 2:
        raise InputError(
            passed=f"examples of {len(classes)} classes: {list(classes)}; one class only",
            expected="at least two classes",
            do="check which column holds the label",
        )
    found = {}
    for one, labels in zip(raw, listed, strict=True):
        numbers = torch.from_numpy(np.searchsorted(values, labels))
        found[one.name] = replace(one.source, labels=numbers, classes=classes)
    return found


def _named(one: Raw) -> np.ndarray[Any, Any]:
    return one.labels if one.names is None else np.asarray(one.names)[one.labels]


def _read(name: str, part: Any) -> Raw:
    if isinstance(part, Examples):
        return _from_examples(name, part)
    if isinstance(part, DataLoader):
        return _from_dataset(name, part.dataset, part.collate_fn)
    if isinstance(part, tuple | list) and len(part) == 2:
        return _from_arrays(name, *part)
    if isinstance(part, Dataset) or (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        return _from_dataset(name, part, default_collate)
    raise InputError(
        passed=f"{name} of type {type(part).__name__}",
        expected="Examples, a pair (inputs, labels), a map-style data set or a DataLoader of one",
        do=f"pass {name}=(X, y)",
    )


def _from_examples(name: str, part: Examples) -> Raw:
    source = Source(
        fetch=part.inputs.__getitem__,
        labels=part.labels.long(),
        classes=part.classes,
        shape=tuple(part.inputs.shape[1:]),
        index=part.index,
        kind=part.kind,
        held=part.inputs,
        truth=None if part.truth is None else part.truth.long(),
        preview=part.preview,
        skipped=part.skipped,
    )
    return Raw(name, part.labels.numpy(), part.classes, _checked(name, source))


def _from_arrays(name: str, inputs: Any, labels: Any) -> Raw:
    held = _tensor(name, inputs)
    given = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if given.ndim != 1 or len(given) != len(held):
        raise InputError(
            passed=f"{name} with inputs of shape {tuple(held.shape)} and labels of shape {given.shape}",
            expected="one label for each example, in one dimension",
            do="pass labels of shape (n,)",
        )
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise InputError(f"{name} with labels that are NaN", "a label for each example", "leave these rows out")
    source = Source(
        fetch=held.__getitem__,
        labels=torch.zeros(len(held), dtype=torch.long),
        classes=(),
        shape=tuple(held.shape[1:]),
        index=np.arange(len(held)),
        held=held,
    )
    return Raw(name, given, None, _checked(name, source))


def _tensor(name: str, inputs: Any) -> Tensor:
    if hasattr(inputs, "toarray"):  # a matrix of scipy.sparse
        inputs = inputs.toarray()
    try:
        held = inputs.detach().cpu() if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs))
    except (TypeError, ValueError) as error:
        raise InputError(
            passed=f"{name} with inputs that are no numbers ({error})",
            expected="an array or tensor of numbers of shape (n, …)",
            do="encode categories and text first, or read the file with hypergrad.cleaning",
        ) from error
    if not held.ndim:
        raise InputError(f"{name} with a single number as inputs", "an array of shape (n, …)", "pass one row each")
    return held.to(torch.get_default_dtype()) if held.dtype == torch.float64 else held


def _from_dataset(name: str, dataset: Any, collate: Callable[[list[Any]], Any]) -> Raw:
    """Look a data set through once, for its labels."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            passed=f"{name} of type {type(dataset).__name__}, whose rows have no numbers",
            expected="a map-style data set, with __len__ and __getitem__, so that an example's weight can be kept",
            do="read it into a list first",
        )

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = collate([dataset[row] for row in rows.tolist()])
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(p, Tensor) for p in batch)):
            raise InputError(
                passed=f"{name}, whose batches are {type(batch).__name__}",
                expected="a pair of tensors: inputs and labels",
                do="let the data set return (input, label)",
            )
        return batch[0], batch[1]

    labels: list[Tensor] = []
    shape: tuple[int, ...] = ()
    count = len(dataset)
    for rows in torch.arange(count).split(PIECE):
        inputs, given = read(rows)
        _check_finite(name, inputs, rows.numpy())
        labels.append(given)
        shape = tuple(inputs.shape[1:])
    source = Source(
        fetch=lambda rows: read(rows)[0],
        labels=torch.zeros(count, dtype=torch.long),
        classes=(),
        shape=shape,
        index=np.arange(count),
    )
    given_labels = torch.cat(labels).numpy() if labels else np.empty(0, np.int64)
    return Raw(name, given_labels, None, _checked(name, source, looked=True))


def _checked(name: str, source: Source, *, looked: bool = False) -> Source:
    if not len(source):
        raise InputError(f"{name} without a single example", "at least two classes of examples", "check what was read")
    if source.held is not None and not looked:
        _check_finite(name, source.held, source.index)
    return source


def _check_finite(name: str, inputs: Tensor, index: np.ndarray[Any, Any]) -> None:
    if not inputs.is_floating_point():
        return
    wrong = (~torch.isfinite(inputs.flatten(1) if inputs.ndim > 1 else inputs.unsqueeze(1))).any(dim=1).nonzero()[:, 0]
    if len(wrong):
        raise InputError(
            passed=f"{name} with NaN or infinity in {len(wrong)} examples, first at row {int(index[int(wrong[0])])}",
            expected="finite inputs",
            do="fill in the missing values, or leave these rows out",
        )


def fingerprints(source: Source) -> list[bytes]:
    """Return a digest of the inputs of each example."""
    found: list[bytes] = []
    for _, inputs in source.pieces():
        rows = np.ascontiguousarray(inputs.detach().cpu().numpy()).reshape(len(inputs), -1)
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    return found


def duplicates(train: Source, trusted: Source) -> dict[int, int]:
    """Return the rows of ``train`` whose inputs stand in ``trusted`` as well, with the row there."""
    places = {digest: row for row, digest in reversed(list(enumerate(fingerprints(trusted))))}
    return {row: places[digest] for row, digest in enumerate(fingerprints(train)) if digest in places}
