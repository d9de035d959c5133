"""Peers: pinned requirements, and what becomes of a row whose peer is missing, crashes, raises or never answers."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import environments
from benchmarks.peers.environments import PEERS, REQUIREMENTS, Peer, PeerError, interpreter
from benchmarks.peers.process import Process
from benchmarks.sheets.sheet import Method, Options, Processes, measure
from tests.test_house import ROOT

ARRAYS = {"x": np.arange(1.0, 4.0)}
LISTED = sorted(REQUIREMENTS.glob("*.txt"))


def pinned(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line)] == []
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package twice"
    return found


@pytest.mark.parametrize("path", LISTED, ids=lambda path: path.stem)
def test_requirements_are_pinned_with_the_torch_of_the_constraints(path: Path) -> None:
    packages = pinned(path)
    torch = pinned(ROOT / "constraints.txt")["torch"]
    assert packages.get("torch", torch) == torch
    assert ("torch" in packages) == (path.stem != "jax")


def test_every_peer_has_its_requirements_and_none_are_left_over() -> None:
    assert {peer.requirements for peer in PEERS.values() if peer.requirements} == {path.stem for path in LISTED}
    assert {name for name, peer in PEERS.items() if name != peer.name} == set()
    assert {name for name, peer in PEERS.items() if peer.requirements is None} == {"hand", "engine"}


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer ``made_up`` with requirements, in an empty folder for environments."""
    monkeypatch.setenv("HYPERGRAD_PEERS", str(tmp_path / "environments"))
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setitem(PEERS, "made_up", Peer("made_up", "made_up"))
    path = tmp_path / "made_up.txt"
    path.write_text("a-package-that-nobody-made==0.0.1\n", encoding="utf-8")
    return path


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(peers=("fake", "made_up"), repeats=2, build=False, out=tmp_path / "out", timeout=60.0)


def rows(options: Options, *methods: Method, base: str = "fake/fine") -> dict[str, dict[str, Any]]:
    with Processes(options) as processes:
        return measure(methods, "", ARRAYS, processes, base=base, memory=False)


def test_a_missing_environment_is_a_row_with_the_reason(
    requirements: Path, fake_peer: str, options: Options, tmp_path: Path
) -> None:
    found = rows(options, Method("fake", "fine"), Method("made_up", "cg"), Method("made_up", "neumann"))
    place = tmp_path / "environments" / "made_up"
    assert found["made_up/cg"] == {"reason": f"no environment at {place}: run once without --no-build"}
    assert found["made_up/neumann"] == found["made_up/cg"]
    assert found["fake/fine"]["time"] == 1.0
    assert not place.exists()


def test_an_environment_of_other_requirements_is_not_taken(requirements: Path, tmp_path: Path) -> None:
    place = tmp_path / "environments" / "made_up"
    place.mkdir(parents=True)
    (place / environments.STAMP).write_text("of an older file", encoding="utf-8")
    with pytest.raises(PeerError, match="no environment"):
        interpreter(PEERS["made_up"], build=False)


