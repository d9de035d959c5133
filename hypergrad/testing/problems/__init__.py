"""Bilevel problems whose solution and hypergradient are known in closed form.

Each function returns a :class:`KnownProblem` in the dtype asked for, the same at every call. Sizes are tiny: a
hypergradient takes milliseconds.
"""

from collections.abc import Callable

from hypergrad.testing.problems.known import KnownProblem as KnownProblem
from hypergrad.testing.problems.known import arguments as arguments
from hypergrad.testing.problems.minima import envelope as envelope
from hypergrad.testing.problems.minima import logistic as logistic
from hypergrad.testing.problems.minima import maml as maml
from hypergrad.testing.problems.minima import outer_only as outer_only
from hypergrad.testing.problems.minima import quadratic as quadratic
from hypergrad.testing.problems.minima import ridge as ridge
from hypergrad.testing.problems.minima import scalar as scalar
from hypergrad.testing.problems.minima import singular as singular
from hypergrad.testing.problems.roots import box as box
from hypergrad.testing.problems.roots import equality as equality
from hypergrad.testing.problems.roots import fixed_point as fixed_point
from hypergrad.testing.problems.roots import halfspace as halfspace
from hypergrad.testing.problems.roots import inequality as inequality
from hypergrad.testing.problems.roots import markov_decision as markov_decision

KNOWN_PROBLEMS: tuple[Callable[..., KnownProblem], ...] = (
    scalar,
    quadratic,
    ridge,
    logistic,
    maml,
    singular,
    outer_only,
    fixed_point,
    markov_decision,
    equality,
    inequality,
    box,
    halfspace,
    envelope,
)
