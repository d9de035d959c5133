"""The commands: which class each is, imported when it is wanted."""

from __future__ import annotations

import importlib

from hypergrad.errors import InputError, did_you_mean

COMMANDS = {
    "algorithms": "hypergrad.commands.algorithms:Algorithms",
    "check": "hypergrad.commands.check:Check",
    "clean": "hypergrad.commands.clean:Clean",
    "compare": "hypergrad.commands.compare:Compare",
    "completion": "hypergrad.commands.completion:Completion",
    "demo": "hypergrad.commands.demo:Demo",
    "report": "hypergrad.commands.report:Report",
    "resume": "hypergrad.commands.resume:Resume",
    "watch": "hypergrad.commands.watch:Watch",
}
"""Module and class of each command; the class's name in lower case is the command's."""


def load(name: str) -> type:
    """Return the class of a command.

    Args:
        name: the command's name.

    Raises:
        InputError: there is no such command.
    """
    if name not in COMMANDS:
        raise InputError(
            passed=f"the command {name!r}{did_you_mean(name, COMMANDS)}",
            expected=f"one of {', '.join(COMMANDS)}",
            do="see hypergrad --help",
        )
    module, _, kind = COMMANDS[name].partition(":")
    found: type = getattr(importlib.import_module(module), kind)
    return found
