"""Samplers that replay, domains that project, trees that flatten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hypergrad as hg
from hypergrad import tree
from hypergrad.errors import InputError, TreeError


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order() -> None:
    sampler = hg.TensorSampler(torch.arange(10), batch_size=3)
    epochs = [torch.cat([sampler.draw()[0] for _ in range(4)]) for _ in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert sampler.batches == 4


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_sampler_goes_on_exactly_from_a_saved_position(batch_size: int, before: int, seed: int) -> None:
    first, second = (hg.TensorSampler(torch.arange(9), batch_size=batch_size, seed=seed) for _ in range(2))
    for _ in range(before):
        first.draw()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert torch.equal(first.draw()[0], second.draw()[0])


def test_sampling_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    hg.TensorSampler(torch.arange(10), batch_size=3).draw()
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_give_different_orders_and_the_same_seed_the_same() -> None:
    orders = [torch.cat([hg.TensorSampler(torch.arange(50), batch_size=50, seed=s).draw()[0]]) for s in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_rows_belong_together() -> None:
    data = torch.arange(12.0)
    sampler = hg.TensorSampler(data, 10 * data, batch_size=5, index=True)
    for _ in range(6):
        rows, x, y = sampler.draw()
        assert torch.equal(data[rows], x)
        assert torch.equal(10 * x, y)
    rows, x, y = sampler.full()
    assert torch.equal(rows, torch.arange(12))
    assert torch.equal(y, 10 * data)


@pytest.mark.parametrize(
    ("tensors", "size"),
    [
        ((), 1),
        ((torch.zeros(3), torch.zeros(4)), 1),
        ((torch.zeros(()),), 1),
        ((torch.zeros(3),), 0),
        ((torch.zeros(3),), 4),
    ],
)
def test_wrong_data_is_refused(tensors: tuple[Tensor, ...], size: int) -> None:
    with pytest.raises(InputError):
        hg.TensorSampler(*tensors, batch_size=size)


def test_samplers_are_samplers() -> None:
    assert isinstance(hg.Fixed(1), hg.Sampler)
    assert isinstance(hg.TensorSampler(torch.zeros(2), batch_size=1), hg.Sampler)
    fixed = hg.Fixed("batch")
    fixed.load_state_dict(fixed.state_dict())
    assert fixed.draw() == fixed.full() == "batch"


DOMAINS = [
    hg.Box(-1.0, 2.0),
    hg.Positive(),
    hg.Positive(0.5),
    hg.UnitInterval(),
    hg.Simplex(),
    hg.Simplex(3.0),
    hg.Ball(1.5),
]
VECTORS = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
@given(values=VECTORS, others=VECTORS)
@settings(max_examples=30, deadline=None)
def test_projections_are_idempotent_and_nearest(domain: hg.Box, values: list[float], others: list[float]) -> None:
    """For a convex set ⟨x − Px, y − Px⟩ ≤ 0 for every y of the set."""
    size = min(len(values), len(others))
    x, other = (torch.tensor(v[:size], dtype=torch.float64) for v in (values, others))
    point, inside = domain.project(x), domain.project(other)
    assert torch.allclose(domain.project(point), point, atol=1e-12)
    assert float((x - point) @ (inside - point)) <= 1e-9


def test_simplex_and_ball_hold_what_they_say() -> None:
    points = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = hg.Simplex(2.0).project(points)
    assert torch.allclose(projected.sum(1), torch.full((20,), 2.0, dtype=torch.float64))
    assert float(projected.min()) >= 0
    assert float(hg.Ball(0.3).project(points).norm()) == pytest.approx(0.3)


def test_layout_flattens_and_views() -> None:
    named = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0), "c": torch.zeros(0)}
    layout = tree.Layout.of(named)
    flat = layout.flatten(named)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7]
    views = layout.views(flat)
    assert all(torch.equal(views[key], named[key]) for key in named)
    views["b"].add_(1)
    assert float(flat[6]) == 8, "views share memory"
    assert [layout.name_at(place) for place in (0, 5, 6)] == ["a", "a", "b"]
    with pytest.raises(IndexError):
        layout.name_at(7)


def test_states_pack_into_plain_data_and_back() -> None:
    algorithm = hg.Unrolled(3, hg.GradientDescent(lr=0.1, momentum=0.5), warm_start=True)
    problem = hg.Problem(lambda p, h: (p["w"] - h["x"]).square(), lambda p, h: p["w"])
    state = algorithm.init(problem, {"w": torch.tensor(1.0)}, {"x": torch.tensor(2.0)})
    _, state = algorithm.step(problem, state, {"x": torch.tensor(2.0, requires_grad=True)})
    packed = tree.pack(state)
    assert packed["slots"]["momentum"]["w"] is not state.slots["momentum"]["w"]
    assert tree.pack(tree.unpack(state, packed)) == packed
    with pytest.raises(TreeError, match="same algorithm"):
        tree.unpack(state, {"params": {}})
