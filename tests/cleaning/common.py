"""Small noisy data sets, and quick settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypergrad.cleaning import Examples, Settings

QUICK: dict[str, Any] = {
    "seeds": 1,
    "steps": 12,
    "inner_steps": 5,
    "checkpoint_every": 2,
    "folds": 3,
    "second_look": "off",
}
ONLINE: dict[str, Any] = {**QUICK, "mode": "online", "epochs": 8, "batch_size": 16, "trusted_batch_size": 32}


def quick(**chosen: Any) -> Settings:
    return Settings(**{**QUICK, **chosen})


def online(**chosen: Any) -> Settings:
    return Settings(**{**ONLINE, **chosen})


def blobs(count: int, seed: int, *, classes: int = 3, gap: float = 4.0) -> tuple[Tensor, Tensor]:
    """Gaussian clouds of four features, their centres on the axes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, 4, generator=generator) + gap * torch.eye(4)[labels], labels


def noisy(count: int = 120, share: float = 0.3, seed: int = 0, **options: Any) -> Examples:
    """Training examples of which the first share has wrong labels."""
    inputs, labels = blobs(count, seed, **options)
    classes = int(labels.max()) + 1
    wrong = torch.arange(count) < share * count
    given = torch.where(wrong, (labels + 1 + torch.arange(count) // classes % (classes - 1)) % classes, labels)
    return Examples(inputs, given, names(classes), truth=labels)


def right(count: int = 90, seed: int = 1, **options: Any) -> Examples:
    """Examples with right labels."""
    inputs, labels = blobs(count, seed, **options)
    return Examples(inputs, labels, names(int(labels.max()) + 1))


def names(classes: int) -> tuple[str, ...]:
    return tuple("abcdefghij"[:classes])
