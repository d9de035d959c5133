"""What cannot be used, and what is noticed: refused or said before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hypergrad.cleaning import Examples, Settings, clean
from hypergrad.errors import (
    DuplicateWarning,
    InputError,
    MissingClassWarning,
    NoisyTrustedWarning,
    UnsupportedError,
)
from tests.cleaning.common import names, noisy, quick, right

SETTINGS: dict[str, dict[str, Any]] = {
    "weighting": {"weighting": "sigmod"},
    "mode": {"mode": "batch"},
    "model": {"model": "resnet"},
    "threshold": {"threshold": 1.0},
    "most_lost": {"most_lost": 0.0},
    "steps": {"steps": 0},
    "rate": {"rate": float("nan")},
    "held_out": {"held_out": 1.0},
    "folds": {"folds": 1},
    "correct_labels": {"correct_labels": "yes"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Settings(**SETTINGS[name])


def broken(what: str) -> tuple[Any, Any, dict[str, Any]]:
    train, trusted = noisy(60), right(60)
    x, y = train.inputs, train.labels
    nan = x.clone()
    nan[7, 2] = float("nan")
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "one class": ((x, torch.zeros_like(y)), (trusted.inputs, torch.zeros_like(trusted.labels)), {}),
        "one trusted class": (train, trusted.take((trusted.labels == 0).nonzero()[:, 0]), {}),
        "nan": ((nan, y), trusted, {}),
        "lengths": ((x, y[:-1]), trusted, {}),
        "shapes": ((x[:, :3], y), (trusted.inputs, trusted.labels), {}),
        "classes": (train, Examples(trusted.inputs, trusted.labels, ("x", "y", "z")), {}),
        "type": (7, trusted, {}),
        "iterable": (iter([1, 2]), trusted, {}),
        "empty": ((x[:0], y[:0]), (trusted.inputs, trusted.labels), {}),
        "text": ((np.array([["a"]] * 60), y), (trusted.inputs, trusted.labels), {}),
        "settings": (train, trusted, {"settings": {"steps": 3}}),
        "factory": (train, trusted, {"model": lambda: nn.Linear(4, 3)}),
        "no module": (train, trusted, {"model": lambda shape, classes: None}),
        "scores": (train, trusted, {"model": nn.Linear(4, 2)}),
        "inputs": (train, trusted, {"model": nn.Linear(5, 3)}),
        "algorithm": (train, trusted, {"algorithm": "neumann"}),
        "name": (train, trusted, {"settings": quick(algorithm="neuman")}),
        "convnet": (train, trusted, {"settings": quick(model="convnet")}),
        "resume": (train, trusted, {"resume": True}),
        "twins": (train, train, {}),
    }
    return cases[what]


SAYS = {
    "one class": "one class only",
    "one trusted class": "trusted with one class only",
    "nan": "first at row 7",
    "lengths": "one label for each example",
    "shapes": "the same shape in all parts",
    "classes": "the same classes",
    "type": "train of type int",
    "iterable": "map-style",
    "empty": "without a single example",
    "text": "no numbers",
    "settings": "instance of a Settings",
    "factory": "shape of one example",
    "no module": "returned NoneType",
    "scores": "one output for each class",
    "inputs": "a model that fails on inputs of shape",
    "algorithm": "an algorithm object",
    "name": "did you mean 'neumann'",
    "convnet": "images of shape",
    "resume": "without out",
    "twins": "split the data into two parts",
}


@pytest.mark.parametrize("what", SAYS)
def test_what_cannot_be_used(what: str) -> None:
    train, trusted, options = broken(what)
    with pytest.raises(InputError, match=SAYS[what]):
        clean(train, trusted, **options)


def test_an_algorithm_that_a_name_does_not_make() -> None:
    with pytest.raises(UnsupportedError, match="which needs"):
        clean(noisy(60), right(60), quick(algorithm="routed"))


def test_a_trusted_part_as_noisy_as_the_rest_is_said() -> None:
    train = noisy(200, share=0.4)
    bad = noisy(120, share=0.4, seed=3)
    with pytest.warns(NoisyTrustedWarning, match="cannot tell right labels from wrong ones"):
        found = clean(train, Examples(bad.inputs, bad.labels, bad.classes), quick(steps=2))
    assert found.trusted.noisy
    assert found.trusted.interval is not None
    assert found.trusted.interval[0] < 0.4 < found.trusted.interval[1]
    assert any("cannot tell" in note for note in found.notes)


def test_a_clean_trusted_part_is_not_accused() -> None:
    found = clean(noisy(200, share=0.4), right(120), quick(steps=2))
    assert not found.trusted.noisy
    assert found.trusted.noise_estimate is not None
    assert found.trusted.noise_estimate < 0.05
    assert found.trusted.train_estimate == pytest.approx(0.4, abs=0.1)


def test_a_class_without_trusted_examples_is_kept() -> None:
    trusted = right(90)
    some = trusted.take((trusted.labels != 2).nonzero()[:, 0])
    with pytest.warns(MissingClassWarning, match=r"\['c'\]"):
        found = clean(noisy(), some, quick())
    assert not found.suspicious[found.given == 2].any()
    assert found.suspicious[found.given != 2].any()


def test_duplicates_across_the_parts_are_said_and_not_judged() -> None:
    train, trusted = noisy(), right()
    inputs = torch.cat([train.inputs, trusted.inputs[:2]])
    labels = torch.cat([train.labels, trusted.labels[:1], (trusted.labels[1:2] + 1) % 3])
    with pytest.warns(DuplicateWarning, match="1 with the trusted label are kept, 1 with another label are not"):
        found = clean(Examples(inputs, labels, names(3)), trusted, quick())
    assert len(found.weight) == 120
    assert 120 in found.kept
    assert 121 not in found.kept
    assert [one.place for one in found.skipped] == ["120", "121"]
    assert np.array_equal(found.weight, clean(train, trusted, quick()).weight)
