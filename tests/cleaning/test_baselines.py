"""Loss ranking, confident learning and the second look on data whose answers are known."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypergrad.cleaning import baselines, noise
from hypergrad.cleaning.second_look import second_look, sharpening
from hypergrad.errors import InputError, MissingDependencyError


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three groups of points that a line between each two tells apart."""
    labels = torch.arange(count) % 3
    centres = torch.tensor([[6.0, 0.0], [-3.0, 5.0], [-3.0, -5.0]], dtype=torch.float64)
    return centres[labels] + torch.randn(
        count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ), labels


INPUTS, RIGHT = blobs(300, 0)
MADE = noise.uniform(RIGHT, 3, 0.2, seed=0)
FIT = baselines.softmax_regression(3)


@pytest.fixture(scope="module")
def believed() -> Tensor:
    return baselines.out_of_fold(INPUTS, MADE.labels, FIT)


def test_softmax_regression_is_at_its_optimum() -> None:
    inputs, labels = INPUTS[:30], MADE.labels[:30]
    weights = torch.linspace(0.1, 2.0, 30, dtype=torch.float64)
    chances = baselines.softmax_regression(3, 0.1, weights=weights)(inputs, labels)
    # the optimum again, from the probabilities alone: penalty · W = −Σ wᵢ xᵢ (pᵢ − yᵢ), so the scores follow from p
    shares = (weights / weights.sum())[:, None]
    residual = chances(inputs) - torch.nn.functional.one_hot(labels, 3)
    weight = -(inputs.T @ (shares * residual)) / 0.1
    bias = -(shares * residual).sum(dim=0) / 0.1
    assert torch.allclose((inputs @ weight + bias).softmax(dim=1), chances(inputs), atol=1e-3)


def test_a_weight_of_zero_leaves_an_example_out() -> None:
    kept = (~MADE.wrong).double()
    some = baselines.softmax_regression(3, weights=kept)(INPUTS, MADE.labels)(INPUTS)
    rest = FIT(INPUTS[~MADE.wrong], MADE.labels[~MADE.wrong])(INPUTS)
    assert torch.allclose(some, rest, atol=1e-3)


def test_no_example_is_judged_by_a_model_that_saw_it() -> None:
    seen: list[set[float]] = []

    def fit(inputs: Tensor, _labels: Tensor) -> Callable[[Tensor], Tensor]:
        seen.append(set(inputs[:, 0].tolist()))

        def judge(some: Tensor) -> Tensor:
            assert not seen[-1] & set(some[:, 0].tolist())
            return some[:, :1].expand(-1, 3)

        return judge

    extra = torch.tensor([[100.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    found = baselines.out_of_fold(INPUTS, MADE.labels, fit, trusted=extra, folds=7, seed=4)
    assert torch.equal(found[:, 0], INPUTS[:, 0]), "probabilities stand in the order of the examples"
    assert len(seen) == 7
    assert all(100.0 in part for part in seen)


def test_loss_ranking_finds_what_is_far_on_the_other_side(believed: Tensor) -> None:
    share = baselines.noise_share(believed, MADE.labels)
    assert share == pytest.approx(0.2, abs=0.01)
    assert torch.equal(baselines.loss_ranking(believed, MADE.labels, 0.2), MADE.wrong)


def test_the_estimate_of_noise_allows_for_errors() -> None:
    chances = torch.eye(2)[torch.tensor([0] * 60 + [1] * 40)]
    labels = torch.zeros(100, dtype=torch.long)
    assert baselines.noise_share(chances, labels) == pytest.approx(0.4)
    assert baselines.noise_share(chances, labels, 0.2) == pytest.approx(0.25)
    assert baselines.noise_share(chances, labels, 0.5) == 0


def test_confident_learning_flags_the_same(believed: Tensor) -> None:
    pytest.importorskip("cleanlab")
    flags, quality = baselines.confident_learning(believed, MADE.labels)
    assert not bool((flags & ~MADE.wrong).any()), "no right label is flagged"
    assert int(flags.sum()) >= 48, "confident learning is careful, and still finds four fifths"
    assert float(quality[MADE.wrong].max()) < float(quality[~MADE.wrong].median())


def test_without_cleanlab_the_error_names_the_extra(believed: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingDependencyError, match=r"hypergrad-engine\[cleanlab\]"):
        baselines.confident_learning(believed, MADE.labels)


HALF = torch.full((300,), 0.5, dtype=torch.float64)


def test_the_second_look_finds_wrong_labels_without_weights_that_tell() -> None:
    look = second_look(INPUTS, MADE.labels, blobs(30, 1), HALF, 3)
    assert torch.equal(look.score < 0, MADE.wrong)
    assert torch.allclose(look.belief, look.score.sigmoid(), atol=1e-6), "weights of a half say nothing"
    assert look.noise == pytest.approx(0.2, abs=0.02)


def test_the_score_is_the_odds_of_bayes_plus_those_of_the_weight() -> None:
    weight = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    look = second_look(INPUTS, MADE.labels, blobs(30, 1), weight, 3, rounds=1)
    given = look.probabilities[torch.arange(300), MADE.labels].clamp(1e-6, 1 - 1e-6)
    wrong = look.noise * (1 - given) / 2
    right = (1 - look.noise) * given
    assert torch.allclose(look.belief, right / (right + wrong), atol=1e-6)
    assert torch.allclose(look.score, torch.logit(look.belief) + torch.logit(weight, eps=1e-3), atol=1e-4)


def test_weights_outvote_a_judge_that_knows_nothing() -> None:
    blank = torch.zeros(300, 2, dtype=torch.float64)
    trusted = torch.zeros(30, 2, dtype=torch.float64), torch.arange(30) % 3
    weight = torch.where(MADE.wrong, 0.02, 0.98).double()
    assert torch.equal(second_look(blank, MADE.labels, trusted, weight, 3).score < 0, MADE.wrong)


def test_sharpening_restores_flattened_probabilities() -> None:
    true = torch.rand(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).pow(3)
    true /= true.sum(dim=1, keepdim=True)
    labels = torch.multinomial(true, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert sharpening(true.sqrt() / true.sqrt().sum(dim=1, keepdim=True), labels) == pytest.approx(2, rel=0.1)


def test_bad_input(believed: Tensor) -> None:
    with pytest.raises(InputError, match="folds"):
        baselines.out_of_fold(INPUTS[:3], MADE.labels[:3], FIT, folds=4)
    with pytest.raises(InputError, match="share"):
        baselines.loss_ranking(believed, MADE.labels, 1.5)
    with pytest.raises(InputError, match="penalty"):
        baselines.softmax_regression(3, -1.0)
    with pytest.raises(InputError, match="from 0 to 1"):
        second_look(INPUTS, MADE.labels, blobs(9, 1), HALF - 1, 3)
    with pytest.raises(InputError, match="rounds"):
        second_look(INPUTS, MADE.labels, blobs(9, 1), HALF, 3, rounds=0)