@pytest.mark.slow
def test_requirements_that_cannot_be_installed_are_a_row_with_the_reason(
    requirements: Path, fake_peer: str, options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = rows(dataclasses.replace(options, build=True), Method("fake", "fine"), Method("made_up", "cg"))
    assert found["made_up/cg"]["reason"].startswith("not installed: ERROR: No matching distribution found for a-pack")
    assert found["fake/fine"]["time"] == 1.0
    assert not (tmp_path / "environments" / "made_up" / environments.STAMP).exists()


def test_an_environment_is_built_once_with_torch_first(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements.write_text("numpy==2.4.6\ntorch==2.13.0\n", encoding="utf-8")
    commands: list[list[str]] = []

    def call(command: list[str], **_given: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", call)
    first = interpreter(PEERS["made_up"])
    assert [command[-1] for command in commands] == [str(first.parents[1]), "torch==2.13.0", str(requirements)]
    assert interpreter(PEERS["made_up"], build=False) == first
    assert len(commands) == 3
    requirements.write_text("numpy==2.4.6\n", encoding="utf-8")
    interpreter(PEERS["made_up"])
    assert [command[-1] for command in commands[3:]] == [str(first.parents[1]), str(requirements)]


def test_an_installation_that_takes_too_long_is_given_up(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, given["timeout"])

    monkeypatch.setattr(subprocess, "run", call)
    with pytest.raises(PeerError, match="not installed within 5 s"):
        interpreter(PEERS["made_up"], timeout=5.0)


def test_rows_are_measured_against_the_first(fake_peer: str, options: Options) -> None:
    found = rows(options, Method("fake", "fine"), Method("fake", "fine", {"scale": 2.0}, label="twice"))
    assert found["fake/fine"]["time"] == 1.0
    assert found["fake/fine"]["error"] == 0.0
    assert found["twice"]["error"] == 1.0
    assert found["twice"]["products"] == 2
    assert found["twice"]["version"] == "fake 1.0"


def test_peers_that_do_not_take_part_have_no_row(fake_peer: str, options: Options) -> None:
    assert set(rows(options, Method("fake", "fine"), Method("jaxopt", "cg"))) == {"fake/fine"}


def test_a_row_that_raises_is_a_row_with_the_reason(fake_peer: str, options: Options) -> None:
    unknown = Method("fake", "unknown")
    found = rows(options, Method("fake", "fine"), Method("fake", "raises"), Method("fake", "refuses"), unknown)
    assert found["fake/raises"] == {"reason": "ValueError: this | that"}
    assert found["fake/refuses"] == {"reason": "RuntimeError: cannot do this problem"}
    assert found["fake/unknown"]["reason"].startswith("KeyError: \"fake has no row 'unknown': fine, ")
    assert found["fake/fine"]["time"] == 1.0


def test_a_module_that_cannot_be_imported_is_a_row_with_the_reason(fake_peer: str, options: Options) -> None:
    found = rows(options, Method("fake", "fine"), Method("fake", "fine", module="absent", label="absent"))
    assert found["absent"] == {"reason": "ModuleNotFoundError: No module named 'benchmarks.rows.absent'"}


def test_a_row_that_crashes_is_a_row_with_the_reason_and_its_process_starts_again(
    fake_peer: str, options: Options, tmp_path: Path
) -> None:
    settings = {"marker": str(tmp_path / "crashed")}
    with Processes(options) as processes:
        methods = [Method("fake", "exits", settings)]
        first = measure(methods, "", ARRAYS, processes, base="fake/exits", memory=False)
        assert first == {"fake/exits": {"reason": "ended with status 3: out of luck"}}
        second = measure(methods, "", ARRAYS, processes, base="fake/exits", memory=False)
        assert second["fake/exits"]["time"] == 1.0


def test_an_answer_that_never_comes_is_a_row_with_the_reason(fake_peer: str, options: Options) -> None:
    with Processes(dataclasses.replace(options, timeout=2.0)) as processes:
        process = processes.of("fake")
        found = measure([Method("fake", "silent")], "", ARRAYS, processes, base="fake/silent", memory=False)
        assert found == {"fake/silent": {"reason": "no answer within 2 s"}}
        assert not process.alive
        assert processes.of("fake").alive


def test_a_process_is_ended_with_its_context(fake_peer: str) -> None:
    with Process("fake") as process:
        assert process.alive
    assert not process.alive
    with pytest.raises(PeerError, match="ended with status"):
        process.ask(do="run", id=0)


def test_without_the_base_row_there_are_only_reasons(fake_peer: str, options: Options) -> None:
    found = rows(options, Method("fake", "fine"), Method("fake", "raises"), base="fake/raises")
    assert found == {"fake/raises": {"reason": "ValueError: this | that"}}
