"""Data sets that Hugging Face's datasets saved to disk, and folders that pretend to be some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypergrad.cleaning.reading import read
from hypergrad.errors import InputError

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table() -> Any:
    features = datasets.Features(
        {
            "size": datasets.Value("float32"),
            "note": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["zebra", "ape"]),
        }
    )
    columns = {"size": [1.0, 2, 4, 9], "note": ["good day", "bad", "good", "bad day"], "label": [0, 1, 0, 1]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    table().save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return str(caught.value)


def change(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **entries}))


def test_a_saved_table(saved: Path) -> None:
    found = read(saved, features=["size"])
    assert found.classes == ("zebra", "ape"), "in the order of the ClassLabel"
    assert found.labels.tolist() == [0, 1, 0, 1]
    size = np.array([1.0, 2, 4, 9])
    assert torch.allclose(found.inputs[:, 0], torch.from_numpy((size - size.mean()) / size.std()).float(), atol=1e-6)
    assert read(saved, text="note").kind == "text"


def test_a_selection_of_rows(tmp_path: Path) -> None:
    table().select([3, 0, 1, 1]).save_to_disk(tmp_path / "some")
    found = read(tmp_path / "some", features="size")
    assert found.labels.tolist() == [1, 0, 1, 1]
    assert found.preview is not None
    assert found.preview(0)["row"]["size"] == 9.0


def test_splits(tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": table(), "test": table().select([0, 1])})
    parts.save_to_disk(tmp_path / "all")
    assert len(read(tmp_path / "all", features="size")) == 4
    assert len(read(tmp_path / "all", features="size", split="test")) == 2
    assert "did you mean 'test'?" in refused(tmp_path / "all", split="tset")
    assert "leave it out" in refused(tmp_path / "all" / "train", split="test")


def test_pictures(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), np.uint8) for n in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [Image.fromarray(one) for one in pictures], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    found = read(tmp_path / "set")
    raw = np.stack(pictures).transpose(0, 3, 1, 2) / 1.0
    scaled = (raw - raw.mean((0, 2, 3), keepdims=True)) / raw.std((0, 2, 3), keepdims=True)
    assert torch.allclose(found.inputs, torch.from_numpy(scaled).float(), atol=1e-5)
    assert (found.kind, found.labels.tolist()) == ("image", [0, 1, 0, 1])


def test_files_and_addresses_in_a_column_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(secret)
    held = {"bytes": secret.read_bytes(), "path": str(secret)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns: dict[str, list[Any]] = {"image": [held] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    pyarrow = pytest.importorskip("pyarrow")
    columns["image"][2:] = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": "https://example.org/x.png"}]
    file = next((tmp_path / "set").glob("*.arrow"))
    with pyarrow.ipc.open_stream(file.read_bytes()) as reader:
        schema = reader.schema
    changed = pyarrow.table(columns, schema=schema)
    with pyarrow.OSFile(str(file), "wb") as stream, pyarrow.ipc.new_stream(stream, schema) as writer:
        writer.write_table(changed)
    found = read(tmp_path / "set")
    assert found.index.tolist() == [0, 1]
    assert [one.place for one in found.skipped] == ["row 2", "row 3"]
    assert all("addresses are not opened" in one.reason for one in found.skipped)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "", "a/b.arrow", "link.arrow", 7, None])
def test_a_state_that_points_outside_is_refused(saved: Path, tmp_path: Path, name: Any) -> None:
    shutil.copy(next(saved.glob("*.arrow")), tmp_path / "secret.arrow")
    (saved / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    change(saved / "state.json", _data_files=[{"filename": name}])
    assert "not a file in the folder" in refused(saved)


def test_a_split_that_points_outside_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "all"
    folder.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["../../set"]}')
    assert "not a file in the folder" in refused(folder)


def test_a_script_is_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    for name in ("set.py", "dataset_infos.py", "__init__.py"):
        (saved / name).write_text(code)
    change(saved / "dataset_info.json", builder_name="set", download_checksums={"set.py": {}}, script="set.py")
    change(saved / "state.json", _format_type="set", _format_kwargs={"script": "set.py"})
    assert len(read(saved, features="size")) == 4
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("state.json", "{", "cannot be read"),
        ("state.json", "[]", "which holds list"),
        ("state.json", "[" * 100_000, "cannot be read"),
        ("state.json", "{}", "without a data file"),
        ("state.json", '{"_indices_files": [{"filename": "x"}]}', "flatten_indices"),
        ("state.json", '{"_data_files": [{"filename": "state.json"}]}', "cannot be read"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "cannot be read"),
        ("dataset_info.json", '{"features": {"label": {"_type": "ClassLabel"}}}', "ClassLabel without names"),
    ],
)
def test_damaged_descriptions(saved: Path, file: str, content: str, words: str) -> None:
    (saved / file).write_text(content)
    assert words in refused(saved)


@pytest.mark.parametrize("keep", [0, 20, 500])
def test_damaged_data(saved: Path, keep: int) -> None:
    file = next(saved.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:keep])
    assert "cannot be read" in refused(saved)


def test_a_label_is_asked_for(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [1.0, 2], "y": [0, 1]}).save_to_disk(tmp_path / "set")
    assert "--label" in refused(tmp_path / "set")
    assert read(tmp_path / "set", label="y").classes == ("0", "1")
