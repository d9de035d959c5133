"""A progress bar on a terminal, drawn by tqdm where that is installed."""

from __future__ import annotations

from typing import Any, TextIO

from hypergrad.errors import MissingDependencyError


def bar(stream: TextIO, steps: int, first: int) -> Any:
    """Return a bar of tqdm that stands at ``first`` of ``steps``.

    Args:
        stream: where to draw.
        steps: steps in all.
        first: steps made before.

    Raises:
        MissingDependencyError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingDependencyError(
            passed=f'ProgressBar(style="bar") without the package tqdm ({error})',
            expected="tqdm",
            do='pip install "hypergrad-engine[cli]", or leave style out for a line',
        ) from error

    base: Any = tqdm

    class Bar(base):  # type: ignore[misc]
        monitor_interval = 0  # no thread of its own: every step of ours draws

    return Bar(total=steps, initial=first, file=stream, unit=" steps", dynamic_ncols=True)
