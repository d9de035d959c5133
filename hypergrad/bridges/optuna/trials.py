"""A trial as the bridge sees it: few parameters, and a storage that may be away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, final

from hypergrad.bridges.optuna.installed import need_optuna
from hypergrad.errors import HypergradError, InputError

if TYPE_CHECKING:
    import optuna

R = TypeVar("R")

PREFIX = "hypergrad:"
MOST_PARAMETERS = 1000
LOG = logging.getLogger("hypergrad")


class StorageLostError(HypergradError, ConnectionError):
    """A study's storage, or its artifact store, that stayed away; what was tuned lies in a local checkpoint.

    Args:
        passed: what failed.
        expected: what would have been right.
        do: how to go on.
        checkpoint: the folder with the checkpoint, or ``None``; kept as an attribute.
    """

    def __init__(self, passed: str, expected: str, do: str, checkpoint: str | None = None) -> None:
        """Keep the folder beside the three parts."""
        super().__init__(passed, expected, do)
        self.checkpoint = checkpoint


def refuse_many(count: int, asked: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for more Optuna parameters than a trial should have."""
    if count > MOST_PARAMETERS:
        raise InputError(
            passed=f"{asked}: more than {MOST_PARAMETERS:,} Optuna parameters in one trial",
            expected=f"at most {MOST_PARAMETERS:,}: one million of them would be an hour of CPU per trial in SQLite",
            do="leave tensors in hparams, where hypergradients tune them, and suggest structure and a few scalars",
        )


@final
class Link:
    """The way from a trial to its storage: every call is tried again for a while.

    Args:
        trial: the trial.
        retries: how often a call is tried again, at least 0.
        wait: seconds before the first of these, doubled before each further one.
    """

    def __init__(self, trial: optuna.Trial, retries: int, wait: float) -> None:
        self.trial, self.retries, self.wait = trial, retries, wait

    def call(self, what: str, function: Callable[[], R]) -> R:
        """Return what ``function`` returns.

        Raises:
            StorageLostError: it failed again and again.
        """
        optuna = need_optuna()
        ours = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)
        finished = getattr(optuna.exceptions, "UpdateFinishedTrialError", RuntimeError)  # the latter in early 4.x
        told = (finished, optuna.TrialPruned, HypergradError)
        for attempt in range(self.retries + 1):
            try:
                return function()
            except (*ours, *told):
                raise
            except Exception as error:  # what a database, a file system or a network raises is not ours to list
                if attempt == self.retries:
                    again = f"hypergrad.bridges.optuna.retry(study, {self.trial.number})"
                    raise StorageLostError(
                        passed=f"{what} of trial {self.trial.number}, which failed {attempt + 1} times "
                        f"({type(error).__name__}: {error})",
                        expected="a storage and an artifact store that can be reached",
                        do=f"bring it back and queue the trial again: {again}; nothing was saved on this machine",
                    ) from error
                LOG.warning("%s of trial %d failed (%s), trying again", what, self.trial.number, error)
                time.sleep(self.wait * 2**attempt)
        raise AssertionError("a loop that always returns or raises")

    def note(self, **values: Any) -> None:
        """Set user attributes under ``hypergrad:`` names."""
        for name, value in values.items():
            key = PREFIX + name
            self.call(f"the attribute {key!r}", lambda key=key, value=value: self.trial.set_user_attr(key, value))  # type: ignore[misc]

    def report(self, value: float, step: int) -> None:
        """Report a value at a step."""
        self.call("a report", lambda: self.trial.report(value, step))

    def should_prune(self) -> bool:
        """Return what the pruner says."""
        return self.call("the pruner's question", self.trial.should_prune)

    def reported(self) -> set[int]:
        """Return the steps that the storage has values of: those that a retried trial inherited."""
        trials = self.call("the study's trials", lambda: self.trial.study.get_trials(deepcopy=False))
        return set(trials[self.trial.number].intermediate_values)

    def constrain(self, values: Mapping[str, float]) -> None:
        """Set constraints, as an attribute in any case and for samplers of Optuna 5 by name."""
        self.note(constraints=dict(values))
        if not hasattr(self.trial, "set_constraint"):
            return
        known = self.call("the constraints", lambda: self.trial.constraints)
        for name, value in values.items():
            if name not in known:
                self.call("a constraint", lambda name=name, value=value: self.trial.set_constraint(name, value))  # type: ignore[misc]


@final
class Guarded:
    """A trial that counts its parameters and waits for its storage; else it is the trial, ``isinstance`` included."""

    def __init__(self, link: Link) -> None:
        self._link, self._trial, self._names = link, link.trial, set[str]()

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the trial's class, which functions of Optuna ask for."""
        return type(self._trial)

    def __getattr__(self, name: str) -> Any:
        if name == "_trial":  # of a copy under construction
            raise AttributeError(name)
        return getattr(self._trial, name)

    def _suggested(self, name: str, suggest: Callable[[], R]) -> R:
        self._names.add(name)
        refuse_many(len(self._names), "build(trial)")
        return self._link.call(f"the parameter {name!r}", suggest)

    def suggest_float(self, name: str, low: float, high: float, **options: Any) -> float:
        """Return a number from low to high."""
        return self._suggested(name, lambda: self._trial.suggest_float(name, low, high, **options))

    def suggest_int(self, name: str, low: int, high: int, **options: Any) -> int:
        """Return a whole number from low to high."""
        return self._suggested(name, lambda: self._trial.suggest_int(name, low, high, **options))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        return self._suggested(name, lambda: self._trial.suggest_categorical(name, choices))


def attribute(user_attrs: Mapping[str, Any], name: str) -> Any:
    """Return a user attribute of the bridge, ``None`` where there is none."""
    return user_attrs.get(PREFIX + name)
