"""Losses that give something else the second time: found, named, and no false alarm."""

# ruff: noqa: NPY002 - numpy's global generator is what is tested

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hypergrad as hg
from hypergrad.errors import RepeatabilityWarning
from tests.bad_input.common import NEWTON, inner, outer, start
from tests.live.common import QUICK, Loss, X, Y, decay, losses, net, shrinkage

Spoiler = Callable[[Loss], Loss]


def live(spoil: Spoiler, model: nn.Module | None = None, **options: Any) -> hg.Live:
    model, weight = net() if model is None else model, decay()
    train, valid = losses(model, weight)
    return hg.Live(model, [weight], spoil(train), valid, options.pop("algorithm", QUICK), **options)


class Layer(nn.Module):
    """Linear, with something on top."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(2, 1), nn.Dropout(0.3), nn.BatchNorm1d(2)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.plain = 0, torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x  # for a look later, harmless
        self.seen += 1  # type: ignore[operator,assignment]  # a buffer, of which a copy is used
        out: Tensor = self.linear(self.drop(self.norm(x))) * self.seen
        return out


class Counting(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Writing(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.plain.add_(1)
        return super().forward(x) * self.plain


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, dtype=x.dtype, generator=self.generator)


def counted(loss: Loss) -> Loss:
    step = 0

    def spoilt() -> Tensor:
        nonlocal step
        step += 1
        return loss() * step

    return spoilt


def drawn(source: Any) -> Spoiler:
    return lambda loss: lambda: loss() * torch.as_tensor(next(source)).sum()


def shuffled(**options: Any) -> DataLoader[Any]:
    data: Any = torch.linspace(0.5, 1, 50, dtype=torch.float64)
    return DataLoader(data, batch_size=3, shuffle=True, **options)


def with_generator(generator: torch.Generator) -> Spoiler:
    return lambda loss: lambda: loss() * (1 + torch.rand((), generator=generator))


def with_numpy(generator: np.random.Generator) -> Spoiler:
    return lambda loss: lambda: loss() * (1 + generator.random())


def with_python(generator: random.Random) -> Spoiler:
    return lambda loss: lambda: loss() * (1 + generator.random())


def of_loader(loader: DataLoader[Any]) -> Spoiler:
    return lambda loss: lambda: loss() * next(iter(loader)).sum()


def unpooled(loss: Loss) -> Loss:
    noisy = with_generator(torch.Generator())(loss)

    def spoilt() -> Tensor:
        pooled, places = nn.functional.max_pool1d(X[None, :, 0], 2, return_indices=True)
        return noisy() + nn.functional.max_unpool1d(pooled, places, [2]).sum()

    return spoilt


SPOILT: dict[str, tuple[Spoiler, tuple[str, ...]]] = {
    "torch generator": (with_generator(torch.Generator()), ("'generator' (a torch.Generator)",)),
    "numpy generator": (with_numpy(np.random.default_rng(0)), ("'generator' (a numpy generator)",)),
    "python generator": (with_python(random.Random(0)), ("'generator' (a random.Random)",)),
    "counter": (counted, ("'step' (value), from 1 to 3",)),
    "clock": (lambda loss: lambda: loss() + time.perf_counter(), ("a clock",)),
    "iterator": (drawn(iter([*range(1, 99)])), ("'source' (an iterator)",)),
    "count": (drawn(itertools.count(1)), ("'source' (an iterator)",)),
    "endless iterator": (drawn(i for i in itertools.count(1)), ("it holds 'source' (an iterator)",)),
    "loader's iterator": (drawn(iter(shuffled())), ("'source' (an iterator)",)),
    "loader": (of_loader(shuffled(generator=torch.Generator())), ("'loader.generator' (a torch.Generator)",)),
    "kernel": (unpooled, ("non-deterministic: max_unpooling2d_forward_out",)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_does_not_repeat_is_named(name: str) -> None:
    spoil, words = SPOILT[name]
    hyper = live(spoil)
    with pytest.warns(RepeatabilityWarning, match="inner") as caught:
        report = hyper.backward()
    text = str(caught[0].message)
    assert len(caught) == 1
    assert all(word in text for word in words), text
    assert "outer" not in text.partition("Draw random numbers")[0]
    assert report.notes["repeatability"] == text
    assert "repeatability" not in hyper.backward().notes, "it is said once"


@pytest.mark.parametrize(("kind", "word"), [(Counting, "'model.calls' (value)"), (Writing, "'model.plain' (a tensor)")])
def test_a_module_that_counts_is_named_with_its_attribute(kind: type[nn.Module], word: str) -> None:
    model = kind().double()
    with pytest.warns(RepeatabilityWarning, match="inner .*; outer ") as caught:
        live(lambda loss: loss, model).backward()
    text = str(caught[0].message)
    assert word.replace("model", "run") in text or word in text, text
    assert f"the first module whose output differs is 'model' ({kind.__name__})" in text.replace("'run'", "'model'")


def test_the_first_module_whose_output_differs_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Sequential(Noise(), nn.Dropout(0.5)), nn.Linear(3, 1)).double()
    with pytest.warns(RepeatabilityWarning, match=r"the first module whose output differs is '\w+\.2\.0' \(Noise\)"):
        live(lambda loss: loss, model).backward()


def test_noise_before_the_first_module_is_told_apart() -> None:
    model, weight, generator = net(), decay(), torch.Generator()

    def train() -> Tensor:
        noisy = X + torch.rand(X.shape, dtype=X.dtype, generator=generator)
        loss: Tensor = (model(noisy) - Y).square().mean() + weight.exp() * shrinkage(model)
        return loss

    hyper = hg.Live(model, [weight], train, losses(model, weight)[1], QUICK)
    with pytest.warns(RepeatabilityWarning, match=r"the input of 'model.0' \(Linear\) differs already"):
        hyper.backward()


HELD: dict[str, Spoiler] = {
    "python": lambda loss: lambda: loss() * (1 + random.random()),
    "numpy": lambda loss: lambda: loss() * (2 + np.random.randn()),
    "torch": lambda loss: lambda: loss() * (1 + torch.rand(())),
    "shuffled loader": of_loader(shuffled()),
    "fresh generator": lambda loss: lambda: loss() * (1 + torch.rand((), generator=torch.Generator().manual_seed(3))),
    "unchanged": lambda loss: loss,
}


@pytest.mark.parametrize("name", HELD)
def test_global_generators_are_held_and_give_no_alarm(name: str) -> None:
    hyper = live(HELD[name])
    np.random.randn()  # the second normal number of a pair waits aside
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    hyper.backward()
    hyper.backward()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]


def test_dropout_batch_norm_buffers_and_attributes_give_no_alarm() -> None:
    live(lambda loss: loss, Layer().double()).backward()


KEEPS: tuple[Any, ...] = ("graph", "iterates", "log")


@pytest.mark.parametrize("spoil", [HELD["python"], HELD["numpy"], HELD["torch"]], ids=["python", "numpy", "torch"])
def test_steps_that_are_done_again_see_the_same_random_numbers(spoil: Spoiler) -> None:
    grads = []
    for keep in KEEPS:
        model, weight = net(), decay()
        train, valid = losses(model, weight)
        algorithm = hg.Unrolled(6, hg.GradientDescent(lr=0.05), keep=keep)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        hg.Live(model, [weight], spoil(train), valid, algorithm).backward()
        assert weight.grad is not None
        grads.append(weight.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-12)
    assert torch.allclose(grads[0], grads[2], rtol=1e-12)


def test_without_the_probe_nothing_is_said_and_nothing_evaluated_more() -> None:
    counts = []
    for probe in (True, False):
        calls = itertools.count()
        hyper = live(lambda loss, calls=calls: lambda: loss() + 0 * next(calls), probe=probe)  # type: ignore[misc]
        hyper.backward()
        counts.append(next(calls))
        assert hyper.probe_cost.inner_gradients == (2 if probe else 0)
    assert counts[0] - counts[1] == hyper.probe_cost.inner_gradients + 2
    live(counted, probe=False).backward()


def test_the_warning_waits_for_the_first_answer() -> None:
    model, weight, broken = net(), decay(), torch.tensor(float("nan"), dtype=torch.float64)
    train, valid = losses(model, weight)
    hyper = hg.Live(model, [weight], counted(train), lambda: valid() * broken, QUICK)
    with pytest.raises(hg.errors.NonFiniteError):
        hyper.backward()
    broken.fill_(1)
    with pytest.warns(RepeatabilityWarning):
        hyper.backward()


def test_a_run_looks_once() -> None:
    generator = torch.Generator()

    def noisy(params: Any, hparams: Any) -> Tensor:
        return inner(params, hparams) * (1 + torch.rand((), generator=generator))

    move = hg.outer.Torch(torch.optim.SGD, lr=0.01)
    run = hg.Run(hg.Problem(noisy, outer), QUICK, *start(), move)
    with pytest.warns(RepeatabilityWarning, match=r"inner .*'generator' \(a torch.Generator\)"):
        progress = run.step()
    assert "repeatability" in progress.report.notes
    assert run.probe_cost.inner_gradients > 0
    run.step()
    hg.Run(hg.Problem(noisy, outer), QUICK, *start(), move, probe=False).step()
    fitted = hg.Trainer(hg.Problem(noisy, outer), QUICK, move, probe=False).fit(*start(), 1)
    assert fitted.last is not None


def test_a_check_that_cannot_repeat_names_the_culprit() -> None:
    generator = torch.Generator()

    def noisy(params: Any, hparams: Any) -> Tensor:
        return outer(params, hparams) * (1 + torch.rand((), generator=generator))

    result = hg.check(hg.Problem(inner, noisy), *start(), NEWTON, verbose=False)
    assert result.verdict == "undecided"
    assert "outer" in result.cause
    assert "'generator' (a torch.Generator)" in result.cause
