"""Reading of labelled examples: tables, arrays, pictures, texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypergrad.cleaning.examples import Examples
from hypergrad.cleaning.reading.arrays import read_npz
from hypergrad.cleaning.reading.delimited import read_csv
from hypergrad.cleaning.reading.huggingface import is_dataset, read_dataset
from hypergrad.cleaning.reading.images import read_folder
from hypergrad.cleaning.reading.options import Impute
from hypergrad.cleaning.reading.options import Reading as Reading
from hypergrad.cleaning.reading.parquet import read_parquet
from hypergrad.cleaning.reading.source import Source
from hypergrad.cleaning.reading.text import Texts
from hypergrad.errors import InputError, did_you_mean

Embedding = Callable[[list[str]], Any]
READERS: dict[str, Callable[[Path, Reading, Any], Source]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".npz": read_npz,
}


def read(
    path: str | Path,
    *,
    label: str | None = None,
    text: str | None = None,
    features: Sequence[str] | None = None,
    truth: str | None = None,
    split: str | None = None,
    impute: Impute | None = None,
    categories: int = 50,
    vocabulary: int = 5000,
    size: int | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    embed: Embedding | None = None,
) -> Examples:
    r"""Return the labelled examples of a file or folder, which is not changed, and of which nothing is executed.

    What can be read: a table (CSV, or Parquet, which needs pyarrow); an archive of arrays (.npz); a folder with one
    folder of images for each class (needs Pillow); a folder that ``datasets.Dataset.save_to_disk`` wrote (needs
    pyarrow). Numbers are standardised, each category gets an input, pixels are standardised by channel, texts become
    weighted counts of words (needs scikit-learn). The memory it takes is estimated first.

    Args:
        path: the file or folder.
        label: the column that holds the given classes. Of an archive the array, "y" by default; of a saved data set the
            column of type ClassLabel by default; a folder of images needs none.
        text: the column of texts to learn from, in the place of all other columns.
        features: the columns to learn from. By default all that hold numbers or categories; columns that are constant,
            count rows, hold dates or free text are left out and named in the notes.
        truth: the column (array) with the right classes where they are known, for scoring only.
        split: the split of a saved data set, "train" by default.
        impute: fills missing values of features in; without it they are an error. "median" takes the median of a column
            and the most frequent category, "most-frequent" the most frequent value of both.
        categories: categories of a column that have an input each, at least 1; rarer ones share one.
        vocabulary: most frequent words that are counted, at least 1.
        size: height and width that images are brought to. By default the size they have in common if that is at most
            64 pixels, else 32.
        separator: between the cells of a CSV file; found in its first line by default.
        encoding: of a CSV file; UTF-8 by default, with or without a byte order mark, or UTF-16 with one.
        embed: what makes numbers of texts, in the place of weighted counts: a function or module that takes a list of
            texts and returns a tensor with a row for each. A module is put into evaluation for the call only.

    Returns:
        The examples, with ``index`` (the row in the input), previews, what was skipped and why, and notes.

    Raises:
        InputError: a path that does not exist or is of no known kind, a damaged or crafted file, settings that do not
            fit it, labels that are no classes, missing values, or more than memory can hold.
        MissingDependencyError: a package that this input needs is not installed.

    Example:
        >>> import tempfile, pathlib
        >>> from hypergrad.cleaning.reading import read
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "fruit.csv"
        >>> _ = path.write_text("weight,colour,kind\n120,green,pear\n90,red,apple\n110,green,pear\n95,red,apple\n")
        >>> fruit = read(path, label="kind")
        >>> fruit.classes, fruit.labels.tolist(), tuple(fruit.inputs.shape), fruit.preview(0)
        (('apple', 'pear'), [1, 0, 1, 0], (4, 3), {'row': {'weight': 120.0, 'colour': 'green'}})
    """
    reading = Reading(
        label=label,
        text=text,
        features=None if features is None else tuple(features) if not isinstance(features, str) else (features,),
        truth=truth,
        split=split,
        impute=impute,
        categories=categories,
        vocabulary=vocabulary,
        size=size,
        separator=separator,
        encoding=encoding,
    )
    return open_source(path, reading, embed=embed).everything()


def open_source(
    path: str | Path, reading: Reading, *, like: Source | None = None, embed: Embedding | None = None
) -> Source:
    """Return what an input holds, before it is made numbers.

    Args:
        path: the file or folder.
        reading: how it is read.
        like: an input that this one belongs to, so that both are understood in the same way.
        embed: what makes numbers of texts.

    Raises:
        InputError: as :func:`read` says.
        MissingDependencyError: a package that this input needs is not installed.
    """
    path = Path(path)
    reader = _reader(path)
    try:
        source = reader(path, reading, None if like is None else like.plan)
    except OSError as error:
        raise InputError(
            passed=f"{path}, which cannot be read ({error})",
            expected="a file or folder that may be read",
            do="check the path and its permissions",
        ) from error
    if embed is None:
        return source
    if not callable(embed) or not isinstance(source.features, Texts):
        raise InputError(
            passed=f"embed={embed!r} for {path.name}",
            expected="a function or module that takes a list of texts, for an input that is read with text=",
            do="pass text='…', or leave embed out",
        )
    return replace(source, features=replace(source.features, embed=embed))


def is_folder_of_images(path: Path) -> bool:
    """Return whether a path is read as a folder with one folder of images for each class."""
    return path.is_dir() and not is_dataset(path)


def _reader(path: Path) -> Callable[[Path, Reading, Any], Source]:
    if path.is_dir():
        return read_folder if is_folder_of_images(path) else read_dataset
    if not path.exists():
        folder = path.parent
        near = did_you_mean(path.name, [each.name for each in folder.iterdir()]) if folder.is_dir() else ""
        raise InputError(passed=f"{path}, which does not exist{near}", expected="a file or folder", do="check the path")
    if not path.is_file():
        raise InputError(
            passed=f"{path}, which is neither a file nor a folder",
            expected="a file on the disk, since it is read more than once",
            do="write it to a file first",
        )
    ending = path.suffix.lower()
    if ending not in READERS:
        packed = ending in (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z")
        raise InputError(
            passed=f"{path.name}, whose ending {ending!r} is not known{did_you_mean(ending, READERS)}",
            expected=f"{', '.join(READERS)}, a folder of images by class, or a saved data set",
            do="unpack it first" if packed else "convert it, for example to CSV",
        )
    return READERS[ending]
