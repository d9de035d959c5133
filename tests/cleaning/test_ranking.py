"""Thresholds, the guard of the classes, stability and detection, against counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hypergrad.cleaning import clean
from hypergrad.cleaning.ranking import agreement, compare, detection, guard, histogram, level_of, ranks
from tests.cleaning.common import noisy, quick, right


def test_the_guard_leaves_what_is_allowed() -> None:
    score = torch.tensor([-5.0, -4.0, -3.0, -2.0, -1.0, 2.0, 2.0, -0.5])
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    guarded = guard(score, labels, 2, level=0.0, most_lost=0.6)
    assert list(guarded.acted) == [0]
    assert int((guarded.score[:5] < 0).sum()) == 3
    assert float(guarded.score[:5].double().sigmoid().mean()) >= 0.2
    assert torch.equal(guarded.score[5:], score[5:])
    assert guarded.score[:5].argsort().tolist() == [0, 1, 2, 3, 4]


def test_the_guard_counts_weight_as_well() -> None:
    score = torch.tensor([-30.0] * 9 + [0.1])
    guarded = guard(score, torch.zeros(10, dtype=torch.long), 1, level=-40.0, most_lost=0.5)
    assert float(guarded.score.double().sigmoid().mean()) == pytest.approx(0.25, rel=1e-5)


def test_the_guard_stays_out_of_the_way() -> None:
    score = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    guarded = guard(score, torch.tensor([0, 0, 1, 1]), 2, level=0.0, most_lost=0.5)
    assert guarded.acted == {}
    assert torch.equal(guarded.score, score)


def test_a_guarded_class_is_said() -> None:
    found = clean(noisy(share=0.3), right(), quick(most_lost=0.05))
    for number in range(3):
        assert found.suspicious[found.given == number].mean() <= 0.05
    assert any("the guard kept class" in note for note in found.notes)


def test_the_threshold_is_where_two_groups_part() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(50, generator=generator) - 6, torch.randn(450, generator=generator) + 2
    level = level_of(torch.cat([low, high]), None)
    assert float(low.max()) < level <= 0
    assert level_of(high + 3, None) == 0.0
    assert level_of(torch.zeros(5), None) == 0.0
    assert level_of(high, 0.2) == pytest.approx(math.log(0.25))
    scores = torch.randn(60, generator=generator, dtype=torch.float64)
    ordered = scores.sort().values
    within = [float(ordered[:k].var(correction=0) * k + ordered[k:].var(correction=0) * (60 - k)) for k in range(1, 60)]
    place = int(np.argmin(within))
    assert level_of(scores, None) == pytest.approx(min(0.0, float(ordered[place] + ordered[place + 1]) / 2))


def test_ranks_begin_with_the_most_suspicious() -> None:
    assert ranks(torch.tensor([0.3, -1.0, 2.0, -1.0])).tolist() == [3, 1, 4, 2]


def test_stability_is_the_share_of_seeds_that_agree() -> None:
    scores = [torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([-2.0, 1.0, 1.0]), torch.tensor([-3.0, 1.0, 1.0])]
    suspicious = torch.tensor([True, False, False])
    shares = agreement(scores, suspicious, 0.0)
    torch.testing.assert_close(shares, torch.tensor([1.0, 1.0, 2 / 3], dtype=torch.float64))
    report = compare(scores, shares, suspicious, 0)
    assert report["suspicious_in_all"] == 1
    assert report["spearman"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    same = compare([scores[0], scores[0]], shares, suspicious, 0)
    assert same["spearman"] == pytest.approx(1.0)
    assert same["kendall"] == pytest.approx(1.0)
    assert compare(scores[:1], shares, suspicious, 0)["spearman"] is None


def test_detection_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, wrong = torch.rand(200, generator=generator).double(), torch.rand(200, generator=generator) < 0.3
    suspicious = weight < 0.4
    found = detection(weight, suspicious, wrong)
    hits = int((suspicious & wrong).sum())
    assert found["precision"] == hits / int(suspicious.sum())
    assert found["recall"] == hits / int(wrong.sum())
    assert found["auc"] == pytest.approx(roc_auc_score(wrong, -weight))
    recalls = [recall for recall, _ in found["curve"]]
    assert recalls == sorted(recalls)
    assert found["curve"][-1][1] == pytest.approx(float(wrong.double().mean()))
    assert detection(weight, suspicious, torch.zeros(200, dtype=torch.bool))["auc"] is None


def test_histograms_count_everything_once() -> None:
    weight, suspicious = torch.tensor([0.0, 0.2, 1.0]).double(), torch.tensor([True, True, False])
    found = histogram(weight, suspicious, None)
    assert sum(found["suspicious"]) == 2
    assert sum(found["kept"]) == 1
    assert found["edges"][0] == 0
    assert found["edges"][-1] == 1
