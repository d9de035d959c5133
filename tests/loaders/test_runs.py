"""Runs on loaders: the same hypergradients, and the same run after a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Sampler,
    TensorDataset,
)

import hypergrad as hg
from hypergrad.loaders import LoaderSampler
from tests.loaders.common import plain, stateful
from tests.loop.common import DESCENT, LOOSE, MOMENTUM, SGD, XV, YV, Recorder, X, Y, inner, outer, same, start

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13


class OrdersOf(Sampler[list[int]]):
    """The batches of a :class:`~hypergrad.TensorSampler`."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.make = partial(hg.TensorSampler, torch.arange(size), batch_size=batch_size, seed=seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self.make().batches)

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self.make()
        sampler.load_state_dict({"epoch": self.epoch, "batch": 0})
        return iter([sampler.draw()[0].tolist() for _ in range(len(self))])


TRAIN, VALID = TensorDataset(X, Y), TensorDataset(XV, YV)


@pytest.mark.parametrize("algorithm", [LOOSE, MOMENTUM, hg.BOME(step_size=0.05), hg.ZerothOrder(DESCENT)])
def test_hypergradients_are_those_of_a_tensor_sampler_with_the_same_batches(algorithm: Any) -> None:
    def make(loaded: bool) -> hg.Problem:
        if not loaded:
            samplers: list[Any] = [
                hg.TensorSampler(X, Y, batch_size=4, seed=1),
                hg.TensorSampler(XV, YV, batch_size=2, seed=2),
            ]
        else:
            loaders = (
                DataLoader(TRAIN, batch_sampler=OrdersOf(9, 4, 1)),
                DataLoader(VALID, batch_sampler=OrdersOf(9, 2, 2)),
            )
            samplers = [LoaderSampler(loader, transform=tuple) for loader in loaders]
        return hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])

    found = [list(hg.iterate(make(loaded), algorithm, *start(), outer=SGD, steps=4)) for loaded in (False, True)]
    for left, right in zip(*found, strict=True):
        assert same(left.moved, right.moved)
        assert left.norm == right.norm


class Jittered(TensorDataset):
    """Random augmentation."""

    def __getitem__(self, row: Any) -> Any:
        x, y = (tensor[row] for tensor in self.tensors)
        return x + 0.01 * torch.randn_like(x), y

    __getitems__ = None


LOOPED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "plain": lambda: (plain(TRAIN, batch_size=4), plain(VALID, batch_size=2)),
    "plain-augmented": lambda: (plain(Jittered(X, Y), batch_size=4), plain(VALID, batch_size=2)),
    "plain-augmented-workers": lambda: (plain(Jittered(X, Y), batch_size=4, num_workers=2), plain(VALID, batch_size=2)),
    "stateful": lambda: (stateful(TRAIN, batch_size=4), stateful(VALID, batch_size=2)),
    "stateful-augmented": lambda: (stateful(Jittered(X, Y), batch_size=4), stateful(VALID, batch_size=2)),
    "stateful-workers": lambda: (stateful(TRAIN, batch_size=4, num_workers=2), plain(VALID, batch_size=2)),
}


@pytest.mark.parametrize("algorithm", [LOOSE, MOMENTUM], ids=["implicit", "unrolled"])
@pytest.mark.parametrize("loaders", LOOPED.values(), ids=LOOPED)
def test_a_run_on_loaders_that_is_resumed_is_the_same_run(loaders: Any, algorithm: Any, tmp_path: Path) -> None:
    def fit(steps: int, *callbacks: hg.Callback, resume: Path | None = None) -> hg.Fitted:
        samplers = [LoaderSampler(loader) for loader in loaders()]
        problem = hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])
        return hg.Trainer(problem, algorithm, SGD, callbacks).fit(*start(), steps, resume=resume)

    whole, pieces = Recorder(), Recorder()
    expected = fit(5, whole)
    fit(2, pieces, hg.Checkpoint(tmp_path))
    torch.rand(3)
    found = fit(5, pieces, resume=tmp_path)
    assert same([step.moved for step in whole.seen], [step.moved for step in pieces.seen])
    assert same(expected.params, found.params)
    assert len({step.outer_loss for step in whole.seen}) > 1


def test_a_line_search_sees_one_function() -> None:
    """Every call of one outer step goes back to the batches at its start."""
    moves = {"lbfgs": hg.outer.Torch(torch.optim.LBFGS, lr=0.02, max_iter=2)}
    for make in (plain, stateful):
        samplers = [LoaderSampler(make(data, batch_size=4, shuffle=False)) for data in (TRAIN, VALID)]
        tensors = hg.Problem(inner, outer, inner_data=Cycle(X, Y), outer_data=Cycle(XV, YV))
        loaded = hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])
        left, right = (
            list(hg.iterate(problem, LOOSE, *start(), outer=moves["lbfgs"], steps=3)) for problem in (tensors, loaded)
        )
        assert same([step.moved for step in left], [step.moved for step in right])


class Cycle:
    """Batches of four rows in order."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.place = tensors, 0

    def draw(self) -> list[Tensor]:
        first = 4 * (self.place % 3)
        self.place += 1
        return [tensor[first : first + 4] for tensor in self.tensors]

    def full(self) -> list[Tensor]:
        return list(self.tensors)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: Any) -> None:
        self.place = state["place"]


def test_a_loader_sampler_is_a_sampler() -> None:
    assert isinstance(LoaderSampler(plain()), hg.Sampler)
