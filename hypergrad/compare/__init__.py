"""An honest comparison of hypergradients with Optuna's samplers: the same training, the same budget, the same data."""

from hypergrad.compare.budget import Budget as Budget
from hypergrad.compare.runner import compare as compare
from hypergrad.compare.task import FromStart as FromStart
from hypergrad.compare.task import Ours as Ours
from hypergrad.compare.task import Task as Task
