"""Successive halving over starts of the hyperparameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import DivergenceError, InputError, StationarityWarning
from hypergrad.tree import Tree
from tests.bad_input.common import refused
from tests.loop.common import LOOSE, SGD, XV, YV, X, Y, batches, inner, noisy, outer, same, start

NEWTON = hg.Implicit(hg.CG(), inner=hg.Newton())


def wells(params: Tree, hparams: Tree) -> Tensor:
    """Two minima in w = x, the lower one near 1."""
    w = params["w"]
    return ((w.square() - 1).square() - 0.3 * w).sum()


def follow(params: Tree, hparams: Tree) -> Tensor:
    return (params["w"] - hparams["x"]).square().sum() / 2


def at(x: float) -> Tree:
    return {"x": torch.tensor([x], dtype=torch.float64)}


W = {"w": torch.zeros(1, dtype=torch.float64)}
WELLS = hg.Problem(follow, wells)
DESCENT = hg.outer.Torch(torch.optim.SGD, lr=0.05)
STARTS = [at(-1.2), at(-0.8), at(0.3), at(2.0), at(-2.0), at(0.8), at(-0.1), at(1.3)]


def population(**options: Any) -> hg.Population:
    return hg.Population(WELLS, NEWTON, DESCENT, **{"rung": 4, **options})


def by_hand(number: int, steps: int) -> hg.Progress:
    *_, last = hg.iterate(WELLS, NEWTON, W, STARTS[number], outer=DESCENT, steps=steps)
    return last


def test_the_best_half_goes_on_in_every_rung() -> None:
    found = population().fit(W, STARTS)
    alive = list(range(8))
    for rung in range(4):
        losses = {number: by_hand(number, 4 * 2**rung).outer_loss for number in alive}
        for number in alive:
            assert found.members[number].losses[rung] == losses[number]
        alive = sorted(sorted(alive, key=lambda number: losses[number])[: max(1, 8 // 2 ** (rung + 1))])
    assert alive == [found.best]
    assert sorted(member.steps for member in found.members) == [4] * 4 + [8] * 2 + [16, 32]
    assert [member.status for member in found.members].count("halved") == 7
    last = by_hand(found.best, 32)
    assert same(found.hparams, last.hparams)
    assert same(found.params, last.params)
    assert found.loss == last.outer_loss
    assert float(found.hparams["x"]) > 0, "the lower of the two minima"


@pytest.mark.parametrize(
    ("count", "eta", "steps"),
    [(1, 2, [3]), (2, 2, [3, 6]), (3, 2, [3, 3, 6]), (5, 2, [3, 3, 3, 6, 12]), (4, 3, [3, 3, 3, 9]), (2, 3, [3, 3])],
)
def test_any_number_of_members(count: int, eta: int, steps: list[int]) -> None:
    found = population(rung=3, eta=eta).fit(W, STARTS[:count])
    assert sorted(member.steps for member in found.members) == steps
    assert found.members[found.best].status == "best"
    assert found.members[found.best].steps == max(steps)


def test_passes_are_equal_to_one_step_however_much_a_step_costs() -> None:
    problem = hg.Problem(inner, outer)
    accurate = hg.Implicit(hg.CG(rtol=1e-8), inner=hg.GradientDescent(lr=0.1, steps=400, tolerance=1e-4))
    starts = [{**start()[1], "decay": torch.full((3,), decay, dtype=torch.float64)} for decay in (-5.0, 2.0, 4.0, 0.0)]
    found = hg.Population(problem, accurate, SGD, rung=300, unit="passes").fit(start()[0], starts)
    first = [member for member in found.members if len(member.losses) == 1]
    assert len({member.steps for member in first}) > 1, "steps of unequal cost"
    for member in found.members:
        budget = 300 * 2 ** (len(member.losses) - 1)
        longest = 400 + 1 + 1 + 1 + 4 * 10
        assert budget <= member.passes < budget + longest


def test_a_step_that_takes_several_budgets_is_the_last_for_all_of_them() -> None:
    found = population(rung=1, unit="passes").fit(W, STARTS[:4])
    best = found.members[found.best]
    assert best.steps == 1
    assert len(best.losses) == 3
    assert len(set(best.losses)) == 1


def test_held_out_examples_judge() -> None:
    """The outer loss prefers one start, the held-out loss another."""
    plainly = population(rung=1).fit(W, [at(1.0), at(0.2)])
    judged = population(rung=1, held_out=lambda params, hparams: params["w"].square().sum()).fit(W, [at(1.0), at(0.2)])
    assert (plainly.best, judged.best) == (0, 1)
    assert judged.loss == pytest.approx(float(judged.params["w"].square()))


def test_a_held_out_batch_is_one_of_the_outer_objective() -> None:
    held = (X[:4], Y[:4])
    options: dict[str, Any] = {"rung": 2}
    problem = hg.Problem(inner, outer, outer_data=hg.Fixed((XV, YV)))
    starts = [start()[1], {key: value + 1 for key, value in start()[1].items()}]
    for given in (held, hg.TensorSampler(*held, batch_size=2)):
        found = hg.Population(problem, NEWTON, SGD, held_out=given, **options).fit(start()[0], starts)
        expected = [float(outer(member.params, member.hparams, held)) for member in found.members]
        assert [member.losses[-1] for member in found.members] == pytest.approx(expected)
        assert found.best == min((0, 1), key=lambda number: expected[number])


def test_a_member_that_diverges_drops_out_with_its_reason() -> None:
    fast = hg.outer.Torch(torch.optim.SGD, lr=0.2)  # x = 6 overshoots to infinity
    found = hg.Population(WELLS, NEWTON, fast, rung=12).fit(W, [at(6.0), at(0.5), at(7.0), at(0.7)])
    assert [member.status for member in found.members].count("diverged") == 2
    assert found.members[0].status == found.members[2].status == "diverged"
    assert "NaN or infinity" in found.members[0].reason
    assert found.best in (1, 3)
    assert math.isfinite(found.loss)
    text = str(found)
    assert text.count("\n") == 4
    assert "diverged" in text.splitlines()[1]
    assert found.members[0].reason in text


def test_a_population_that_diverges_as_a_whole_says_why() -> None:
    fast = hg.outer.Torch(torch.optim.SGD, lr=0.2)
    with pytest.raises(DivergenceError, match=r"2 starts.*member 0: .*NaN or infinity.*member 1:") as caught:
        hg.Population(WELLS, NEWTON, fast, rung=12).fit(W, [at(6.0), at(7.0)])
    assert "clip" in caught.value.do


def test_a_held_out_loss_of_nan_is_a_divergence() -> None:
    def held(params: Tree, hparams: Tree) -> Tensor:
        return (params["w"] - 0.5).log().sum()  # NaN below 0.5

    found = population(rung=1, held_out=held).fit(W, [at(0.1), at(0.9)])
    assert found.members[0].status == "diverged"
    assert found.best == 1


def drawn(generator: torch.Generator) -> Tree:
    return {"x": torch.rand(1, generator=generator, dtype=torch.float64) * 4 - 2}


def test_starts_are_drawn_from_the_seed() -> None:
    first, again, other = (population(seed=seed).fit(W, drawn, members=4) for seed in (1, 1, 2))
    assert same([m.start for m in first.members], [m.start for m in again.members])
    assert same(first.hparams, again.hparams)
    assert not same(first.members[0].start, other.members[0].start)
    assert len({float(member.start["x"]) for member in first.members}) == 4


SETUPS: dict[str, tuple[hg.Problem, Any, hg.outer.OuterMove]] = {
    "batches": (batches(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)),
    "dropout": (
        hg.Problem(noisy, outer, inner_data=hg.TensorSampler(X, Y, batch_size=4)),
        hg.Unrolled(4, hg.GradientDescent(lr=0.05, momentum=0.7), warm_start=True),
        SGD,
    ),
}


def shifted(count: int) -> list[Tree]:
    return [{key: value + 0.3 * number for key, value in start()[1].items()} for number in range(count)]


class StoppedError(Exception):
    pass


def stop_after(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the population be stopped in the middle of a turn."""
    made, real = 0, hg.Run.step

    def step(run: hg.Run) -> hg.Progress:
        nonlocal made
        made += 1
        if made > turns:
            raise StoppedError
        return real(run)

    monkeypatch.setattr(hg.Run, "step", step)


