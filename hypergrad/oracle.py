"""The hypergradient as an outer move sees it: a function of the hyperparameters, at the accuracy that it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient
from hypergrad.problem import Problem
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Trial:
    """Training at hyperparameters that may turn out not to be kept.

    Attributes:
        params: θ, where training ended.
        outer_loss: f there.
        steepness: ‖∂f/∂θ‖ there.
        gap: ‖∇_θ g‖ there.
    """

    params: Tree
    outer_loss: float
    steepness: float
    gap: float


@final
class Oracle:
    """The hypergradient as a function of the hyperparameters, during one outer step.

    Every call of one oracle sees the same random numbers and batches, so that a line search compares values of one
    function, and goes on from the training that the call before it left.

    Args:
        problem: the problem.
        algorithm: how a hypergradient is found.
        state: the algorithm's state at the start of the outer step.
        seed: seed of this outer step's random numbers.

    Attributes:
        state: the algorithm's state after the last call.
        cost: passes of all calls.
        results: the first hypergradient of the step, which the run reports, and the last one.
    """

    def __init__(self, problem: Problem, algorithm: Algorithm[Any], state: Any, seed: int) -> None:
        """Remember where the batches stand."""
        self.problem, self.algorithm, self.state, self.seed = problem, algorithm, state, seed
        self.cost = Cost()
        self.results: list[Hypergradient] = []
        self._draws = guards.Draws.capture(tree.device_of(state.params), problem.inner_data, problem.outer_data)

    def __call__(self, hparams: Mapping[str, Tensor], tolerances: tuple[float, float] | None = None) -> Hypergradient:
        """Return the hypergradient at ``hparams``, which stay as they are.

        Args:
            hparams: λ.
            tolerances: largest ‖∇_θ g‖ that training may leave and largest residual of the linear solve, in place of
                the algorithm's own.

        Raises:
            UnsupportedError: tolerances for an algorithm that has none.
        """
        algorithm = self._at(tolerances)
        with guards.Pinned(self._draws, self.seed):
            result, self.state = algorithm.step(self.problem, self.state, tree.leaves(hparams))
        self.cost += result.report.cost
        self.results = [*self.results[:1], result]
        return result

    def trial(self, hparams: Mapping[str, Tensor], tolerances: tuple[float, float]) -> Trial:
        """Train at ``hparams`` without a hypergradient; the state stays, so the next trial starts where this one did.

        Cost: training, and one gradient of each objective.

        Raises:
            UnsupportedError: an algorithm that has no tolerances.
        """
        problem, point = self.problem, tree.detached(hparams)
        with guards.Pinned(self._draws, self.seed):
            params, cost = self._at(tolerances).trained(problem, self.state, point)
            outer = problem.outer_gradients(params, point, problem.draw_outer())
            residual = problem.residual(tree.leaves(params), point, problem.draw_inner())
        self.cost += cost + Cost(inner_gradients=1, outer_gradients=1)
        steepness, gap = float(tree.norm(outer.params)), float(tree.norm(residual))
        return Trial(tree.detached(params), float(outer.value), steepness, gap)

    def steepness(self, params: Tree, hparams: Mapping[str, Tensor]) -> float:
        """Return ‖∂f/∂θ‖; one outer gradient."""
        with guards.Pinned(self._draws, self.seed):
            outer = self.problem.outer_gradients(params, tree.detached(hparams), self.problem.draw_outer())
        self.cost += Cost(outer_gradients=1)
        return float(tree.norm(outer.params))

    def keep(self, trial: Trial) -> None:
        """Go on from where a trial's training ended."""
        self.state = dataclasses.replace(self.state, params=trial.params)

    def answer(self, result: Hypergradient, *, status: str = "", note: str = "") -> None:
        """Let the run report ``result``, with another status and a remark for the user where they are given.

        Args:
            result: a hypergradient at the start of the outer step.
            status: in place of the report's own.
            note: given to the user as a :class:`~hypergrad.errors.ConvergenceWarning`.
        """
        report = result.report
        if status:
            report = dataclasses.replace(report, status=status)
        if note:
            report = dataclasses.replace(report, notes={**report.notes, "convergence": note})
        self.results = [dataclasses.replace(result, report=report)]

    def rewind(self) -> None:
        """Put the batches back to where they stood before the outer step."""
        with guards.Pinned(self._draws):
            pass

    def _at(self, tolerances: tuple[float, float] | None) -> Algorithm[Any]:
        return self.algorithm if tolerances is None else self.algorithm.at_tolerance(*tolerances)
