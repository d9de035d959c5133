"""Linear solvers and preconditioners: A x = b from products with A."""

from hypergrad.solvers.linear.cg import CG as CG
from hypergrad.solvers.linear.dense import Dense as Dense
from hypergrad.solvers.linear.gmres import GMRES as GMRES
from hypergrad.solvers.linear.identity import Identity as Identity
from hypergrad.solvers.linear.minres import MINRES as MINRES
from hypergrad.solvers.linear.neumann import Neumann as Neumann
from hypergrad.solvers.linear.normal_cg import NormalCG as NormalCG
from hypergrad.solvers.linear.nystrom import Nystrom as Nystrom
from hypergrad.solvers.linear.nystrom import NystromPreconditioner as NystromPreconditioner
from hypergrad.solvers.linear.preconditioners import Jacobi as Jacobi
from hypergrad.solvers.linear.preconditioners import PenaltyDiagonal as PenaltyDiagonal
from hypergrad.solvers.linear.recycled import Recycled as Recycled
from hypergrad.solvers.linear.refined import Refined as Refined
from hypergrad.solvers.linear.scipy_solver import Scipy as Scipy
from hypergrad.solvers.linear.stochastic import Stochastic as Stochastic
