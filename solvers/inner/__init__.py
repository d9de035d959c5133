"""Inner solvers: ways to train."""

from typing import TYPE_CHECKING

from hypergrad.lazy import on_first_use

if TYPE_CHECKING:
    from hypergrad.solvers.inner.adam import Adam as Adam
    from hypergrad.solvers.inner.gradient_descent import GradientDescent as GradientDescent
    from hypergrad.solvers.inner.lbfgs import LBFGS as LBFGS
    from hypergrad.solvers.inner.newton import Newton as Newton
    from hypergrad.solvers.inner.torch_optimizer import TorchOptimizer as TorchOptimizer
    from hypergrad.solvers.inner.torch_rule import TorchRule as TorchRule
    from hypergrad.solvers.inner.training import Training as Training

NAMES = {
    "adam": ("Adam",),
    "gradient_descent": ("GradientDescent",),
    "lbfgs": ("LBFGS",),
    "newton": ("Newton",),
    "torch_optimizer": ("TorchOptimizer",),
    "torch_rule": ("TorchRule",),
    "training": ("Training",),
}
"""Module to its public names: the same as above, where they are imported for type checkers."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(__name__, {f"{__name__}.{module}": names for module, names in NAMES.items()})
