"""Optuna, or an error with the line that installs it."""

from __future__ import annotations

from types import ModuleType

from hypergrad.errors import MissingDependencyError


def need_optuna(asked: str = "hypergrad.bridges.optuna") -> ModuleType:
    """Return the module ``optuna``.

    Args:
        asked: what needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"{asked} without the package optuna ({error})",
            expected="optuna",
            do='pip install "hypergrad-engine[optuna]"',
        ) from error
    return optuna
