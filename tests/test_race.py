"""The pieces of the race: data, clock, traces, targets, and rows that compute what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import race_data
from benchmarks.race import Race, Trace, drive, f1, reached
from benchmarks.race_problems import leaves, task
from benchmarks.rows import race_engine, race_hand
from benchmarks.sheets import race as sheet_race
from benchmarks.sheets.sheet import Options
from hypergrad.errors import MissingDependencyError

SETTINGS = {"steps": 3, "inner": 4, "rate": 0.5, "terms": 5, "outer_rate": 0.3, "momentum": 0.5}


def images(count: int = 90, pixels: int = 6) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return rng.random((count, pixels)), rng.integers(10, size=count)


def test_the_parts_are_disjoint_and_half_of_the_first_has_wrong_labels() -> None:
    x, y = images()
    arrays, wrong = race_data.split(x, y, (40, 20, 30), seed=3)
    assert [len(arrays[key]) for key in ("y", "y_valid", "y_test")] == [40, 20, 30]
    assert wrong.sum() == 20
    mean = arrays["x"].mean(axis=0)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    rows = np.concatenate([arrays["x"], arrays["x_valid"], arrays["x_test"]])
    assert len(np.unique(rows.round(9), axis=0)) == 90
    shift = (x.sum(axis=1)[:, None] - rows.sum(axis=1)[None]).round(9)
    values, counts = np.unique(shift, return_counts=True)
    common = values[counts.argmax()]
    place = [int(np.flatnonzero(column == common)[0]) for column in shift.T]
    given = np.concatenate([arrays["y"], arrays["y_valid"], arrays["y_test"]])
    assert ((given != y[place])[:40] == wrong).all()
    assert (given == y[place])[40:].all()
    assert arrays["y"].min() >= 0
    assert arrays["y"].max() <= 9


def test_a_seed_gives_one_split() -> None:
    first, second, other = (race_data.split(*images(), (40, 20, 30), seed=seed)[0] for seed in (1, 1, 2))
    assert all((first[key] == second[key]).all() for key in first)
    assert (first["y"] != other["y"]).any()


def test_the_target_is_reached_where_it_is_first_met() -> None:
    assert reached([0.1, 0.9, 0.2, 0.95], 0.9) == 1
    assert reached([0.1, 0.2], 0.9) is None
    assert reached([0.5, 0.3, 0.4], 0.3, at_most=True) == 1
    assert reached([math.nan, 0.9], 0.9) == 1


def test_f1_counts_hits_twice() -> None:
    flags, wrong = np.array([1, 1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 1, 0], dtype=bool)
    precision, recall = 2 / 3, 2 / 3
    assert f1(flags, wrong) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(np.zeros(5, dtype=bool), wrong) == 0.0
    assert f1(np.zeros(5, dtype=bool), np.zeros(5, dtype=bool)) == 0.0


def test_the_clock_stands_still_while_a_row_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.race.time.process_time", lambda: now)

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def start() -> Any:
        spend(5.0)

        def advance() -> list[torch.Tensor]:
            spend(1.0)
            return [torch.tensor([now])]

        def look() -> Any:
            spend(100.0)
            return [torch.tensor([1.0, 2.0])], [torch.tensor([3.0])]

        return advance, look

    found = drive(3, start)
    assert found["counts"]["seconds"] == [6.0, 7.0, 8.0]
    trace = Trace.unpack(np.concatenate(found["answer"]), found["counts"]["seconds"], (2, 1))
    assert trace.first.tolist() == [6.0]
    assert trace.params.tolist() == [[1.0, 2.0]] * 3
    assert trace.hparams.tolist() == [[3.0]] * 3


def test_records_are_copies_and_a_row_may_have_no_hypergradient() -> None:
    value, under_way = torch.tensor([1.0]), Race()
    for _ in range(2):
        under_way.note([value], [value])
        value += 1
    found = under_way.result([], trials=2)
    trace = Trace.unpack(np.concatenate(found["answer"]), found["counts"]["seconds"], (1, 1), first=False)
    assert trace.params.tolist() == [[1.0], [2.0]]
    assert found["counts"]["trials"] == 2


def small(problem: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return a problem in float64."""
    if problem == "penalties":
        given = race_data.penalties(0.5, 0, smoke=True).arrays
    else:
        x, y = images(60, 5)
        given, _ = race_data.split(x, y, (30, 20, 10), seed=0)
        given |= {"params.weight": np.zeros((10, 5)), "params.bias": np.zeros(10), "hparams.logits": np.zeros(30)}
    return {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in given.items()}


