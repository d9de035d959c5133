"""hypergrad: hypergradients for any training loop."""

from typing import TYPE_CHECKING

from hypergrad import errors as errors
from hypergrad import outer as outer
from hypergrad.accumulated import Accumulated as Accumulated
from hypergrad.accumulated import Batches as Batches
from hypergrad.algorithm import Algorithm as Algorithm
from hypergrad.algorithm import Cost as Cost
from hypergrad.algorithm import Hypergradient as Hypergradient
from hypergrad.algorithm import Report as Report
from hypergrad.averaging import Averaging as Averaging
from hypergrad.callbacks import Callback as Callback
from hypergrad.callbacks import Checkpoint as Checkpoint
from hypergrad.callbacks import EarlyStopping as EarlyStopping
from hypergrad.callbacks import History as History
from hypergrad.callbacks import ProgressBar as ProgressBar
from hypergrad.callbacks import load_checkpoint as load_checkpoint
from hypergrad.callbacks import read_history as read_history
from hypergrad.check import CheckResult as CheckResult
from hypergrad.check import check as check
from hypergrad.data import Fixed as Fixed
from hypergrad.data import Partition as Partition
from hypergrad.data import Sampler as Sampler
from hypergrad.data import TensorSampler as TensorSampler
from hypergrad.differentiable import differentiable as differentiable
from hypergrad.differentiable import solve as solve
from hypergrad.domains import Ball as Ball
from hypergrad.domains import Box as Box
from hypergrad.domains import Positive as Positive
from hypergrad.domains import Simplex as Simplex
from hypergrad.domains import UnitInterval as UnitInterval
from hypergrad.hypergradient import hypergradient as hypergradient
from hypergrad.hypergradient import hypergradients as hypergradients
from hypergrad.inner import InnerSolver as InnerSolver
from hypergrad.inner import Tuned as Tuned
from hypergrad.kinds import Entry as Entry
from hypergrad.kinds import Kind as Kind
from hypergrad.kinds import kinds as kinds
from hypergrad.linear import LinearResult as LinearResult
from hypergrad.linear import LinearSolver as LinearSolver
from hypergrad.linear import Operator as Operator
from hypergrad.linear import Status as Status
from hypergrad.live import Live as Live
from hypergrad.loaders import LoaderSampler as LoaderSampler
from hypergrad.outer_schedules import Every as Every
from hypergrad.outer_schedules import OnPlateau as OnPlateau
from hypergrad.outer_schedules import OuterSchedule as OuterSchedule
from hypergrad.population import Member as Member
from hypergrad.population import Population as Population
from hypergrad.population import Selected as Selected
from hypergrad.preconditioner import Preconditioner as Preconditioner
from hypergrad.problem import Problem as Problem
from hypergrad.projections import Halfspace as Halfspace
from hypergrad.projections import Intersection as Intersection
from hypergrad.projections import Polyhedron as Polyhedron
from hypergrad.run import Progress as Progress
from hypergrad.run import Run as Run
from hypergrad.run import iterate as iterate
from hypergrad.splits import Split as Split
from hypergrad.splits import split as split
from hypergrad.trainer import Fitted as Fitted
from hypergrad.trainer import Trainer as Trainer
from hypergrad.version import __version__ as __version__

