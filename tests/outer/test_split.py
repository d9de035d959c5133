"""Three parts of the data without a common row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset

import hypergrad as hg
from hypergrad.errors import InputError
from tests.bad_input.common import refused

PARTS = ("train", "validation", "held_out")


def sizes(parts: hg.Split) -> tuple[int, ...]:
    return tuple(len(parts.rows[name]) for name in PARTS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (60, 20, 20)),
        ({"validation": 0.1, "held_out": 5}, (85, 10, 5)),
        ({"train": 10, "validation": 3, "held_out": 1}, (10, 3, 1)),
        ({"train": 0.5, "validation": 0.25, "held_out": 0.25}, (50, 25, 25)),
        ({"train": 0.2}, (20, 20, 20)),
        ({"validation": 98, "held_out": 1}, (1, 98, 1)),
    ],
)
def test_sizes_are_shares_or_numbers(settings: Any, expected: tuple[int, ...]) -> None:
    parts = hg.split(100, **settings)
    assert sizes(parts) == expected
    rows = torch.cat(list(parts))
    assert len(rows.unique()) == sum(expected), "no row is in two parts"
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 100


@pytest.mark.parametrize("count", [7, 13, 101])
def test_shares_of_all_rows_leave_none_over(count: int) -> None:
    assert sum(sizes(hg.split(count, train=0.5, validation=0.3, held_out=0.2))) == count


@pytest.mark.parametrize("seed", range(3))
def test_every_label_has_its_share_of_every_part(seed: int) -> None:
    counts = [500, 61, 30, 17, 9, 3]
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    parts = hg.split(labels, validation=0.3, held_out=0.2, labels=labels, seed=seed)
    assert sizes(parts) == (310, 186, 124)
    assert len(torch.cat(list(parts.rows.values())).unique()) == 620
    for part, share in zip(parts, (0.5, 0.3, 0.2), strict=True):
        found = torch.bincount(part, minlength=len(counts))
        for label, count in enumerate(counts):
            assert abs(int(found[label]) - share * count) < 2


def test_labels_are_tensors_arrays_lists_numbers_or_names() -> None:
    names = ["cat", "dog", "owl", "cat", "dog", "owl", "cat", "dog", "owl"]
    numbers = [0, 1, 2] * 3
    expected = hg.split(9, validation=3, held_out=3, labels=names)
    for labels in (numbers, torch.tensor(numbers), np.array(numbers), np.array(names)):
        found = hg.split(9, validation=3, held_out=3, labels=labels)
        assert all(torch.equal(found.rows[name], expected.rows[name]) for name in PARTS)
    assert sorted(names[row] for row in expected.held_out) == ["cat", "dog", "owl"]


def test_everything_is_split_by_the_same_rows() -> None:
    x, y = torch.arange(30.0).view(10, 3), np.arange(10)
    data = TensorDataset(x, torch.arange(10))
    parts = hg.split(x, y, data, 10, seed=3)
    for (part_x, part_y, part_data, part_rows), name in zip(parts, PARTS, strict=True):
        assert torch.equal(part_rows, parts.rows[name])
        assert torch.equal(part_x, x[part_rows])
        assert np.array_equal(part_y, part_rows.numpy())
        assert isinstance(part_data, Subset)
        assert [int(part_data[place][1]) for place in range(len(part_data))] == part_rows.tolist()


def test_a_data_frame_keeps_its_columns() -> None:
    class Frame:
        """What pandas and its like offer."""

        def __init__(self, rows: Any) -> None:
            self.rows = rows
            self.iloc = self

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, places: Any) -> Frame:
            return Frame(self.rows[places])

    parts = hg.split(Frame(np.arange(10) * 2))
    assert isinstance(parts.train, Frame)
    assert np.array_equal(parts.train.rows, parts.rows["train"].numpy() * 2)


def test_a_split_follows_from_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = hg.split(50, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = hg.split(50, seed=7), hg.split(50, seed=8)
    assert all(torch.equal(first.rows[name], again.rows[name]) for name in PARTS)
    assert not torch.equal(first.train, other.train)


class Stream(IterableDataset[int]):
    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


@pytest.mark.parametrize(
    ("data", "settings", "passed"),
    [
        ((), {}, "nothing"),
        ((torch.ones(3), torch.ones(4)), {}, "[3, 4] rows"),
        ((torch.tensor(1.0),), {}, "Tensor"),
        (([1, 2, 3],), {}, "list"),
        ((Stream(),), {}, "Stream"),
        ((True,), {}, "bool"),
        ((2,), {}, "parts of"),
        ((10,), {"validation": 0.01}, "'validation': 0"),
        ((10,), {"train": 8, "validation": 2, "held_out": 1}, "train=8"),
        ((10,), {"validation": 9}, "parts of"),
        ((10,), {"validation": 0}, "validation=0"),
        ((10,), {"held_out": 1.0}, "held_out=1.0"),
        ((10,), {"held_out": -0.2}, "held_out=-0.2"),
        ((10,), {"train": float("nan")}, "train=nan"),
        ((10,), {"train": "half"}, "train='half'"),
        ((10,), {"validation": True}, "validation=True"),
        ((10,), {"labels": [0, 1]}, "shape (2,)"),
        ((4,), {"labels": torch.ones(4, 2), "validation": 1, "held_out": 1}, "shape (4, 2)"),
        ((6,), {"labels": [0, 0, 0, 0, 1, 1]}, "1"),
        ((10,), {"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_split_is_refused(data: tuple[Any, ...], settings: Any, passed: str) -> None:
    with refused(InputError, passed=("split", passed)):
        hg.split(*data, **settings)