@pytest.mark.parametrize("turns", [1, 3, 5, 8, 10])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_population_resumes_bit_for_bit(setup: str, turns: int, tmp_path: Path) -> None:
    def fit(checkpoint: Path | None) -> hg.Selected:
        problem, algorithm, move = SETUPS[setup]
        for sampler in (problem.inner_data, problem.outer_data):
            if sampler is not None:
                sampler.load_state_dict({"epoch": 0, "batch": 0})
        made = hg.Population(problem, algorithm, move, rung=2, held_out=(XV[:3], YV[:3]), seed=3)
        return made.fit(start()[0], shifted(4), checkpoint=checkpoint)

    whole = fit(None)
    path = tmp_path / "new" / "population.pt"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(turns, patch)
        with pytest.raises(StoppedError):
            fit(path)
    torch.rand(3)
    resumed = fit(path)
    finished = fit(path)
    for found in (resumed, finished):
        assert same(found.hparams, whole.hparams)
        assert same(found.params, whole.params)
        assert found.best == whole.best
        for left, right in zip(found.members, whole.members, strict=True):
            assert same(vars(left) | {"cost": repr(left.cost)}, vars(right) | {"cost": repr(right.cost)})


def test_members_see_the_same_batches_and_random_numbers() -> None:
    """Equal starts stay equal, whatever ran between them."""
    problem, algorithm, move = SETUPS["dropout"]
    found = hg.Population(problem, algorithm, move, rung=3).fit(start()[0], [start()[1]] * 3)
    assert len({member.losses[0] for member in found.members}) == 1
    assert found.best == 0, "the first of equals"


