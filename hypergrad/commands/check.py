"""``hypergrad check``: is this hypergradient right?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from hypergrad.commands.fields import positional
from hypergrad.commands.status import FAILED, UNDECIDED
from hypergrad.errors import InputError, did_you_mean
from hypergrad.factories import function_named
from hypergrad.objective import count_arguments


@final
@dataclass(frozen=True)
class Check:
    """Compare a hypergradient with differences of re-solved training.

    The factory is a function without arguments in a module of this folder or of an installed package. It returns
    (problem, params, hparams, algorithm), or a dict of the arguments of hypergrad.check.

    Attributes:
        factory: the module and its function.
        directions: random directions for each hyperparameter tensor, at least 1.
        tolerance: largest relative error that counts as agreement, above 0.
        seed: seed of the directions.

    Example:
        $ hypergrad check ridge:factory
        $ hypergrad check ridge:factory --directions 5 --tolerance 1e-2
    """

    factory: str = positional(metavar="module:factory")
    directions: int = 3
    tolerance: float = 1e-3
    seed: int = 0

    def __call__(self) -> int:
        """Run it, and return the exit status."""
        from hypergrad.check import UNDECIDED as UNDECIDED_VERDICT
        from hypergrad.check import check

        settings = {"directions": self.directions, "tolerance": self.tolerance, "seed": self.seed}
        result = check(**{**settings, **_arguments(self.factory, _factory(self.factory)())})
        return 0 if result.passed else UNDECIDED if result.verdict == UNDECIDED_VERDICT else FAILED


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
    function = function_named(name, "a function without arguments")
    if count_arguments(function, (0,)) is None:
        raise InputError(
            passed=f"{name}{inspect.signature(function)}",
            expected="a function without arguments",
            do="give its arguments default values, or write a function around it",
        )
    return function
