"""Pictures in one folder for each class, and pictures as bytes."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from hypergrad.cleaning.examples import Skipped
from hypergrad.cleaning.reading.arrays import Arrays
from hypergrad.cleaning.reading.labels import check_classes, printable
from hypergrad.cleaning.reading.memory import check_fits
from hypergrad.cleaning.reading.options import Reading, check_unused
from hypergrad.cleaning.reading.packages import require
from hypergrad.cleaning.reading.source import Source
from hypergrad.errors import InputError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that are opened, whatever a file's name ends with: others, such as EPS, start programs."""
MOST_PIXELS = 50_000_000
"""Pixels of a picture that is still opened; the bytes of a picture grow a thousandfold when it is unpacked."""
MOST_BYTES = 2**28
COMMON, USUAL = 64, 32
"""The side up to which pictures keep the size they all have, and the side that others are brought to."""
GRAY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"})

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@final
@dataclass(frozen=True)
class Shape:
    """What all pictures are brought to."""

    channels: int
    height: int
    width: int


class UnusableError(Exception):
    """A picture that cannot be used."""


def read_folder(path: Path, reading: Reading, plan: Any) -> Source:
    """Return the pictures of a folder with one folder for each class.

    Files without the ending of a picture are passed over. Pictures that cannot be read, that are larger than 50
    million pixels, and links that lead out of the folder are left out and listed.

    Raises:
        InputError: no folder of a class, fewer than two classes with pictures, or more than memory can hold.
        MissingDependencyError: Pillow is not installed.
    """
    check_unused(reading, path, "label", "text", "features", "truth", "split")
    skipped: list[Skipped] = []
    files: list[tuple[str, str, Path]] = []
    for label, place, file in _files(path):
        if file is None:
            skipped.append(Skipped(place, "refused: a link that leads out of the folder"))
        else:
            files.append((label, place, file))
    if not files:
        raise InputError(
            passed=f"{path} without a picture in a folder of its class",
            expected=f"folders named after the classes, with files that end in {', '.join(sorted(ENDINGS))}",
            do="put the pictures of each class into a folder of their own",
        )
    known = plan if isinstance(plan, Shape) else None
    found = Pictures.of([place for _, place, _ in files], [file for _, _, file in files], reading.size, known)
    labels = [printable(files[row][0]) for row in found.rows]
    if known is None:
        check_classes(labels, "folder")
    return Source(
        features=Arrays(found.pixels),
        labels=labels,
        index=np.array(found.rows, np.int64),
        kind="image",
        plan=found.shape,
        skipped=(*skipped, *found.skipped),
        notes=found.notes,
    )


def picture_files(path: Path) -> list[str]:
    """Return the pictures of a folder, relative to it, in the order in which :func:`read_folder` counts them.

    Args:
        path: the folder.
    """
    return [place for _, place, file in _files(path) if file is not None]


