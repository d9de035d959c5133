"""Early stopping by held-out examples, the warning that asks for it, and the average of the hyperparameters."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hypergrad as hg
from hypergrad.errors import InputError, OverfittingWarning
from hypergrad.tree import Tree
from tests.bad_input.common import refused
from tests.loaders.common import Stream, stateful
from tests.loop.common import LOOSE, SGD, XV, YV, Recorder, X, Y, batches, inner, outer, run, same, start

NEWTON = hg.Implicit(hg.CG(), inner=hg.Newton())


def weighted(examples: int = 40, features: int = 12) -> tuple[hg.Problem, hg.Split, tuple[Tree, Tree]]:
    """One weight for every training example: more hyperparameters than validation examples."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    y = x[:, 0] + torch.randn(examples, generator=generator, dtype=torch.float64)
    parts = hg.split(x, y, validation=10, held_out=10, seed=2)
    x_train, y_train = parts.train

    def train_loss(params: Tree, hparams: Tree) -> Tensor:
        losses: Tensor = (x_train @ params["w"] - y_train).square()
        value: Tensor = (hparams["logit"].sigmoid() * losses).mean() + 0.01 * params["w"].square().sum()
        return value

    def loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        value: Tensor = (batch[0] @ params["w"] - batch[1]).square().mean()
        return value

    problem = hg.Problem(train_loss, loss, outer_data=hg.Fixed(parts.validation))
    start = {"w": torch.zeros(features, dtype=torch.float64)}, {"logit": torch.zeros(20, dtype=torch.float64)}
    return problem, parts, start


def fitted(steps: int, *callbacks: hg.Callback, **options: Any) -> hg.Fitted:
    problem, _, start = weighted()
    move = hg.outer.Torch(torch.optim.Adam, lr=0.3)
    return hg.Trainer(problem, NEWTON, move, callbacks, **options).fit(*start, steps)


def test_stopping_by_held_out_examples_keeps_the_state_where_they_did_best() -> None:
    """The validation loss falls on and on, the held-out loss rises after a while."""
    problem, parts, _ = weighted()
    seen: list[tuple[float, float, Tree]] = []

    class Look(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            held = float(problem.outer_value(progress.params, progress.hparams, parts.held_out))
            seen.append((progress.outer_loss, held, progress.hparams))

    stopping = hg.EarlyStopping(patience=8, held_out=parts.held_out)
    found = fitted(60, stopping, Look())
    losses, held = [row[0] for row in seen], [row[1] for row in seen]
    best = min(range(len(held)), key=held.__getitem__)
    assert losses[-1] < losses[best], "the validation loss fell on"
    assert held[-1] > held[best], "while the held-out loss rose"
    assert found.steps == best + 1 + 8 < 60
    assert same(found.hparams, seen[best][2])
    assert stopping.best is not None
    assert stopping.best[0] == pytest.approx(held[best], rel=1e-12)
    assert float(problem.outer_value(found.params, found.hparams, parts.held_out)) == pytest.approx(held[best])


@pytest.mark.parametrize("kind", ["batch", "sampler", "function"])
def test_held_out_examples_are_a_batch_a_sampler_or_a_function(kind: str) -> None:
    problem, parts, _ = weighted()
    given: dict[str, Any] = {
        "batch": parts.held_out,
        "sampler": hg.TensorSampler(*parts.held_out, batch_size=3),
        "function": lambda params, hparams: problem.outer_value(params, hparams, parts.held_out),
    }
    stopping = hg.EarlyStopping(patience=5, held_out=given[kind])
    reference = hg.EarlyStopping(
        patience=5, monitor=lambda p: float(problem.outer_value(p.params, p.hparams, parts.held_out))
    )
    found, expected = fitted(20, stopping), fitted(20, reference)
    assert found.steps == expected.steps
    assert stopping.best is not None
    assert reference.best is not None
    assert stopping.best[0] == pytest.approx(reference.best[0], rel=1e-12)
    assert same(found.hparams, expected.hparams)


def test_a_run_that_stops_by_held_out_examples_resumes(tmp_path: Path) -> None:
    def stopping() -> hg.EarlyStopping:
        return hg.EarlyStopping(patience=3, held_out=(X[:4], Y[:4]))

    whole = run("adam", 9, stopping())
    run("adam", 2, stopping(), hg.Checkpoint(tmp_path))
    resumed = run("adam", 9, stopping(), resume=tmp_path)
    assert whole.steps == resumed.steps
    assert same(whole.hparams, resumed.hparams)


def test_monitor_and_held_out_examples_are_one_too_many() -> None:
    with refused(InputError, passed="monitor and held_out", do="leave monitor out"):
        hg.EarlyStopping(monitor=lambda progress: 0.0, held_out=(X, Y))


def test_held_out_examples_for_an_objective_without_a_batch_are_refused_at_the_start() -> None:
    problem = hg.Problem(lambda params, hparams: inner(params, hparams, None), lambda p, h: outer(p, h, None))
    trainer = hg.Trainer(problem, NEWTON, SGD, [hg.EarlyStopping(held_out=(X, Y))])
    with refused(InputError, passed=("EarlyStopping", "without a batch"), do="a function"):
        trainer.fit(*start(), 2)


def told(trainer: hg.Trainer, point: tuple[Tree, Tree]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(*point, 2)
    return [str(warning.message) for warning in caught if warning.category is OverfittingWarning]


def test_more_hyperparameters_than_validation_examples_are_warned_of_once() -> None:
    problem, _, point = weighted()
    (text,) = told(hg.Trainer(problem, NEWTON, SGD), point)
    assert "20 hyperparameters are tuned on 10 validation examples" in text
    for remedy in ("hypergrad.split", "EarlyStopping(held_out=batch)", "warn_overfitting=False"):
        assert remedy in text


def test_a_guard_or_a_choice_silences_the_warning() -> None:
    problem, parts, point = weighted()
    for options in (
        {"callbacks": [hg.EarlyStopping(held_out=parts.held_out)]},
        {"callbacks": [hg.EarlyStopping(monitor=lambda progress: progress.norm)]},
        {"warn_overfitting": False},
    ):
        settings: Any = options
        assert told(hg.Trainer(problem, NEWTON, SGD, **settings), point) == []
    assert len(told(hg.Trainer(problem, NEWTON, SGD, [hg.EarlyStopping()]), point)) == 1, "the outer loss is no guard"


def data(kind: str, rows: int) -> Any:
    x, y = XV[:rows], YV[:rows]
    return {
        "none": None,
        "fixed": hg.Fixed((x, y)),
        "tensors": hg.TensorSampler(x, y, batch_size=1),
        "partition": hg.Partition(x, y, batch_size=1),
        "loader": hg.LoaderSampler(DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)),
        "accumulated": hg.Accumulated(hg.TensorSampler(x, y, batch_size=1), 2),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "fixed", "tensors", "partition", "loader", "accumulated"])
