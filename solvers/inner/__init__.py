"""Inner solvers: ways to train."""

from hypergrad.solvers.inner.adam import Adam as Adam
from hypergrad.solvers.inner.gradient_descent import GradientDescent as GradientDescent
from hypergrad.solvers.inner.lbfgs import LBFGS as LBFGS
from hypergrad.solvers.inner.newton import Newton as Newton
from hypergrad.solvers.inner.torch_optimizer import TorchOptimizer as TorchOptimizer
from hypergrad.solvers.inner.torch_rule import TorchRule as TorchRule
from hypergrad.solvers.inner.training import Training as Training
