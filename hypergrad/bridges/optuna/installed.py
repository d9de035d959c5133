"""Optuna, or an error with the line that installs it."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

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


def retry_callback(times: int = 3) -> Any:
    """Return Optuna's callback that queues a trial again whose worker has died, at most so many times."""
    storages = need_optuna("retry_callback").storages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        if hasattr(storages, "RetryHeartbeatStaleTrialCallback"):
            return storages.RetryHeartbeatStaleTrialCallback(max_retry=times)
        return storages.RetryFailedTrialCallback(max_retry=times)  # its name before Optuna 4.9
