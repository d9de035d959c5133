"""``hypergrad compare``: our algorithms against Optuna's samplers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final


@final
@dataclass(frozen=True)
class Compare:
    """Compare hypergradients with Optuna's samplers, at equal time and at equal work.

    Every method gets the same data, training and budget, and is tested once. The folder gets compare.json,
    compare.png and runs.jsonl; the same command goes on where it was interrupted.

    Attributes:
        task: sparse-100, sparse-1000, digits-640, cleaning-2000, decay-100k, or module:factory for a task of your own.
        samplers: searches to compare with: tpe, cma-es, gp, random, hyperband; all by default.
        spaces: what searches choose: full, grouped, shared; all by default, and always shared.
        seeds: runs of each method, 5 by default.
        seconds: time of each run in seconds; the task's by default.
        work: work of each run in passes through the objectives; the task's by default.
        clock: which time counts: cpu, the process's own, or wall.
        quick: two seeds and a fifth of a second a run, to see that it works.
        out: folder for the results.
        quiet: no line for each run on standard error.
        json: print compare.json instead of the tables.

    Example:
        $ hypergrad compare --task sparse-100 --quick --samplers tpe random --out comparison
    """

    task: str = "sparse-100"
    samplers: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    seeds: int | None = None
    seconds: float | None = None
    work: int | None = None
    clock: Literal["cpu", "wall"] = "cpu"
    quick: bool = False
    out: Path = Path("hypergrad-compare")
    quiet: bool = False
    json: bool = False

    def __call__(self) -> int:
        """Run what is missing in the folder, write the results, and print the tables."""
        from hypergrad.commands.saved import save_command
        from hypergrad.compare import compare
        from hypergrad.compare.table import tables

        result = compare(
            self.task,
            out=self.out,
            samplers=self.samplers,
            spaces=self.spaces,
            seeds=self.seeds,
            seconds=self.seconds,
            work=self.work,
            clock=self.clock,
            quick=self.quick,
            say=_silent if self.quiet else _say,
            began=lambda: save_command(self, self.out),
        )
        if self.json:
            sys.stdout.write((self.out / "compare.json").read_text(encoding="utf-8"))
        else:
            sys.stdout.write(f"{tables(result)}\n{self.out / 'compare.json'} and compare.png hold the curves.\n")
        return 0

    def resume(self) -> int:
        """Go on where the folder's runs end; a finished comparison is printed again.

        Raises:
            InputError: a task that is code: what a folder names is not imported.
        """
        from hypergrad.errors import InputError

        if ":" in self.task:
            raise InputError(
                passed=f"a comparison of {self.task}, which would be imported because a file names it",
                expected="a task that comes with the library",
                do=f"go on by hypergrad compare --task {self.task} --out {self.out}, if you trust that module",
            )
        return self()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(_line: str) -> None:
    pass
