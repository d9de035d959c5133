"""Commands that can be gone on with: what a run's directory says about the command that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypergrad.commands.configuration import plain, read_plain
from hypergrad.commands.fields import check_names, filled
from hypergrad.commands.table import COMMANDS, load
from hypergrad.errors import InputError, did_you_mean
from hypergrad.files import write_whole

FILE = "command.json"
LARGEST = 2**20
"""Bytes; a longer file is no command's."""


def save_command(command: Any, out: Path) -> None:
    """Write a command into the directory of its run, so that ``hypergrad resume`` can go on with it.

    The file ``command.json`` holds ``{"command": name, "fields": {…}}``, with absolute paths, so that the run can be
    resumed from another folder. The directory is made where it does not exist.

    Args:
        command: the dataclass, with its fields as they were given.
        out: the run's directory.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = {"command": type(command).__name__.lower(), "fields": plain(command)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(out / FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_command(out: Path) -> Any:
    """Return the command that was saved in a directory, which is not trusted.

    The command's name is looked up in the table of commands, and each field is checked like a flag: nothing in the
    file is run. ``out`` of the command, where it has one, is the directory itself, wherever that stands now: a file
    cannot make a run write elsewhere.

    Args:
        out: the run's directory.

    Raises:
        InputError: no such file, or one that no command wrote.
    """
    path = out / FILE
    name, fields = _content(path)
    resumable = [known for known in COMMANDS if hasattr(load(known), "resume")]
    if name not in resumable:
        near = did_you_mean(name, resumable) if isinstance(name, str) else ""
        raise _refused(path, f"which names the command {name!r}{near}", f"one of {', '.join(resumable)}")
    if not isinstance(fields, dict):
        raise _refused(path, f"whose fields are of type {type(fields).__name__}", "an object of fields")
    command = load(name)
    check_names(command, fields, source=str(path))
    known = read_plain(command, fields)
    return filled(command, {**known, "out": out} if "out" in known else known, source=str(path))


def _content(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        content = json.loads(text.decode("utf-8")) if len(text) <= LARGEST else None
    except FileNotFoundError:
        raise InputError(
            passed=f"{path.parent}, which holds no {FILE}",
            expected="the directory of a run that a hypergrad command began",
            do="check the path, or start the command anew",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, f"which cannot be read ({type(error).__name__}: {error})", "JSON") from error
    if not isinstance(content, dict) or set(content) != {"command", "fields"}:
        raise _refused(path, "which holds something else", 'one object with "command" and "fields"')
    return content["command"], content["fields"]


def _refused(path: Path, found: str, expected: str) -> InputError:
    return InputError(passed=f"{path}, {found}", expected=expected, do="start the command anew, with another --out")