if TYPE_CHECKING:
    from hypergrad import report as report
    from hypergrad.hyperparameters import Augmentation as Augmentation
    from hypergrad.hyperparameters import AugmentationNetwork as AugmentationNetwork
    from hypergrad.hyperparameters import DomainMixture as DomainMixture
    from hypergrad.hyperparameters import Dropout as Dropout
    from hypergrad.hyperparameters import ExampleWeights as ExampleWeights
    from hypergrad.hyperparameters import Hyperparameter as Hyperparameter
    from hypergrad.hyperparameters import Hyperparameters as Hyperparameters
    from hypergrad.hyperparameters import LabelSmoothing as LabelSmoothing
    from hypergrad.hyperparameters import LearningRateSchedule as LearningRateSchedule
    from hypergrad.hyperparameters import LossWeights as LossWeights
    from hypergrad.hyperparameters import SoftLabels as SoftLabels
    from hypergrad.hyperparameters import WeightDecay as WeightDecay
    from hypergrad.solvers import best_response as best_response
    from hypergrad.solvers.bilevel import BOME as BOME
    from hypergrad.solvers.bilevel import BOREP as BOREP
    from hypergrad.solvers.bilevel import BSA as BSA
    from hypergrad.solvers.bilevel import F2SA as F2SA
    from hypergrad.solvers.bilevel import FSLA as FSLA
    from hypergrad.solvers.bilevel import HOAG as HOAG
    from hypergrad.solvers.bilevel import LVHBA as LVHBA
    from hypergrad.solvers.bilevel import MAID as MAID
    from hypergrad.solvers.bilevel import MRBO as MRBO
    from hypergrad.solvers.bilevel import PZOBO as PZOBO
    from hypergrad.solvers.bilevel import SABA as SABA
    from hypergrad.solvers.bilevel import SOBA as SOBA
    from hypergrad.solvers.bilevel import SPABA as SPABA
    from hypergrad.solvers.bilevel import SRBA as SRBA
    from hypergrad.solvers.bilevel import SUSTAIN as SUSTAIN
    from hypergrad.solvers.bilevel import TTSA as TTSA
    from hypergrad.solvers.bilevel import VRBO as VRBO
    from hypergrad.solvers.bilevel import AmIGO as AmIGO
    from hypergrad.solvers.bilevel import Auto as Auto
    from hypergrad.solvers.bilevel import Block as Block
    from hypergrad.solvers.bilevel import BSVRBv1 as BSVRBv1
    from hypergrad.solvers.bilevel import BSVRBv2 as BSVRBv2
    from hypergrad.solvers.bilevel import Choice as Choice
    from hypergrad.solvers.bilevel import Compiled as Compiled
    from hypergrad.solvers.bilevel import Direct as Direct
    from hypergrad.solvers.bilevel import EpochSGD as EpochSGD
    from hypergrad.solvers.bilevel import Forecast as Forecast
    from hypergrad.solvers.bilevel import ForwardMode as ForwardMode
    from hypergrad.solvers.bilevel import Implicit as Implicit
    from hypergrad.solvers.bilevel import NormalizedMomentum as NormalizedMomentum
    from hypergrad.solvers.bilevel import Plan as Plan
    from hypergrad.solvers.bilevel import Routed as Routed
    from hypergrad.solvers.bilevel import Scheduled as Scheduled
    from hypergrad.solvers.bilevel import StocBiO as StocBiO
    from hypergrad.solvers.bilevel import Unrolled as Unrolled
    from hypergrad.solvers.bilevel import ZerothOrder as ZerothOrder
    from hypergrad.solvers.bilevel import ZoRD as ZoRD
    from hypergrad.solvers.bilevel import choose as choose
    from hypergrad.solvers.inner import LBFGS as LBFGS
    from hypergrad.solvers.inner import Adam as Adam
    from hypergrad.solvers.inner import GradientDescent as GradientDescent
    from hypergrad.solvers.inner import Newton as Newton
    from hypergrad.solvers.inner import TorchOptimizer as TorchOptimizer
    from hypergrad.solvers.inner import TorchRule as TorchRule
    from hypergrad.solvers.inner import Training as Training
    from hypergrad.solvers.linear import CG as CG
    from hypergrad.solvers.linear import GMRES as GMRES
    from hypergrad.solvers.linear import MINRES as MINRES
    from hypergrad.solvers.linear import Dense as Dense
    from hypergrad.solvers.linear import Identity as Identity
    from hypergrad.solvers.linear import Jacobi as Jacobi
    from hypergrad.solvers.linear import Neumann as Neumann
    from hypergrad.solvers.linear import NormalCG as NormalCG
    from hypergrad.solvers.linear import Nystrom as Nystrom
    from hypergrad.solvers.linear import NystromPreconditioner as NystromPreconditioner
    from hypergrad.solvers.linear import PenaltyDiagonal as PenaltyDiagonal
    from hypergrad.solvers.linear import Recycled as Recycled
    from hypergrad.solvers.linear import Refined as Refined
    from hypergrad.solvers.linear import Scipy as Scipy
    from hypergrad.solvers.linear import Stochastic as Stochastic
else:
    from hypergrad.lazy import on_first_use

    __getattr__, __dir__ = on_first_use(
        __name__,
        modules=("hypergrad.report", "hypergrad.solvers.best_response"),
        packages=(
            "hypergrad.hyperparameters",
            "hypergrad.solvers.bilevel",
            "hypergrad.solvers.inner",
            "hypergrad.solvers.linear",
        ),
    )
    del on_first_use
    __all__ = [name for name in __dir__() if not name.startswith("_") and name != "TYPE_CHECKING"]
