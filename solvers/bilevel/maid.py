"""MAID: outer descent with certified bounds, at an accuracy that loosens and tightens itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from hypergrad import tree
from hypergrad.algorithm import Hypergradient
from hypergrad.data import Fixed
from hypergrad.errors import InputError, NonFiniteError, UnsupportedError
from hypergrad.oracle import Oracle, Trial
from hypergrad.outer import OuterMove, PlainState
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_numbers
from hypergrad.solvers.bilevel.bounds import SHY, held, least_curvature, mixed_norm, not_convex, solved
from hypergrad.tree import Tree

Bound = float | Callable[[Tree], float]
"""A number, or a function of the hyperparameters that returns one."""

LIPSCHITZ = ("inverse_lipschitz", "mixed_lipschitz", "direct_lipschitz")
TIGHTENINGS = 100
"""Accuracies that are tried in one outer step."""
LARGEST_MIXED = 200
"""Columns of the mixed derivative up to which its norm is measured."""


@final
@dataclass
class MAIDState(PlainState):
    """What :class:`MAID` remembers.

    Attributes:
        accuracy: ε, the distance to θ* that the next inner solve may leave.
        linear: δ, the residual that the next linear solve may leave.
        step: α, the first step size of the next line search.
        accepted: steps taken.
        stopped: why no step will be tried any more; empty while the run goes on.
    """

    accuracy: float
    linear: float
    step: float
    accepted: int = 0
    stopped: str = ""


@dataclass(frozen=True)
class _Point:
    """An inexact hypergradient z with its bounds; ``trouble`` says why it is no better."""

    result: Hypergradient
    accuracy: float
    linear: float
    norm: float
    omega: float
    steepness: float
    trouble: str = ""


@dataclass(frozen=True)
class _Step:
    """A step that was accepted."""

    moved: Tree
    trial: Trial
    size: float


@final
@dataclass(frozen=True)
class MAID(OuterMove):
    """Gradient descent whose every step provably decreases F, with solves only as accurate as that takes.

    With ‖θ − θ*‖ ≤ ε from ‖∇_θ g‖ ≤ µ ε, a residual of at most δ, J = ∂²g/∂λ∂θ, f and ∇f taken at θ, an outer step is

    1. Find z, the hypergradient at accuracies (ε, δ). While ω > (1 − η) ‖z‖: ε ← ν ε, δ ← ν δ. Here ‖z − ∇F‖ ≤ ω and
       ω = (L_f ‖J‖/µ + L_H ‖∇f‖ ‖J‖ + L_J ‖∇f‖/µ + L_d) ε + ‖J‖/µ δ + L_J L_f/µ ε².
    2. For i = 0, 1, …: λ⁺ = λ − a z with a = α ρⁱ; train there to ε, from θ; accept once ψ ≤ 0, where
       ψ = f(θ⁺) + ‖∇f(θ⁺)‖ ε + L_f/2 ε² − (f(θ) − ‖∇f(θ)‖ ε − L_f/2 ε²) + κ a ‖z‖², without the second L_f/2 ε² for
       a convex f. ψ ≤ 0 implies F(λ⁺) − F(λ) ≤ −κ a ‖z‖².
    3. If accepted: ε ← ν⁺ ε, δ ← ν⁺ δ, α ← ρ⁺ a. After ``backtracks`` failures: ε ← ν ε, δ ← ν δ, from 1 with one more.

    It drives any algorithm that has tolerances, on full batches: ``Implicit(CG(), inner=LBFGS())``. The promises hold
    if the constants are bounds. They are functions of the hyperparameters where they depend on them, such as
    ``strong_convexity=lambda hparams: float(hparams["log_decay"].exp())``.

    Args:
        strong_convexity: µ, above 0, in units of inner curvature: a lower bound on the eigenvalues of ∂²g/∂θ². A bound
            that the Hessian at hand refutes is refused.
        smoothness: L_f, at least 0: an upper bound on the eigenvalues of ∂²f/∂θ².
        mixed: an upper bound on ‖J‖, at least 0; by default it is measured for each z, at one product for each
            hyperparameter entry or each parameter, whichever are fewer (at most 200).
        inverse_lipschitz: L_H, a Lipschitz constant of (∂²g/∂θ²)⁻¹ in θ, at least 0; 0 for a quadratic g.
        mixed_lipschitz: L_J, a Lipschitz constant of J in θ, at least 0; 0 for a quadratic g.
        direct_lipschitz: L_d, a Lipschitz constant of ∂f/∂λ in θ, at least 0; 0 where f does not mix the two.
        convex: whether f is convex in θ, which gives the tighter ψ.
        accuracy: the first ε, above 0, in units of θ.
        linear: the first δ, above 0, in units of ∂f/∂θ.
        step: the first α, above 0.
        descent: η, between 0 and 1.
        decrease: κ, above 0 and below η.
        shrink: ρ, between 0 and 1.
        grow: ρ⁺, at least 1.
        tighten: ν, between 0 and 1.
        loosen: ν⁺, at least 1.
        backtracks: step sizes tried at the first accuracy, at least 1.
        budgets: accuracies at which a line search is tried in one outer step, at least 1.
        tolerance: the run stands still once ‖z‖ + ω, which bounds ‖∇F‖, is at most this; at least 0.

    An outer step without success leaves λ where it is with the status ``"no_step"``, and the next one goes on at the
    tightened accuracy. Where a solver cannot reach an accuracy any more, or rounding of f hides the decrease, the run
    stands still with the status ``"stalled"`` and a warning; at the tolerance, or where the domain lets nothing move,
    with ``"stationary"``. Later steps then change nothing: stop with :class:`~hypergrad.EarlyStopping`.

    Cost: one hypergradient and 1 outer gradient for each accuracy tried, the products for ‖J‖; training and one
    gradient of each objective for each step size tried; at most 20 products once.

    Raises:
        UnsupportedError: an algorithm or a part of one without tolerances, a biased algorithm, a root, minibatches.
        InputError: constants out of range, or an inner problem that is not µ-strongly convex.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt, "An adaptively inexact first-order method for bilevel optimization"
    (SIAM Journal on Mathematics of Data Science, 2025), algorithms 3.1 and 3.2. Deviations: λ⁺ is projected onto the
    domain and a ‖z‖² is ‖λ⁺ − λ‖²/a, the same without one; f may depend on λ directly (L_d); ψ has to be below 0 by
    the rounding of f; solvers that stop short are run again while that helps; ``budgets`` is finite.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> move = MAID(strong_convexity=1.0, smoothness=1.0, convex=True, step=1.0, tolerance=1e-6)
        >>> algorithm = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.5, steps=200))
        >>> start = {"w": torch.zeros(1, dtype=torch.float64)}, {"x": torch.zeros(1, dtype=torch.float64)}
        >>> hg.Trainer(problem, algorithm, outer=move).fit(*start, steps=15).hparams["x"].round(decimals=4)
        tensor([3.], dtype=torch.float64)
    """

    strong_convexity: Bound
    smoothness: Bound
    mixed: Bound | None = None
    inverse_lipschitz: Bound = 0.0
    mixed_lipschitz: Bound = 0.0
    direct_lipschitz: Bound = 0.0
    convex: bool = False
    accuracy: float = 0.1
    linear: float = 0.1
    step: float = 0.01
    descent: float = 0.5
    decrease: float = 0.1
    shrink: float = 0.5
    grow: float = 10 / 9
    tighten: float = 0.5
    loosen: float = 1.25
    backtracks: int = 10
    budgets: int = 10
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("strong_convexity", "smoothness", "mixed", *LIPSCHITZ):
            if not callable(getattr(self, name)):
                least = {"above": 0.0} if name == "strong_convexity" else {"least": 0.0}
                check_numbers(self, name, **least)
        check_numbers(self, "accuracy", "linear", "step", above=0)
        check_numbers(self, "descent", "shrink", "tighten", above=0, below=1)
        check_numbers(self, "decrease", above=0, below=self.descent)
        check_numbers(self, "grow", "loosen", least=1)
        check_numbers(self, "tolerance", least=0)
        check_counts(self, "backtracks", "budgets")

    def init(self, hparams: Tree, problem: Problem) -> MAIDState:
        """Refuse problems that the bounds do not hold for."""
        if problem.inner is None:
            raise UnsupportedError(
                passed="MAID for a root or fixed point",
                expected="an inner objective, strongly convex in params",
                do="use hypergrad.HOAG or hypergrad.outer.Torch",
            )
        for name, sampler in (("inner_data", problem.inner_data), ("outer_data", problem.outer_data)):
            if sampler is not None and not isinstance(sampler, Fixed):
                raise UnsupportedError(
                    passed=f"MAID with {name}={type(sampler).__name__}, whose batches change",
                    expected="the same data in every evaluation: losses of different batches certify nothing",
                    do=f"pass {name}=hypergrad.Fixed(batch), or move the hyperparameters with hypergrad.outer.Torch",
                )
        return MAIDState(float(self.accuracy), float(self.linear), float(self.step))

    def update(self, oracle: Oracle, hparams: Tree, state: MAIDState) -> Tree:
        """Take one step, or none where no accuracy within the budgets certifies one."""
        if not oracle.algorithm.exact:
            raise UnsupportedError(
                passed=f"MAID with {oracle.algorithm!r}, which is biased",
                expected="hypergradients that tend to dF/dλ as the tolerances fall",
                do="use hypergrad.Implicit(hypergrad.CG(), inner=...) without damping",
            )
        if state.stopped:
            wanted = SHY * self._bound("strong_convexity", hparams) * state.accuracy
            oracle.answer(oracle(hparams, (wanted, state.linear)), status=state.stopped)
            return tree.cloned(hparams)
        if not state.accepted:
            self._check_convexity(oracle, hparams)
        for budget in range(self.backtracks, self.backtracks + self.budgets):
            point = self._hypergradient(oracle, hparams, state.accuracy, state.linear)
            oracle.answer(point.result, status="no_step")
            if point.trouble or point.norm + point.omega <= self.tolerance:
                return self._stand(oracle, hparams, state, point)
            if held(oracle.problem, hparams, point.result.grads):
                return self._stand(oracle, hparams, state, point)
            found = self._search(oracle, hparams, point, state.step, budget)
            state.accuracy, state.linear = self.tighten * point.accuracy, self.tighten * point.linear
            if found is not None:
                oracle.keep(found.trial)
                oracle.answer(point.result)
                state.accuracy, state.linear = self.loosen * point.accuracy, self.loosen * point.linear
                state.step, state.accepted = self.grow * found.size, state.accepted + 1
                return found.moved
        return tree.cloned(hparams)

    def _hypergradient(self, oracle: Oracle, hparams: Tree, accuracy: float, linear: float) -> _Point:
        """Tighten until −z is known to be a direction of descent."""
        point = self._measured(oracle, hparams, accuracy, linear)
        for _ in range(TIGHTENINGS):
            enough = point.omega <= (1 - self.descent) * point.norm or point.norm + point.omega <= self.tolerance
            if enough or point.trouble:
                break
            finer = self._measured(oracle, hparams, self.tighten * point.accuracy, self.tighten * point.linear)
            point = dataclasses.replace(point, trouble=finer.trouble) if finer.trouble else finer
        return point

    def _measured(self, oracle: Oracle, hparams: Tree, accuracy: float, linear: float) -> _Point:
        """Return z and ω at given accuracies."""
        mu = self._bound("strong_convexity", hparams)
        result, trouble = solved(oracle, hparams, mu * accuracy, linear)
        steepness = oracle.steepness(result.params, hparams)
        if trouble:  # what was reached instead
            accuracy = max(accuracy, result.report.inner_gradient_norm / mu)
            linear = max(linear, result.report.residual * steepness)
        omega = self._omega(oracle, hparams, result, steepness, accuracy, linear)
        if not trouble and accuracy <= torch.finfo(result.outer_loss.dtype).eps * float(tree.norm(result.params)):
            trouble = f"params are known to {accuracy:.3g}, which is the rounding of their numbers"
        return _Point(result, accuracy, linear, float(tree.norm(result.grads)), omega, steepness, trouble)

    def _omega(
        self, oracle: Oracle, hparams: Tree, result: Hypergradient, steepness: float, accuracy: float, linear: float
    ) -> float:
        names = ("strong_convexity", "smoothness", *LIPSCHITZ)
        mu, smoothness, inverse, mixed, direct = (self._bound(name, hparams) for name in names)
        if self.mixed is None:
            size, cost = mixed_norm(oracle.problem, result.params, hparams, LARGEST_MIXED)
            oracle.cost += cost
        else:
            size = self._bound("mixed", hparams)
        slope = smoothness * size / mu + inverse * steepness * size + mixed * steepness / mu + direct
        return slope * accuracy + size / mu * linear + mixed * smoothness / mu * accuracy**2

    def _search(self, oracle: Oracle, hparams: Tree, point: _Point, size: float, budget: int) -> _Step | None:
        """Shorten the step until ψ certifies the decrease."""
        for _ in range(budget):
            step = {key: value - size * point.result.grads[key] for key, value in hparams.items()}
            moved = tree.cloned(oracle.problem.project(step))
            trial = self._trial(oracle, moved, point.accuracy)
            if trial is not None and self._psi(hparams, moved, point, trial, size) <= 0:
                return _Step(moved, trial, size)
            size *= self.shrink
        return None

    def _trial(self, oracle: Oracle, moved: Tree, accuracy: float) -> Trial | None:
        """Train at a new point; ``None`` where training failed, as it may after a step that is far too long."""
        mu = self._value("strong_convexity", moved)
        if not 0 < mu < math.inf:
            return None
        try:
            trial = oracle.trial(moved, (SHY * mu * accuracy, math.inf))
        except NonFiniteError:
            return None
        return trial if trial.gap <= mu * accuracy else None

    def _psi(self, hparams: Tree, moved: Tree, point: _Point, trial: Trial, size: float) -> float:
        error, loss = point.accuracy, float(point.result.outer_loss)
        upper = trial.outer_loss + trial.steepness * error + self._bound("smoothness", moved) / 2 * error**2
        lower = loss - point.steepness * error
        if not self.convex:
            lower -= self._bound("smoothness", hparams) / 2 * error**2
        distance = float(tree.norm({key: moved[key] - value for key, value in hparams.items()}))
        rounding = 8 * torch.finfo(next(iter(moved.values())).dtype).eps * max(abs(loss), abs(trial.outer_loss))
        return upper - lower + self.decrease * distance**2 / size + rounding

    def _stand(self, oracle: Oracle, hparams: Tree, state: MAIDState, point: _Point) -> Tree:
        """Stop moving, and say why."""
        state.accuracy, state.linear = 2 * point.accuracy, 2 * point.linear  # within reach for later steps
        state.stopped, note = "stationary", ""
        if point.trouble:
            state.stopped = "stalled"
            note = (
                f"no further step can be certified: {point.trouble}. The hypergradient's norm is {point.norm:.3g}, "
                f"known to {point.omega:.3g}; if that is not enough, give the solvers more steps, compute in "
                "float64, or check the constants of MAID"
            )
        oracle.answer(point.result, status=state.stopped, note=note)
        return tree.cloned(hparams)

    def _check_convexity(self, oracle: Oracle, hparams: Tree) -> None:
        mu = self._bound("strong_convexity", hparams)
        least, cost = least_curvature(oracle.problem, oracle.state.params, hparams)
        oracle.cost += cost
        if least < mu * (1 - 1e-3):
            raise not_convex(f"strong_convexity={mu:g} where the inner Hessian has the curvature {least:.6g}")

    def _value(self, name: str, hparams: Tree) -> float:
        value: Any = getattr(self, name)
        if callable(value):
            value = value(tree.NamedTree("hparams", tree.detached(hparams)))
        return float(value)

    def _bound(self, name: str, hparams: Tree) -> float:
        value = self._value(name, hparams)
        if not 0 <= value < math.inf or (value == 0 and name == "strong_convexity"):
            raise InputError(
                passed=f"MAID({name}=...), a function that returned {value} for these hyperparameters",
                expected=f"a finite number {'above' if name == 'strong_convexity' else 'of at least'} 0",
                do="return a bound that holds for every hyperparameter inside its domain",
            )
        return value
