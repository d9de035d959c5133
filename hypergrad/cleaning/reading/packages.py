"""Packages that only some inputs need."""

from __future__ import annotations

import importlib
from typing import Any

from hypergrad.errors import MissingDependencyError

NAMES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def require(module: str, what: str) -> Any:
    """Import an optional module.

    Args:
        module: its full name.
        what: what needs it, for the message.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = NAMES.get(top, top)
        raise MissingDependencyError(
            passed=f"{what} without the package {package} ({error})",
            expected=f"{package}",
            do='pip install "hypergrad-engine[clean]"',
        ) from error
