"""``python -m benchmarks run NAME …`` measures sheets, ``python -m benchmarks results`` writes RESULTS.md from them."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots
from benchmarks.peers.environments import PEERS
from benchmarks.results import write_results
from benchmarks.sheets import SHEETS
from benchmarks.sheets.sheet import Options

OURS = ("hand", "engine")
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure sheets and write JSON, PNG and RESULTS.md")
    run.add_argument("names", nargs="+", choices=[*SHEETS, "all"], metavar="NAME", help=f"{', '.join(SHEETS)}, or all")
    peers = [name for name in PEERS if name not in OURS]
    run.add_argument("--peers", nargs="*", choices=peers, metavar="PEER", help=f"of {', '.join(peers)}; all by default")
    run.add_argument("--repeats", type=_count, default=7, help="rounds that are measured (7)")
    run.add_argument("--smoke", action="store_true", help="tiny: shows that it runs, and nothing else")
    run.add_argument("--no-build", dest="build", action="store_false", help="take environments that are there only")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where torch rows run (cpu)")
    run.add_argument("--timeout", type=_seconds, default=600.0, help="seconds that one call of a row may take (600)")
    results = commands.add_parser("results", help="write RESULTS.md from the JSON files")
    for command in (run, results):
        command.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for JSON and PNG")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what was measured before an interrupt is kept, and said to be unfinished."""
    line = parser()
    given = line.parse_args(arguments)
    if given.command == "run" and given.device == "cuda" and not torch.cuda.is_available():
        line.error("--device cuda, but torch sees no CUDA device: leave --device out to measure on the CPU")
    status = 0
    try:
        if given.command == "run":
            status = _run(given)
    except KeyboardInterrupt:
        status = INTERRUPTED
        print(f"interrupted: what was measured is in {given.out}", file=sys.stderr)
    finally:
        if given.command == "results" or any((given.out / f"{name}.json").is_file() for name in SHEETS):
            print(write_results(given.out))
    return status


def _run(given: argparse.Namespace) -> int:
    """Measure sheet by sheet; one that fails is told and does not stop the others."""
    torch.set_num_threads(1)
    status = 0
    peers = tuple(PEERS) if given.peers is None else (*OURS, *given.peers)
    options = Options(peers, given.repeats, given.smoke, given.build, given.out, given.device, given.timeout)
    for name in SHEETS if "all" in given.names else given.names:
        sheet: Any = importlib.import_module(f"benchmarks.sheets.{name}")
        try:
            result = sheet.run(options)
            plots.write(given.out / f"{name}.png", result, sheet.draw)
        except Exception:
            traceback.print_exc()
            print(f"the sheet {name} failed: what it measured is in {given.out}", file=sys.stderr)
            status = 1
    return status


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds; expected an integer of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time; expected seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
