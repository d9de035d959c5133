"""The callback that records a run."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import InputError
from tests.report.directories import ridge, run_directory, train


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "hparams.jsonl").read_text(encoding="utf-8").splitlines()]


def run_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


def test_run_says_what_ran(tmp_path: Path) -> None:
    folder = run_directory(tmp_path / "new" / "run")
    found = run_json(folder)
    assert (found["format"], found["kind"], found["title"], found["seed"]) == (1, "trainer", "Ridge", 0)
    assert (found["steps"], found["planned_steps"], found["stopped"]) == (8, 8, "steps")
    assert found["began"] <= found["ended"]
    assert found["algorithm"]["name"] == "Implicit"
    assert "CG(" in found["algorithm"]["repr"]
    assert found["algorithm"]["reason"] is None
    assert found["hparams"] == [{"name": "log_penalty", "shape": [6], "entries": 6}]
    assert found["params"] == [{"name": "w", "shape": [6], "entries": 6}]
    assert {"hypergrad", "python", "torch", "numpy", "scipy"} <= set(found["versions"])
    assert found["machine"]["dtype"] == "float64"
    assert found["forecast"]["bound"] is True
    assert found["forecast"]["cost"]["products"] > 0


def test_distribution_is_that_of_the_hyperparameters(tmp_path: Path) -> None:
    folder, every = run_directory(tmp_path), lines(run_directory(tmp_path))
    assert [line["step"] for line in every] == list(range(9))
    fitted = train(tmp_path / "again")
    values = fitted.hparams["log_penalty"]
    last = every[-1]["tensors"]["log_penalty"]
    assert last["entries"] == last["looked_at"] == 6
    assert (last["min"], last["max"]) == (values.min(), values.max())
    assert last["mean"] == pytest.approx(float(values.mean()))
    ordered = values.sort().values.tolist()
    assert last["quantiles"] == [ordered[round(k / 10 * 5)] for k in range(11)]
    moved = last["moved"]
    distances = [abs(now - start) for _, start, now, _ in moved]
    assert distances == sorted(distances, reverse=True)
    assert {name for *_, name in moved} == {f"feature {k}" for k in range(6)}
    assert all(start == -2.0 and now == values[index[0]] for index, start, now, _ in moved)
    assert every[0]["tensors"]["log_penalty"]["moved"] == []
    assert folder == tmp_path


class Stop(hg.Callback):
    """Ends a run at a step, by a reason or by what Ctrl-C raises."""

    def __init__(self, at: int, error: type[BaseException] | None = None) -> None:
        self.at, self.error = at, error

    def step(self, run: hg.Run, progress: hg.Progress) -> str | None:
        if progress.step == self.at:
            if self.error is not None:
                raise self.error("enough")
            return "good enough"
        return None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "good enough"),
        (KeyboardInterrupt, "interrupted"),
        (ZeroDivisionError, "failed: ZeroDivisionError: enough"),
    ],
)
def test_the_end_is_said(error: type[BaseException] | None, said: str, tmp_path: Path) -> None:
    record = hg.report.Record(tmp_path)
    with nullcontext() if error is None else pytest.raises(error):
        train(tmp_path, Stop(3, error), record=[record])
    found = run_json(tmp_path)
    assert (found["stopped"], found["steps"]) == (said, 3)
    assert found["ended"] is not None
    assert lines(tmp_path)[-1]["step"] == 3


def test_an_error_outside_is_not_the_runs(tmp_path: Path) -> None:
    try:
        raise ValueError("outside")
    except ValueError:
        train(tmp_path, record=[hg.report.Record(tmp_path)], steps=2)
    assert run_json(tmp_path)["stopped"] == "steps"


def test_a_resumed_run_is_one_run(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(whole, record=[hg.report.Record(whole, every=2)])
    train(halves, hg.Checkpoint(halves), record=[hg.report.Record(halves, every=2)], steps=4)
    began = run_json(halves)["began"]
    with (halves / "hparams.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "tens')  # a crash
    train(halves, hg.Checkpoint(halves), record=[hg.report.Record(halves, every=2)], resume=halves)
    assert run_json(halves)["began"] == began
    assert run_json(halves)["steps"] == 8
    steps = {}
    for text in (halves / "hparams.jsonl").read_text(encoding="utf-8").splitlines():
        if not text.endswith("tens"):
            line = json.loads(text)
            steps[line["step"]] = line
    assert list(steps.values()) == lines(whole)


def test_a_new_run_starts_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, record=[hg.report.Record(tmp_path)], steps=2)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_auto_gives_its_reason(tmp_path: Path) -> None:
    train(tmp_path, record=[hg.report.Record(tmp_path)], steps=2, algorithm="auto")
    algorithm = run_json(tmp_path)["algorithm"]
    assert algorithm["name"] == "Auto"
    assert "positive definite" in algorithm["reason"]


def test_a_choice_gives_reason_and_forecast(tmp_path: Path) -> None:
    choice = hg.choose(*ridge(), inner=hg.LBFGS(tolerance=1e-8))
    record = hg.report.Record(tmp_path, choice=choice)
    train(tmp_path, record=[record], steps=2, algorithm=choice.algorithm)
    found = run_json(tmp_path)
    assert found["algorithm"]["reason"] == choice.reason
    assert found["forecast"]["seconds"] == choice.forecast.seconds
    assert found["forecast"]["cost"]["products"] == choice.forecast.cost.products
    assert found["forecast"]["bound"] is False


def test_large_tensors_are_sampled(tmp_path: Path) -> None:
    problem = hg.Problem(
        inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        outer=lambda params, hparams: 0.5 * (params["w"] - torch.arange(999.0).view(9, 111)).square().sum(),
    )
    start = {"x": torch.zeros(9, 111)}
    trainer = hg.Trainer(
        problem,
        hg.Implicit(hg.CG(), inner=hg.Newton()),
        hg.outer.Torch(torch.optim.SGD, lr=0.5),
        [hg.report.Record(tmp_path, sample=100)],
        warn_overfitting=False,
    )
    values = trainer.fit({"w": torch.zeros(9, 111)}, start, 2).hparams["x"]
    last = lines(tmp_path)[-1]["tensors"]["x"]
    assert (last["entries"], last["looked_at"]) == (999, 100)
    assert (last["min"], last["max"]) == (values.min(), values.max())
    assert last["mean"] == pytest.approx(float(values.mean()))
    index, before, now = last["moved"][0]
    assert (before, now) == (0.0, values[tuple(index)])
    assert math.isclose(last["quantiles"][5], float(values.median()), rel_tol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"sample": 0}, "sample=0"),
        ({"kind": "cleanin"}, "did you mean 'cleaning'"),
        ({"choice": "auto"}, "choice='auto'"),
        ({"forecast": 3}, "forecast=3"),
        ({"settings": {"x": torch.zeros(1)}}, "JSON does not hold"),
        ({"settings": {"x": math.nan}}, "JSON does not hold"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        hg.report.Record(tmp_path, **options)


@pytest.mark.parametrize("names", [{"log_penalty": ["a"]}, {"penalty": ["a"] * 6}])
def test_names_have_to_fit(names: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names for"):
        train(tmp_path / "new", record=[hg.report.Record(tmp_path / "new", names=names)])
    assert not (tmp_path / "new" / "run.json").exists()


def test_a_checkpoint_of_another_sample_is_refused(tmp_path: Path) -> None:
    train(tmp_path, hg.Checkpoint(tmp_path), record=[hg.report.Record(tmp_path)], steps=2)
    with pytest.raises(InputError, match="sample"):
        train(tmp_path, record=[hg.report.Record(tmp_path, sample=3)], resume=tmp_path)


def test_recording_changes_nothing(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    recorded = train(tmp_path / "recorded", record=[hg.report.Record(tmp_path / "recorded")])
    assert torch.equal(plain.hparams["log_penalty"], recorded.hparams["log_penalty"])
