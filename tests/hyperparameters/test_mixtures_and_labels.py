"""Weights of losses and domains, smoothing of labels: values, expectations and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError, TreeError

F64 = torch.float64


def test_losses_are_weighted_by_name_and_in_order() -> None:
    weights = hg.LossWeights(["a", "b", "c"], floor=0.1, initial=[0.2, 0.5, 0.3], dtype=F64)
    losses = {"c": torch.tensor(3.0), "a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    assert weights.weights().tolist() == pytest.approx([0.2, 0.5, 0.3])
    assert float(weights(losses).detach()) == pytest.approx(0.2 + 1.0 + 0.9)
    assert float(weights([losses[name] for name in "abc"]).detach()) == pytest.approx(2.1)


def test_weights_keep_above_the_floor_and_sum_to_one() -> None:
    weights = hg.LossWeights(["a", "b"], floor=0.2, dtype=F64)
    with torch.no_grad():
        weights.loss_weights.copy_(torch.tensor([50.0, -50.0]))
    assert weights.weights().tolist() == pytest.approx([0.8, 0.2])


def test_bonus_is_the_entropy_and_spreads_the_weights() -> None:
    weights = hg.LossWeights(["a", "b", "c"], entropy=0.5, initial=[0.7, 0.2, 0.1], dtype=F64)
    expected = -0.5 * sum(share * math.log(share) for share in (0.7, 0.2, 0.1))
    assert float(weights.bonus().detach()) == pytest.approx(expected)
    optimizer = torch.optim.SGD(weights.parameters(), lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        (-weights.bonus()).backward()
        optimizer.step()
    assert weights.weights().tolist() == pytest.approx([1 / 3] * 3, rel=1e-4)


def test_hypergradient_of_loss_weights() -> None:
    """θ* = w₁ a + w₂ b for squared losses, so that dF/dλ = (θ* − t) w₁ w₂ (a − b) (1, −1)."""
    weights = hg.LossWeights(["a", "b"], initial=[0.3, 0.7], dtype=F64)
    problem = hg.Problem(
        lambda p, raw: weights.read(raw, [(p["x"] - 1.0) ** 2 / 2, (p["x"] + 2.0) ** 2 / 2]),
        lambda p, raw: (p["x"] - 0.5) ** 2 / 2,
    )
    theta = torch.tensor(0.3 * 1.0 + 0.7 * -2.0, dtype=F64)
    found = hg.hypergradient(problem, {"x": theta}, weights.tree(), hg.Implicit(hg.CG())).grads["loss_weights"]
    slope = (float(theta) - 0.5) * 0.3 * 0.7 * 3.0
    assert found.tolist() == pytest.approx([slope, -slope])


def test_domain_weights_have_the_expectation_of_the_mixture() -> None:
    mixture = hg.DomainMixture(["x", "y", "z"], initial=[0.5, 0.3, 0.2], drawn=[0.2, 0.2, 0.6], dtype=F64)
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    domains = torch.tensor([0, 1, 2, 2, 2])  # one of each in the shares drawn
    value = (mixture(domains) * losses[domains]).mean()
    assert float(value.detach()) == pytest.approx(0.5 + 0.6 + 0.8)
    value.backward()
    shares = mixture.shares().detach()
    expected = shares * (losses - (shares * losses).sum())
    assert torch.allclose(mixture.domain_shares.grad, expected)  # type: ignore[arg-type]


def test_domains_are_drawn_by_their_shares() -> None:
    mixture = hg.DomainMixture(3, floor=0.05, initial=[0.7, 0.2, 0.1])
    drawn = mixture.draw(20_000, torch.Generator().manual_seed(0))
    counts = drawn.bincount(minlength=3) / 20_000
    assert torch.allclose(counts, torch.tensor([0.7, 0.2, 0.1]), atol=0.015)
    again = mixture.draw(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_state_of_a_mixture_goes_along() -> None:
    one, other = hg.DomainMixture(2, drawn=[0.3, 0.7], initial=[0.9, 0.1]), hg.DomainMixture(2)
    other.load_state_dict(one.state_dict())
    index = torch.tensor([0, 1])
    assert torch.equal(one(index), other(index))
    assert one.to(F64)(index).dtype == F64


def test_smoothed_labels_are_torchs() -> None:
    labels, logits = torch.tensor([0, 2, 1, 2]), torch.randn(4, 3, dtype=F64)
    smoothing = hg.LabelSmoothing(3, initial=0.15, dtype=F64)
    found = torch.nn.functional.cross_entropy(logits, smoothing(labels))
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.15))


def test_smoothing_of_each_class() -> None:
    smoothing = hg.LabelSmoothing(2, per="class", dtype=F64)
    with torch.no_grad():
        smoothing.label_smoothing.copy_(torch.tensor([0.2, 0.6], dtype=F64).logit())
    assert smoothing(torch.tensor([[0], [1]])).flatten().tolist() == pytest.approx([0.9, 0.1, 0.3, 0.7])
    smoothing(torch.tensor([1]))[0, 0].backward()
    found = smoothing.label_smoothing.grad
    assert found is not None
    assert found.tolist() == pytest.approx([0.0, 0.6 * 0.4 / 2])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "one loss": (lambda: hg.LossWeights(["a"]), "two or more"),
    "same losses": (lambda: hg.LossWeights(["a", "a"]), "two or more"),
    "text": (lambda: hg.LossWeights("ab"), "two or more"),
    "floor": (lambda: hg.LossWeights(["a", "b"], floor=0.5), "< 0.5"),
    "entropy": (lambda: hg.LossWeights(["a", "b"], entropy=-1), "entropy >= 0"),
    "initial": (lambda: hg.LossWeights(["a", "b"], initial=[0.5, 0.6]), "sum to 1"),
    "below the floor": (lambda: hg.LossWeights(["a", "b"], floor=0.2, initial=[0.1, 0.9]), "above 0.2"),
    "misspelt loss": (
        lambda: hg.LossWeights(["depth", "edges"])({"dept": torch.ones(()), "edges": torch.ones(())}),
        "did you mean 'depth'",
    ),
    "too few losses": (lambda: hg.LossWeights(["a", "b"])([torch.ones(())]), "one for each"),
    "one domain": (lambda: hg.DomainMixture(1), "two or more"),
    "floor of domains": (lambda: hg.DomainMixture(2, floor=0.5), "< 0.5"),
    "shares": (lambda: hg.DomainMixture(2, initial=[0.2, 0.3, 0.5]), "2 numbers"),
    "drawn": (lambda: hg.DomainMixture(2, drawn=[0.0, 1.0]), "above 0"),
    "names": (lambda: hg.DomainMixture(2)(["a"]), "whole numbers"),
    "classes": (lambda: hg.LabelSmoothing(1), "classes >= 2"),
    "rate": (lambda: hg.LabelSmoothing(2, initial=0), "initial > 0"),
    "per": (lambda: hg.LabelSmoothing(2, per="clas"), "did you mean 'class'"),  # type: ignore[arg-type]
    "soft targets": (lambda: hg.LabelSmoothing(2)(torch.ones(3, 2)), "whole numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(TreeError, match="did you mean 'loss_weight'"):
        hg.LossWeights(["a", "b"]).read({"loss_weight": torch.zeros(2)}, [torch.ones(()), torch.ones(())])
