"""``hypergrad completion``: have a shell complete commands, flags, choices and paths."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, final

from hypergrad.commands.fields import fields_of
from hypergrad.commands.flags import everything
from hypergrad.commands.table import COMMANDS, load
from hypergrad.errors import MissingDependencyError


@final
@dataclass(frozen=True)
class Completion:
    """Print what a shell reads to complete commands, flags, choices and paths.

    bash: hypergrad completion bash > ~/.local/share/bash-completion/completions/hypergrad;
    zsh: hypergrad completion zsh > a file _hypergrad in a folder of $fpath;
    fish: hypergrad completion fish > ~/.config/fish/completions/hypergrad.fish.

    Attributes:
        shell: the shell.

    Example:
        $ hypergrad completion bash
    """

    shell: Literal["bash", "zsh", "fish"]

    def __call__(self) -> int:
        """Print it, and return the exit status."""
        shtab = _shtab()
        commands = {name: load(name) for name in sorted(COMMANDS)}
        parser = everything(commands)
        subparsers: Any = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
        for name, command in commands.items():
            paths = {"config", *(field.name for field in fields_of(command) if field.path)}
            for action in subparsers[name]._actions:
                if action.dest in paths:
                    action.complete = shtab.FILE
        sys.stdout.write(shtab.complete(parser, self.shell) + "\n")
        return 0


def _shtab() -> Any:
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"hypergrad completion without the package shtab ({error})",
            expected="shtab",
            do='pip install "hypergrad-engine[cli]"',
        ) from error
    return shtab
