"""A ``.grad`` that was there before the first hypergradient."""

from __future__ import annotations

import warnings

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import LeftoverWarning
from tests.live.common import EXACT, decay, hypergradient, losses, net


def test_what_a_training_loss_left_is_told_once_and_added_to() -> None:
    model, weight = net(), decay()
    expected = hypergradient(model, weight).clone()
    weight.grad = None
    train, valid = losses(model, weight)
    train().backward()
    left = weight.grad
    assert left is not None
    hyper = hg.Live(model, [weight], train, valid, EXACT)
    with pytest.warns(LeftoverWarning, match=r"hparams \['0'\] have a \.grad already"):
        hyper.backward()
    assert torch.equal(weight.grad, left + expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hyper.backward()


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_grad_and_sums_that_are_meant_are_no_alarm(zeros: bool) -> None:
    model, weight = net(), decay()
    train, valid = losses(model, weight)
    weight.grad = torch.zeros_like(weight) if zeros else torch.ones_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.Live(model, [weight], train, valid, EXACT, probe=zeros).backward()
