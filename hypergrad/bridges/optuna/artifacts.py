"""Tensors in Optuna's artifact stores: written whole, found again by their digest, read as data."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hypergrad.bridges.optuna.installed import need_optuna
from hypergrad.errors import InputError
from hypergrad.tree import Tree

if TYPE_CHECKING:
    import optuna

Store = Any
"""An artifact store of Optuna, such as ``FileSystemArtifactStore``, or a folder's path."""


class GoneError(LookupError):
    """An artifact that is not there, or not whole."""


def check_store(store: Store | None) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for what is neither an artifact store nor a path."""
    methods = ("open_reader", "write", "remove")
    if store is None or isinstance(store, str | os.PathLike) or all(hasattr(store, method) for method in methods):
        return
    raise InputError(
        passed=f"store={store!r}",
        expected="an artifact store of Optuna, or a folder's path",
        do='pass store="artifacts", or optuna.artifacts.FileSystemArtifactStore("artifacts")',
    )


def open_store(store: Store | None) -> Any:
    """Return an artifact store; a path becomes one in that folder, which is made.

    Raises:
        InputError: neither a store nor a path.
    """
    check_store(store)
    if isinstance(store, str | os.PathLike):
        folder = Path(store)
        folder.mkdir(parents=True, exist_ok=True)
        need_optuna("an artifact store")
        from optuna.artifacts import FileSystemArtifactStore

        return FileSystemArtifactStore(folder)
    return store


def put(store: Any, trial: optuna.Trial, content: Mapping[str, Any], name: str, over: str = "") -> dict[str, Any]:
    """Save something as an artifact of a trial, and return where it lies: its id, digest and size.

    Args:
        store: an artifact store.
        trial: the trial.
        content: tensors, numbers and strings, nested.
        name: file name that people see.
        over: id of an artifact of the same trial that is written over.
    """
    from optuna.artifacts import upload_artifact

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        torch.save(dict(content), path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        if over:
            with path.open("rb") as file:
                store.write(over, file)
        else:
            over = upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
    return {"artifact": over, "sha256": digest, "bytes": size}


def fetch(store: Any, entry: object, path: Path) -> None:
    """Copy an artifact to a file.

    Raises:
        GoneError: it is not there, or is not what was written.
    """
    from optuna.artifacts.exceptions import ArtifactNotFound

    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("artifact", "sha256")):
        raise GoneError("no artifact was noted")
    try:
        with store.open_reader(entry["artifact"]) as reader, path.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
    except (ArtifactNotFound, FileNotFoundError) as error:
        raise GoneError(f"the artifact {entry['artifact']} is not in the store") from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry["sha256"]:
        raise GoneError(f"the artifact {entry['artifact']} is not what was written (torn, or changed)")


def get_trees(store: Any, entry: object) -> dict[str, Tree]:
    """Return the trees of tensors in an artifact, on the CPU.

    Raises:
        GoneError: it is not there, or is not what was written.
        InputError: something else than tensors; nothing of it was run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.pt"
        fetch(store, entry, path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise _strange(f"cannot be read as tensors ({type(error).__name__})") from error
    if not isinstance(found, Mapping) or not all(_is_tree(value) for value in found.values()):
        raise _strange("holds something else than trees of tensors")
    return {str(name): dict(value) for name, value in found.items()}


def _is_tree(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items()
    )


def _strange(what: str) -> InputError:
    return InputError(
        passed=f"an artifact that {what}",
        expected="tensors that HybridObjective stored",
        do="use the store that the study wrote to; nothing of the file was run",
    )
