"""What a storage can hold of tensors: a few numbers for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MOST_TENSORS = 50
SHARES = tuple(tenth / 10 for tenth in range(11))
SAMPLE = 1_000_000


def summary(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return entries, smallest, largest, mean and eleven quantiles (0, 10, …, 100 %) of each tensor.

    The 50 largest tensors are in it, and under ``"left out"`` the number of the others. Quantiles of more than a
    million entries are those of a million of them, evenly spaced.

    Args:
        tensors: tensors by name.
    """
    largest = sorted(tensors, key=lambda name: -tensors[name].numel())[:MOST_TENSORS]
    found: dict[str, Any] = {name: _numbers(tensors[name]) for name in tensors if name in largest}
    if len(tensors) > MOST_TENSORS:
        found["left out"] = len(tensors) - MOST_TENSORS
    return found


def _numbers(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().double().flatten().cpu()
    every = -(-values.numel() // SAMPLE)
    quantiles = torch.quantile(values[::every], torch.tensor(SHARES, dtype=torch.float64))
    return {
        "shape": list(tensor.shape),
        "entries": values.numel(),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "quantiles": quantiles.tolist(),
    }
