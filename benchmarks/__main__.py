"""``python -m benchmarks run NAME …`` measures sheets, ``python -m benchmarks results`` writes RESULTS.md from them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.peers.environments import PEERS
from benchmarks.results import write_results
from benchmarks.sheets import SHEETS
from benchmarks.sheets.sheet import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure sheets and write JSON, PNG and RESULTS.md")
    run.add_argument("names", nargs="+", choices=[*SHEETS, "all"], metavar="NAME", help=f"{', '.join(SHEETS)}, or all")
    run.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
    run.add_argument("--repeats", type=int, default=7, help="rounds that are measured")
    run.add_argument("--smoke", action="store_true", help="tiny: shows that it runs, and nothing else")
    run.add_argument("--no-build", dest="build", action="store_false", help="take environments that are there only")
    results = commands.add_parser("results", help="write RESULTS.md from the JSON files")
    for command in (run, results):
        command.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for JSON and PNG")
    given = parser.parse_args(arguments)
    if given.command == "run":
        if given.repeats < 1:
            parser.error(f"--repeats is {given.repeats}; expected at least 1")
        torch.set_num_threads(1)
        peers = tuple(PEERS) if given.peers is None else ("hand", "engine", *given.peers)
        options = Options(peers, given.repeats, given.smoke, given.build, given.out)
        for name in SHEETS if "all" in given.names else given.names:
            importlib.import_module(f"benchmarks.sheets.{name}").run(options)
    print(write_results(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
