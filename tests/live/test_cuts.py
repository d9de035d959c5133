"""Hyperparameters that change a loss without a gradient: named, and never left changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import CutError, UnreachedError
from tests.bad_input.common import refused, unchanged
from tests.live.common import QUICK, decay, first_weight, losses, net

CUTS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda weight: weight.item(),
    "float": lambda weight: float(weight.detach()),
    "detach": lambda weight: weight.detach(),
    "data": lambda weight: weight.data,
    "numpy": lambda weight: weight.detach().numpy().item(),
    "no_grad": lambda weight: _no_grad(weight) * 1,
    "tolist": lambda weight: weight.tolist(),
}


def _no_grad(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight.exp()


def cut_losses(model: nn.Module, weight: Tensor, rate: Tensor, cut: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    train, valid = losses(model, weight)
    return lambda: train() + cut(rate) * first_weight(model).square().sum(), valid


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_hyperparameter_is_named_and_stays_bit_for_bit(cut: str) -> None:
    model, weight, rate = net(), decay(), decay(0.3)
    train, valid = cut_losses(model, weight, rate, CUTS[cut])
    hyper = hg.Live(model, {"weight": weight, "rate": rate}, train, valid, QUICK)
    with refused(
        CutError,
        model,
        {"weight": weight, "rate": rate},
        passed=("['rate']", "inner"),
        expected="torch operations",
        do=(".item()", ".detach()", "torch.no_grad()", "probe=False"),
    ):
        hyper.backward()


def test_a_hyperparameter_cut_in_one_loss_and_used_in_the_other_is_found() -> None:
    model, weight, rate = net(), decay(), decay(0.3)
    train, valid = cut_losses(model, weight, rate, Tensor.detach)
    hyper = hg.Live(model, [weight, rate], train, lambda: valid() + rate.square(), QUICK)
    with refused(CutError, model, {"weight": weight, "rate": rate}, passed=("['1']", "inner")):
        hyper.backward()
    hyper = hg.Live(model, [weight, rate], lambda: train() + rate * 0.1, lambda: valid() * rate.item(), QUICK)
    with refused(CutError, model, {"weight": weight, "rate": rate}, passed=("['1']", "outer")):
        hyper.backward()


def test_a_cut_penalty_is_named() -> None:
    model, weight, rate = net(), decay(), decay(0.3)
    train, valid = losses(model, weight)

    def penalty() -> Tensor:
        return rate.item() * torch.stack([p.square().sum() for p in model.parameters()]).sum()

    hyper = hg.Live(model, [weight, rate], train, lambda: valid() + rate, QUICK, penalty=penalty)
    with refused(CutError, model, {"weight": weight, "rate": rate}, passed=("['1']", "penalty")):
        hyper.backward()


def test_a_hyperparameter_of_a_module_is_moved_and_put_back_as_well() -> None:
    model = net()
    module = nn.ParameterDict({"used": nn.Parameter(decay().detach()), "cut": nn.Parameter(decay(0.3).detach())})
    train, valid = cut_losses(model, module["used"], module["cut"], Tensor.item)
    with refused(CutError, model, module, passed=("['cut']", "inner")):
        hg.Live(model, module, train, valid, QUICK).backward()


def test_a_network_that_is_invariant_to_a_common_shift_is_seen_to_depend() -> None:
    model, weight, logits = net(), decay(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    train, valid = losses(model, weight)

    def mixed() -> Tensor:
        return train() + (logits.detach().softmax(0) * first_weight(model).square().sum(1)).sum()

    with refused(CutError, model, {"logits": logits}, passed="['1']"):
        hg.Live(model, [weight, logits], mixed, valid, QUICK).backward()


def test_without_the_probe_a_meant_cut_goes_through() -> None:
    model, weight, rate = net(), decay(), decay(0.3)
    train, valid = cut_losses(model, weight, rate, Tensor.detach)
    hg.Live(model, [weight, rate], train, lambda: valid() + rate.square(), QUICK, probe=False).backward()
    assert rate.grad is not None
    assert float(rate.grad) == pytest.approx(0.6)


def test_what_no_loss_reads_is_unreached_and_not_cut() -> None:
    model, weight, ghost = net(), decay(), decay()
    train, valid = losses(model, weight)
    with refused(UnreachedError, model, {"weight": weight, "ghost": ghost}, passed="['1']"):
        hg.Live(model, [weight, ghost], train, valid, QUICK).backward()


@pytest.mark.parametrize("failing", ["above", "both sides"])
def test_a_loss_that_fails_off_the_point_leaves_the_hyperparameter(failing: str) -> None:
    model, weight, rate = net(), decay(), decay(1.0)
    train, valid = losses(model, weight)

    def bounded() -> Tensor:
        off = rate.item() > 1 if failing == "above" else rate.item() != 1
        if off:
            raise ValueError("out of range")
        return train() + rate.item() * first_weight(model).square().sum()

    hyper = hg.Live(model, [weight, rate], bounded, lambda: valid() + rate, QUICK)
    if failing == "above":
        with refused(CutError, model, {"weight": weight, "rate": rate}, passed="['1']"):
            hyper.backward()
    else:
        with unchanged(model):
            hyper.backward()
    assert rate.item() == 1.0


def test_an_interrupt_while_it_is_moved_puts_the_hyperparameter_back() -> None:
    model, weight, rate = net(), decay(), decay(math.pi)
    train, valid = losses(model, weight)

    def interrupted() -> Tensor:
        if rate.item() != math.pi:
            raise KeyboardInterrupt
        return train()

    hyper = hg.Live(model, [weight, rate], interrupted, lambda: valid() + rate, QUICK)
    with unchanged(model, {"weight": weight, "rate": rate}), pytest.raises(KeyboardInterrupt):
        hyper.backward()
    assert rate.item() == math.pi


def test_nan_bits_and_signed_zeros_are_put_back() -> None:
    model, weight = net(), decay()
    odd = torch.tensor([math.nan, -0.0, math.inf, 5e-324], dtype=torch.float64, requires_grad=True)
    before = odd.detach().clone().view(torch.int64)
    train, valid = losses(model, weight)

    def cut() -> Tensor:
        return train() + odd.detach()[1] * first_weight(model).square().sum()

    with pytest.raises(CutError):
        hg.Live(model, [weight, odd], cut, valid, QUICK).backward()
    assert torch.equal(odd.detach().view(torch.int64), before)


def test_an_alias_taken_before_is_seen_to_move() -> None:
    model, weight, rate = net(), decay(), decay(0.3)
    alias = rate.detach()
    train, valid = cut_losses(model, weight, alias, lambda value: value)
    with refused(CutError, model, {"weight": weight, "rate": rate}, passed="['1']"):
        hg.Live(model, [weight, rate], train, lambda: valid() + rate, QUICK).backward()
