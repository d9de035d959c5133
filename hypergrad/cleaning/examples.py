"""Labelled examples, wherever they were read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.errors import InputError

Kind = Literal["table", "image", "text", "tensor"]
"""What the examples were before they became tensors."""


@final
@dataclass(frozen=True)
class Skipped:
    """An input that could not be used.

    Attributes:
        place: its row, or its file relative to the folder.
        reason: why.
    """

    place: str
    reason: str


@final
@dataclass(frozen=True)
class Examples:
    """n labelled examples.

    Attributes:
        inputs: what a model takes, of shape (n, …).
        labels: the given classes, whole numbers from 0 to len(classes) − 1, of shape (n,).
        classes: names of the classes.
        index: row of each example in what was read, of shape (n,); 0 to n − 1 where it is left out.
        kind: what the examples were before.
        truth: the right classes where they are known, for scoring only; of shape (n,).
        preview: row of these examples → what a person would look at: ``{"text": …}``, ``{"row": {…}}`` or
            ``{"image": …}`` with a picture as a data address; ``None`` where there is nothing to show.
        skipped: inputs that were left out.
        notes: what a reader decided and a user should hear about, such as columns that are not used.

    Raises:
        InputError: lengths that differ, fewer than two classes, labels outside of them, or inputs that are not finite.
    """

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    index: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.empty(0, np.int64))
    kind: Kind = "tensor"
    truth: Tensor | None = None
    preview: Callable[[int], dict[str, Any]] | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what belongs together."""
        n = len(self.inputs)
        if not len(self.index) and n:
            object.__setattr__(self, "index", np.arange(n))
        lengths = {"inputs": n, "labels": len(self.labels), "index": len(self.index)}
        lengths |= {} if self.truth is None else {"truth": len(self.truth)}
        if len(set(lengths.values())) > 1:
            raise InputError(
                passed=f"examples with lengths {lengths}",
                expected="one entry of each for every example",
                do="pass arrays of the same length",
            )
        if len(self.classes) < 2:
            raise InputError(
                passed=f"{n} examples of {len(self.classes)} classes: {list(self.classes)}",
                expected="at least two classes",
                do="check which column holds the label",
            )
        for name, values in (("labels", self.labels), ("truth", self.truth)):
            if values is not None and n and not 0 <= int(values.min()) <= int(values.max()) < len(self.classes):
                raise InputError(
                    passed=f"{name} from {int(values.min())} to {int(values.max())}",
                    expected=f"whole numbers from 0 to {len(self.classes) - 1}, one for each of the classes",
                    do="encode the labels, and name all classes",
                )
        if self.inputs.is_floating_point() and not bool(torch.isfinite(self.inputs).all()):
            rows = (~torch.isfinite(self.inputs.flatten(1))).any(dim=1).nonzero()[:, 0]
            raise InputError(
                passed=f"inputs with NaN or infinity in {len(rows)} examples, first at row {int(self.index[rows[0]])}",
                expected="finite numbers",
                do="fill in the missing values, or leave these rows out",
            )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def take(self, rows: Tensor) -> Examples:
        """Return some of the examples, in the order of ``rows``."""
        numbers = rows.tolist()
        show = self.preview
        return replace(
            self,
            inputs=self.inputs[rows],
            labels=self.labels[rows],
            index=self.index[rows.numpy()],
            truth=None if self.truth is None else self.truth[rows],
            preview=None if show is None else lambda row: show(numbers[row]),
        )