def _files(path: Path) -> Iterator[tuple[str, str, Path | None]]:
    """Yield class, place and file of each picture in the order of their names; no file for links that lead out."""
    root = path.resolve()
    for folder in sorted(path.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if not _lies_in(folder, root):
            yield folder.name, printable(folder.name), None
            continue
        for file in sorted(folder.rglob("*")):  # does not enter links to folders
            inside = _lies_in(file, root)
            if file.suffix.lower() in ENDINGS and (file.is_file() or not inside):
                yield folder.name, printable(file.relative_to(path).as_posix()), file if inside else None


def _lies_in(path: Path, root: Path) -> bool:
    """Return whether a path leads, through all links, to something in a folder."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


@final
@dataclass(frozen=True)
class Pictures:
    """Pictures of one size.

    Attributes:
        pixels: of shape (n, channels, height, width).
        rows: which of the pictures that were asked for these are.
        shape: what they were brought to.
        skipped: the others.
        notes: what a user should hear about.
    """

    pixels: Bytes
    rows: list[int]
    shape: Shape
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, places: list[str], files: Sequence[Path | bytes], size: int | None, shape: Shape | None) -> Pictures:
        """Open pictures.

        Args:
            places: what each is called in the list of those that cannot be used.
            files: the pictures, as files or as bytes.
            size: height and width to bring them to, or ``None`` for the one they have in common.
            shape: what to bring them to, or ``None`` to choose.
        """
        require("PIL.Image", "a folder of images")
        bad: dict[int, str] = {}
        looks: dict[int, tuple[bool, int, int]] = {}
        for row, file in enumerate(files):
            try:
                looks[row] = _look(file)
            except UnusableError as error:
                bad[row] = str(error)
        notes: tuple[str, ...] = ()
        if shape is None and looks:
            shape, notes = _shape(list(looks.values()), size)
        shape = shape or Shape(1, 1, 1)
        each = shape.channels * shape.height * shape.width
        check_fits(f"{len(looks):,} pictures of {shape}", 10 * len(looks) * each, "lower size= (--size)")
        pixels = np.empty((len(looks), shape.channels, shape.height, shape.width), np.uint8)
        rows: list[int] = []
        for row in looks:
            try:
                pixels[len(rows)] = _pixels(files[row], shape)
                rows.append(row)
            except UnusableError as error:
                bad[row] = str(error)
        skipped = tuple(Skipped(places[row], reason) for row, reason in sorted(bad.items()))
        return cls(pixels[: len(rows)], rows, shape, skipped, notes)


def _shape(looks: list[tuple[bool, int, int]], size: int | None) -> tuple[Shape, tuple[str, ...]]:
    channels = 1 if all(gray for gray, _, _ in looks) else 3
    sizes = Counter((height, width) for _, height, width in looks)
    if size is not None:
        return Shape(channels, size, size), ()
    (height, width), _ = sizes.most_common(1)[0]
    if len(sizes) == 1 and max(height, width) <= COMMON:
        return Shape(channels, height, width), ()
    remark = f"pictures of {len(sizes):,} sizes were brought to {USUAL} × {USUAL} pixels (--size)"
    return Shape(channels, USUAL, USUAL), (remark,)


@contextmanager
def _opened(file: Path | bytes) -> Iterator[Any]:
    """Open a picture, whose pixels are not read before its size is known."""
    image = require("PIL.Image", "a folder of images")
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size > MOST_BYTES:
        raise UnusableError(f"oversized: {size:,} bytes")
    with warnings.catch_warnings(), io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
        warnings.simplefilter("ignore")  # of decompression bombs and odd metadata: sizes are checked here
        try:
            opened = image.open(stream, formats=FORMATS)
        except image.DecompressionBombError as error:
            raise UnusableError("oversized: " + str(error).partition(",")[0]) from error
        with opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise UnusableError(f"oversized: {width:,} × {height:,} pixels")
            yield opened


def _look(file: Path | bytes) -> tuple[bool, int, int]:
    """Return whether a picture is gray, its height and its width."""
    try:
        with _opened(file) as picture:
            turned = picture.getexif().get(0x0112, 1) >= 5 if picture.format == "JPEG" else False
            width, height = picture.size
            return picture.mode in GRAY, *((width, height) if turned else (height, width))
    except UnusableError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise UnusableError(_said(error)) from error


def _pixels(file: Path | bytes, shape: Shape) -> Bytes:
    """Return the pixels of a picture, of shape (channels, height, width)."""
    image, ops = require("PIL.Image", "a folder of images"), require("PIL.ImageOps", "a folder of images")
    try:
        with _opened(file) as picture:
            picture.load()
            plain = ops.exif_transpose(picture) if picture.format == "JPEG" else picture
            if plain.mode.startswith("I") or plain.mode == "F":
                plain = image.fromarray(_to_bytes(np.asarray(plain)))
            if plain.mode in ("LA", "PA", "RGBA", "P") and (plain.mode != "P" or "transparency" in plain.info):
                over = plain.convert("RGBA")
                plain = image.alpha_composite(image.new("RGBA", over.size, "white"), over)
            plain = plain.convert("L" if shape.channels == 1 else "RGB")
            if plain.size != (shape.width, shape.height):
                plain = plain.resize((shape.width, shape.height), image.Resampling.BILINEAR)
            pixels: Bytes = np.asarray(plain, np.uint8).reshape(shape.height, shape.width, -1)
            return pixels.transpose(2, 0, 1)
    except UnusableError:
        raise
    except Exception as error:  # see above
        raise UnusableError(_said(error)) from error


def _to_bytes(values: np.ndarray[Any, Any]) -> Bytes:
    """Return gray values of 16 bits as bytes."""
    if values.dtype.kind == "f":
        values = np.clip(np.nan_to_num(values), 0, 255)
    wide = values.dtype.itemsize == 2 or values.max(initial=0) > 255
    found: Bytes = (np.clip(values, 0, 65535) // 256 if wide else np.clip(values, 0, 255)).astype(np.uint8)
    return found


def _said(error: Exception) -> str:
    text = printable(str(error).split(" <_io")[0].split(" '/")[0])[:120]
    kind = type(error).__name__
    return (
        "unreadable: no picture of a known format"
        if kind == "UnidentifiedImageError"
        else f"unreadable: {text or kind}"
    )