@pytest.mark.parametrize("problem", ["cleaning linear", "penalties"])
@pytest.mark.parametrize("row", ["neumann", "unrolled"])
def test_this_library_takes_the_steps_of_the_hand_written_row(problem: str, row: str) -> None:
    arrays = small(problem)
    settings = SETTINGS if row == "neumann" else {**SETTINGS, "momentum": 0.0}  # unrolling keeps its momentum
    found = [module.ROWS[row](problem, arrays, settings)() for module in (race_hand, race_engine)]
    hand, engine = (np.concatenate(one["answer"]) for one in found)
    np.testing.assert_allclose(engine, hand, rtol=1e-6, atol=1e-9)


def test_the_darts_row_is_the_identity_in_place_of_the_inverse() -> None:
    arrays = small("cleaning linear")
    problem = task("cleaning linear", arrays)
    params = leaves({key: torch.randn_like(value) for key, value in problem.params.items()})
    hparams = leaves(problem.hparams)
    (found,) = race_hand.darts(problem, params, hparams, {})
    (exact,) = race_hand.neumann(problem, params, hparams, {"terms": 0, "rate": 1.0})
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-7)


def test_the_accurate_hypergradient_agrees_with_central_differences() -> None:
    arrays = small("penalties")
    _, exact = race_data.accurate("penalties", arrays)
    key, count, h = "hparams.log_penalty", arrays["params.weight"].size, 1e-4
    for place in (0, 7):
        losses = []
        for sign in (1, -1):
            hparams = arrays[key].copy()
            hparams[place] += sign * h
            given = {name: value for name, value in arrays.items() if name != "groups"}
            losses.append(race_data.trained_loss(given, np.zeros(count), hparams)[1])
        assert exact[place] == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-4, abs=1e-9)


def test_a_row_that_seldom_gets_there_has_no_time() -> None:
    trace = Trace(np.empty(0), [1.0, 2.0, 3.0], np.zeros((3, 1)), np.zeros((3, 1)))
    raced = [(trace, 0, {"f1": 0.9}), (trace, None, {"f1": 0.7}), (trace, 2, {"f1": 0.8})]
    found = sheet_race.summary(raced)
    assert (found["seconds"], found["outer_steps"], found["reached"], found["f1"]) == (3.0, 3.0, "2 of 3", 0.8)
    assert found["range"] == "1.00 to never"
    assert "seconds" not in sheet_race.summary([raced[1], raced[1], raced[0]])


def test_a_hypergradient_is_compared_in_length_and_direction() -> None:
    exact = np.array([3.0, 4.0])
    assert sheet_race.compared(2 * exact, exact) == {"error": 1.0, "cosine": 1.0}
    assert sheet_race.compared(-exact, exact) == {"error": 2.0, "cosine": -1.0}


def test_missing_data_are_a_row_with_the_line_that_installs_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(**_: Any) -> Any:
        raise MissingDependencyError(passed="no images", expected="them", do="pip install images")

    cases = {"cleaning linear": sheet_race.CASES["cleaning linear"]}
    monkeypatch.setattr(race_data, "images", missing)
    monkeypatch.setattr(sheet_race, "CASES", cases)
    result = sheet_race.run(Options(("hand", "engine"), smoke=True, out=tmp_path))
    (case,) = result["cases"].values()
    assert "pip install images" in case["rows"]["data"]["reason"]
    assert result["finished"]


def test_every_row_of_a_case_is_one_of_its_module() -> None:
    own = {"race_hand": race_hand.ROWS, "race_engine": race_engine.ROWS}
    for case in sheet_race.CASES.values():
        methods = case.methods()
        assert len({method.name for method in methods}) == len(methods)
        assert all(method.row in own[method.module] for method in methods if method.module in own)
