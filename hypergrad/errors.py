"""Errors and warnings: what was passed, what was expected, what to do.

A user's mistake is an :class:`InputError`, raised before anything is computed or changed. A failure of the
numbers is a :class:`NumericalError` when no usable answer exists, and otherwise a :class:`HypergradWarning`
that also stands in the :class:`~hypergrad.Report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch


class HypergradError(Exception):
    """Base of every error the library raises on purpose.

    Args:
        passed: what was found, in the caller's own words (names, shapes, values).
        expected: what would have been right.
        do: the remedy.
    """

    def __init__(self, passed: str, expected: str, do: str) -> None:
        """Keep the three parts and join them into one message."""
        super().__init__(passed, expected, do)
        self.passed, self.expected, self.do = passed, expected, do

    def __str__(self) -> str:
        """Return the three parts, one a line."""
        return f"passed: {self.passed}\nexpected: {self.expected}\ndo: {self.do}"


class InputError(HypergradError, ValueError):
    """A wrong argument, found at the door."""


class TreeError(InputError):
    """A tree of tensors with a missing, extra or misspelt key, or with tensors that do not fit together."""


class ObjectiveError(InputError):
    """An objective that does not return a differentiable scalar."""


class UnreachedError(InputError):
    """A hyperparameter or parameter that no path of the problem reaches.

    Args:
        names: the tensors' names, kept as an attribute.
        passed: what was found.
        expected: what would have been right.
        do: the remedy.
    """

    def __init__(self, names: Iterable[str], passed: str, expected: str, do: str) -> None:
        """Keep the names beside the three parts."""
        super().__init__(passed, expected, do)
        self.names = list(names)


class CutError(UnreachedError):
    """A hyperparameter that moves a value although no gradient flows: detached, read as a number, rounded."""


class WrappedModuleError(InputError):
    """A module whose wrapper breaks second derivatives (DDP, FSDP, ``torch.compile``)."""


class UnsupportedError(InputError):
    """A combination that the chosen algorithm cannot serve."""


class MissingDependencyError(HypergradError, ImportError):
    """An optional package or data set that is not installed."""


class DiskFullError(HypergradError):
    """No space left for files; those that were there before stay whole."""


class OutOfMemoryError(HypergradError, torch.OutOfMemoryError):
    """A hypergradient for which the device or the machine has not enough memory; nothing was changed.

    Args:
        passed: what was running.
        expected: what would have been right.
        do: smaller plans, in words.
        smaller: an algorithm that keeps less, or ``None``; kept as an attribute.
    """

    def __init__(self, passed: str, expected: str, do: str, smaller: Any = None) -> None:
        """Keep the algorithm beside the three parts."""
        super().__init__(passed, expected, do)
        self.smaller = smaller


class NumericalError(HypergradError, ArithmeticError):
    """A computation that left no usable answer."""


class NonFiniteError(NumericalError):
    """NaN or infinity in a loss, a gradient or a product."""


class DivergenceError(NumericalError):
    """An iteration that grew instead of settling."""


class HypergradWarning(UserWarning):
    """Base of every warning the library gives."""


class StationarityWarning(HypergradWarning):
    """The inner problem is far from its optimum, so the implicit formula is biased."""


class CurvatureWarning(HypergradWarning):
    """Negative curvature was met: the inner Hessian is indefinite here."""


class ConvergenceWarning(HypergradWarning):
    """An iteration stopped before it reached its tolerance."""


class ReachWarning(HypergradWarning):
    """A tensor that one of the objectives does not use."""


class RepeatabilityWarning(HypergradWarning):
    """A loss that gives something else for the same tensors, batch and random numbers."""


class LeftoverWarning(HypergradWarning):
    """Hyperparameters whose ``.grad`` held something before the first hypergradient was added to it."""


class RestartWarning(HypergradWarning):
    """An algorithm that lost its memory, since the parameters it belongs to are no longer the same ones."""


class CompileWarning(HypergradWarning):
    """A hypergradient that could not be compiled, or whose compiled form was wrong; it was computed eagerly."""


class OuterMoveWarning(HypergradWarning):
    """The hyperparameters did not go where the algorithm needs them to go."""


class OverfittingWarning(HypergradWarning):
    """More hyperparameters than validation examples, and nothing that would notice that they fit these too closely."""


class TrackerWarning(HypergradWarning):
    """A tracker of experiments that failed; the run goes on without it."""


class NoisyTrustedWarning(HypergradWarning):
    """A trusted part of a cleaning that seems to be as noisy as the rest."""


class MissingClassWarning(HypergradWarning):
    """A class without a trusted example, so that its labels cannot be judged."""


class DuplicateWarning(HypergradWarning):
    """Training examples that stand in the trusted part as well."""


class ActiveSetWarning(HypergradWarning):
    """A constraint that is active with a multiplier of zero: the inner solution has a kink there."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string.

    >>> did_you_mean("wieght", ["weight", "bias"])
    " (did you mean 'weight'?)"
    """
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
