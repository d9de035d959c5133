"""Fields of a command: what each takes, read from its annotation, its default and the class docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, final, get_args, get_origin

from hypergrad.errors import InputError, did_you_mean

Kind = type | tuple[Any, ...]
WORDS: dict[type, tuple[str, str]] = {
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
    bool: ("", "true or false"),
}
"""What stands for a value in the help, and what it is called."""
NOTHING = "none"


def positional(default: Any = MISSING, *, metavar: str | None = None) -> Any:
    """Return a dataclass field that is passed by its place, not by a flag.

    A field without a default is one in any case; this is for those that may be left out, and for a ``metavar``.

    Args:
        default: its value where it is left out; without one it is required.
        metavar: what stands for it in the help.
    """
    return dataclasses.field(default=default, metadata={"positional": True, "metavar": metavar})


def flag(default: Any, *, metavar: str | None = None) -> Any:
    """Return a dataclass field that is passed by a flag, with a name of its own for its value in the help.

    Args:
        default: its value where it is left out.
        metavar: what stands for its value in the help.
    """
    return dataclasses.field(default=default, metadata={"metavar": metavar})


@final
@dataclass(frozen=True)
class Field:
    """A field of a command.

    Attributes:
        name: as in the dataclass.
        kinds: what it may be: types, and tuples of the choices of a ``Literal``.
        optional: whether it may be ``None``.
        many: whether it is a tuple of such values.
        default: its value where it is left out, or ``dataclasses.MISSING``.
        positional: whether it is passed by its place.
        metavar: what stands for its value in the help.
        help: what it means.
    """

    name: str
    kinds: tuple[Kind, ...]
    optional: bool
    many: bool
    default: Any
    positional: bool
    metavar: str
    help: str

    @property
    def shown(self) -> str:
        """How it is called on the command line."""
        return self.metavar if self.positional else "--" + self.name.replace("_", "-")

    @property
    def switch(self) -> bool:
        """Whether it is on or off, and takes no value."""
        return self.kinds == (bool,) and not self.many and not self.optional

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be, where these are all."""
        groups = [kind for kind in self.kinds if isinstance(kind, tuple)]
        return tuple(str(one) for group in groups for one in group) if len(groups) == len(self.kinds) else ()

    @property
    def path(self) -> bool:
        """Whether it may be a path."""
        return Path in self.kinds

    def read(self, value: Any, *, text: bool) -> Any:
        """Return a value of the field's type.

        Args:
            value: text from the command line (a list of it for many), or a value from TOML or JSON.
            text: which of the two.

        Raises:
            InputError: it is something else.
        """
        if value is None and self.optional:
            return None
        if value == NOTHING and self.optional and (self.default is not None or not {str, Path} & set(self.kinds)):
            return None
        if not self.many:
            return self._one(value, text=text)
        if not isinstance(value, list | tuple):
            raise self._refusal(value)
        return tuple(self._one(item, text=text) for item in value)

    def plain(self, value: Any) -> Any:
        """Return a value as TOML and JSON can hold it: what :meth:`read` reads."""
        if isinstance(value, tuple):
            return [self.plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    def _one(self, value: Any, *, text: bool) -> Any:
        for kind in self.kinds:
            try:
                return _from_text(kind, value) if text else _from_plain(kind, value)
            except ValueError:
                continue
        raise self._refusal(value)

    def _refusal(self, value: Any) -> InputError:
        near = did_you_mean(value, self.choices) if isinstance(value, str) else ""
        expected = " or ".join(_called(kind) for kind in self.kinds)
        return InputError(
            passed=f"{self.shown} {value!r}{near}",
            expected=f"a list of these: {expected}" if self.many else expected,
            do="see --help" if self.default is MISSING else f"see --help, or leave it out for {self.default!r}",
        )


def fields_of(command: type) -> list[Field]:
    """Return the fields of a command's dataclass in their order.

    Args:
        command: the class.
    """
    if not dataclasses.is_dataclass(command):
        raise TypeError(f"{command.__name__} is no dataclass")
    hints, texts = typing.get_type_hints(command), attributes(command)
    return [_field(one, hints[one.name], texts.get(one.name, "")) for one in dataclasses.fields(command) if one.init]


def attributes(command: type) -> dict[str, str]:
    """Return the texts of the ``Attributes:`` sections of a class and its bases under their names, for people.

    Args:
        command: the class.
    """
    found: dict[str, str] = {}
    for base in reversed(command.__mro__[:-1]):
        found |= _attributes(base)
    return found


def _attributes(command: type) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in section(command, "Attributes").splitlines():
        start = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            name, first = start.groups()
            found[name] = [first]
        elif name:
            found[name].append(line.strip())
    return {name: unmarked(" ".join(lines)).rstrip(".") for name, lines in found.items()}


def section(command: type, name: str) -> str:
    """Return a section of a google style docstring without its title and indentation; empty where there is none.

    Args:
        command: the class.
        name: the title, such as ``Attributes``.
    """
    lines = (inspect.getdoc(command) or "").splitlines()
    if f"{name}:" not in lines:
        return ""
    rest = lines[lines.index(f"{name}:") + 1 :]
    end = next((place for place, line in enumerate(rest) if line and not line.startswith(" ")), len(rest))
    return inspect.cleandoc("\n" + "\n".join(rest[:end])).strip()


def description(command: type) -> str:
    """Return a docstring's text before its first section.

    Args:
        command: the class.
    """
    text = inspect.getdoc(command) or ""
    return unmarked(re.split(r"\n\n(?=[A-Z]\w*:\n)", text)[0])


def unmarked(text: str) -> str:
    """Return a docstring's text without the marks of roles and literals.

    >>> unmarked("see :class:`~hypergrad.Trainer` and ``None``")
    'see Trainer and None'
    """
    text = re.sub(r":[a-z:]+:`~?([^`]*)`", lambda found: found[1].rpartition(".")[2], text)
    return text.replace("``", "")


def filled(command: type, given: Mapping[str, Any], *, source: str = "") -> Any:
    """Return a command made of values that were read, and of defaults.

    Args:
        command: the class.
        given: values under the fields' names.
        source: where they come from, for the message.

    Raises:
        InputError: a field without a default is not among them.
    """
    missing = [field for field in fields_of(command) if field.default is MISSING and field.name not in given]
    if missing:
        names = ", ".join(field.shown for field in missing)
        raise InputError(f"{source or 'a call'} without {names}", f"a value for {names}", "see --help")
    return command(**given)


def check_names(command: type, given: Mapping[str, Any], *, source: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for a name that is no field of a command.

    Args:
        command: the class.
        given: values under names.
        source: where they come from, for the message.
    """
    known = [field.name for field in fields_of(command)]
    for name in given:
        if name not in known:
            raise InputError(
                passed=f"{source} with {name!r}{did_you_mean(name, known)}",
                expected=f"some of {', '.join(known)}",
                do="correct the name, or leave it out",
            )


def _field(one: dataclasses.Field[Any], hint: Any, text: str) -> Field:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in members
    kept = [member for member in members if member is not type(None)]
    many = len(kept) == 1 and get_origin(kept[0]) is tuple
    if many:
        inside = get_args(kept[0])[0]
        kept = list(get_args(inside)) if get_origin(inside) in (Union, types.UnionType) else [inside]
    kinds: tuple[Kind, ...] = tuple(get_args(kind) if get_origin(kind) is Literal else kind for kind in kept)
    for kind in kinds:
        if not isinstance(kind, tuple) and kind not in WORDS:
            raise TypeError(f"{one.name}: {hint} has no form on the command line")
    default = one.default if one.default_factory is MISSING else one.default_factory()
    by_place = bool(one.metadata.get("positional")) or default is MISSING
    metavar = one.metadata.get("metavar")
    choices = isinstance(kinds[0], tuple)
    usual = "|".join(dict.fromkeys(map(_metavar, kinds))) if choices or not by_place else one.name.upper()
    return Field(one.name, kinds, optional, many, default, by_place, metavar or usual, text)


def _metavar(kind: Kind) -> str:
    return "{" + ",".join(map(str, kind)) + "}" if isinstance(kind, tuple) else WORDS[kind][0]


def _called(kind: Kind) -> str:
    return " or ".join(map(repr, kind)) if isinstance(kind, tuple) else WORDS[kind][1]


def _from_text(kind: Kind, text: str) -> Any:
    if isinstance(kind, tuple):
        found = [choice for choice in kind if str(choice) == text]
        if not found:
            raise ValueError
        return found[0]
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _none_of(text)
    if kind is Path and not text:
        raise ValueError
    return kind(text)


def _from_plain(kind: Kind, value: Any) -> Any:
    if isinstance(kind, tuple):
        return value if any(value == choice and type(value) is type(choice) for choice in kind) else _none_of(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    return value if type(value) is kind and kind is not Path else _none_of(value)


def _none_of(value: Any) -> Any:
    raise ValueError(value)
