"""Studies of Optuna with hypergradients inside their trials; importing it needs no Optuna, using it does."""

from hypergrad.bridges.optuna.installed import need_optuna as need_optuna
