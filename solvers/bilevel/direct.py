"""The direct derivative of the outer objective, for hyperparameters that nothing else reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import (
    Algorithm,
    Cost,
    Hypergradient,
    Report,
    Stopwatch,
    check_finite,
    check_reached,
    replayed,
)
from hypergrad.errors import UnsupportedError
from hypergrad.inner import InnerSolver
from hypergrad.kinds import reads
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_kind
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class DirectState:
    """What :class:`Direct` remembers: where training ended, and how many hypergradients were taken."""

    params: Tree
    steps: int = 0


@final
@dataclass(frozen=True)
class Direct(Algorithm[DirectState]):
    """dF/dλ = ∂f/∂λ at the trained parameters, for hyperparameters of which θ does not depend.

    Such are a threshold, a temperature or a mixing weight that are applied after training. Beside other algorithms in
    :class:`~hypergrad.Routed` it trains nothing and costs one gradient.

    Args:
        inner: how to train; ``None`` when the parameters that are passed are trained already.

    Cost: training; 1 outer gradient; at the first step one evaluation of the inner objective.

    Raises:
        UnsupportedError: a hyperparameter that the inner objective, its start or its update rule read: ∂f/∂λ would be
            a part of dF/dλ only.
        UnreachedError: one that the outer objective does not use.
        NonFiniteError: NaN or infinity, with the tensor's name.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - 3) ** 2).sum(),
        ...     outer=lambda params, hparams: ((params["w"] / hparams["t"] - 1) ** 2).sum(),
        ... )
        >>> point = {"w": torch.tensor([3.0])}, {"t": torch.tensor(1.0)}
        >>> hg.hypergradient(problem, *point, hg.Direct()).grads["t"]
        tensor(-12.)
    """

    inner: InnerSolver | None = None
    order = 1
    cost = "training + 1 outer gradient"
    needs = "hyperparameters that only the outer objective reads"

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    @property
    def exact(self) -> bool:
        """Whether the answer is dF/dλ: always, for what it accepts."""
        return True

    def __post_init__(self) -> None:
        """Refuse what is no inner solver."""
        check_kind(self, "inner", InnerSolver, "pass hypergrad.LBFGS(), or your own: hypergrad.Training(train)")

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return training's passes and one outer gradient."""
        training = Cost() if self.inner is None else self.inner.budget()
        return training + Cost(outer_gradients=1)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> DirectState:
        """Check the inputs and start at ``params``."""
        params, _ = problem.check_inputs(params, hparams)
        return DirectState(tree.detached(params))

    def response(self, problem: Problem, state: DirectState, hparams: Tree) -> Tree:
        """Return θ after training; the state's parameters where there is no inner solver."""
        return self._trained(problem, state, hparams)[0]

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ with a backward pass that gives zero."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: DirectState, hparams: Tree) -> tuple[Hypergradient, DirectState]:
        """Train and return ∂f/∂λ."""
        device = tree.device_of(state.params)
        watch = Stopwatch(device)
        with guards.pinned_rng(device):
            if state.steps == 0:
                self._check_kinds(problem, state.params, hparams)
            params, cost = self._trained(problem, state, hparams)
            outer = problem.outer_gradients(params, hparams, problem.draw_outer())
        if state.steps == 0:
            check_reached(hparams, outer.hparams, advice="use them in outer with torch operations, or leave them out")
        grads = {key: outer.hparams.get(key, torch.zeros_like(value).detach()) for key, value in hparams.items()}
        check_finite("the outer loss", {"f": outer.value}, when="where training ended")
        check_finite("the outer gradient of hparams", grads, when="where training ended")
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED),
            outer_loss=float(outer.value),
            cost=cost + Cost(outer_gradients=1),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
        )
        return Hypergradient(grads, params, outer.value, report), DirectState(params, state.steps + 1)

    def _trained(self, problem: Problem, state: DirectState, hparams: Tree) -> tuple[Tree, Cost]:
        if self.inner is None:
            return state.params, Cost()
        result = self.inner.run(problem, state.params, tree.detached(hparams))
        return result.params, result.cost

    def _check_kinds(self, problem: Problem, params: Tree, hparams: Tree) -> None:
        places: Any = reads(problem, params, hparams, inner=self.inner, places=("optimizer", "initial", "inner"))
        indirect = {name: where for name, where in places.items() if where}
        if indirect:
            raise UnsupportedError(
                passed=f"hparams {list(indirect)} with Direct, which training reads ({indirect})",
                expected="hyperparameters that only the outer objective reads: for others ∂f/∂λ is a part of dF/dλ",
                do="use hypergrad.Implicit for what the inner objective reads, hypergrad.Unrolled for what the update "
                "rule or the start reads, and hypergrad.Routed for several kinds at once",
            )
