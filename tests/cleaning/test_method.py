"""What is found, by every weighting and mode, and from every form of input."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hypergrad as hg
from hypergrad.cleaning import Examples, Settings, clean
from hypergrad.cleaning.hyperparameters import Judgement, Levelled
from hypergrad.cleaning.models import LENGTH, STEEP, scale_of
from hypergrad.cleaning.second_look import surprise
from hypergrad.errors import InputError
from tests.cleaning.common import blobs, noisy, online, quick, right

WAYS: dict[str, Settings] = {
    "nested": quick(),
    "softmax": quick(weighting="softmax"),
    "mlp": quick(weighting="mlp", steps=20),
    "labels": quick(correct_labels=True),
    "unrolled": quick(algorithm="unrolled"),
    "soba": quick(algorithm="SOBA", steps=30),
    "perceptron": quick(model="mlp"),
    "online": online(),
    "online-softmax": online(weighting="softmax"),
    "online-mlp": online(weighting="mlp", epochs=16),
    "online-labels": online(correct_labels=True),
    "online-soba": online(algorithm="soba"),
}


@pytest.mark.parametrize("way", WAYS)
def test_wrong_labels_are_found(way: str) -> None:
    found = clean(noisy(), right(), WAYS[way], test=right(seed=2))
    assert found.detection is not None
    assert found.detection["auc"] > 0.95
    assert found.detection["f1"] > 0.8
    assert found.accuracy is not None
    assert found.accuracy["cleaned"] > 0.9
    assert (found.proposed[found.suspicious] == noisy().truth.numpy()[found.suspicious]).mean() > 0.8  # type: ignore[union-attr]


def test_digits_reach_most_of_what_right_labels_reach() -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(1797, generator=generator)  # the rows are sorted by writer
    inputs, labels = torch.tensor(digits.data / 16).float()[order], torch.tensor(digits.target)[order]
    wrong = torch.rand(900, generator=generator) < 0.4
    given = torch.where(wrong, (labels[:900] + torch.randint(1, 10, (900,), generator=generator)) % 10, labels[:900])
    classes = tuple("0123456789")
    train = Examples(inputs[:900], given, classes, truth=labels[:900])
    trusted, test = (Examples(inputs[a:b], labels[a:b], classes) for a, b in ((900, 1300), (1300, 1797)))
    found = clean(train, trusted, Settings(seeds=1), test=test)
    accuracy, caught = found.accuracy, found.detection
    assert accuracy is not None
    assert caught is not None
    assert accuracy["cleaned"] - accuracy["noisy"] > 0.85 * (accuracy["oracle"] - accuracy["noisy"])
    assert caught["f1"] > 0.9


def test_the_second_look_finds_what_weights_alone_miss() -> None:
    train, trusted = noisy(300, 0.4, gap=1.5), right(120, gap=1.5)
    alone, both = (
        clean(train, trusted, quick(second_look=look), test=right(seed=2, gap=1.5)) for look in ("off", "on")
    )
    assert alone.detection is not None
    assert both.detection is not None
    assert both.detection["f1"] > alone.detection["f1"]
    assert both.threshold == 0.5
    assert np.array_equal(alone.counted, (~alone.suspicious).astype(float))
    assert both.counted.shape == both.weight.shape
    assert 0 <= both.counted.min() <= both.counted.max() <= 1


def test_the_last_training_is_the_one_that_fits_the_trusted_labels_better(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypergrad.cleaning import clean as module

    both = [clean(noisy(), right(), quick(second_look="on"))]
    monkeypatch.setattr(sys.modules[module.__module__], "surprise", lambda given, labels: -surprise(given, labels))
    both.append(clean(noisy(), right(), quick(second_look="on")))
    hard = [np.array_equal(found.counted, (~found.suspicious).astype(float)) for found in both]
    assert sorted(hard) == [False, True]


def test_a_second_look_wants_inputs_in_memory() -> None:
    streamed, trusted = (DataLoader(TensorDataset(*blobs(60, seed))) for seed in (0, 1))
    with pytest.raises(InputError, match="piece by piece"):
        clean(streamed, trusted, online(second_look="on", epochs=2))
    found = clean(streamed, trusted, online(second_look="auto", epochs=2))
    assert np.array_equal(found.counted, (~found.suspicious).astype(float))


def test_weights_move_along_the_hypergradient() -> None:
    """One exact nested step against the implicit function theorem in float64, by autograd on the closed form."""
    inputs, labels = blobs(12, 0, classes=2)
    right_inputs, right_labels = blobs(8, 1, classes=2)
    x, v = inputs.double(), right_inputs.double()
    lam = torch.linspace(-1, 1, 12, dtype=torch.float64, requires_grad=True)
    target, wanted = labels.double() * 2 - 1, right_labels.double() * 2 - 1
    h = (x.T * lam.sigmoid()) @ x / 12 + 0.1 * torch.eye(4, dtype=torch.float64)
    theta = torch.linalg.solve(h, x.T @ (lam.sigmoid() * target) / 12)
    (expected,) = torch.autograd.grad((v @ theta - wanted).square().mean(), lam)

    judgement = Judgement(labels, 2, Settings(), sparse=False).double()
    rows = torch.arange(12)

    def squared(scores: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return 0.5 * (scores[:, 0] - (given.double() * 2 - 1)).square()

    def inner(params: Any, hparams: Any) -> torch.Tensor:
        arguments = (rows, labels, lambda: x @ params["w"], squared)
        value: torch.Tensor = torch.func.functional_call(judgement, dict(hparams), arguments)
        return torch.add(value, params["w"].square().sum(), alpha=0.05)

    problem = hg.Problem(inner, lambda params, _: (v @ params["w"][:, 0] - wanted).square().mean())
    hparams = {"weights.example_weights": lam.detach()}
    result = hg.hypergradient(problem, {"w": theta.detach()[:, None]}, hparams, hg.Implicit(hg.CG(rtol=1e-12)))
    torch.testing.assert_close(result.grads["weights.example_weights"], expected, rtol=1e-8, atol=1e-12)


def test_levelled_steps_have_the_typical_length_and_keep_proportions() -> None:
    table = torch.zeros(5, requires_grad=True)
    move = Levelled([table], lr=0.5)
    gradient = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    table.grad = gradient * 1e-9
    move.step()
    torch.testing.assert_close(table.detach(), -0.5 * gradient / gradient.square().mean().sqrt())
    falling = torch.zeros(5, requires_grad=True)
    slow = Levelled([falling], lr=0.5, falling=True)
    for factor in (1.0, 0.1):
        falling.grad = factor * gradient
        slow.step()
    torch.testing.assert_close(falling.detach(), -0.55 * gradient / gradient.square().mean().sqrt())


def test_levelled_steps_move_the_rows_of_a_sparse_gradient_alone() -> None:
    table = torch.zeros(6, requires_grad=True)
    rows, values = torch.tensor([[1, 4, 1]]), torch.tensor([1.0, 4.0, 2.0])
    table.grad = torch.sparse_coo_tensor(rows, values, (6,), check_invariants=False)
    Levelled([table], lr=1.0).step()
    level = (9 + 16) / 2
    torch.testing.assert_close(table.detach(), torch.tensor([0, -3.0, 0, 0, -4.0, 0]) / level**0.5)


@pytest.mark.parametrize("weighting", ["sigmoid", "softmax", "mlp"])
def test_equal_weights_are_one_half_in_every_weighting(weighting: Any) -> None:
    judgement = Judgement(torch.zeros(6, dtype=torch.long), 2, Settings(weighting=weighting), sparse=False)
    losses = torch.rand(4)
    torch.testing.assert_close(judgement.weights_of(torch.arange(4), losses), torch.full((4,), 0.5))


def test_scaling_bounds_the_curvature() -> None:
    inputs = blobs(200, 0)[0] * torch.tensor([1.0, 1e3, 1e-3, 1.0]) + 7
    for how in ("whole", "columns"):
        rows = scale_of(inputs, how)(inputs)
        assert float(rows.mean(dim=0).abs().max()) < 1e-2
        assert float(rows.square().sum(dim=1).mean()) < LENGTH * 1.01
        assert float(torch.linalg.eigvalsh(rows.T @ rows / 200)[-1]) < STEEP * 1.01
    spread = scale_of(inputs, "columns")(inputs).std(dim=0)
    assert float(spread.max() / spread.min()) < 1.001


FORMS = ("arrays", "tensors", "dataset", "loader", "strings")


def as_form(form: str, part: Examples) -> Any:
    if form == "arrays":
        return part.inputs.numpy(), part.labels.numpy()
    if form == "strings":
        return part.inputs.numpy(), np.array(part.classes)[part.labels.numpy()]
    dataset = TensorDataset(part.inputs, part.labels)
    return {
        "tensors": (part.inputs, part.labels),
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=7, shuffle=True),
    }[form]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gives_the_same(form: str) -> None:
    settings = online(epochs=2)
    expected = clean(noisy(), right(), settings)
    found = clean(as_form(form, noisy()), as_form(form, right()), settings)
    assert np.array_equal(found.weight, expected.weight)
    assert found.detection is None
    assert np.array_equal(found.kept, expected.kept)


def test_the_input_stays_as_it_is() -> None:
    train, trusted = noisy(), right()
    before = [part.clone() for part in (train.inputs, train.labels, trusted.inputs, trusted.labels)]
    model = nn.Linear(4, 3)
    learned = [value.detach().clone() for value in model.parameters()]
    clean(train, trusted, quick(), model=model)
    after = (train.inputs, train.labels, trusted.inputs, trusted.labels)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(learned, model.parameters(), strict=True))


def test_a_model_a_loss_and_an_algorithm_of_ones_own() -> None:
    def network(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, classes))

    def smoothed(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(scores, labels, reduction="none", label_smoothing=0.1)

    algorithm = hg.Implicit(hg.Identity(0.1), stationarity=float("inf"))
    for mode in ("nested", "online"):
        inner = hg.GradientDescent(lr=0.1, steps=5) if mode == "nested" else None
        chosen = hg.Implicit(hg.Identity(0.1), inner=inner, stationarity=float("inf")) if inner else algorithm
        settings = quick(lr=0.1, steps=30) if mode == "nested" else online(lr=0.1)
        found = clean(noisy(), right(), settings, model=network, loss=smoothed, algorithm=chosen)
        assert found.detection is not None
        assert found.detection["auc"] > 0.9
        assert "Identity" in found.algorithm


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    first, again = (clean(noisy(), right(), quick(seeds=2)) for _ in range(2))
    assert np.array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, clean(noisy(), right(), quick(seeds=2, seed=5)).weight)


def test_global_random_numbers_stay() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    clean(noisy(), right(), online(epochs=1, model="mlp"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_final_model_takes_inputs_as_they_were_passed() -> None:
    found = clean(noisy(), right(), quick())
    inputs, labels = blobs(60, 4)
    assert float((found.model(inputs).argmax(dim=1) == labels).double().mean()) > 0.9
