"""A peer that does not exist, whose rows are :mod:`tests.benchmarks.fake`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import benchmarks
from benchmarks.peers import environments, process

SOURCE = Path(benchmarks.__file__).parent


@pytest.fixture
def fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a peer whose processes see a folder ``benchmarks`` with no rows but :mod:`tests.benchmarks.fake`."""
    root = tmp_path / "root"
    rows = root / "benchmarks" / "rows"
    rows.mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    (rows / "__init__.py").touch()
    (root / "benchmarks" / "peers").symlink_to(SOURCE / "peers")
    shutil.copy(Path(__file__).with_name("fake.py"), rows / "fake.py")
    monkeypatch.setitem(environments.PEERS, "fake", environments.Peer("fake"))
    monkeypatch.setattr(process, "ROOT", root)
    return "fake"
