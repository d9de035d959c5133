"""Commands as command-line parsers: every flag is a field of the command's dataclass."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NoReturn, final

from hypergrad.commands import configuration
from hypergrad.commands.fields import Field, description, fields_of, filled, section
from hypergrad.errors import InputError, did_you_mean

PROGRAM = "hypergrad"
CONFIG, PRINT_CONFIG, TRACEBACK = "--config", "--print-config", "--traceback"
EVERYWHERE = {
    CONFIG: "read settings from a TOML file; flags go before it",
    PRINT_CONFIG: "print the settings as TOML and do nothing",
    TRACEBACK: "show where an unexpected error came from",
}
"""Flags that every command has, with their help."""


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are :class:`~hypergrad.errors.InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raise, where argparse would print and exit."""
        raise InputError(passed=message, expected=f"what {self.prog} takes", do=f"see {self.prog} --help")


@final
@dataclass(frozen=True)
class Parsed:
    """What a command line asks for.

    Attributes:
        command: the command's dataclass.
        print_config: whether its settings are to be printed, and nothing done.
    """

    command: Any
    print_config: bool


def parse(name: str, command: type, arguments: Sequence[str]) -> Parsed:
    """Return a command made of its arguments, of the file they name, and of defaults.

    Args:
        name: the command's name.
        command: its dataclass.
        arguments: what follows the name.

    Raises:
        InputError: an argument is unknown, missing, or of another kind; in the file, too.
    """
    parser = parser_of(name, command)
    given, rest = parser.parse_known_intermixed_args(list(arguments))
    _refuse_rest(parser, rest)
    passed = vars(given)
    from_file = passed.pop("config", None)
    passed.pop("traceback", None)
    print_config = passed.pop("print_config", False)
    fields = {field.name: field for field in fields_of(command)}
    values = {key: value if fields[key].switch else fields[key].read(value, text=True) for key, value in passed.items()}
    if from_file is not None:
        values = configuration.read(command, Path(from_file)) | values
    return Parsed(filled(command, values, source=f"{PROGRAM} {name}"), print_config)


def parser_of(name: str, command: type) -> Parser:
    """Return the parser of a command.

    Args:
        name: the command's name.
        command: its dataclass.
    """
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=usage(name, command),
        description=description(command),
        epilog=_examples(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_fields(parser, command)
    return parser


def usage(name: str, command: type) -> str:
    """Return one line of how a command is called.

    Args:
        name: the command's name.
        command: its dataclass.
    """
    places = [
        field.metavar if field.default is MISSING else f"[{field.metavar}]"
        for field in fields_of(command)
        if field.positional
    ]
    return " ".join([PROGRAM, name, *places, "[flags]"])


def add_fields(parser: argparse.ArgumentParser, command: type) -> dict[str, argparse.Action]:
    """Give a parser the arguments of a command, and return them under the fields' names.

    Args:
        parser: the parser.
        command: the dataclass.
    """
    added = {field.name: _add(parser, field) for field in fields_of(command)}
    common = parser.add_argument_group("flags of every command")
    common.add_argument(CONFIG, metavar="FILE", help=EVERYWHERE[CONFIG])
    common.add_argument(PRINT_CONFIG, action="store_true", help=EVERYWHERE[PRINT_CONFIG])
    common.add_argument(TRACEBACK, action="store_true", help=EVERYWHERE[TRACEBACK])
    return added


def _add(parser: argparse.ArgumentParser, field: Field) -> argparse.Action:
    text = _help(field).replace("%", "%%")
    if field.positional:
        return parser.add_argument(field.name, metavar=field.metavar, nargs="*" if field.many else "?", help=text)
    if field.switch:
        return parser.add_argument(field.shown, action=argparse.BooleanOptionalAction, help=text)
    if field.many:
        return parser.add_argument(field.shown, metavar=field.metavar, nargs="+", action="extend", help=text)
    return parser.add_argument(field.shown, metavar=field.metavar, help=text)


def _help(field: Field) -> str:
    hidden = field.default is MISSING or field.default is None or field.default in ((), "") or field.switch
    if field.switch and field.default:
        return f"{field.help} (default: on)"
    if hidden:
        return field.help
    default = field.plain(field.default)
    return f"{field.help} (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"


def _examples(command: type) -> str | None:
    text = section(command, "Example") or section(command, "Examples")
    return "examples:\n" + re.sub(r"^", "  ", text, flags=re.MULTILINE) if text else None


def _refuse_rest(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    unknown = next((text for text in rest if text.startswith("-") and text != "--"), None)
    if unknown is not None:
        known = [option for action in parser._actions for option in action.option_strings]
        name = unknown.partition("=")[0]
        raise InputError(
            passed=f"{unknown}, which {parser.prog} does not know{did_you_mean(name, known)}",
            expected=f"flags of {parser.prog}",
            do=f"see {parser.prog} --help",
        )
    if rest:
        raise InputError(
            passed=f"{' '.join(rest)}, which is more than {parser.prog} takes",
            expected=str(parser.usage),
            do=f"see {parser.prog} --help; quote what holds spaces",
        )


def everything(commands: dict[str, type]) -> argparse.ArgumentParser:
    """Return one parser of all commands, for shells that complete them.

    Args:
        commands: the dataclasses under their names.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument("--version", action="store_true", help="print the version")
    found = parser.add_subparsers()
    for name, command in commands.items():
        first = description(command).partition("\n")[0]
        sub = found.add_parser(name, help=first.replace("%", "%%"), usage=usage(name, command))
        for action in add_fields(sub, command).values():
            field = next(one for one in fields_of(command) if one.name == action.dest)
            action.choices = field.choices or None
    return parser
