"""The files: what is in them, and what happens to what is there already."""

from __future__ import annotations

import csv
import errno
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from hypergrad.cleaning import Examples, clean
from hypergrad.cleaning.result import png, preview_of
from hypergrad.errors import DiskFullError, InputError
from hypergrad.files import write_whole
from tests.cleaning.common import blobs, names, noisy, quick, right

BRIEF = quick(steps=4)


def shifted() -> Examples:
    """Examples that were rows 1000, 1002, … of something."""
    train = noisy(60)
    return Examples(train.inputs, train.labels, train.classes, index=1000 + 2 * np.arange(60), truth=train.truth)


def test_everything_that_was_agreed_on_is_written(tmp_path: Path) -> None:
    found = clean(shifted(), right(120), quick(seeds=2), out=tmp_path / "new" / "folder")
    out = tmp_path / "new" / "folder"
    table = pyarrow.parquet.read_table(out / "weights.parquet").to_pydict()
    wanted = ["index", "given_label", "proposed_label", "weight", "rank", "stability", "suspicious", "wrong"]
    assert list(table) == wanted
    assert table["index"] == list(range(1000, 1120, 2))
    assert sorted(table["rank"]) == list(range(1, 61))
    assert set(table["given_label"]) <= {"a", "b", "c"}
    with (out / "suspicious.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "given_label", "proposed_label", "weight", "rank", "stability"]
    assert [int(row["rank"]) for row in rows] == sorted(int(row["rank"]) for row in rows)
    kept = np.load(out / "cleaned_indices.npy", allow_pickle=False)
    assert kept.dtype == np.int64
    assert sorted([*kept.tolist(), *(int(row["index"]) for row in rows)]) == table["index"]
    result = json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["kind"] == "cleaning"
    assert result["suspicious"] == len(rows) == int(found.suspicious.sum())
    assert result["seeds"] == [0, 1]
    assert sum(result["histogram"]["wrong"]) == 18
    assert sum(result["histogram"]["right"]) == 42
    assert result["accuracy"]["on"] == "held out of trusted"
    assert 0 <= result["trusted"]["interval"][0] <= result["trusted"]["noise_estimate"]
    assert {"python", "torch", "numpy", "hypergrad"} <= set(result["versions"])
    curve = result["detection"]["curve"]
    assert curve[-1] == [1.0, pytest.approx(18 / 60)]
    shown = json.loads((out / "previews.json").read_text())
    assert [one["index"] for one in shown] == [int(row["index"]) for row in rows][:60]
    assert set(shown[0]) == {"index", "given", "proposed", "weight", "wrong", "row"}
    assert (out / "checkpoint.pt").exists()
    assert (out / "history.jsonl").read_text().count("\n") == 12
    assert list(out.rglob("*.tmp")) == []


def test_pictures_are_shown_as_pictures(tmp_path: Path) -> None:
    inputs, labels = blobs(60, 0)
    images = torch.nn.functional.pad(inputs.view(60, 2, 2), (1, 1, 1, 1))
    given = torch.where(torch.arange(60) < 12, (labels + 1) % 3, labels)
    own = Examples(images, given, names(3), preview=lambda row: {"text": f"row {row}"})
    trusted = Examples(images[30:], labels[30:], names(3))
    train = own.take(torch.arange(30))
    clean(train, trusted, BRIEF, out=tmp_path / "a")
    shown = json.loads((tmp_path / "a" / "previews.json").read_text())
    assert shown
    assert all(one["text"] == f"row {one['index']}" for one in shown)
    clean((images[:30], given[:30]), (images[30:], labels[30:]), BRIEF, out=tmp_path / "b")
    shown = json.loads((tmp_path / "b" / "previews.json").read_text())
    assert all(one["image"].startswith("data:image/png;base64,") for one in shown)
    assert all(one["wrong"] is None for one in shown)


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)])
def test_a_picture_can_be_read_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).random(shape)
    (tmp_path / "picture.png").write_bytes(png(picture))
    read = np.asarray(Image.open(tmp_path / "picture.png"))
    stretched = (picture - picture.min()) / (picture.max() - picture.min()) * 255
    wanted = stretched.reshape(-1, 5, 4).transpose(1, 2, 0).round()
    assert np.array_equal(read.reshape(wanted.shape), wanted)
    assert zlib.crc32(png(np.zeros((4, 4))))  # a picture of one value is no division by zero


def test_what_is_no_picture_is_shown_as_numbers() -> None:
    assert preview_of(np.arange(20.0)) == {"row": {str(place): float(place) for place in range(12)}}


def test_other_files_in_the_directory_are_refused_or_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("my only copy")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        clean(noisy(60), right(60), BRIEF, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    clean(noisy(60), right(60), BRIEF, out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "my only copy"
    assert (tmp_path / "result.json").exists()


def test_a_finished_cleaning_is_replaced_only_on_request(tmp_path: Path) -> None:
    clean(noisy(60), right(60), BRIEF, out=tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(InputError, match="a finished cleaning"):
        clean(noisy(60), right(60), quick(steps=6), out=tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    clean(noisy(60), right(60), quick(steps=6), out=tmp_path, overwrite=True)
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["steps"] == 6


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="which is a file"):
        clean(noisy(60), right(60), BRIEF, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["checkpoint.pt", "weights.parquet", "suspicious.csv", "previews.json", "result.json"])
def test_a_full_disk_leaves_nothing_half_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def full(path: Path, write: Any) -> None:
        def half(temporary: Path) -> None:
            write(temporary)
            temporary.write_bytes(temporary.read_bytes()[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        write_whole(path, half if path.name == name else write)

    monkeypatch.setattr("hypergrad.cleaning.folder.write_whole", full)
    with pytest.raises(DiskFullError, match="No space left on device"):
        clean(noisy(60), right(60), BRIEF, out=out)
    assert not (out / name).exists()
    assert not (out / "result.json").exists()
    assert list(out.rglob("*.tmp")) == []
    monkeypatch.undo()
    clean(noisy(60), right(60), BRIEF, out=out, resume=(out / "checkpoint.pt").exists())
    assert json.loads((out / "result.json").read_text())["examples"] == 60


def test_a_malicious_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="cannot be read"):
        clean(noisy(60), right(60), BRIEF, out=out, resume=True)
    assert not (tmp_path / "owned").exists()
