"""A command's settings as TOML: what ``--print-config`` writes is what ``--config`` reads."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypergrad.commands.fields import NOTHING, check_names, fields_of
from hypergrad.errors import InputError


def written(command: Any) -> str:
    """Return the fields of a command as TOML; what is ``None`` by default and by choice is left out.

    Args:
        command: the dataclass.
    """
    lines = [f"# hypergrad {type(command).__name__.lower()}"]
    for field in fields_of(type(command)):
        value = field.plain(getattr(command, field.name))
        if value is None and field.default is None:
            continue
        lines.append(f"{field.name} = {_toml(NOTHING if value is None else value)}")
    return "\n".join(lines) + "\n"


def read(command: type, path: Path) -> dict[str, Any]:
    """Return the fields that a TOML file gives.

    Args:
        command: the dataclass they belong to.
        path: the file.

    Raises:
        InputError: the file cannot be read, names no field, or has a value of another type.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            passed=f"--config {path}, which cannot be read ({error})",
            expected="a TOML file",
            do=f"write one with hypergrad {command.__name__.lower()} … --print-config > FILE",
        ) from error
    check_names(command, given, source=f"--config {path}")
    return {
        field.name: field.read(given[field.name], text=False) for field in fields_of(command) if field.name in given
    }


def read_plain(command: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of TOML or JSON as the fields' types.

    Args:
        command: the dataclass they belong to.
        given: values under names of fields.

    Raises:
        InputError: a value of another type.
    """
    known = {field.name: field for field in fields_of(command)}
    return {name: known[name].read(value, text=False) for name, value in given.items()}


def plain(command: Any) -> dict[str, Any]:
    """Return the fields of a command as JSON can hold them, with paths made absolute.

    Args:
        command: the dataclass.
    """
    found = {}
    for field in fields_of(type(command)):
        value = getattr(command, field.name)
        found[field.name] = field.plain(value.absolute() if isinstance(value, Path) else value)
    return found


def changed(command: Any, **changes: Any) -> Any:
    """Return a command with some fields changed, where it has these.

    Args:
        command: the dataclass.
        **changes: new values.
    """
    known = {field.name for field in fields_of(type(command))}
    return dataclasses.replace(command, **{name: value for name, value in changes.items() if name in known})


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
