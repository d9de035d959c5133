"""What a study has stored: the best tensors, where a trial may start, and trials to run again."""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from hypergrad.bridges.optuna.artifacts import GoneError, Store, get_trees, open_store
from hypergrad.bridges.optuna.installed import need_optuna
from hypergrad.bridges.optuna.trials import PREFIX, Link, attribute
from hypergrad.errors import InputError
from hypergrad.tree import Tree

if TYPE_CHECKING:
    import optuna


@final
@dataclass(frozen=True)
class Stored:
    """What a finished trial of :class:`HybridObjective` has found.

    Attributes:
        hparams: λ.
        params: θ(λ); empty where parameters were not kept.
        value: the trial's value, which belongs to these tensors.
        number: the trial's number.
        suggested: what Optuna proposed in it.
    """

    hparams: Tree
    params: Tree
    value: float
    number: int
    suggested: dict[str, Any]


def load_best(study: optuna.Study, store: Store) -> Stored:
    """Return the tensors of a study's best trial, on the CPU.

    Args:
        study: a study with one direction.
        store: the artifact store of its :class:`HybridObjective`, or the folder's path.

    Raises:
        InputError: no finished trial, or one without tensors in this store.
        MissingDependencyError: Optuna is not installed.
    """
    need_optuna("load_best")
    try:
        best = study.best_trial
    except (ValueError, RuntimeError) as error:
        raise InputError(
            passed=f"load_best of the study {study.study_name!r} ({error})",
            expected="a study of one direction with a finished, feasible trial",
            do="let a trial finish first, or look at study.trials and use load_trial",
        ) from error
    return load_trial(study, store, best.number)


def load_trial(study: optuna.Study, store: Store, number: int) -> Stored:
    """Return the tensors of one finished trial, on the CPU.

    Args:
        study: the study.
        store: the artifact store of its :class:`HybridObjective`, or the folder's path.
        number: the trial's number.

    Raises:
        InputError: a trial that is not there, not finished, or without tensors in this store.
        MissingDependencyError: Optuna is not installed.
    """
    need_optuna("load_trial")
    found = open_store(store)
    trial = _trial(study, number)
    entry = attribute(trial.user_attrs, "tensors")
    try:
        if found is None:
            raise GoneError("no store was passed")
        trees = get_trees(found, entry)
    except GoneError as error:
        raise InputError(
            passed=f"trial {number} of {study.study_name!r}, {trial.state.name.lower()}: {error}",
            expected="a trial that HybridObjective finished, and the store that it wrote to",
            do="pass the same store= to both; without one HybridObjective keeps no tensors",
        ) from error
    value = math.nan if trial.value is None else trial.value
    return Stored(trees.get("hparams", {}), trees.get("params", {}), value, number, dict(trial.params))


