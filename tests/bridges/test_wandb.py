"""What stands in W&B's offline folders is what the run did, and nothing is sent."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from hypergrad.bridges.wandb import BLOCK, HEADER, WandB, ended, last_step, parsed, records
from tests.bridges.tracked import SCALARS, STEPS, Recorder, cut_and_resumed, expected, fit

pytest.importorskip("wandb")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def rows(*paths: Path) -> list[dict[str, Any]]:
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for path in paths
        for record in parsed(path)
        if record.WhichOneof("record_type") == "history"
    ]


def check(found: list[dict[str, Any]], *recorders: Recorder) -> None:
    assert [row["_step"] for row in found] == list(range(1, STEPS + 1))
    for name in SCALARS - {"seconds"}:
        assert [(row["_step"], row[name]) for row in found] == expected(recorders, name)
    assert all(0 < row["seconds"] < 60 for row in found)


def test_an_offline_run_is_read_back(tmp_path: Path) -> None:
    recorder, tracker = Recorder(), WandB(tmp_path / "new", "mine", every=4, settings={"comment": "first"})
    fit(recorder, tracker)
    (path,) = files(tmp_path / "new")
    assert ended(path), "what the run recorded is on the disk when it ends"
    found = rows(path)
    check(found, recorder)
    assert [row["_step"] for row in found if "hparams/x._type" in row] == [1, 4, 8]
    for step in (1, 4, 8):
        row, moved = found[step - 1], recorder.seen[step].moved["x"]
        assert row["hparams/x._type"] == "histogram"
        assert sum(row["hparams/x.values"]) == moved.numel()
        bins = row["hparams/x.bins"]
        assert (bins[0], bins[-1]) == pytest.approx((float(moved.min()), float(moved.max())))
    (run,) = (record.run for record in parsed(path) if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project) == (tracker.run_id, "mine")
    config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
    assert config["algorithm"].startswith("Implicit(")
    assert (config["hparams_entries"], config["comment"]) == ("5", "first")
    (last,) = (record.exit for record in parsed(path) if record.WhichOneof("record_type") == "exit")
    assert last.exit_code == 0


def test_a_resumed_run_has_the_same_name_and_no_step_twice(tmp_path: Path) -> None:
    first, second = WandB(tmp_path), WandB(tmp_path)
    recorders = cut_and_resumed(first, second, tmp_path)
    assert first.run_id == second.run_id
    before, after = files(tmp_path)
    assert last_step(before) == 6
    assert [row["_step"] for row in rows(after)] == [7, 8, 9]
    check(rows(before, after), *recorders)
    (failed,) = (record.exit for record in parsed(before) if record.WhichOneof("record_type") == "exit")
    assert failed.exit_code == 1


def test_a_run_of_the_users_own_stays_open(tmp_path: Path) -> None:
    import wandb

    mine = wandb.init(dir=str(tmp_path), mode="offline", settings=wandb.Settings(silent=True, console="off"))
    fit(WandB(tmp_path), steps=2)
    assert wandb.run is mine
    mine.log({"a": 1})
    mine.finish()
    assert len(files(tmp_path)) == 2


def test_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        asked.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    fit(WandB(tmp_path), steps=2)
    for address in asked:
        assert isinstance(address, str) or address[0] in ("127.0.0.1", "localhost", "::1"), "not on this machine"


def log_of(*contents: bytes) -> bytes:
    """A file in the form that W&B writes, without right checksums, which are not looked at."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for content in contents:
        start, rest = True, content
        while start or rest:
            left = BLOCK - len(out) % BLOCK
            if left < HEADER:
                out += bytes(left)
                left = BLOCK
            part, rest = rest[: left - HEADER], rest[left - HEADER :]
            kind = 1 if start and not rest else 2 if start else 4 if not rest else 3
            out += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            start = False
    return bytes(out)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1, 2, 3],
        [BLOCK],
        [3 * BLOCK, 5],
        [BLOCK - 2 * HEADER],  # ends with the block
        *([BLOCK - 2 * HEADER - left, 10] for left in range(1, 9)),  # leaves too little, or just enough, for a header
    ],
)
def test_records_that_were_cut_into_parts_are_put_together(sizes: list[int]) -> None:
    contents = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    assert list(records(log_of(*contents))) == contents


def test_a_file_that_ends_in_the_middle_gives_what_is_whole() -> None:
    contents = [b"a" * 10, b"b" * 2 * BLOCK, b"c" * 10]
    whole = log_of(*contents)
    for end in range(0, len(whole), 997):
        found = list(records(whole[:end]))
        assert found == contents[: len(found)]
    assert list(records(b"")) == list(records(b"nonsense" * 1000)) == []


def test_a_long_file_of_wandb_is_read_to_its_end(tmp_path: Path) -> None:
    fit(WandB(tmp_path, settings={f"s{number}": "x" * 400 for number in range(300)}), steps=4)
    (path,) = files(tmp_path)
    assert path.stat().st_size > 3 * BLOCK
    assert last_step(path) == 4
    (run,) = (record.run for record in parsed(path) if record.WhichOneof("record_type") == "run")
    assert len(run.config.update) >= 300
