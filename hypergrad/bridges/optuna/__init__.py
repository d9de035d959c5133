"""Studies of Optuna with hypergradients inside their trials; importing it needs no Optuna, using it does."""

from hypergrad.bridges.optuna.engine import Engine as Engine
from hypergrad.bridges.optuna.engine import suggest_engine as suggest_engine
from hypergrad.bridges.optuna.hybrid import HybridObjective as HybridObjective
from hypergrad.bridges.optuna.installed import need_optuna as need_optuna
from hypergrad.bridges.optuna.stored import Stored as Stored
from hypergrad.bridges.optuna.stored import constraints_of as constraints_of
from hypergrad.bridges.optuna.stored import load_best as load_best
from hypergrad.bridges.optuna.stored import load_trial as load_trial
from hypergrad.bridges.optuna.stored import retry as retry
from hypergrad.bridges.optuna.trials import StorageLostError as StorageLostError
from hypergrad.bridges.optuna.tuning import Tuning as Tuning
