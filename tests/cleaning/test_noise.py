"""Noise has its exact rate, goes where it says, and is the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hypergrad.cleaning import noise
from hypergrad.errors import InputError

CLASSES = 5
LABELS = torch.arange(1000) % CLASSES
CHANCES = torch.rand(1000, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
KINDS: dict[str, Callable[[float, int], noise.Noise]] = {
    "uniform": lambda rate, seed: noise.uniform(LABELS, CLASSES, rate, seed=seed),
    "confused": lambda rate, seed: noise.confused(LABELS, CLASSES, rate, seed=seed),
    "unsure": lambda rate, seed: noise.unsure(LABELS, CHANCES, rate, seed=seed),
}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.333, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_exact(kind: str, rate: float) -> None:
    made = KINDS[kind](rate, 3)
    assert int(made.wrong.sum()) == round(rate * len(LABELS))
    assert torch.equal(made.wrong, made.labels != LABELS)
    assert 0 <= int(made.labels.min()) <= int(made.labels.max()) < CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_nothing_else_moves(kind: str) -> None:
    before, labels = torch.get_rng_state(), LABELS.clone()
    first, again, other = (KINDS[kind](0.4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.wrong, other.wrong)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(labels, LABELS)


def test_uniform_noise_goes_everywhere_alike() -> None:
    labels = torch.zeros(40_000, dtype=torch.long)
    made = noise.uniform(labels, CLASSES, 0.5, seed=0)
    counts = torch.bincount(made.labels, minlength=CLASSES)[1:].double()
    assert (counts - 5000).abs().max() < 5 * (20_000 * 0.25 * 0.75) ** 0.5


def test_confusion_follows_its_map() -> None:
    made = noise.confused(LABELS, CLASSES, 0.3, seed=0, becomes=[1, 0, 4, 2, 3])
    assert torch.equal(made.labels[made.wrong], torch.tensor([1, 0, 4, 2, 3])[LABELS[made.wrong]])


def test_doubt_is_where_noise_goes() -> None:
    chances = torch.full((1000, 3), 0.005)
    chances[:, 0] = 0.99
    chances[:200] = torch.tensor([0.2, 0.1, 0.7])
    made = noise.unsure(torch.zeros(1000, dtype=torch.long), chances, 0.1, seed=0)
    assert int(made.wrong[:200].sum()) > 85  # chances 0.8 against 0.01: of 100 draws about 5 fall on the other 800
    assert set(made.labels[:200][made.wrong[:200]].tolist()) == {2}


def test_bad_input() -> None:
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="rate"):
            noise.uniform(LABELS, CLASSES, rate, seed=0)
    with pytest.raises(InputError, match="labels from 0 to 2"):
        noise.uniform(LABELS, 3, 0.1, seed=0)
    with pytest.raises(InputError, match="whole numbers"):
        noise.uniform(LABELS.double(), CLASSES, 0.1, seed=0)
    with pytest.raises(InputError, match="becomes"):
        noise.confused(LABELS, CLASSES, 0.1, seed=0, becomes=[0, 2, 3, 4, 1])
    with pytest.raises(InputError, match="one row for each label"):
        noise.unsure(LABELS, CHANCES[:10], 0.1, seed=0)
