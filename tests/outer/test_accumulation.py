"""Several outer batches for each outer step, clipping, and the schedulers of the outer learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError
from tests.bad_input.common import refused
from tests.loop.common import LR, XV, YV, X, Y, inner, outer, same, start

NEWTON = hg.Implicit(hg.CG(rtol=1e-13), inner=hg.Newton())
RULE = hg.GradientDescent(lr=0.1)
ALGORITHMS: dict[str, Any] = {
    "implicit": NEWTON,
    "neumann": hg.Implicit(hg.Neumann(3, step=0.1), inner=hg.Newton()),
    "unrolled": hg.Unrolled(5, RULE),
    "unrolled-truncated": hg.Unrolled(5, RULE, truncate=2, keep="sqrt"),
    "forward": hg.ForwardMode(5, RULE),
    "zeroth-order": hg.ZerothOrder(hg.GradientDescent(lr=0.1, steps=5)),
    "soba": hg.SOBA(step_size=0.1),
    "stocbio": hg.StocBiO(step_size=0.1),
    "f2sa": hg.F2SA(step_size=0.1),
    "pzobo": hg.PZOBO(step_size=0.1),
}
PIECES = [(XV[place : place + 3], YV[place : place + 3]) for place in (0, 3, 6)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_batches_that_make_up_the_data_give_the_hypergradient_of_the_whole(name: str) -> None:
    whole = hg.hypergradient(hg.Problem(inner, outer), *start(), ALGORITHMS[name])
    problem = hg.Problem(inner, outer, outer_data=hg.Fixed(hg.Batches(PIECES)))
    found = hg.hypergradient(problem, *start(), ALGORITHMS[name])
    assert found.report.cost == whole.report.cost, "one training and one solve for all batches"
    assert float(found.outer_loss) == pytest.approx(float(whole.outer_loss), rel=1e-12)
    for key, value in whole.grads.items():
        assert torch.allclose(found.grads[key], value, rtol=1e-8, atol=1e-11)


def test_one_solve_for_the_mean_is_the_mean_of_hypergradients() -> None:
    singly = [
        hg.hypergradient(hg.Problem(inner, outer, outer_data=hg.Fixed(piece)), *start(), NEWTON) for piece in PIECES[:2]
    ]
    problem = hg.Problem(inner, outer, outer_data=hg.Fixed(hg.Batches(PIECES[:2])))
    found = hg.hypergradient(problem, *start(), NEWTON)
    for key, value in found.grads.items():
        assert torch.allclose(value, (singly[0].grads[key] + singly[1].grads[key]) / 2, rtol=1e-9)


def test_accumulated_batches_are_the_next_ones_of_the_sampler() -> None:
    sampler, plain = (hg.TensorSampler(XV, YV, batch_size=2, seed=4) for _ in range(2))
    both = hg.Accumulated(sampler, 3)
    assert same(both.draw(), [plain.draw() for _ in range(3)])
    position = both.state_dict()
    after = both.draw()
    both.load_state_dict(position)
    assert same(both.draw(), after)
    assert same(both.full(), plain.full())
    assert both.examples == len(XV)


def test_a_hyperparameter_that_one_batch_does_not_use_counts_there_with_zero() -> None:
    def sometimes(params: Any, hparams: Any, batch: Any) -> Tensor:
        value: Tensor = params["w"].sum() + (hparams["scale"].square() if batch else 0)
        return value

    problem = hg.Problem(inner, sometimes)
    params, hparams = start()
    for batches in ([True, False, False], [False, True, False]):
        found = problem.outer_gradients(params, hparams, hg.Batches(batches))
        assert float(found.hparams["scale"]) == pytest.approx(2 * 0.5 / 3)
        assert torch.allclose(found.params["w"], torch.ones(3, dtype=torch.float64))


def test_one_backward_pass_of_the_live_face_sees_the_mean_of_outer_batches() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    log_decay = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def train() -> Tensor:
        value: Tensor = (model(X)[:, 0] - Y).square().mean() + log_decay.exp() * model.weight.square().sum()
        return value

    def valid(batch: Any) -> Tensor:
        value: Tensor = (model(batch[0])[:, 0] - batch[1]).square().mean()
        return value

    hyper = hg.Live(model, [log_decay], train, valid, hg.Implicit(hg.CG(), inner=hg.Newton()))
    grads: list[Tensor] = []
    for batch in ((XV, YV), hg.Batches(PIECES)):
        log_decay.grad = None
        hyper.backward(outer_batch=batch)
        assert log_decay.grad is not None
        grads.append(log_decay.grad)
    assert float(grads[0]) == pytest.approx(float(grads[1]), rel=1e-9)


def test_inner_batches_are_not_accumulated() -> None:
    sampler = hg.Accumulated(hg.TensorSampler(X, Y, batch_size=2), 2)
    with refused(InputError, passed="inner_data=Accumulated", do="batch_size"):
        hg.Problem(inner, outer, inner_data=sampler)


@pytest.mark.parametrize("sampler", [None, (XV, YV)])
def test_only_samplers_are_accumulated(sampler: Any) -> None:
    with refused(InputError, passed="sampler"):
        hg.Accumulated(sampler, 2)


def test_no_batches_have_no_mean() -> None:
    with refused(InputError, passed="no batch"):
        hg.Batches([])


def test_what_remembers_every_batch_refuses_accumulated_ones() -> None:
    data = hg.Accumulated(hg.Partition(XV, YV, batch_size=3), 2)
    problem = hg.Problem(inner, outer, inner_data=hg.Partition(X, Y, batch_size=3), outer_data=data)
    with refused(InputError, passed=("outer_data", "Accumulated"), do="Partition"):
        hg.hypergradient(problem, *start(), hg.SABA(step_size=0.1))


def moved(**options: Any) -> hg.Progress:
    move = hg.outer.Torch(torch.optim.SGD, lr=1.0, **options)
    (progress,) = hg.iterate(hg.Problem(inner, outer), NEWTON, *start(), outer=move, steps=1)
    return progress


def test_clipping_by_value_cuts_large_entries_only() -> None:
    free = moved()
    steps = {key: free.moved[key] - free.hparams[key] for key in free.moved}
    sizes = torch.cat([value.reshape(-1).abs() for value in steps.values()])
    limit = float(sizes.median())
    cut = moved(clip_value=limit)
    for key, step in steps.items():
        assert torch.allclose(cut.moved[key] - cut.hparams[key], step.clamp(-limit, limit))
    assert cut.norm == free.norm, "the norm that is reported is that of the hypergradient"


def test_entries_are_cut_before_the_norm() -> None:
    both = moved(clip_value=0.01, clip=0.005)
    step = torch.cat([(both.moved[key] - both.hparams[key]).reshape(-1) for key in both.moved])
    assert float(step.norm()) == pytest.approx(0.005, rel=1e-3)


def test_warm_up_and_plateau_multiply() -> None:
    """Both schedulers act on the optimizer, in order: the loss stays, so every second step is a plateau."""
    flat = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: params["w"].sum() - hparams["x"].detach().sum() + 5,
    )
    point = {"w": torch.zeros(1, dtype=torch.float64)}, {"x": torch.zeros(1, dtype=torch.float64)}
    move = hg.outer.Torch(
        torch.optim.SGD,
        lambda optimizer: [
            LR.LinearLR(optimizer, start_factor=0.25, total_iters=3),
            LR.ReduceLROnPlateau(optimizer, patience=2, factor=0.1),
        ],
        lr=1.0,
    )
    steps = [
        float(progress.hparams["x"] - progress.moved["x"])
        for progress in hg.iterate(flat, NEWTON, *point, outer=move, steps=5)
    ]
    assert steps == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.1])


@pytest.mark.parametrize(
    "made", [lambda optimizer: None, lambda optimizer: [optimizer, 3], partial(LR.StepLR, step_size=1)]
)
def test_a_scheduler_is_checked_before_the_first_step(made: Any) -> None:
    move = hg.outer.Torch(torch.optim.SGD, made, lr=0.1)
    if isinstance(made, partial):
        hg.Run(hg.Problem(inner, outer), NEWTON, *start(), move)
        return
    with refused(InputError, passed="scheduler", do="partial"):
        hg.Run(hg.Problem(inner, outer), NEWTON, *start(), move)