def shapes_of(hparams: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shapes by name."""
    return {name: list(value.shape) for name, value in hparams.items()}


def warm_start(link: Link, store: Any, hparams: Mapping[str, Tensor], *, maximize: bool) -> tuple[Tree, str]:
    """Return λ of the best finished trial of the same names and shapes, and in words where it is from.

    Without such a trial it is the λ that was passed. An infeasible trial is none to start from.
    """
    optuna = need_optuna()
    state = optuna.trial.TrialState.COMPLETE
    trials = link.call("the finished trials", lambda: link.trial.study.get_trials(deepcopy=False, states=(state,)))
    wanted = shapes_of(hparams)
    sign = -1.0 if maximize else 1.0
    worth = [(sign * trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    fitting = [(attribute(trial.user_attrs, "shapes"), trial) for *_, trial in sorted(worth) if _feasible(trial)]
    gone = ""
    for shapes, trial in fitting:
        if shapes != wanted:
            continue
        entry = attribute(trial.user_attrs, "tensors")
        try:
            found = link.call("the best tensors", lambda entry=entry: get_trees(store, entry))["hparams"]  # type: ignore[misc]
        except GoneError as error:
            gone = gone or f" (trial {trial.number}: {error})"
            continue
        if shapes_of(found) == wanted:
            start = {name: found[name].to(value.device, value.dtype) for name, value in hparams.items()}
            return start, f"trial {trial.number}{gone}"
    reason = "no trial is finished yet" if not trials else "no finished trial has the same names and shapes"
    return dict(hparams), f"fresh: {reason if not gone else 'no tensors to start from'}{gone}"


def constraints_of(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    """Return a trial's constraints, for samplers of Optuna 4: ``TPESampler(constraints_func=constraints_of)``.

    Optuna 5 knows them by name and needs no function.

    Args:
        trial: a finished or pruned trial.

    Returns:
        The numbers in the order of their names; one that is infinite for a trial that ended without any.
    """
    found = attribute(trial.user_attrs, "constraints")
    return tuple(float(found[name]) for name in sorted(found)) if found else (math.inf,)


def retry(
    study: optuna.Study, number: int | None = None, *, checkpoint: str | os.PathLike[str] | None = None
) -> list[int]:
    """Queue trials again that did not finish; they go on from their last checkpoints, bit for bit on the CPU.

    For trials of :class:`HybridObjective` that were interrupted, failed or killed, in any storage. A storage with
    heartbeats and ``RetryHeartbeatStaleTrialCallback`` (in Optuna 4 ``RetryFailedTrialCallback``) does the same by
    itself. Call it from one process, before ``study.optimize``.

    Args:
        study: the study.
        number: a trial's number, which may also be a pruned one. By default all that failed with a checkpoint and
            without a failure of their own, and those said to be running in a process of this machine that is no more.
        checkpoint: a folder with a local checkpoint of that trial, which a
            :class:`~hypergrad.bridges.optuna.StorageLostError` has named.

    Returns:
        The numbers of the trials that were queued again.

    Raises:
        InputError: a trial that is finished, waiting or not there.
        MissingDependencyError: Optuna is not installed.
    """
    need_optuna("retry")
    if number is None and checkpoint is not None:
        raise InputError("retry(checkpoint=...) without a number", "the trial's number", "pass it: retry(study, 3)")
    chosen = list(_unfinished(study)) if number is None else [_trial(study, number)]
    return [trial.number for trial in chosen if _queue(study, trial, checkpoint)]


def _unfinished(study: optuna.Study) -> Iterator[optuna.trial.FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    before = {old for trial in trials for old in trial.system_attrs.get("retry_history", [])}
    for trial in trials:
        attrs = trial.user_attrs
        failed = trial.state.name == "FAIL" and attribute(attrs, "failure") is None and attribute(attrs, "checkpoint")
        if trial.number not in before and (failed or (trial.state.name == "RUNNING" and is_gone(attrs))):
            yield trial


def worker() -> dict[str, Any]:
    """Return who runs a trial: the machine and the process."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def is_gone(user_attrs: Mapping[str, Any]) -> bool:
    """Return whether a trial's worker is a process of this machine that is no more; elsewhere nobody can tell."""
    found = attribute(user_attrs, "worker")
    if not isinstance(found, Mapping) or found.get("host") != socket.gethostname():
        return False
    pid = found.get("pid")
    if not isinstance(pid, int) or pid <= 0 or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)  # asks only
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _queue(study: optuna.Study, trial: optuna.trial.FrozenTrial, checkpoint: str | os.PathLike[str] | None) -> bool:
    """Queue a trial again as Optuna's own retries do; false if somebody else has just ended it."""
    optuna = need_optuna()
    if trial.state.name in ("COMPLETE", "WAITING"):
        raise InputError(
            passed=f"trial {trial.number}, which is {trial.state.name.lower()}",
            expected="one that was pruned, failed, or is said to be running by a process that is no more",
            do="look at study.trials",
        )
    if trial.state.name == "RUNNING":
        try:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        except (ValueError, RuntimeError):
            return False
    system: dict[str, Any] = {"failed_trial": trial.number, "retry_history": []}
    system |= {name: value for name, value in trial.system_attrs.items() if not name.startswith("constraints")}
    system["retry_history"] = [*system["retry_history"], trial.number]
    attrs = dict(trial.user_attrs)
    if checkpoint is not None:
        attrs[f"{PREFIX}rescued"] = str(Path(checkpoint).resolve())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        again = optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs,
            system_attrs=system,
        )
        study.add_trial(again)
    return True


def _feasible(trial: optuna.trial.FrozenTrial) -> bool:
    found = attribute(trial.user_attrs, "constraints")
    return not found or all(value <= 0 for value in found.values())


def _trial(study: optuna.Study, number: int) -> optuna.trial.FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    if not isinstance(number, int) or not 0 <= number < len(trials):
        raise InputError(
            f"trial {number!r} of {len(trials)}", "the number of a trial of this study", "see study.trials"
        )
    return trials[number]
