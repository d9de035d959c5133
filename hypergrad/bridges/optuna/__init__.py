"""Studies of Optuna with hypergradients inside their trials; importing it needs no Optuna, using it does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hypergrad.bridges.optuna.engine import Engine as Engine
from hypergrad.bridges.optuna.engine import suggest_engine as suggest_engine
from hypergrad.bridges.optuna.gradients import report_hypergradient as report_hypergradient
from hypergrad.bridges.optuna.hybrid import HybridObjective as HybridObjective
from hypergrad.bridges.optuna.installed import need_optuna as need_optuna
from hypergrad.bridges.optuna.moves import AdamMove as AdamMove
from hypergrad.bridges.optuna.moves import GradientMove as GradientMove
from hypergrad.bridges.optuna.moves import Move as Move
from hypergrad.bridges.optuna.moves import SpectralMove as SpectralMove
from hypergrad.bridges.optuna.moves import Visit as Visit
from hypergrad.bridges.optuna.stored import Stored as Stored
from hypergrad.bridges.optuna.stored import constraints_of as constraints_of
from hypergrad.bridges.optuna.stored import load_best as load_best
from hypergrad.bridges.optuna.stored import load_trial as load_trial
from hypergrad.bridges.optuna.stored import retry as retry
from hypergrad.bridges.optuna.trials import StorageLostError as StorageLostError
from hypergrad.bridges.optuna.tuning import Tuning as Tuning

if TYPE_CHECKING:
    from hypergrad.bridges.optuna.journal import HeartbeatJournal as HeartbeatJournal
    from hypergrad.bridges.optuna.sampler import HypergradientSampler as HypergradientSampler
    from hypergrad.bridges.optuna.workers import queue as queue
    from hypergrad.bridges.optuna.workers import shared_storage as shared_storage
    from hypergrad.bridges.optuna.workers import work as work

LATE = {
    "HeartbeatJournal": "journal",
    "HypergradientSampler": "sampler",
    "queue": "workers",
    "shared_storage": "workers",
    "work": "workers",
}
"""What inherits from classes of Optuna, and the modules it stands in, which are imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need_optuna(name)
    return getattr(import_module(f"{__name__}.{LATE[name]}"), name)
