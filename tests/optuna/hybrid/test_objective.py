"""What a trial does: the run of a trainer, reported at its cost, kept with its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import hypergrad as hg
from hypergrad.bridges.optuna import HybridObjective, Tuning, load_best, load_trial
from hypergrad.errors import InputError
from hypergrad.tree import Tree
from tests.optuna.hybrid import common
from tests.optuna.hybrid.common import (
    ADAM,
    ALGORITHM,
    attrs,
    build,
    fixed,
    loss,
    objective,
    problem,
    run,
    start,
    study,
    tuned,
)


class Recorder(hg.Callback):
    def __init__(self) -> None:
        self.seen: list[hg.Progress] = []

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self.seen.append(progress)


def test_a_trial_is_the_run_of_a_trainer(tmp_path: Path) -> None:
    recorder = Recorder()
    fitted = hg.Trainer(problem(), ALGORITHM, ADAM, [recorder]).fit(*start(), steps=4)
    found = run(study(), function=fixed, store=tmp_path)
    best = load_best(found, tmp_path)
    assert torch.equal(best.hparams["decay"], fitted.hparams["decay"]), "each step here is better than the one before"
    assert loss(best.params, best.hparams) == best.value == found.best_value
    assert best.value < recorder.seen[-1].outer_loss
    trial = found.trials[0]
    costs = [p.cost.inner_gradients + p.cost.products + p.cost.outer_gradients for p in recorder.seen]
    looked = attrs(trial)["passes"] - sum(costs)
    assert looked > 0, "the probe of the first step counts as well"
    assert list(trial.intermediate_values) == [looked + sum(costs[: step + 1]) for step in range(4)]
    assert list(trial.intermediate_values.values()) == [p.outer_loss for p in recorder.seen]


def test_what_is_kept_is_the_best_step_or_the_last_one(tmp_path: Path) -> None:
    wild = hg.outer.Torch(torch.optim.SGD, lr=10.0)
    best, last = (
        run(study(), function=fixed, outer=wild, store=tmp_path, steps=6, keep=keep) for keep in ("best", "last")
    )
    values = list(best.trials[0].intermediate_values.values())
    assert values == list(last.trials[0].intermediate_values.values())
    assert best.best_value == min([*values, last.best_value]) < last.best_value
    for found in (best, last):
        stored = load_best(found, tmp_path)
        assert loss(stored.params, stored.hparams) == stored.value
    assert attrs(last.trials[0])["kept_step"] == 6


def test_optuna_proposes_structure_and_never_sees_a_tensor(tmp_path: Path) -> None:
    found = run(study(), trials=6, store=tmp_path)
    assert {trial.params["degree"] for trial in found.trials} == {1, 2}
    assert all(set(trial.params) == {"degree"} for trial in found.trials)
    best = load_best(found, tmp_path)
    assert best.suggested == found.best_params
    assert best.number == found.best_trial.number
    assert best.hparams["decay"].shape == (3 * found.best_params["degree"],)
    other = next(trial.number for trial in found.trials if trial.number != best.number)
    assert load_trial(found, tmp_path, other).value == found.trials[other].value


def test_attributes_summarise_what_was_found(tmp_path: Path) -> None:
    found = run(study(), store=tmp_path)
    seen, decay = attrs(found.trials[0]), load_best(found, tmp_path).hparams["decay"]
    json.dumps(seen, allow_nan=False)
    assert all(name.startswith("hypergrad:") for name in found.trials[0].user_attrs)
    summary = seen["hparams"]["decay"]
    assert summary["entries"] == len(decay)
    assert (summary["min"], summary["max"]) == (float(decay.min()), float(decay.max()))
    assert summary["mean"] == pytest.approx(float(decay.mean()), rel=1e-15)
    assert summary["quantiles"][5] == pytest.approx(float(decay.median()), abs=float(decay.max() - decay.min()))
    assert len(summary["quantiles"]) == 11
    assert seen["report"]["status"] == "converged"
    assert seen["report"]["norm"] > 0
    assert (seen["steps"], seen["stopped"]) == (4, "steps")
    assert "Adam" in seen["outer"]
    assert "Implicit" in seen["report"]["algorithm"]


def test_a_summary_has_a_limit() -> None:
    from hypergrad.bridges.optuna.summaries import MOST_TENSORS, summary

    found = summary({f"t{number}": torch.arange(number + 1.0) for number in range(MOST_TENSORS + 3)})
    assert found["left out"] == 3
    assert "t0" not in found
    assert found["t5"]["quantiles"][::5] == [0.0, 2.5, 5.0]
    big = summary({"big": torch.arange(2_000_001, dtype=torch.float64)})["big"]
    assert big["entries"] == 2_000_001
    assert big["quantiles"][5] == pytest.approx(1_000_000, rel=1e-4)


def sampled(trial: Any) -> Tuning:
    x, y = common.XV, common.YV
    batched = hg.Problem(
        inner=lambda params, hparams: (common.X @ params["w"] - common.Y).square().mean(),
        outer=lambda params, hparams, batch: (batch[0] @ params["w"] - batch[1]).square().mean(),
        penalty=lambda params, hparams: (hparams["decay"].exp() * params["w"].square()).sum(),
        outer_data=hg.TensorSampler(x, y, batch_size=4),
    )
    return Tuning(batched, *start(), ALGORITHM)


def test_with_batches_a_value_is_that_of_the_whole_validation_set(tmp_path: Path) -> None:
    found = run(study(), function=sampled, store=tmp_path, keep="last")
    stored = load_best(found, tmp_path)
    assert stored.value == pytest.approx(loss(stored.params, stored.hparams), rel=1e-14)
    first = next(iter(found.trials[0].intermediate_values.values()))
    begun = {"w": hg.solve(problem(), *start(), ALGORITHM)["w"].detach()}
    assert first == pytest.approx(loss(begun, {}), rel=1e-12)


def scored(trial: Any) -> Tuning:
    return tuned(trial, score=lambda params, hparams: -10 * loss(params, hparams))


def test_a_score_is_maximized_where_the_study_says_so(tmp_path: Path) -> None:
    found = run(study(direction="maximize"), trials=3, function=scored, store=tmp_path)
    plain = run(study(), trials=3, function=fixed, store=tmp_path / "plain")
    assert found.best_value == -10 * plain.best_value
    assert attrs(found.trials[2])["start"] == attrs(plain.trials[2])["start"] == "trial 1"
    assert torch.equal(
        load_best(found, tmp_path).hparams["decay"], load_best(plain, tmp_path / "plain").hparams["decay"]
    )


def test_reports_may_count_seconds() -> None:
    found = run(study(), function=fixed, unit="seconds")
    assert list(found.trials[0].intermediate_values) == [0], "four steps take less than a second"


def test_fewer_reports_where_they_cost_something() -> None:
    found = run(study(), function=fixed, steps=5, report_every=2)
    every = run(study(), function=fixed, steps=5)
    assert list(found.trials[0].intermediate_values) == list(every.trials[0].intermediate_values)[1::2]


def test_the_same_seed_is_the_same_study_in_every_storage(tmp_path: Path) -> None:
    storages = [None, None, f"sqlite:///{tmp_path}/study.db", common.journal(tmp_path / "journal.log")]
    found = [run(study(storage=storage), trials=3, store=tmp_path / str(k)) for k, storage in enumerate(storages)]
    seen = [[(t.params, t.value, t.intermediate_values) for t in one.trials] for one in found]
    assert seen[0] == seen[1] == seen[2] == seen[3]


def random_start(trial: Any) -> Any:
    params, hparams = start()
    return problem(), params, {"decay": hparams["decay"] + torch.randn(3, dtype=torch.float64)}, ALGORITHM


def test_random_numbers_of_build_are_the_trials(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one, same, other = (
        run(study(), trials=2, function=random_start, warm_start=False, seed=seed).trials for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert [trial.value for trial in one] == [trial.value for trial in same]
    assert one[0].value != other[0].value
    assert one[0].value != one[1].value


def many(trial: Any) -> Any:
    for number in range(5_000):
        trial.suggest_float(f"weight{number}", 0.0, 1.0)
    return build(trial)


def test_a_tensor_as_parameters_is_refused_early() -> None:
    found = study()
    with pytest.raises(InputError, match="an hour of CPU per trial in SQLite") as caught:
        run(found, function=many)
    assert "1,000" in str(caught.value)
    assert "hypergradients tune them" in caught.value.do
    assert len(found.trials[0].params) == 1000


def test_build_gets_a_trial_like_any_other() -> None:
    def asked(trial: Any) -> Any:
        assert isinstance(trial, optuna.Trial)
        assert trial.number == 0
        trial.set_user_attr("mine", 1)
        trial.suggest_float("rate", 1e-3, 1.0, log=True)
        trial.suggest_float("rate", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["a", "b"])
        return build(trial)

    trial = run(study(), function=asked).trials[0]
    assert set(trial.params) == {"rate", "kind", "degree"}
    assert trial.user_attrs["mine"] == 1


def test_a_build_that_prunes_prunes() -> None:
    def unwilling(trial: Any) -> Any:
        raise optuna.TrialPruned("too big")

    assert run(study(), function=unwilling).trials[0].state.name == "PRUNED"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda trial: None, "returned NoneType"),
        (lambda trial: (1, 2, 3), "a tuple of 3"),
        (lambda trial: (1, 2, 3, 4), "an instance of a Problem"),
        (lambda trial: tuned(trial, score=3), "score"),
        (lambda trial: tuned(trial, callbacks=[hg.Averaging()]), "callbacks that watch or stop"),
        (lambda trial: tuned(trial, constraints=lambda params, hparams: 3), "constraints that returned 3"),
    ],
)
def test_a_wrong_build_is_told_so(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(study(), function=function)


def test_a_study_that_maximizes_a_loss_is_refused() -> None:
    with pytest.raises(InputError, match=r"which maximizes.*\n.*minimize"):
        run(study(direction="maximize"))


def test_a_study_of_two_directions_is_refused() -> None:
    with pytest.raises(InputError, match="2 directions"):
        run(study(directions=["minimize", "minimize"]))


def test_a_fixed_trial_has_no_study() -> None:
    with pytest.raises(InputError, match="FixedTrial"):
        objective()(optuna.trial.FixedTrial({"degree": 1}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"store": 3},
        {"outer": 0.1},
        {"unit": "hours"},
        {"report_every": 0},
        {"checkpoint_every": 0},
        {"keep": "first"},
        {"failure": "raise"},
        {"retries": -1},
        {"wait": -1.0},
        {"seed": 0.5},
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        HybridObjective(build, **{"steps": 2, **options})


def test_declared_hyperparameters_are_taken(tmp_path: Path) -> None:
    def declared(trial: Any) -> Tuning:
        hparams = hg.Hyperparameters(decay=hg.Hyperparameter([1.0, 1.0, 1.0], hg.Positive()), dtype=torch.float64)
        plain = problem()
        changed = hg.Problem(
            plain.inner, plain.outer, penalty=lambda params, raw: (hparams.read(raw)["decay"] * params["w"] ** 2).sum()
        )
        return Tuning(changed, start()[0], hparams, ALGORITHM)

    found = run(study(), function=declared, store=tmp_path)
    assert torch.equal(load_best(found, tmp_path).hparams["decay"], load_best_of_logs(tmp_path / "other")["decay"]), (
        "log λ under exp is the same problem"
    )


def load_best_of_logs(folder: Path) -> Tree:
    def logs(trial: Any) -> Any:
        return problem(), *start(decay=0.0), ALGORITHM

    return load_best(run(study(), function=logs, store=folder), folder).hparams


def test_early_stopping_ends_a_trial() -> None:
    def stopping(trial: Any) -> Tuning:
        return tuned(trial, callbacks=[hg.EarlyStopping(patience=1, min_delta=10.0)])

    seen = attrs(run(study(), function=stopping, steps=10).trials[0])
    assert seen["steps"] == 2
    assert "no value below" in seen["stopped"]
