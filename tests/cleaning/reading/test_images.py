"""Folders of images: what becomes of pictures, and which ones are left out and listed."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypergrad.cleaning.reading import images, read
from hypergrad.cleaning.trusted import read_parts
from hypergrad.errors import InputError

Image = pytest.importorskip("PIL.Image")
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def pixels(seed: int, shape: tuple[int, ...] = (8, 6)) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with three gray pictures each."""
    for number in range(6):
        place = tmp_path / "pictures" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(place / f"{number}.png")
    return tmp_path / "pictures"


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return str(caught.value)


def reasons(path: Path, **options: Any) -> dict[str, str]:
    return {one.place: one.reason for one in read(path, **options).skipped}


def test_pictures_by_class(folder: Path) -> None:
    found = read(folder)
    raw = np.stack([pixels(number) for number in (0, 2, 4, 1, 3, 5)])[:, None] / 1.0
    assert (found.kind, found.classes, found.labels.tolist()) == ("image", ("a", "b"), [0, 0, 0, 1, 1, 1])
    assert torch.allclose(found.inputs, torch.from_numpy((raw - raw.mean()) / raw.std()).float(), atol=1e-5)
    assert found.preview is not None
    shown = Image.open(io.BytesIO(base64.b64decode(found.preview(1)["image"].partition(",")[2])))
    assert np.array_equal(np.asarray(shown), pixels(2))


def test_a_size_is_chosen_or_given(folder: Path) -> None:
    assert read(folder).inputs.shape[1:] == (1, 8, 6)
    assert read(folder, size=5).inputs.shape[1:] == (1, 5, 5)
    Image.fromarray(pixels(9, (20, 30))).save(folder / "a" / "larger.png")
    found = read(folder)
    assert found.inputs.shape[1:] == (1, 32, 32)
    assert "2 sizes were brought to 32 × 32 pixels (--size)" in found.notes[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1", "I;16", "CMYK"])
def test_every_mode(folder: Path, mode: str) -> None:
    whole = Image.fromarray(np.full((8, 6, 3), 128, np.uint8))
    if mode == "I;16":
        whole = Image.fromarray(np.full((8, 6), 128 * 256 + 3, np.uint16))
    else:
        whole = whole.convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE)
    whole.save(folder / "a" / ("z.tif" if mode == "CMYK" else "z.png"))
    found = read(folder)
    channels = 3 if mode in ("RGB", "RGBA", "P", "CMYK") else 1
    assert found.inputs.shape == (7, channels, 8, 6)
    assert found.preview is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.preview(3)["image"].partition(",")[2]))))
    assert abs(int(shown[0, 0].max()) - (255 if mode == "1" else 128)) <= 1


def test_transparent_pixels_are_white(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 6, 4), np.uint8)).save(folder / "a" / "z.png")
    show = read(folder).preview
    assert show is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(show(3)["image"].partition(",")[2]))))
    assert shown.min() == 255


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds next to nothing."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unreadable"),
        (b"no picture", "unreadable: no picture of a known format"),
        (b"\x89PNG\r\n\x1a\n", "unreadable"),
        (bomb(100_000, 100_000), "oversized: Image size (10000000000 pixels)"),
        (bomb(10_000, 9_000), "oversized: 10,000 × 9,000 pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "oversized"),
        (bomb(8000, 5000), "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 8\n", "unreadable: no picture of a known format"),
    ],
)
def test_unusable_pictures_are_listed(folder: Path, content: bytes, reason: str) -> None:
    (folder / "a" / "bad.png").write_bytes(content)
    found = read(folder, size=4)
    assert len(found) == 6
    assert [one.place for one in found.skipped] == ["a/bad.png"]
    assert reason in found.skipped[0].reason
    assert str(folder) not in found.skipped[0].reason


def test_truncated_pictures_are_listed(folder: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels(9, (60, 60, 3))).save(stream, "JPEG")
    (folder / "a" / "bad.jpg").write_bytes(stream.getvalue()[:-400])
    assert "unreadable" in reasons(folder, size=6)["a/bad.jpg"]


