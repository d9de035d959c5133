"""Archives of arrays, and those that were made to do harm."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypergrad.cleaning.reading import memory, read
from hypergrad.cleaning.trusted import read_parts
from hypergrad.errors import InputError

X = np.array([[1.0, 5, 2], [2, 5, 0], [4, 5, 1], [9, 5, 7]])
Y = np.array([0, 1, 0, 1])


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return str(caught.value)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_columns_are_standardised_and_constant_ones_left_out(tmp_path: Path) -> None:
    found = read(saved(tmp_path, X=X, y=Y))
    kept = X[:, [0, 2]]
    assert torch.allclose(found.inputs, torch.from_numpy((kept - kept.mean(0)) / kept.std(0)).float(), atol=1e-6)
    assert (found.kind, found.classes, found.labels.tolist()) == ("tensor", ("0", "1"), [0, 1, 0, 1])
    assert "constant in the training part: 'column 1'" in found.notes[0]
    assert found.preview is not None
    assert found.preview(1) == {"row": {"column 0": 2.0, "column 1": 5.0, "column 2": 0.0}}


@pytest.mark.parametrize("y", [Y.astype(float), Y.astype(bool), Y.astype(str), Y[:, None], Y.astype(">i2")])
def test_every_type_of_label(tmp_path: Path, y: Any) -> None:
    assert read(saved(tmp_path, X=X, y=y)).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 1, 6, 5), (4, 3, 6, 5), (4, 6, 5, 3)])
def test_bytes_of_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = read(saved(tmp_path, X=x, y=Y))
    channels = 3 if 3 in shape else 1
    assert (found.kind, tuple(found.inputs.shape)) == ("image", (4, channels, 6, 5))
    assert torch.allclose(found.inputs.mean(dim=(0, 2, 3)), torch.zeros(channels), atol=1e-5)
    assert torch.allclose(found.inputs.var(dim=(0, 2, 3), unbiased=False), torch.ones(channels), atol=1e-4)
    assert found.preview is not None
    image = pytest.importorskip("PIL.Image")
    import base64

    shown = image.open(io.BytesIO(base64.b64decode(found.preview(2)["image"].partition(",")[2])))
    first = x[2] if len(shape) == 3 or shape[1] != 1 else x[2, 0]
    expected = np.moveaxis(first, 0, -1) if shape[1] == 3 else first
    assert np.array_equal(np.asarray(shown), expected)


def test_the_trusted_arrays_are_used(tmp_path: Path) -> None:
    path = saved(tmp_path, X=X, y=Y, X_trusted=X[:2] + 1, y_trusted=Y[:2])
    parts = read_parts(path)
    assert (len(parts.train), len(parts.trusted), parts.split_off) == (4, 2, False)
    kept = X[:, [0, 2]]
    expected = (X[:2][:, [0, 2]] + 1 - kept.mean(0)) / kept.std(0)
    assert torch.allclose(parts.trusted.inputs, torch.from_numpy(expected).float(), atol=1e-6)
    path = saved(tmp_path, X=X, y=Y, X_trusted=X[:2, :2], y_trusted=Y[:2])
    with pytest.raises(InputError, match="as in the training part"):
        read_parts(path)
    assert "y_trusted" in refused(saved(tmp_path, X=X, y=Y, X_trusted=X))


def test_other_names_and_the_truth(tmp_path: Path) -> None:
    path = saved(tmp_path, data=X, given=Y, right=1 - Y)
    found = read(path, features="data", label="given", truth="right")
    assert found.truth is not None
    assert found.truth.tolist() == [1, 0, 1, 0]
    assert "'X'" in refused(path)
    assert "did you mean 'given'?" in refused(path, features="data", label="givn")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": X[:3], "y": Y}, "shape (4,) for 3 examples"),
        ({"X": X, "y": np.eye(2)[Y]}, "argmax"),
        ({"X": X[:, 0], "y": Y}, "reshape"),
        ({"X": X[:0], "y": Y[:0]}, "shape (0, 3)"),
        ({"X": X.astype(complex), "y": Y}, "complex128"),
        ({"X": X.astype(str), "y": Y}, "numbers of the shape"),
        ({"X": np.where(X == 7, np.nan, X), "y": Y}, "row 3, column 2"),
        ({"X": np.where(X == 7, np.inf, X), "y": Y}, "row 3, column 2"),
        ({"X": np.where(X == 7, 1e300, X), "y": Y}, "1e+300"),
        ({"X": X, "y": np.zeros(4)}, "one class '0'"),
        ({"X": X, "y": np.array([0, 1, np.nan, 1])}, "no value in 1 rows, first 2"),
        ({"X": np.ones((4, 2)), "y": Y}, "constant"),
        ({"X": X, "y": np.array(["2024-01-01", "2024-01-02"] * 2, "datetime64[D]")}, "datetime64"),
        ({"X": X, "y": np.zeros(4, [("a", int)])}, "holds [('a'"),
    ],
)
def test_what_is_no_example_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    assert words in refused(saved(tmp_path, **arrays))


def test_missing_numbers_are_filled_in_when_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, X=np.where(X == 7, np.nan, X), y=Y)
    assert "--impute" in refused(path)
    column = np.array([2.0, 0, 1, 1])
    found = read(path, impute="median").inputs[:, 1]
    assert torch.allclose(found, torch.from_numpy((column - column.mean()) / column.std()).float(), atol=1e-6)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = saved(tmp_path, X=X, y=np.array([Bomb(mark)] * 4, dtype=object))
    assert "pickles, which can run code" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", npy(X))
        archive.writestr("y.npy", pickle.dumps(Bomb(mark)))
    assert "cannot be read" in refused(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert "cannot be read" in refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../X.npy", "/tmp/X.npy", "..\\X.npy", "a/../../X.npy", "C:X.npy", "deep/X.npy"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / "a.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", npy(X))
        archive.writestr("y.npy", npy(Y))
        archive.writestr(name, npy(X))
    before = sorted(tmp_path.rglob("*"))
    assert "leads out of the archive" in refused(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", npy(X))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("X.npy", npy(X))
    assert "two members" in refused(path)


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", header("(1000000000, 100)") + bytes(2**20))
        archive.writestr("y.npy", npy(Y))
    assert path.stat().st_size < 5000
    assert "would take about 2.2 TiB" in refused(path)
    monkeypatch.undo()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", header("(4, 3)") + bytes(2**22))
        archive.writestr("y.npy", npy(Y))
    assert "is said to hold 4,194" in refused(path)


def test_a_header_that_is_code_is_data(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", header("__import__('os').getcwd()"))
        archive.writestr("y.npy", npy(Y))
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_damaged_archives(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path, X=X, y=Y)
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read" in refused(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, X=X, y=Y)
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 3] ^= 1
    path.write_bytes(content)
    assert "cannot be read" in refused(path)


def test_the_split_is_stratified_and_repeats(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(100, 3)), np.repeat([0, 1], [80, 20])
    path = saved(tmp_path, X=x, y=y)
    parts, again = read_parts(path, 0.1, seed=3), read_parts(path, "0.1", seed=3)
    assert parts.trusted.labels.bincount().tolist() == [8, 2]
    assert sorted([*parts.train.index, *parts.trusted.index]) == list(range(100))
    assert parts.trusted.index.tolist() == again.trusted.index.tolist()
    assert parts.trusted.index.tolist() != read_parts(path, 0.1, seed=4).trusted.index.tolist()
    assert parts.split_off
    assert any("right by assumption only" in note for note in parts.train.notes)
    assert torch.allclose(parts.train.inputs.mean(dim=0), torch.zeros(3), atol=1e-6), "fitted on the training part"


def test_a_class_with_one_example_is_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    parts = read_parts(saved(tmp_path, X=x, y=[0] * 4 + [1] * 4 + [2]), 0.25)
    assert any("no trusted example of 1 classes" in note and "'2'" in note for note in parts.train.notes)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, 1, "0.9", float("nan"), True])
def test_shares_out_of_range(tmp_path: Path, share: Any) -> None:
    with pytest.raises(InputError, match=r"at most 0\.5"):
        read_parts(saved(tmp_path, X=X, y=Y), share)


def test_a_missing_trusted_part_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--trusted 0\.1"):
        read_parts(saved(tmp_path, X=X, y=Y))
