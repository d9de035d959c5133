"""What single-loop methods share: a number of iterations a step, backward passes, and the report."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar, final

from torch import Tensor

from hypergrad import evaluation, guards, tree
from hypergrad.algorithm import Algorithm, Hypergradient, Report, Stopwatch, check_finite, check_reached, replayed
from hypergrad.errors import UnsupportedError
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_counts
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.trajectory import UNREACHED
from hypergrad.tree import Tree


class LoopState(Protocol):
    """What the state of a single-loop method holds at least."""

    @property
    def params(self) -> Tree:
        """Return θ now."""
        ...

    @property
    def steps(self) -> int:
        """Return the number of hypergradients taken."""
        ...

    @property
    def made(self) -> int:
        """Return the number of iterations made."""
        ...


S = TypeVar("S", bound=LoopState)


@final
@dataclass(frozen=True)
class ParamsState:
    """The state of a method that tracks nothing but θ.

    Attributes:
        params: θ.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True)
class AdjointState:
    """The state of a method that tracks θ and the linear system's solution.

    Attributes:
        params: θ.
        solution: q, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    steps: int = 0
    made: int = 0


@dataclass(frozen=True, kw_only=True)
class SingleLoop(Algorithm[S]):
    """A method that goes on with θ, and what else it tracks, by a few iterations a step.

    Args:
        iterations: iterations of θ and of what else is tracked in each step, at least 1. With more than one the
            direction for λ is that of the last.
        compile: whether the derivatives of an iteration are one graph of :func:`torch.compile`.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.
    """

    iterations: int = 1
    adjoint_iterations: int = 100
    compile: bool = False
    compiles: ClassVar[bool] = False
    """Whether its iterations ask for derivatives that can be compiled as one graph."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(self, "iterations", "adjoint_iterations")
        if self.compile and not self.compiles:
            raise UnsupportedError(
                passed=f"{type(self).__name__}(compile={self.compile!r})",
                expected="a method that asks for all derivatives of an iteration at once",
                do="leave compile out, or use hypergrad.SOBA, hypergrad.SABA or hypergrad.SRBA",
            )

    @cached_property
    def _text(self) -> str:
        return repr(self)

    @abstractmethod
    def _start(self, params: Tree, hparams: Tree) -> S:
        """Return the state before the first iteration."""

    @abstractmethod
    def _iterate(self, oracles: Oracles, state: S) -> tuple[Tensor, Tree, S]:
        """Make one iteration and return f, the direction for λ, and the next state."""

    def _repeat(self, oracles: Oracles, state: S) -> tuple[Tensor, Tree, S]:
        """Make the iterations of a step and return what the last one returned."""
        value, grads, state = self._iterate(oracles, state)
        for _ in range(self.iterations - 1):
            value, grads, state = self._iterate(oracles, state)
        return value, grads, state

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> S:
        """Check the inputs and start at ``params``."""
        problem.check_descent()
        params, checked = problem.check_inputs(params, hparams)
        if self.compile and problem.root:
            raise UnsupportedError(
                passed=f"{type(self).__name__}(compile=True) for a root or fixed point",
                expected="an inner objective",
                do="leave compile out",
            )
        if problem.initial is not None:
            raise UnsupportedError(
                passed=f"{type(self).__name__} for a problem with initial",
                expected="training that goes on from where it stood",
                do="use hypergrad.Unrolled or hypergrad.ForwardMode, which differentiate the start of training",
            )
        return self._start(tree.detached(params), tree.detached(checked))

    def response(self, problem: Problem, state: S, hparams: Tree) -> Tree:
        """Return θ after the iterations of one step at ``hparams``."""
        oracles = Oracles(problem, state.params, tree.leaves(hparams), compile=self.compile)
        return self._repeat(oracles, state)[2].params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ after ``adjoint_iterations`` iterations with a backward pass that makes them again."""
        return replayed(dataclasses.replace(self, iterations=self.adjoint_iterations), problem, params, hparams)

    def step(self, problem: Problem, state: S, hparams: Tree) -> tuple[Hypergradient, S]:
        """Make the iterations of one step and return the last direction for λ."""
        device = tree.device_of(state.params)
        watch, first = Stopwatch(device), state.steps == 0
        with guards.pinned_rng(device), nullcontext() if self.compile else evaluation.held():
            oracles = Oracles(problem, state.params, tree.attached(hparams), compile=self.compile)
            value, grads, state = self._repeat(oracles, state)
        if first:
            check_reached(hparams, oracles.reached, advice=UNREACHED)
        numbers, curvature = oracles.numbers([value, *state.params.values(), *grads.values()])
        if not math.isfinite(sum(numbers)):
            check_finite("the outer loss", {"f": value}, when=f"at iteration {state.made}")
            check_finite("params", state.params, when=f"after iteration {state.made}")
            check_finite("the direction of hparams", grads, when=f"at iteration {state.made}")
        notes = {} if curvature >= 0 else {"curvature": _not_convex(type(self).__name__, curvature)}
        if oracles.compiled is not None and oracles.compiled.left_out:
            notes["compile"] = oracles.compiled.left_out
        report = Report(
            algorithm=self._text,
            status=str(Status.COMPLETED),
            outer_loss=float(value),
            negative_curvature=curvature < 0,
            notes=notes,
            cost=oracles.cost,
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
        )
        following: Any = state
        following = dataclasses.replace(following, steps=following.steps + 1)
        return Hypergradient(tree.cloned(grads), following.params, value, report), following


def _not_convex(name: str, curvature: float) -> str:
    return (
        f"the inner Hessian has the curvature {curvature:.3g} on a batch, and {name} needs a strongly convex inner "
        "problem (q ≈ H⁻¹ ∂f/∂θ may grow without end); train longer first, add a penalty, or use hypergrad.Unrolled, "
        "which does not need it"
    )
