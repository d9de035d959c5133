"""The algorithm that chooses an algorithm: at its first step, and from measured residuals as a run goes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Stopwatch, replayed
from hypergrad.data import Fixed
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.inner import InnerSolver
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_kind, check_numbers
from hypergrad.solvers.bilevel.choosing import choose
from hypergrad.solvers.bilevel.plan import Choice, Plan
from hypergrad.solvers.bilevel.probe import STEPS
from hypergrad.solvers.inner.lbfgs import LBFGS
from hypergrad.solvers.inner.newton import Newton
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class AutoState:
    """What :class:`Auto` remembers between steps.

    Attributes:
        params: where the next training starts.
        steps: hypergradients taken.
        plan: the fields of the present plan; empty before the first step.
        top: largest curvature seen when the choice was made, 0 where it was not looked at.
        reason: why the plan was chosen, and every change since.
        part: the state of the algorithm that was chosen; after a load a plain dict of its fields.
    """

    params: Tree
    steps: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    top: float = 0.0
    reason: str = ""
    part: Any = None


@final
@dataclass(frozen=True)
class Auto(Algorithm[AutoState]):
    """An algorithm chosen for the problem at the first step, which every face takes as ``algorithm="auto"``, too.

    The first step looks at the problem as :func:`~hypergrad.choose` does, and goes on from what it trained. Later steps
    use the plan, and change it from what they measured: a linear solve that stops short of ``accuracy`` gets half as
    many products more, one that needs less than a quarter gives half back, negative curvature doubles the damping.
    Only residuals, curvature and counts decide, so that a run is the same again and resumes bit for bit.

    Args:
        inner: how to train; ``None`` when the parameters that are passed are trained already.
        accuracy: relative residual of linear solves, above 0.
        most: most products of a linear solve, at least 1.
        memory: what one step may hold in MiB, above 0; half of the machine's or the device's memory by default.

    Cost: that of the algorithm chosen; at the first step 2 inner gradients, at most 21 products and 1 outer gradient
    more, and the evaluations of :func:`~hypergrad.kinds`.

    Raises:
        UnsupportedError: hyperparameters that no algorithm here can see, by name.
        UnreachedError: a hyperparameter that nothing reads.
        CutError: one that moves a value although no gradient flows.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"]) ** 2).sum(),
        ...     outer=lambda params, hparams: (params["w"] ** 2).sum(),
        ... )
        >>> point = {"w": torch.tensor([3.0])}, {"x": torch.tensor([3.0])}
        >>> hg.hypergradient(problem, *point, hg.Auto()).grads["x"].round(decimals=3)
        tensor([6.])
    """

    inner: InnerSolver | None = None
    accuracy: float = 1e-4
    most: int = 200
    memory: float | None = None
    order = 2
    cost = "that of the algorithm chosen, and at the first step 21 products for the choice"
    needs = "hyperparameters with a derivative"
    lighter = "use a smaller inner batch; or set memory= below what was free, so that a smaller plan is chosen"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_kind(self, "inner", InnerSolver, "pass hypergrad.LBFGS(), or your own: hypergrad.Training(train)")
        check_numbers(self, "accuracy", "memory", above=0)
        check_counts(self, "most")

    @property
    def exact(self) -> bool:
        """Whether the answer tends to dF/dλ: not promised, since damping or a short solve may be chosen."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return a bound over everything that can be chosen, but for ``Unrolled(keep="log")``."""
        training = Cost() if self.inner is None else self.inner.budget()
        steps = training.inner_gradients
        solve = max(self.most, 32) + 2 + steps * max(1, hparams_size)
        look = Cost(2, STEPS + 1, 1, 1 + 4 * hparams_size)
        runs = 2 * hparams_size + 1
        return look + Cost(4 * steps * runs + 1, training.products * runs + solve, 2, runs)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> AutoState:
        """Check the inputs; the choice is made at the first step."""
        params, _ = problem.check_inputs(params, hparams)
        return AutoState(tree.detached(params))

    def choice(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> Choice:
        """Return what the first step will choose, with a forecast."""
        return self._choose(problem, params, hparams, measure=True)

    def response(self, problem: Problem, state: AutoState, hparams: Tree) -> Tree:
        """Return the θ of the algorithm chosen; one that was not chosen yet is chosen here, and not remembered."""
        hparams = tree.detached(hparams)
        state, _ = self._chosen(problem, state, hparams)
        algorithm, part = self._now(problem, state, hparams)
        return algorithm.response(problem, part, hparams)

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ(λ) with a backward pass of the algorithm that is chosen here, for the outer objective ‖θ‖²/2."""
        values = tree.detached(hparams)
        weights = problem.with_outer(lambda params, _: tree.dot(params, params) / 2, data=False)
        choice = self._choose(_touching(weights, values), params, values, measure=False)
        if choice.plan.estimator == "direct":
            return replayed(choice.algorithm, problem, params, hparams)
        return choice.algorithm.attach(problem, params, hparams)

    def step(self, problem: Problem, state: AutoState, hparams: Tree) -> tuple[Hypergradient, AutoState]:
        """Choose at the first step, take a hypergradient, and change the plan by what it measured."""
        watch = Stopwatch(tree.device_of(state.params))
        state, choice = self._chosen(problem, state, hparams)
        trained = choice is not None and choice.trained
        plan = Plan(**state.plan)
        algorithm, part = self._now(problem, state, hparams, trained=trained)
        found, following = algorithm.step(problem, part, hparams)
        report = found.report
        new = plan.after(
            report.residual,
            report.cost.products,
            bent=report.negative_curvature,
            most=self.most,
            top=state.top,
        )
        reason = state.reason if new == plan else f"{state.reason}\n{_change(state.steps + 1, plan, new)}"
        spent = Cost() if choice is None else choice.cost
        report = dataclasses.replace(
            report, algorithm=f"Auto: {report.algorithm}", cost=report.cost + spent, seconds=watch.seconds()
        )
        later = AutoState(following.params, state.steps + 1, dataclasses.asdict(new), state.top, reason, following)
        return dataclasses.replace(found, report=report), later

    def _choose(
        self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], *, measure: bool
    ) -> Choice:
        return choose(
            problem,
            params,
            hparams,
            inner=self.inner,
            accuracy=self.accuracy,
            most=self.most,
            memory=self.memory,
            measure=measure,
        )

    def _chosen(self, problem: Problem, state: AutoState, hparams: Tree) -> tuple[AutoState, Choice | None]:
        """Return the state with a plan, and at parameters that were trained if that took training."""
        if state.plan:
            return state, None
        with guards.pinned_rng(tree.device_of(state.params)):
            choice = self._choose(problem, state.params, hparams, measure=False)
        top = choice.top if math.isfinite(choice.top) else 0.0
        start = choice.params if choice.trained and choice.plan.estimator in ("implicit", "direct") else state.params
        plan = dataclasses.asdict(choice.plan)
        chosen = dataclasses.replace(state, params=start, plan=plan, top=top, reason=choice.reason)
        return chosen, choice

    def _now(
        self, problem: Problem, state: AutoState, hparams: Tree, *, trained: bool = False
    ) -> tuple[Algorithm[Any], Any]:
        """Return the algorithm and its state: built afresh at the first step, and from its fields after a load."""
        plan = Plan(**state.plan)
        algorithm = plan.build(self.inner, trained=trained)
        part = state.part
        if part is None or isinstance(part, Mapping):
            like = algorithm.init(problem, state.params, tree.detached(hparams))
            part = like if part is None else tree.unpack(like, part)
        return algorithm, dataclasses.replace(part, params=state.params, steps=state.steps)


def _change(step: int, before: Plan, now: Plan) -> str:
    if before.damping != now.damping:
        return f"after step {step}: negative curvature was met, damping {before.damping:.3g} -> {now.damping:.3g}"
    why = "the residual stayed above the accuracy" if now.terms > before.terms else "a quarter was enough"
    return f"after step {step}: {why}, terms {before.terms} -> {now.terms}"


def _touching(problem: Problem, hparams: Tree) -> Problem:
    """Return the problem with an outer objective that also reads every hyperparameter, with weight zero."""
    outer = problem.outer

    def touched(params: Tree, values: Tree) -> Tensor:
        zero = [0.0 * values[name].sum() for name in hparams]
        value: Tensor = outer(params, values) + sum(zero)
        return value

    return problem.with_outer(touched, data=False)


def automatic(problem: Problem | None) -> Auto:
    """Return the algorithm that the word ``"auto"`` stands for.

    Args:
        problem: where the face has to train and was told no more than that word: the problem, for an inner solver.

    Raises:
        InputError: sampled training data, for which no inner solver goes without saying.
    """
    return Auto() if problem is None else Auto(inner=_default_inner(problem))


def _default_inner(problem: Problem) -> InnerSolver:
    if problem.inner is None and problem.condition is None:
        raise UnsupportedError(
            passed='algorithm="auto" for a problem of which only the response is known',
            expected="how to find the inner solution",
            do="pass hypergrad.Auto(inner=hypergrad.Training(train))",
        )
    if problem.root or problem.saddle:
        return Newton()
    if problem.inner_data is not None and not isinstance(problem.inner_data, Fixed):
        raise InputError(
            passed='algorithm="auto" for a problem with sampled training data',
            expected="how to train on batches: an optimizer and a number of steps",
            do="pass hypergrad.Auto(inner=hypergrad.Adam(lr=1e-3, steps=100))",
        )
    return LBFGS()
