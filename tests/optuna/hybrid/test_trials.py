"""Between trials: warm starts, pruners, constraints, trials that fail, threads, pickles."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.bridges.optuna import HybridObjective, Tuning, constraints_of, load_best, load_trial, retry
from hypergrad.bridges.optuna.trials import Link
from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.tree import Tree
from tests.optuna.hybrid.common import (
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

# Warm starts


def test_a_trial_starts_from_the_best_one_of_its_shapes(tmp_path: Path) -> None:
    found = study()
    for degree in (1, 2, 1, 2, 1):
        found.enqueue_trial({"degree": degree})
    run(found, trials=5, store=tmp_path)
    seen = [attrs(trial)["start"] for trial in found.trials]
    assert seen[0] == "fresh: no trial is finished yet"
    assert seen[1] == "fresh: no finished trial has the same names and shapes"
    assert seen[2:] == ["trial 0", "trial 1", "trial 2"]
    begun = next(iter(found.trials[2].intermediate_values.values()))
    assert begun == pytest.approx(found.trials[0].value, rel=1e-12), "θ is trained again, at the same λ"
    assert found.trials[4].value < found.trials[0].value  # type: ignore[operator]


def test_trials_may_all_start_afresh(tmp_path: Path) -> None:
    found = run(study(), trials=2, function=fixed, store=tmp_path, warm_start=False)
    assert attrs(found.trials[1])["start"] == "fresh: warm_start=False"
    assert found.trials[0].value == found.trials[1].value
    nothing = run(study(), trials=2, function=fixed)
    assert attrs(nothing.trials[1])["start"] == "fresh: no store to start from"


def test_a_deleted_artifact_is_no_start(tmp_path: Path) -> None:
    found = run(study(), trials=2, function=fixed, store=tmp_path)
    for trial in found.trials:
        (tmp_path / attrs(trial)["tensors"]["artifact"]).unlink()
        with pytest.raises(InputError, match="not in the store"):
            load_trial(found, tmp_path, trial.number)
    run(found, function=fixed, store=tmp_path)
    assert attrs(found.trials[2])["start"].startswith("fresh: no tensors to start from (trial 1: the artifact")
    assert found.trials[2].value == found.trials[0].value


def other_names(trial: Any) -> Any:
    renamed = hg.Problem(
        inner=problem().inner,
        outer=problem().outer,
        penalty=lambda params, hparams: (hparams["strength"].exp() * params["w"].square()).sum(),
    )
    return renamed, start()[0], {"strength": torch.ones(3, dtype=torch.float64)}, ALGORITHM


def test_other_names_are_no_start(tmp_path: Path) -> None:
    found = run(study(), function=fixed, store=tmp_path)
    run(found, function=other_names, store=tmp_path)
    assert attrs(found.trials[1])["start"] == "fresh: no finished trial has the same names and shapes"


# Loading


def test_load_best_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="let a trial finish first"):
        load_best(study(), tmp_path)
    found = run(study())
    with pytest.raises(InputError, match="no artifact was noted"):
        load_best(found, tmp_path)
    with pytest.raises(InputError, match="no store was passed"):
        load_best(found, None)
    with pytest.raises(InputError, match="trial 7 of 1"):
        load_trial(found, tmp_path, 7)


def test_parameters_need_not_be_kept(tmp_path: Path) -> None:
    assert load_best(run(study(), store=tmp_path, keep_params=False), tmp_path).params == {}


def test_a_store_of_optuna_is_taken(tmp_path: Path) -> None:
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    found = run(study(), store=store)
    assert load_best(found, store).value == found.best_value
    listed = optuna.artifacts.get_all_artifact_meta(found.trials[0], storage=found._storage)
    assert sorted(meta.filename for meta in listed) == ["checkpoint.pt", "tensors.pt"]


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-run"),))


def test_an_artifact_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.chdir(tmp_path)
    found = run(study(), store=tmp_path)
    trial = found.trials[0]
    entry = attrs(trial)["tensors"]
    path = tmp_path / entry["artifact"]
    torch.save({"hparams": Evil()}, path)
    with pytest.raises(InputError, match="not what was written"):
        load_best(found, tmp_path)
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    found._storage._get_trial(trial._trial_id).user_attrs["hypergrad:tensors"] = entry  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="nothing of the file was run"):
        load_best(found, tmp_path)
    assert not Path("evil-was-run").exists()


def test_an_artifacts_name_leads_nowhere_else(tmp_path: Path) -> None:
    found = run(study(), store=tmp_path / "store")
    trial = found.trials[0]
    (tmp_path / "secret").write_bytes(b"")
    found._storage._get_trial(trial._trial_id).user_attrs["hypergrad:tensors"] = {  # type: ignore[attr-defined]
        "artifact": "../secret",
        "sha256": "0",
    }
    with pytest.raises((InputError, ValueError), match="artifact"):
        load_best(found, tmp_path / "store")


# Pruners


def graded(trial: Any) -> Any:
    decay = trial.suggest_categorical("decay", [-3.0, 6.0])
    return problem(), *start(decay=decay), ALGORITHM


SLOW = hg.outer.Torch(torch.optim.SGD, lr=1e-3)
PRUNERS = {
    "median": optuna.pruners.MedianPruner(n_startup_trials=2),
    "percentile": optuna.pruners.PercentilePruner(50.0, n_startup_trials=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=40, reduction_factor=2),
    "hyperband": optuna.pruners.HyperbandPruner(min_resource=20, max_resource=160, reduction_factor=2),
}


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_stops_a_bad_trial_after_a_checkpoint(name: str, tmp_path: Path) -> None:
    found = study(pruner=PRUNERS[name], study_name="fixed")
    kinds = [-3.0, -3.0, -3.0, 6.0, 6.0, 6.0, 6.0, 6.0]
    for decay in kinds:
        found.enqueue_trial({"decay": decay})
    run(found, trials=len(kinds), function=graded, outer=SLOW, store=tmp_path, warm_start=False, steps=8)
    pruned = [trial for trial in found.trials if trial.state.name == "PRUNED"]
    assert pruned
    assert {trial.params["decay"] for trial in pruned} == {6.0}
    for trial in pruned:
        seen = attrs(trial)
        assert seen["stopped"] == "pruned"
        assert seen["steps"] < 8
        assert seen["checkpoint"]["step"] == seen["steps"], "flushed before the trial ended"
        assert (tmp_path / seen["checkpoint"]["artifact"]).stat().st_size == seen["checkpoint"]["bytes"]
        assert "tensors" not in seen
        assert max(trial.intermediate_values) == seen["passes"]


def test_a_pruned_trial_can_go_on(tmp_path: Path) -> None:
    whole = run(study(), function=graded, outer=SLOW, store=tmp_path / "whole")
    found = study(pruner=optuna.pruners.ThresholdPruner(upper=-1.0))
    found.enqueue_trial(whole.trials[0].params)
    run(found, function=graded, outer=SLOW, store=tmp_path)
    assert found.trials[0].state.name == "PRUNED"
    found.pruner = optuna.pruners.NopPruner()
    assert retry(found) == [], "a pruned trial is asked for by its number"
    assert retry(found, 0) == [0]
    run(found, function=graded, outer=SLOW, store=tmp_path)
    assert found.best_value == whole.best_value
    assert found.trials[1].intermediate_values == whole.trials[0].intermediate_values


# Constraints


def bounded(trial: Any) -> Tuning:
    degree = trial.suggest_int("degree", 1, 2)
    return Tuning(
        problem(degree),
        *start(degree),
        ALGORITHM,
        constraints=lambda params, hparams: {"weights": len(params["w"]) - 4, "norm": params["w"].norm() - 100},
    )


def test_constraints_reach_the_study(tmp_path: Path) -> None:
    found = study()
    for degree in (1, 2, 2):
        found.enqueue_trial({"degree": degree})
    run(found, trials=3, function=bounded, store=tmp_path)
    assert [trial.constraints["weights"] for trial in found.trials] == [-1.0, 2.0, 2.0]
    assert found.best_trial.number == 0
    assert attrs(found.trials[2])["start"] == "fresh: no finished trial has the same names and shapes"
    assert constraints_of(found.trials[1])[1] == 2.0, "in the order of the names"
    assert constraints_of(run(study()).trials[0]) == (math.inf,)


def test_a_retried_trial_may_have_its_constraints_already() -> None:
    trial = study().ask()
    for _ in range(2):
        Link(trial, 0, 0.0).constrain({"a": -1.0})
    assert trial.constraints == {"a": -1.0}


def test_an_older_optuna_gets_constraints_by_a_function() -> None:
    class Old:
        number = 0

        def __init__(self) -> None:
            self.user_attrs: dict[str, Any] = {}

        def set_user_attr(self, name: str, value: Any) -> None:
            self.user_attrs[name] = value

    old: Any = Old()
    Link(old, 0, 0.0).constrain({"b": 1.0, "a": -1.0})
    assert constraints_of(old) == (-1.0, 1.0)


def unbounded(trial: Any) -> Tuning:
    return tuned(trial, constraints=lambda params, hparams: {"x": math.nan})


def test_a_constraint_that_is_nan_is_not_met() -> None:
    assert run(study(), function=unbounded).trials[0].constraints == {"x": math.inf}


# Trials that fail


def failing(trial: Any) -> Any:
    bad = trial.suggest_categorical("bad", [False, True])

    def outer(params: Tree, hparams: Tree) -> Tensor:
        value = (params["w"] - 1).square().sum()
        return value / (params["w"].sum() * 0) if bad else value

    return hg.Problem(problem().inner, outer, penalty=problem().penalty), *start(), ALGORITHM


@pytest.mark.parametrize(("failure", "state"), [("fail", "FAIL"), ("prune", "PRUNED")])
def test_a_study_outlives_nan(failure: str, state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = study()
    for bad in (True, False, True):
        found.enqueue_trial({"bad": bad})
    run(found, trials=3, function=failing, failure=failure, store=tmp_path)
    assert [trial.state.name for trial in found.trials] == [state, "COMPLETE", state]
    assert attrs(found.trials[0])["failure"].startswith("NonFiniteError: passed:")
    assert "trial 0: NonFiniteError" in caplog.text
    assert "failure" not in attrs(found.trials[1])
    assert load_best(found, tmp_path).number == 1
    assert retry(found) == [], "it would fail again"


def test_a_score_of_nan_fails_the_trial() -> None:
    def nan(trial: Any) -> Tuning:
        return tuned(trial, score=lambda params, hparams: math.nan)

    trial = run(study(), function=nan).trials[0]
    assert trial.state.name == "FAIL"
    assert "a value of NaN at step 1" in attrs(trial)["failure"]


def test_an_algorithm_that_cannot_serve_fails_its_trial_only() -> None:
    def discrete(trial: Any) -> Any:
        choice = trial.suggest_categorical("kind", ["hoag", "implicit"])
        move = hg.HOAG() if choice == "hoag" else hg.outer.Torch(torch.optim.SGD, lr=0.1)
        solver = hg.Unrolled(3, hg.GradientDescent(lr=0.1)) if choice == "hoag" else ALGORITHM
        return problem(), *start(), solver, move

    found = study()
    for kind in ("hoag", "implicit"):
        found.enqueue_trial({"kind": kind})
    run(found, trials=2, function=discrete)
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE"]
    assert "UnsupportedError" in attrs(found.trials[0])["failure"]


def test_a_mistake_in_build_ends_the_study() -> None:
    def wrong(trial: Any) -> Any:
        return problem(), {"v": start()[0]["w"]}, start()[1], ALGORITHM

    found = study()
    with pytest.raises(Exception, match="w"):
        run(found, trials=3, function=wrong)
    assert len(found.trials) == 1


# Threads and processes


def test_a_second_thread_is_refused() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(trial: Any) -> Any:
        inside.set()
        assert leave.wait(60)
        return fixed(trial)

    found = study()
    first = threading.Thread(target=run, args=(found,), kwargs={"function": slow})
    first.start()
    assert inside.wait(60)
    try:
        with pytest.raises(InputError, match="random states are global"):
            run(study(), function=fixed)
    finally:
        leave.set()
        first.join()
    assert found.trials[0].state.name == "COMPLETE", "the first thread is not disturbed"
    assert run(study(), function=fixed).trials[0].value == found.trials[0].value


def test_two_jobs_are_refused_with_a_reason() -> None:
    inside = threading.Barrier(2)

    class Waiting(hg.Callback):
        def start(self, run: hg.Run, steps: int) -> None:
            inside.wait(60)

    def slow(trial: Any) -> Tuning:
        return tuned(trial, callbacks=[Waiting()])

    def second(trial: Any) -> float:
        if trial.number == 0:
            return objective(slow)(trial)
        try:
            return objective(fixed)(trial)
        finally:
            inside.wait(60)

    with pytest.raises(InputError, match="start several processes on one storage"):
        study().optimize(second, n_trials=3, n_jobs=2)


def test_an_objective_can_be_pickled(tmp_path: Path) -> None:
    before = objective(store=tmp_path, rescue=tmp_path)
    after = pickle.loads(pickle.dumps(before))
    assert isinstance(after, HybridObjective)
    one, other = study(), study()
    one.optimize(before, n_trials=1)
    other.optimize(after, n_trials=1)
    assert one.best_value == other.best_value


def test_a_study_within_a_trial_is_no_second_thread() -> None:
    def nested(trial: Any) -> Any:
        run(study(), function=fixed)
        return build(trial)

    with pytest.raises(RuntimeError, match="Nested invocation"):
        run(found := study(), function=lambda trial: run(found, function=fixed))
    assert run(study(), function=nested).trials[0].state.name == "COMPLETE"


# Optuna missing


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ready = objective()
    with pytest.raises(MissingDependencyError, match=r'pip install "hypergrad-engine\[optuna\]"'):
        ready(optuna.trial.FixedTrial({}))  # type: ignore[arg-type]
    nothing: Any = None
    for call in (load_best, retry):
        with pytest.raises(MissingDependencyError):
            call(nothing, None)


def test_importing_the_bridge_imports_no_optuna() -> None:
    code = "import sys, hypergrad.bridges.optuna; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loss_is_what_the_problem_says() -> None:
    params, hparams = start()
    assert loss(params, hparams) == float(problem().outer_value(params, hparams))
