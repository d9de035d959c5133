"""The sheets of errors: the search for a peer's cheapest setting, what is claimed, and smoke runs without peers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.environments import PeerError
from benchmarks.problems import random_arrays, task
from benchmarks.rows import engine_exact
from benchmarks.rows.modules import Leaves, points
from benchmarks.sheets import errors, time_to_error
from benchmarks.sheets.sheet import Options, Processes, Sheet
from benchmarks.sheets.time_to_error import Tried, claims, fastest, fewest

ROW: Any = None


class Peer:
    """Reaches any error from a number of steps on."""

    def __init__(self, needed: float) -> None:
        self.needed, self.tried = needed, list[int]()

    def __call__(self, terms: int) -> Tried:
        self.tried.append(terms)
        return Tried(ROW, terms, 0.0, 1e-9 if terms >= self.needed else 1.0, {})


@pytest.mark.parametrize("needed", [1, 2, 7, 40, 317, 1999, 2000])
@pytest.mark.parametrize(("guess", "factor"), [(16, 2.0), (300, 1.1)])
def test_the_fewest_steps_are_found_to_within_a_tenth(needed: int, guess: int, factor: float) -> None:
    peer = Peer(needed)
    found = fewest(peer, 1e-8, 2000, guess, factor)
    assert needed <= found.terms <= max(needed + 1, 1.12 * needed)
    assert len(peer.tried) < 20


def test_a_search_ends_where_no_number_of_steps_will_do() -> None:
    peer = Peer(math.inf)
    with pytest.raises(PeerError, match=r"error 1\.0e\+00 at best within 50 steps"):
        fewest(peer, 1e-8, 50, 16, 2.0)
    assert peer.tried == [16, 32, 50]


def test_a_search_ends_at_the_first_answer_that_is_no_number() -> None:
    with pytest.raises(PeerError, match="error inf"):
        fewest(lambda terms: Tried(ROW, terms, 0.0, math.inf, {}), 1e-8, 50, 16, 2.0)


def test_claims_take_the_fastest_peer_that_has_a_time(tmp_path: Path) -> None:
    sheet = Sheet("time_to_error", "", Options(out=tmp_path))
    rows: dict[str, dict[str, Any]] = {
        "engine/cg": {"time": 1.0, "seconds": 2.0, "compile_seconds": None},
        "torchopt/cg": {"time": 7.0, "spread": 0.01},
        "boat/cg": {"time": 6.0, "spread": 0.5},
        "betty/cg": {"reason": "error 1 at best"},
        "jaxopt/cg": {"time": 1.5, "spread": 0.0, "seconds": 3.0, "compile_seconds": 5.0},
        "engine/cg, compiled": {"time": 0.5, "spread": 0.0},
    }
    assert fastest(rows, list(rows)[1:4]) == "boat/cg"
    assert fastest(rows, ["betty/cg"]) is None
    sheet.add("case", rows)
    claims(sheet, "case", "spread")
    assert [(claim.value, claim.limit, claim.verdict) for claim in sheet.claims] == [
        (6.0, 5.0, "too noisy"),
        (4.0, 2.0, "met"),
        (1.5, 2.0, "not met"),
        (3.0, 2.0, "met"),
        *3 * [(None, 2.0, "not measured")],
    ]


def test_the_worst_ratio_is_over_the_best_peer_with_as_many_products() -> None:
    ours = {"work": [10, 30, 100], "errors": [0.5, 1e-15, 1e-3]}
    peers: dict[str, dict[str, Any]] = {
        "a": {"at_10": 0.4, "at_30": 1e-14},
        "b": {"at_10": 1.0},
        "c": {"reason": "gone"},
    }
    assert errors.worst_ratio(ours, peers) == pytest.approx(1.25)
    assert errors.worst_ratio(ours, peers, start=30) == 1.0
    assert errors.worst_ratio(ours, {}) is None
    assert errors.worst_ratio({"reason": "gone"}, peers) is None


def test_noise_over_signal_is_zero_of_the_same_and_right_of_others() -> None:
    same = np.array([0.1, 0.7])
    assert errors.noise_over_signal([same] * 12) == 0.0
    assert errors.noise_over_signal([np.array([1.0]), np.array([3.0])]) == pytest.approx(math.sqrt(2) / 2)


def test_rows_take_later_points_in_order() -> None:
    arrays = random_arrays("logistic", width=1, batch=8, inputs=6)
    for name in ("params.weight", "hparams.weight"):
        arrays[f"later.1.{name}"] = arrays[name] + 1
    problem = task("logistic", arrays)
    first, second = points(problem, arrays)
    assert first == (problem.params, problem.hparams)
    assert (second[0]["weight"] == problem.params["weight"] + 1).all()
    leaves = Leaves(problem.params)
    leaves.load(second[0])
    assert (leaves.tree()["weight"] == second[0]["weight"]).all()


def test_our_row_counts_its_sketch_among_the_products() -> None:
    arrays = random_arrays("logistic", width=1, batch=8, inputs=6)
    for kind in ("none", "penalty", "nystrom", "recycled"):
        call = engine_exact.ROWS["implicit"]("logistic", arrays, {"terms": 12, "preconditioner": kind})
        assert call()["counts"]["products"] <= 12


@pytest.mark.slow
@pytest.mark.parametrize("sheet", [errors, time_to_error])
def test_smoke_runs_without_peers_are_saved_and_claim_nothing(sheet: Any, tmp_path: Path) -> None:
    options = Options(peers=("hand", "engine"), repeats=1, smoke=True, build=False, out=tmp_path)
    result = sheet.run(options)
    rows = [row for case in result["cases"].values() for row in case["rows"].values()]
    assert [row["reason"] for row in rows if "reason" in row] == []
    assert {claim["verdict"] for claim in result["claims"]} <= {"not measured"}
    saved = json.loads((tmp_path / f"{result['sheet']}.json").read_text())
    assert saved["cases"] == result["cases"]
    assert saved["finished"]


@pytest.mark.slow
def test_repeated_hypergradients_are_the_same_under_dropout_and_leave_statistics_alone(tmp_path: Path) -> None:
    options = Options(peers=("hand", "engine"), repeats=1, smoke=True, build=False, out=tmp_path)
    sheet = Sheet("errors", "", options)
    with Processes(options) as processes:
        errors.stochastic(sheet, processes)
    for name in ("engine/neumann", "engine/cg"):
        assert sheet.value("dropout 0.1", name, "noise") == 0.0
        assert sheet.value("BatchNorm", name, "drift") == 0.0
    assert (sheet.value("dropout 0.1", "hand/neumann", "noise") or 0.0) > 0.01
    assert (sheet.value("BatchNorm", "hand/neumann", "drift") or 0.0) > 0.01
