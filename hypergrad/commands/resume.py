"""``hypergrad resume``: go on with an interrupted run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hypergrad.commands.configuration import changed
from hypergrad.commands.fields import positional
from hypergrad.commands.saved import load_command


@final
@dataclass(frozen=True)
class Resume:
    """Go on with an interrupted run, with the settings it was begun with.

    The result is that of a run without interruption. The directory holds a file command.json, which says what was
    running; it may have been moved. A run that is finished prints its result again.

    Attributes:
        directory: the folder that the run writes to: what was --out.
        quiet: show no progress.
        json: print the result as JSON.

    Example:
        $ hypergrad demo --out run2
        $ hypergrad resume run2
    """

    directory: Path = positional(metavar="DIR")
    quiet: bool = False
    json: bool = False

    def __call__(self) -> int:
        """Run it, and return the exit status."""
        command: Any = load_command(self.directory)
        wanted = {name: True for name in ("quiet", "json") if getattr(self, name)}
        status: int = changed(command, **wanted).resume()
        return status
