"""``hypergrad report``: a page, a text or JSON of what a run did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True)
class Report:
    """Write report.html into a run's directory: what ran, how it went, what it found.

    The page asks the network for nothing and can be read on a phone, in print and without a mouse. What is missing in
    the directory is said on the page. Nothing in the files is trusted.

    Attributes:
        dir: directory that hypergrad demo, clean or compare wrote, or a Trainer with the callbacks Record and History.
        text: print a summary instead, and write no file.
        json: print everything as one JSON object instead, and write no file.

    Example:
        $ hypergrad report hypergrad-demo
        $ hypergrad report hypergrad-demo --text
        $ hypergrad report hypergrad-demo --json
    """

    dir: Path
    text: bool = False
    json: bool = False

    def __call__(self) -> int:
        """Write the page or print the summary, and return the exit status."""
        from hypergrad.errors import InputError
        from hypergrad.report import summary, text_report, write_report

        if self.text and self.json:
            raise InputError("--text and --json", "one of them", "drop one")
        if self.text:
            print(text_report(self.dir), end="")
        elif self.json:
            import json

            print(json.dumps(summary(self.dir), allow_nan=False))
        else:
            print(write_report(self.dir))
        return 0
