"""Bilevel algorithms: hypergradient oracles."""

from hypergrad.solvers.bilevel.forward import ForwardMode as ForwardMode
from hypergrad.solvers.bilevel.implicit import Implicit as Implicit
from hypergrad.solvers.bilevel.unrolled import Unrolled as Unrolled
from hypergrad.solvers.bilevel.zeroth_order import ZerothOrder as ZerothOrder
from hypergrad.solvers.bilevel.zord import ZoRD as ZoRD
