"""The tasks by name, and those that a user brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypergrad.compare import images, regularisation
from hypergrad.compare.budget import Budget
from hypergrad.compare.task import Task
from hypergrad.errors import InputError, did_you_mean
from hypergrad.factories import function_named
from hypergrad.objective import count_arguments

Factory = Callable[[int], Task]
TASKS: dict[str, Factory] = {
    "sparse-100": lambda seed: regularisation.sparse(100, seed),
    "sparse-1000": lambda seed: regularisation.sparse(1000, seed),
    "digits-640": regularisation.digits,
    "cleaning-2000": images.cleaning,
    "decay-100k": images.decay,
}
"""From the seed of the data to the task."""
BUDGETS = {
    "sparse-100": Budget(seconds=1.0, work=800),
    "sparse-1000": Budget(seconds=2.5, work=600),
    "digits-640": Budget(seconds=1.0, work=600),
    "cleaning-2000": Budget(seconds=3.0, work=300),
    "decay-100k": Budget(seconds=4.0, work=450),
}
OWN = Budget(seconds=10.0, work=2000)
"""The budget of a user's task."""
ARGUMENTS = ("problem", "params", "hparams", "ranges", "test")


def find(name: str) -> Factory:
    """Return the function that makes a task from a seed.

    Args:
        name: one of :data:`TASKS`, or ``module:factory``.

    Raises:
        InputError: a name that is neither, or a module or function that is not there.
    """
    if name in TASKS:
        return TASKS[name]
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(
            passed=f"task={name!r}{did_you_mean(name, TASKS)}",
            expected=f"one of {', '.join(TASKS)}, or module:factory",
            do="pick one of these, or name a module and a function in it that returns your task",
        )
    return _users(name, function_named(name, "a function that returns a task"))


def _users(name: str, function: Callable[..., Any]) -> Factory:
    count = count_arguments(function, (1, 0))
    if count is None:
        raise InputError(f"{name}, which needs more than a seed", "factory(seed) or factory()", "set defaults")

    def make(seed: int) -> Task:
        return as_task(name, function(seed) if count else function())

    return make


def as_task(name: str, given: Any) -> Task:
    """Return what a user's factory returned as a task.

    Args:
        name: of the factory, for messages.
        given: a :class:`~hypergrad.compare.Task`, a tuple (problem, params, hparams, ranges, test), or a dict of the
            fields of a task.

    Raises:
        InputError: something else.
    """
    if isinstance(given, Task):
        return given
    if isinstance(given, tuple) and len(given) == len(ARGUMENTS):
        given = dict(zip(ARGUMENTS, given, strict=True))
    found = f"a {type(given).__name__}"
    if isinstance(given, Mapping):
        fields = Task.__dataclass_fields__
        wrong = [f"nothing under {key!r}" for key in ARGUMENTS if key not in given]
        wrong += [f"{key!r}{did_you_mean(str(key), fields)}" for key in given if key not in fields]
        if not wrong:
            return Task(**{"title": name, **given})
        found = " and ".join(wrong)
    raise InputError(
        passed=f"{name}, which returned {found}",
        expected=f"a hypergrad.compare.Task, or ({', '.join(ARGUMENTS)}), or a dict of a Task's fields",
        do="return these from the factory",
    )
