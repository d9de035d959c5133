"""The command line: finds the command, and turns what becomes of it into an exit status."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hypergrad.commands import configuration
from hypergrad.commands.fields import description
from hypergrad.commands.flags import PROGRAM, TRACEBACK, parse, usage
from hypergrad.commands.saved import FILE
from hypergrad.commands.status import FAILED, INTERRUPTED, MISUSED, SUCCESS
from hypergrad.commands.table import COMMANDS, load
from hypergrad.errors import HypergradError, InputError
from hypergrad.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 a failed check or an unexpected error, 2 a mistake in what was passed, 3 a check that could not
    decide, 130 an interrupt.

    Args:
        arguments: the command and its arguments; those of the process by default.

    Raises:
        SystemExit: with status 2 after arguments that cannot be parsed, with 0 after ``--help`` and ``--version``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no λ shows something else
    if not given or given[0].startswith("-"):
        _without_command(given)
    name, rest = given[0], given[1:]
    try:
        parsed = parse(name, load(name), rest)
    except InputError as error:
        lines = usage(name, load(name)) if name in COMMANDS else f"{PROGRAM} COMMAND [flags]"
        _misused(lines, name if name in COMMANDS else "", error)
    if parsed.print_config:
        sys.stdout.write(configuration.written(parsed.command))
        return SUCCESS
    return run(name, parsed.command, traceback_wanted=TRACEBACK in rest)


def run(name: str, command: Callable[[], int], *, traceback_wanted: bool = False) -> int:
    """Call a command and return its exit status, whatever it raises.

    Args:
        name: the command's name.
        command: what to call.
        traceback_wanted: whether to print the traceback of an unexpected error.
    """
    try:
        found = command()
        sys.stdout.flush()  # what cannot be written shall be known here
        return found
    except SystemExit as error:  # of the user's own code, and no verdict of ours
        print(f"{PROGRAM} {name}: the code that was called exited with {error.code!r}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted{_way_on(command)}", file=sys.stderr)
        return INTERRUPTED
    except HypergradError as error:
        print(f"{PROGRAM} {name}: {type(error).__name__}\n{error}", file=sys.stderr)
        return MISUSED
    except BrokenPipeError:  # the reader of the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    except Exception as error:
        if traceback_wanted:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"{PROGRAM} {name}: {type(error).__name__}: {error}\n"
            f"raised in {place.filename}, line {place.lineno}; pass {TRACEBACK} to see how it came there"
            f"{_way_on(command)}",
            file=sys.stderr,
        )
        return FAILED


def _way_on(command: Any) -> str:
    """Return a line on how to go on with what a command began, where it can be gone on with."""
    out = getattr(command, "out", None)
    if isinstance(out, Path) and hasattr(command, "resume") and (out / FILE).is_file():
        return f"\ngo on with: {PROGRAM} resume {shlex.quote(str(out))}"
    return ""


def _without_command(given: list[str]) -> NoReturn:
    if given[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_overview())
    elif given[:1] == ["--version"]:
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
    else:
        _misused(
            f"{PROGRAM} COMMAND [flags]",
            "",
            InputError(
                passed=f"{given[0]} before a command" if given else "no command",
                expected=f"one of {', '.join(COMMANDS)}, then its flags",
                do=f"see {PROGRAM} --help",
            ),
        )
    raise SystemExit(SUCCESS)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{_first_line(name)}" for name in sorted(COMMANDS)]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [flags]",
            "",
            "Hypergradients for any PyTorch training loop.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help shows a command's flags, {PROGRAM} --version the version.",
            "Exit status: 0 success, 1 failure, 2 a mistake in what was passed, 3 undecided, 130 interrupted.",
            "",
        ]
    )


def _first_line(name: str) -> str:
    command: Any = load(name)
    return description(command).partition("\n")[0].rstrip(".")


def _misused(usage: str, name: str, error: InputError) -> NoReturn:
    who = f"{PROGRAM} {name}".rstrip()
    print(f"usage: {usage}\n{who}: {type(error).__name__}\n{error}", file=sys.stderr)
    raise SystemExit(MISUSED)


if __name__ == "__main__":
    sys.exit(main())