def test_a_checkpoint_with_a_diverged_member_is_read_again(tmp_path: Path) -> None:
    fast = hg.outer.Torch(torch.optim.SGD, lr=0.2)

    def fit() -> hg.Selected:
        made = hg.Population(WELLS, NEWTON, fast, rung=12)
        return made.fit(W, [at(6.0), at(0.5)], checkpoint=tmp_path / "population.pt")

    first, again = fit(), fit()
    assert again.members[0].status == "diverged"
    assert again.members[0].reason == first.members[0].reason
    assert same(first.hparams, again.hparams)


def test_a_checkpoint_of_another_population_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "population.pt"
    population().fit(W, STARTS[:2], checkpoint=path)
    for other, starts, passed in (
        (population(rung=5), STARTS[:2], "'rung': 4"),
        (population(), STARTS[:3], "'members': 2"),
        (population(), STARTS[1:3], "the start"),
    ):
        with refused(InputError, passed=passed):
            other.fit(W, starts, checkpoint=path)
    state = torch.load(path, weights_only=True)
    del state["alive"]
    torch.save(state, path)
    with refused(InputError, passed="no population (KeyError)"):
        population().fit(W, STARTS[:2], checkpoint=path)
    path.write_text("something else")
    with refused(InputError, passed="no population"):
        population().fit(W, STARTS[:2], checkpoint=path)


@pytest.mark.parametrize(
    ("hparams", "members"), [([], None), (at(1.0), None), ([at(1.0)], 3), (drawn, None), (drawn, 0), (drawn, 2.5)]
)
def test_starts_are_a_list_or_drawn(hparams: Any, members: Any) -> None:
    with refused(InputError, passed="members", do="members=8"):
        population().fit(W, hparams, members=members)


def test_a_held_out_batch_for_an_objective_without_one_is_refused() -> None:
    with refused(InputError, passed=("Population", "without a batch"), do="a function"):
        population(held_out=(X, Y))


def test_each_kind_of_warning_is_given_once_for_all_members() -> None:
    short = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=1))
    with pytest.warns(StationarityWarning) as caught:
        hg.Population(WELLS, short, DESCENT, rung=1).fit(W, STARTS[:4])
    assert len(caught) == 1


def test_dropout_in_the_held_out_loss_leaves_the_random_state() -> None:
    def held(params: Tree, hparams: Tree) -> Tensor:
        return nn.functional.dropout(params["w"].square(), 0.5).sum()

    before = torch.get_rng_state()
    first = population(held_out=held).fit(W, STARTS[:2])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(2)
    assert population(held_out=held).fit(W, STARTS[:2]).loss == first.loss
