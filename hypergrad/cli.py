"""The command line: ``hypergrad demo`` and ``hypergrad check``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypergrad.errors import HypergradError, InputError, did_you_mean
from hypergrad.objective import count_arguments
from hypergrad.version import __version__

EXIT_FAILED, EXIT_MISUSED, EXIT_UNDECIDED, EXIT_INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 a failed check or an unexpected error, 2 a mistake in what was passed, 3 a check that could not
    decide, 130 an interrupt.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except SystemExit as error:  # of the user's own code, and no verdict of ours
        print(f"hypergrad {options.command}: the code that was called exited with {error.code!r}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("hypergrad: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except HypergradError as error:
        print(f"hypergrad {options.command}: {type(error).__name__}\n{error}", file=sys.stderr)
        return EXIT_MISUSED
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"hypergrad {options.command}: {type(error).__name__}: {error}\n"
            f"raised in {place.filename}, line {place.lineno}; pass --traceback to see how it came there",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hypergrad", description="Hypergradients for any PyTorch training loop.")
    parser.add_argument("--version", action="version", version=f"hypergrad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="clean a noisy image set: one weight per training example")
    demo.add_argument("--model", choices=("linear", "mlp"), default="linear")
    demo.add_argument("--data", choices=("mnist", "fashion"), default="mnist")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path("hypergrad-demo"), help="folder for the results")
    demo.add_argument("--root", type=Path, default=None, help="folder with the Fashion-MNIST files")
    demo.add_argument("--steps", type=int, default=None, help="outer steps (default: the model's)")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="compare a hypergradient with differences of re-solved training")
    check.add_argument("factory", metavar="module:factory", help="a function without arguments; see hypergrad.check")
    check.add_argument("--directions", type=int, default=3)
    check.add_argument("--tolerance", type=float, default=1e-3)
    check.add_argument("--seed", type=int, default=0)
    check.set_defaults(run=_check)

    for command in (demo, check):
        command.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    return parser


def _demo(options: argparse.Namespace) -> int:
    from hypergrad.demo import run

    run(
        model=options.model,
        data=options.data,
        seed=options.seed,
        out=options.out,
        root=options.root,
        steps=options.steps,
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    from hypergrad.check import UNDECIDED, check

    settings = {"directions": options.directions, "tolerance": options.tolerance, "seed": options.seed}
    result = check(**{**settings, **_arguments(options.factory, _factory(options.factory)())})
    return 0 if result.passed else EXIT_UNDECIDED if result.verdict == UNDECIDED else EXIT_FAILED


def _arguments(name: str, given: Any) -> Mapping[str, Any]:
    """Return what a factory returned as arguments of :func:`hypergrad.check`."""
    from hypergrad.check import check

    needed, known = ("problem", "params", "hparams", "algorithm"), inspect.signature(check).parameters
    if isinstance(given, tuple) and len(given) == len(needed):
        return dict(zip(needed, given, strict=True))
    found = f"a {type(given).__name__}"
    if isinstance(given, Mapping):
        missing, unknown = [key for key in needed if key not in given], [key for key in given if key not in known]
        if not missing and not unknown:
            return given
        found = " and ".join(
            [f"nothing under {key!r}" for key in missing] + [f"{key!r}{did_you_mean(key, known)}" for key in unknown]
        )
    raise InputError(
        passed=f"{name}, which returned {found}",
        expected="(problem, params, hparams, algorithm), or a dict of hypergrad.check's arguments",
        do="return these from the factory",
    )


def _factory(name: str) -> Callable[[], Any]:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(
            passed=repr(name),
            expected="module:factory, such as experiments.ridge:problem",
            do="name both, with a colon",
        )
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - the import system wants a string
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            passed=f"module {module_name!r}, in which {error.name!r} was not found",
            expected=f"a module that can be imported from {Path.cwd()}",
            do="check the spelling, run the command from the folder that holds the module, or install it",
        ) from error
    finally:
        sys.path.pop(0)
    function: Callable[[], Any] | None = getattr(module, function_name, None)
    if not callable(function):
        near = did_you_mean(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise InputError(
            passed=f"{name}: {module_name} has no function {function_name!r}{near}",
            expected="a function without arguments",
            do="check the spelling; it must stand at the top level of the module",
        )
    if count_arguments(function, (0,)) is None:
        raise InputError(
            passed=f"{name}{inspect.signature(function)}",
            expected="a function without arguments",
            do="give its arguments default values, or write a function around it",
        )
    return function


if __name__ == "__main__":
    sys.exit(main())
