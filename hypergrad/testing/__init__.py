"""Problems with known answers, dense references and laws, for tests of one's own algorithms."""

from hypergrad.testing.conformance import check_conformance as check_conformance
from hypergrad.testing.counting import Counter as Counter
from hypergrad.testing.counting import counted as counted
from hypergrad.testing.problems import KNOWN_PROBLEMS as KNOWN_PROBLEMS
from hypergrad.testing.problems import KnownProblem as KnownProblem
from hypergrad.testing.reference import Linearisation as Linearisation
from hypergrad.testing.reference import implicit_reference as implicit_reference
from hypergrad.testing.reference import linearisation as linearisation
from hypergrad.testing.reference import unrolled_reference as unrolled_reference