def test_indices_count_what_was_skipped(folder: Path) -> None:
    (folder / "a" / "1.png").write_bytes(b"no picture")
    assert read(folder).index.tolist() == [0, 2, 3, 4, 5, 6]


def test_no_warning_of_a_decoder_is_lost_or_raised(folder: Path) -> None:
    (folder / "a" / "bad.png").write_bytes(bomb(15_000, 15_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "oversized" in reasons(folder)["a/bad.png"]


def test_bytes_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 90)
    with (folder / "a" / "zz.png").open("wb") as file:
        file.truncate(10**6)
    monkeypatch.setattr(images, "MOST_BYTES", 10**5)
    assert reasons(folder)["a/zz.png"] == "oversized: 1,000,000 bytes"


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(pixels(7)).save(secret)
    (tmp_path / "other").mkdir()
    Image.fromarray(pixels(8)).save(tmp_path / "other" / "x.png")
    (folder / "a" / "link.png").symlink_to(secret)
    (folder / "a" / "inside.png").symlink_to(folder / "b" / "1.png")
    (folder / "c").symlink_to(tmp_path / "other")
    (folder / "a" / "deeper").symlink_to(tmp_path / "other")
    (folder / "a" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = read(folder)
    listed = {one.place: one.reason for one in found.skipped}
    assert set(listed) == {"a/link.png", "c", "a/broken.png"}
    assert all("leads out of the folder" in reason for reason in listed.values())
    assert (len(found), found.classes) == (7, ("a", "b"))


def test_a_link_in_a_circle_ends(folder: Path) -> None:
    (folder / "a" / "again").symlink_to(folder)
    (folder / "a" / "self.png").symlink_to(folder / "a" / "self.png")
    found = read(folder)
    assert (len(found), [one.place for one in found.skipped]) == (6, ["a/self.png"])


@pytest.mark.parametrize("name", ["<script>alert(1)</script>"[:20], "=cmd()", "a b", "line\nbreak", "\x1b[31mred"])
def test_odd_names_of_classes(folder: Path, name: str) -> None:
    (folder / "b").rename(folder / name.replace("/", ""))
    shown = name.replace("/", "").replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert set(read(folder).classes) == {"a", shown}


def test_folders_that_hold_no_classes(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "folders named after the classes" in refused(tmp_path / "empty")
    assert "one class 'a'" in refused_one(folder)


def refused_one(folder: Path) -> str:
    for file in (folder / "b").iterdir():
        file.unlink()
    (folder / "b" / "notes.txt").write_text("no picture")
    return refused(folder)


def test_a_trusted_folder_is_read_like_the_other(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "trusted" / name).mkdir(parents=True)
        Image.fromarray(pixels(ord(name), (30, 30, 3))).save(tmp_path / "trusted" / name / "0.png")
    parts = read_parts(folder, tmp_path / "trusted")
    assert parts.trusted.inputs.shape == (2, 1, 8, 6)
    (tmp_path / "trusted" / "a").rename(tmp_path / "trusted" / "c")
    with pytest.raises(InputError, match="class 'c'"):
        read_parts(folder, tmp_path / "trusted")


def test_the_same_picture_in_another_format_is_the_same(folder: Path, tmp_path: Path) -> None:
    for name, number in (("a", 0), ("b", 7)):
        (tmp_path / "trusted" / name).mkdir(parents=True)
        Image.fromarray(pixels(number)).save(tmp_path / "trusted" / name / "0.bmp")
    parts = read_parts(folder, tmp_path / "trusted")
    assert torch.equal(parts.trusted.inputs[0], parts.train.inputs[0])


@pytest.mark.parametrize("name", ["label", "text", "features", "truth", "split"])
def test_settings_that_mean_nothing_here(folder: Path, name: str) -> None:
    assert f"leave {name}" in refused(folder, **{name: "x"})


def test_missing_pillow_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from hypergrad.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependencyError, match=r"hypergrad-engine\[clean\]"):
        read(folder)