def test_the_number_of_validation_examples_is_known_from_the_sampler(kind: str) -> None:
    """Four hyperparameters: three examples are too few, four are not."""
    for rows, warned in ((3, kind != "none"), (4, False)):
        problem = hg.Problem(inner, outer, outer_data=data(kind, rows))
        assert bool(told(hg.Trainer(problem, LOOSE, SGD), start())) == warned


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11, torch 2.13
def test_a_sampler_that_does_not_know_its_examples_is_not_judged() -> None:
    assert hg.LoaderSampler(stateful(Stream(), shuffle=None)).examples is None
    assert hg.Fixed({"x": X}).examples is None
    assert hg.Fixed((X, Y[:2])).examples is None
    assert hg.Fixed(torch.tensor(1.0)).examples is None
    assert hg.Fixed(X).examples == 9


@pytest.mark.parametrize("decay", [None, 0.7])
@pytest.mark.parametrize("begin", [1, 3])
def test_the_average_is_that_of_the_hyperparameters_after_each_step(decay: float | None, begin: int) -> None:
    problem, algorithm = batches(), LOOSE
    path = [progress.moved for progress in hg.iterate(problem, algorithm, *start(), outer=SGD, steps=6, seed=4)]
    counted = path[begin - 1 :]
    expected = counted[0]
    for number, point in enumerate(counted[1:], start=2):
        share = 1 / number if decay is None else 1 - decay
        expected = {key: (1 - share) * value + share * point[key] for key, value in expected.items()}
    trainer = hg.Trainer(batches(), algorithm, SGD, [hg.Averaging(decay, begin=begin)], seed=4)
    found = trainer.fit(*start(), 6)
    for key, value in expected.items():
        assert torch.allclose(found.hparams[key], value, rtol=1e-12)
    if decay is None:
        mean = torch.stack([point["decay"] for point in counted]).mean(0)
        assert torch.allclose(found.hparams["decay"], mean, rtol=1e-12)


