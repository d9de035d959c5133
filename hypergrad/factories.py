"""Functions of the user that are named on the command line, as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypergrad.errors import InputError, did_you_mean


def function_named(name: str, expected: str) -> Callable[..., Any]:
    """Import a module, also from the working directory, and return a function of it.

    Args:
        name: ``module:function``.
        expected: what the function should be, for messages.

    Raises:
        InputError: no such module, or no such function in it.
    """
    module_name, _, function_name = name.partition(":")
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
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        near = did_you_mean(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise InputError(
            passed=f"{name}: {module_name} has no function {function_name!r}{near}",
            expected=expected,
            do="check the spelling; it must stand at the top level of the module",
        )
    return function
