"""What moves the hyperparameters, and loops of one's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.tree import Tree
from tests.loop.common import DOMAINS, LR, MOVES, PAIRS, RESUMED, SGD, TARGET, same, start

DIRECT = hg.Implicit(inner=hg.Newton())


def pursuit(domain: Mapping[str, Any] | None = None) -> hg.Problem:
    """w* = x and F(x) = ½‖x − t‖² + ½ s², whose hypergradient is x − t and s."""
    return hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square() / 2,
        hparams_domain=domain or {},
    )


def pursuer(x: float = 0.5, s: float = 2.0) -> tuple[Tree, Tree]:
    hparams = {"x": torch.full((3,), x, dtype=torch.float64), "s": torch.tensor(s, dtype=torch.float64)}
    return {"w": torch.zeros(3, dtype=torch.float64)}, hparams


@pytest.mark.parametrize(("kind", "move"), PAIRS)
def test_every_move_stays_in_the_domain(kind: str, move: str) -> None:
    domain, inside, _ = DOMAINS[kind]
    params, hparams = pursuer(x=7.0)  # outside
    for progress in hg.iterate(pursuit({"x": domain}), DIRECT, params, hparams, outer=MOVES[move], steps=6):
        assert inside(progress.hparams["x"])
        assert inside(progress.moved["x"])


@pytest.mark.parametrize(("kind", "move"), [pair for pair in PAIRS if pair[1] in ("sgd", "lbfgsb")])
def test_a_constrained_move_reaches_the_nearest_point_of_the_domain(kind: str, move: str) -> None:
    domain, _, nearest = DOMAINS[kind]
    fitted = hg.Trainer(pursuit({"x": domain}), DIRECT, MOVES[move]).fit(*pursuer(), 40)
    assert torch.allclose(fitted.hparams["x"], nearest, atol=1e-6)


def test_the_bounds_of_l_bfgs_b_come_before_the_domain() -> None:
    move = hg.outer.LBFGSB(iterations=10, bounds={"x": (None, 2.0), "s": (0.5, None)})
    fitted = hg.Trainer(pursuit({"x": hg.UnitInterval()}), DIRECT, move).fit(*pursuer(), 3)
    assert torch.allclose(fitted.hparams["x"], TARGET.clamp(max=2.0), atol=1e-6)
    assert float(fitted.hparams["s"]) == 0.5


def moved_by(move: Any, x: float = 0.5) -> tuple[Tree, hg.Progress]:
    params, hparams = pursuer(x)
    (progress,) = hg.iterate(pursuit(), DIRECT, params, hparams, outer=move, steps=1)
    return {key: progress.moved[key] - hparams[key] for key in hparams}, progress


def test_a_plain_move_is_the_step_size_times_the_hypergradient() -> None:
    moved, progress = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.25))
    assert torch.allclose(moved["x"], -0.25 * (0.5 - TARGET))
    assert float(moved["s"]) == pytest.approx(-0.5)
    assert progress.norm == pytest.approx(math.hypot(*(0.5 - TARGET).tolist(), 2.0))


def test_clipping_shortens_a_long_hypergradient_without_turning_it() -> None:
    free, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0))
    clipped, progress = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0, clip=0.5))
    whole = torch.cat([free["x"], free["s"].reshape(1)])
    short = torch.cat([clipped["x"], clipped["s"].reshape(1)])
    assert float(short.norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(short / short.norm(), whole / whole.norm())
    assert progress.norm == pytest.approx(float(whole.norm())), "the norm that is reported is that of the hypergradient"


def test_clipping_leaves_a_short_hypergradient_alone() -> None:
    free, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0))
    clipped, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0, clip=1e3))
    assert same(free, clipped)


def test_groups_give_single_hyperparameters_options_of_their_own() -> None:
    moved, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, groups={"s": {"lr": 0.5}}))
    assert torch.allclose(moved["x"], -0.1 * (0.5 - TARGET))
    assert float(moved["s"]) == pytest.approx(-0.5 * 2.0)


def test_every_hyperparameter_may_have_a_group() -> None:
    groups = {"s": {"lr": 0.5}, "x": {"lr": 0.2, "weight_decay": 1.0}}
    moved, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, groups=groups))
    assert torch.allclose(moved["x"], -0.2 * (0.5 - TARGET + 0.5))
    assert float(moved["s"]) == pytest.approx(-0.5 * 2.0)


def test_maximising_goes_up() -> None:
    down, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1))
    up, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, maximize=True))
    assert all(torch.allclose(up[key], -down[key]) for key in down)


def test_a_scheduler_is_stepped_once_after_each_outer_step() -> None:
    lrs = [0.4, 0.4, 0.2, 0.2, 0.1]
    move = hg.outer.Torch(torch.optim.SGD, partial(LR.StepLR, step_size=2, gamma=0.5), lr=0.4)
    for lr, progress in zip(lrs, hg.iterate(pursuit(), DIRECT, *pursuer(), outer=move, steps=5), strict=True):
        step = progress.moved["s"] - progress.hparams["s"]
        assert float(step / progress.hparams["s"]) == pytest.approx(-lr)


def test_a_plateau_scheduler_watches_the_outer_loss() -> None:
    frozen = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: params["w"].sum() - hparams["x"].detach().sum() + 5 + 0 * hparams["s"],
    )  # the loss stays at 5 while x moves
    move = hg.outer.Torch(torch.optim.SGD, partial(LR.ReduceLROnPlateau, patience=1, factor=0.1), lr=1.0)
    steps = [
        float((progress.moved["x"] - progress.hparams["x"])[0])
        for progress in hg.iterate(frozen, DIRECT, *pursuer(), outer=move, steps=5)
    ]
    assert steps == pytest.approx([-1.0, -1.0, -1.0, -0.1, -0.1])


def test_an_iterator_works_only_when_it_is_asked() -> None:
    calls = 0

    def counting(params: Tree, hparams: Tree) -> Tensor:
        nonlocal calls
        calls += 1
        return (params["w"] - TARGET).square().sum() + hparams["s"].square() + hparams["x"].square().sum()

    problem = hg.Problem(lambda params, hparams: (params["w"] - hparams["x"]).square().sum(), counting)
    endless = hg.iterate(problem, DIRECT, *pursuer(), outer=SGD, probe=False)
    assert calls == 0
    assert [next(endless).step for _ in range(3)] == [1, 2, 3]
    assert calls == 3


def test_an_iterator_ends_after_its_steps_and_each_step_starts_where_the_last_one_moved_to() -> None:
    seen = list(hg.iterate(pursuit(), DIRECT, *pursuer(), outer=SGD, steps=4))
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert all(same(earlier.moved, later.hparams) for earlier, later in itertools.pairwise(seen))
    for progress in seen:
        assert torch.allclose(progress.params["w"], progress.hparams["x"])
        expected = (progress.hparams["x"] - TARGET).square().sum() / 2 + progress.hparams["s"].square() / 2
        assert progress.outer_loss == pytest.approx(float(expected))
        assert progress.seconds > 0


def test_a_trainer_an_iterator_and_a_run_make_the_same_steps() -> None:
    fitted = hg.Trainer(*RESUMED["dropout-and-batches"](), seed=3).fit(*start(), 3)
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    *_, last = hg.iterate(problem, algorithm, *start(), outer=move, steps=3, seed=3)
    assert same(last.moved, fitted.hparams)
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    made = hg.Run(problem, algorithm, *start(), move, seed=3)
    for _ in range(3):
        made.step()
    assert same(made.hparams, fitted.hparams)
    assert same(made.params, fitted.params)


def test_another_seed_is_another_run() -> None:
    first = hg.Trainer(*RESUMED["dropout"](), seed=0).fit(*start(), 2)
    second = hg.Trainer(*RESUMED["dropout"](), seed=1).fit(*start(), 2)
    assert not same(first.hparams, second.hparams)