def test_training_is_done_at_the_average() -> None:
    exact = hg.Implicit(hg.CG(), inner=hg.Newton(tolerance=1e-12))
    found = hg.Trainer(hg.Problem(inner, outer), exact, SGD, [hg.Averaging()]).fit(*start(), 4)
    trained = exact.response(hg.Problem(inner, outer), exact.init(hg.Problem(inner, outer), *start()), found.hparams)
    assert torch.allclose(found.params["w"], trained["w"], atol=1e-10)


def test_an_average_resumes_and_leaves_the_run_and_the_batches_alone(tmp_path: Path) -> None:
    def fit(steps: int, *callbacks: hg.Callback, resume: Path | None = None) -> tuple[hg.Fitted, Any]:
        problem = batches()
        move = hg.outer.Torch(torch.optim.Adam, lr=0.1)
        found = hg.Trainer(problem, hg.SOBA(step_size=0.05), move, callbacks).fit(*start(), steps, resume=resume)
        assert problem.inner_data is not None
        assert problem.outer_data is not None
        return found, (problem.inner_data.state_dict(), problem.outer_data.state_dict())

    before = torch.get_rng_state()
    plainly, positions = fit(6)
    whole, same_positions = fit(6, hg.Averaging())
    assert positions == same_positions
    assert torch.equal(torch.get_rng_state(), before)
    assert plainly.last is not None
    assert whole.last is not None
    assert same(plainly.last.moved, whole.last.moved), "the run itself is the same"
    fit(3, hg.Averaging(), hg.Checkpoint(tmp_path))
    resumed, _ = fit(6, hg.Averaging(), resume=tmp_path)
    assert same(resumed.hparams, whole.hparams)
    assert same(resumed.params, whole.params)


def test_an_average_stays_in_the_domain() -> None:
    class Circle:
        """The unit circle, which is not convex."""

        def project(self, value: Tensor) -> Tensor:
            return torch.nn.functional.normalize(value, dim=0)

    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: (params["w"] * torch.tensor([1.0, -2.0])).sum(),
        hparams_domain={"x": Circle()},
    )
    move = hg.outer.Torch(torch.optim.SGD, lr=1.0)
    point = {"w": torch.zeros(2)}, {"x": torch.tensor([0.6, 0.8])}
    found = hg.Trainer(problem, hg.Implicit(inner=hg.Newton(tolerance=1e-5)), move, [hg.Averaging()]).fit(*point, 3)
    assert float(found.hparams["x"].norm()) == pytest.approx(1.0, rel=1e-6)


def test_averaging_quietens_noise() -> None:
    """The average of a noisy run lies nearer to the optimum than the run does."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams, batch: (params["w"] - batch[0]).square().mean() / 2,
        outer_data=hg.TensorSampler(targets, batch_size=1, seed=1),
    )
    point = {"w": torch.zeros(1, dtype=torch.float64)}, {"x": torch.zeros(1, dtype=torch.float64)}
    move = hg.outer.Torch(torch.optim.SGD, lr=0.5)
    recorder = Recorder()
    found = hg.Trainer(problem, NEWTON, move, [hg.Averaging(begin=10), recorder]).fit(*point, 200)
    ends = torch.stack([progress.moved["x"] for progress in recorder.seen[100:]]) - targets.mean()
    assert float((found.hparams["x"] - targets.mean()).abs()) < 0.2 * float(ends.square().mean().sqrt())


def test_early_stopping_and_averaging_both_choose_what_is_returned() -> None:
    with refused(InputError, passed="EarlyStopping and Averaging", do="drop one"):
        hg.Trainer(batches(), LOOSE, SGD, [hg.EarlyStopping(), hg.Averaging()])


def test_a_run_that_ends_before_the_average_begins_returns_its_end() -> None:
    plainly = hg.Trainer(hg.Problem(inner, outer), LOOSE, SGD).fit(*start(), 2)
    late = hg.Trainer(hg.Problem(inner, outer), LOOSE, SGD, [hg.Averaging(begin=5)]).fit(*start(), 2)
    assert same(plainly.hparams, late.hparams)


def test_the_average_of_another_run_is_refused(tmp_path: Path) -> None:
    run("adam", 2, hg.Averaging(), hg.Checkpoint(tmp_path))
    state = hg.load_checkpoint(tmp_path)
    state["callbacks"]["Averaging 0"]["counted"] = math.inf
    torch.save(state, tmp_path / "checkpoint.pt")
    with refused(InputError, passed="Averaging"):
        run("adam", 4, hg.Averaging(), resume=tmp_path)
