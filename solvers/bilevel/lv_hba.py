"""LV-HBA: bilevel problems with constraints that couple both levels, by gradients alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, check_finite, check_reached
from hypergrad.domains import Domain
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.projections import Polyhedron
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_numbers
from hypergrad.solvers.bilevel.coupling import (
    Constraint,
    Constraints,
    Coupling,
    JointProjection,
    check_params_domain,
    joined,
)
from hypergrad.solvers.bilevel.trajectory import UNREACHED
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class LVHBAState:
    """What :class:`LVHBA` moves.

    Attributes:
        params: y.
        proximal: θ, the parameters of the proximal Lagrangian's saddle point.
        multipliers: μ, one for each constraint, inequalities first.
        centers: z, which the multipliers are drawn to.
        low: smallest multipliers allowed: 0 for inequalities, −r for equalities.
        equal: orthonormal rows of the joint set's equalities, over y and then x.
        levels: their right-hand sides.
        below: rows of its inequalities.
        limits: their right-hand sides.
        target: x⁺, where the outer move should have landed; x itself before the first step.
        steps: steps made.
    """

    params: Tree
    proximal: Tree
    multipliers: Tensor
    centers: Tensor
    low: Tensor
    equal: Tensor
    levels: Tensor
    below: Tensor
    limits: Tensor
    target: Tree
    steps: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class LVHBA(Algorithm[LVHBAState]):
    """min f(y, x) over x ∈ X and y ∈ argmin {g(y, x) : y ∈ Y, c(y, x) ≤ 0, e(y, x) = 0}, by first derivatives alone.

    y is ``params`` and x ``hparams``; all constraints together are C, c and e are stacked in c below, μ in Z. The inner
    problem is replaced by g(y, x) − v(y, z, x) ≤ 0 with the proximal Lagrangian value function

        v(y, z, x) = min over θ ∈ Y, max over μ ∈ Z of g(θ, x) + ⟨μ, c(θ, x)⟩ + ‖θ − y‖²/2γ₁ − ‖μ − z‖²/2γ₂,

    where Z = [0, r] for inequalities and [−r, r] for equalities, and g − v is penalised by c_k = c₀ (k + 1)^p. Step k:

    - θ⁺ = P_Y(θ − η [∇_θ g(θ, x) + ∇_θ ⟨μ, c(θ, x)⟩ + (θ − y)/γ₁]),  μ⁺ = P_Z(μ + η [c(θ, x) − (μ − z)/γ₂]),
    - d_x = ∂f/∂x / c_k + ∇_x g(y, x) − ∇_x g(θ⁺, x) − ∇_x ⟨μ⁺, c(θ⁺, x)⟩,
      d_y = ∂f/∂y / c_k + ∇_y g(y, x) − (y − θ⁺)/γ₁,
    - (x⁺, y⁺) = P_C((x, y) − α (d_x, d_y)),  z⁺ = P_Z(z + β (μ⁺ − z)/γ₂).

    An algorithm never moves x, so this one keeps y⁺, θ⁺, μ⁺, z⁺ and returns the gradient mapping (x − x⁺)/α: plain
    gradient descent with the rate α, ``hg.outer.Torch(torch.optim.SGD, lr=alpha)``, lands on x⁺ and is the paper's
    iteration. Another outer move, or another rate, leaves C by the difference, and the next projection comes back. The
    mapping is a direction for this joint descent, not dF/dx; it falls like 1/c_k.

    Args:
        inequality: c, ``(params, hparams)`` to a tensor; convex in both together.
        equality: e, likewise; affine.
        params_domain: Y, sets of single parameters; X is the problem's ``hparams_domain``.
        projection: ``"affine"`` for constraints affine in (y, x), which are read off once: a half-space and
            equalities in closed form, a polyhedron by a quadratic program, domains by alternating projections. Or a
            function ``(params, hparams)`` to the nearest pair in C, X and Y included. ``None`` projects onto X and Y
            only; then the method may diverge.
        step_size: α, above 0: a number or a function of the iteration; the outer rate has to equal it.
        inner_step_size: η, likewise. θ must keep up: at least 1.5 α; far above it stalls.
        center_step_size: β, likewise.
        gamma1: γ₁, above 0.
        gamma2: γ₂, above 0.
        bound: r, above 0 and at least as large as the multipliers at the solution; smaller ones bias the answer.
        penalty: c₀, above 0.
        power: p, at least 0 and below ½. The answer is off by O(1/c_k) unless f is
            stationary on C there.

    Cost: 3 inner gradients and 1 outer gradient; no Hessian product. Constraints are evaluated twice.

    Raises:
        UnsupportedError: a condition or ``initial`` in the problem, constraints that are not affine without a
            projection of one's own, or a backward pass.
        InputError: constraints that nothing satisfies, a projection that leaves them violated, a schedule that returns
            no number above 0.
        DivergenceError: domains and constraints that meet nowhere.
        NonFiniteError: steps so long, or noise so large, that something overflowed.

    Warns:
        ConvergenceWarning: a multiplier and its center sit on r.
        OuterMoveWarning: at the second step of a problem with constraints, if the first outer move did not land on x⁺.

    Source: Yao, Yu, Zeng, Zhang, "Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm" (ICLR 2024), the algorithm LV-HBA; defaults of their MEHAHO package. Ours: the joint
    projection as a gradient mapping for x; one inner batch and one stream of random numbers for all three gradients of
    a step.

    Example:
        >>> import torch, hypergrad as hg
        >>> from hypergrad.solvers.bilevel.lv_hba import LVHBA
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["y"] - 2 * hparams["x"]) ** 2,
        ...     outer=lambda params, hparams: (params["y"] - 2) ** 2 + (hparams["x"] - 2) ** 2,
        ... )
        >>> algorithm = LVHBA(
        ...     inequality=lambda params, hparams: params["y"] + hparams["x"] - 3,
        ...     step_size=0.1, inner_step_size=0.2, center_step_size=0.2, penalty=1.0, power=0.0,
        ... )
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=0.1)
        >>> run = hg.Run(problem, algorithm, {"y": torch.tensor(0.0)}, {"x": torch.tensor(0.0)}, move)
        >>> for _ in range(400):
        ...     progress = run.step()
        >>> progress.moved["x"].round(decimals=2), progress.params["y"].round(decimals=2)
        (tensor(1.5000), tensor(1.5000))
    """

    inequality: Constraint | None = None
    equality: Constraint | None = None
    params_domain: Mapping[str, Domain] = field(default_factory=dict)
    projection: Literal["affine"] | JointProjection | None = "affine"
    step_size: Schedule = 0.002
    inner_step_size: Schedule = 0.003
    center_step_size: Schedule = 0.002
    gamma1: float = 1.0
    gamma2: float = 1.0
    bound: float = 10.0
    penalty: float = 2.0
    power: float = 0.48
    order = 1
    cost = "3 inner gradients + 1 outer gradient"
    needs = "inner objective and constraints convex, projections onto the constraints; outer SGD with the same step"

    @property
    def exact(self) -> bool:
        """Whether the estimate tends to dF/dλ: never, it is a direction for both levels at once."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_schedules(self, "step_size", "inner_step_size", "center_step_size")
        check_numbers(self, "gamma1", "gamma2", "bound", "penalty", above=0)
        check_numbers(self, "power", least=0, below=0.5)
        Constraints(self.inequality, self.equality)
        if self.projection is not None and self.projection != "affine" and not callable(self.projection):
            raise InputError(
                passed=f"LVHBA(projection={self.projection!r})",
                expected='"affine", a function (params, hparams) that returns both projected, or None',
                do="leave projection out for constraints that are affine in params and hparams",
            )

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step."""
        return Cost(inner_gradients=3, outer_gradients=1)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> LVHBAState:
        """Check the inputs and the constraints, and start with y = θ = ``params`` and multipliers 0."""
        if problem.condition is not None or problem.initial is not None:
            raise UnsupportedError(
                passed=f"LVHBA for a problem with {'condition' if problem.initial is None else 'initial'}",
                expected="an inner objective, whose parameters go on from step to step",
                do="use hypergrad.Implicit for roots and fixed points, hypergrad.Unrolled for a start that is tuned",
            )
        problem.check_descent()
        params, hparams = problem.check_inputs(params, hparams)
        params, hparams = tree.detached(params), tree.detached(hparams)
        check_params_domain(self.params_domain, params)
        constraints = Constraints(self.inequality, self.equality)
        with torch.no_grad(), guards.pinned_rng(tree.device_of(params)):
            multipliers = torch.zeros_like(constraints.values(params, hparams))
            count = constraints.count_inequalities(params, hparams)
        low = torch.full_like(multipliers, -self.bound)
        low[:count] = 0.0
        empty = torch.zeros(0, sum(v.numel() for v in joined(params, hparams).values())).to(multipliers)
        joint = Polyhedron(empty, empty[:, 0], empty, empty[:, 0])
        if self.projection == "affine" and len(multipliers):
            joint = constraints.polyhedron(params, hparams)
        rows = (joint.equal, joint.levels, joint.below, joint.limits)
        state = LVHBAState(params, params, multipliers, multipliers, low, *rows, hparams)
        if self.projection is not None:
            self._check_projection(problem, state, constraints, hparams)
        return state

    def response(self, problem: Problem, state: LVHBAState, hparams: Tree) -> Tree:
        """Return y, which moves with x and is no function of it."""
        return state.params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> NoReturn:
        """Refuse: y is no function of x here.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            passed="LVHBA for parameters as a function of the hyperparameters",
            expected="an algorithm that trains at given hyperparameters; LV-HBA moves both levels together",
            do="run it with hypergrad.Run and hypergrad.outer.Torch(torch.optim.SGD, lr=step_size)",
        )

    def step(self, problem: Problem, state: LVHBAState, hparams: Tree) -> tuple[Hypergradient, LVHBAState]:
        """Move y, θ, μ and z, and return the gradient mapping of x."""
        device = tree.device_of(state.params)
        watch, k = Stopwatch(device), state.steps
        alpha, c = scheduled(self, "step_size", k), self.penalty * (k + 1) ** self.power
        with guards.pinned_rng(device):
            lagrangian = _Lagrangian(problem, Constraints(self.inequality, self.equality), hparams)
            theta, mu = self._saddle(lagrangian, state)
            here, there = lagrangian.slopes(state.params, None), lagrangian.slopes(theta, mu)
            outer = problem.outer_gradients(state.params, hparams, problem.draw_outer())
            d_x = {key: here.hparams[key] - slope for key, slope in there.hparams.items()}
            for key, direct in outer.hparams.items():
                d_x[key] = d_x[key] + direct / c
            y = {
                key: value - alpha * (outer.params[key] / c + here.params[key] - (value - theta[key]) / self.gamma1)
                for key, value in state.params.items()
            }
            x = {key: value.detach() - alpha * d_x[key] for key, value in hparams.items()}
            if len(state.limits):  # a quadratic program takes no infinities
                check_finite("params", y, when=f"at iteration {k + 1}, before they are projected")
                check_finite("hparams", x, when=f"at iteration {k + 1}, before they are projected")
            y, inside = self._coupling(problem, state).project(y, x)
        grads = {key: d_x[key] + (x[key] - inside[key]) / alpha for key in hparams}
        if k == 0:
            check_reached(hparams, lagrangian.reached | set(outer.hparams), advice=UNREACHED)
        beta = scheduled(self, "center_step_size", k)
        z = self._boxed(state.centers + beta * (mu - state.centers) / self.gamma2, state)
        following = dataclasses.replace(
            state, params=y, proximal=theta, multipliers=mu, centers=z, target=inside, steps=k + 1
        )
        loss, gap, notes = self._look(outer.value, there.params, grads, following)
        notes |= self._check_move(state, hparams)
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED),
            outer_loss=loss,
            cost=Cost(inner_gradients=3, outer_gradients=1),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
            inner_gradient_norm=gap,
            notes=notes,
        )
        return Hypergradient(grads, state.params, outer.value, report), following

    def _saddle(self, lagrangian: _Lagrangian, state: LVHBAState) -> tuple[Tree, Tensor]:
        """Return θ⁺ and μ⁺, both from the old θ and μ."""
        eta = scheduled(self, "inner_step_size", state.steps)
        found = lagrangian.slopes(state.proximal, state.multipliers, hparams=False)
        theta = {
            key: value - eta * (found.params[key] + (value - state.params[key]) / self.gamma1)
            for key, value in state.proximal.items()
        }
        theta = {k: self.params_domain[k].project(v) if k in self.params_domain else v for k, v in theta.items()}
        mu = state.multipliers + eta * (found.constraints - (state.multipliers - state.centers) / self.gamma2)
        return theta, self._boxed(mu, state)

    def _boxed(self, multipliers: Tensor, state: LVHBAState) -> Tensor:
        return torch.maximum(multipliers, state.low).clamp(max=self.bound)

    def _coupling(self, problem: Problem, state: LVHBAState) -> Coupling:
        if callable(self.projection):
            return Coupling(None, {}, self.projection)
        domains = joined(self.params_domain, problem.hparams_domain)
        bound = self.projection == "affine" and len(state.multipliers) > 0
        polyhedron = Polyhedron(state.equal, state.levels, state.below, state.limits) if bound else None
        return Coupling(polyhedron, domains)

    def _check_projection(self, problem: Problem, state: LVHBAState, constraints: Constraints, hparams: Tree) -> None:
        """Refuse a projection of the start that violates the constraints."""
        with torch.no_grad(), guards.pinned_rng(tree.device_of(state.params)):
            params, hparams = self._coupling(problem, state).project(state.params, hparams)
            values = constraints.values(params, hparams)
        gaps = torch.where(state.low < 0, values.abs(), values)
        scale = 1 + max(float(v.abs().max()) for v in joined(params, hparams).values() if v.numel())
        small = torch.finfo(values.dtype).eps ** 0.5 * scale
        if len(values) and not bool((gaps <= small).all()):
            raise InputError(
                passed=f"a projection of the start that violates constraint {int(gaps.argmax())} by "
                f"{float(gaps.max()):.3g}",
                expected="the nearest pair (params, hparams) that satisfies all constraints and domains",
                do="check projection, or give constraints and domains that some point satisfies",
            )

    def _check_move(self, state: LVHBAState, hparams: Tree) -> dict[str, str]:
        """Return a note, once, if the first outer move did not land where a projection onto coupled sets did."""
        if state.steps != 1 or not (callable(self.projection) or len(state.multipliers)):
            return {}
        layout = tree.Layout.of(state.target)
        x, target = layout.flatten(tree.detached(hparams)), layout.flatten(state.target)
        missed, small = (x - target).abs().max(), torch.finfo(x.dtype).eps ** 0.5
        if bool(missed <= small * (1 + target.abs().max())):
            return {}
        note = (
            f"the outer move left the joint projection by {float(missed):.3g}: LV-HBA moves both levels together, "
            "which asks for hypergrad.outer.Torch(torch.optim.SGD, lr=step_size), without momentum or another rate"
        )
        return {"outer_move": note}

    def _look(self, value: Tensor, slopes: Tree, grads: Tree, state: LVHBAState) -> tuple[float, float, dict[str, str]]:
        """Return f, the norm of ∇_θ [g + ⟨μ, c⟩] and the notes, after checks; one look at the device."""
        vectors = {"multipliers": state.multipliers, "centers": state.centers}
        everything = {**joined(state.params, grads), **joined(state.proximal, {}), **vectors}
        r = self.bound
        pinned = (state.multipliers.abs() >= r * (1 - 1e-6)) & (state.centers.abs() >= 0.99 * r)
        numbers = torch.stack([value, tree.norm(slopes), tree.norm(everything), pinned.sum().to(value)]).tolist()
        loss, gap, size, count = numbers
        if not math.isfinite(loss + gap + size):
            when = f"at iteration {state.steps}"
            check_finite("the outer loss", {"f": value}, when=when)
            check_finite("params", state.params, when=when)
            check_finite("the proximal params", state.proximal, when=when)
            check_finite("the direction of hparams", grads, when=when)
            check_finite("the", vectors, when=when)
            check_finite("the inner gradient of params", slopes, when=when)
        if not count:
            return loss, gap, {}
        note = (
            f"multiplier {int(pinned.int().argmax())} sits on its bound {r:g} and so does its center: the solution "
            "is that of another problem; raise bound (or, without a joint projection, the iterates diverge)"
        )
        return loss, gap, {"convergence": note}


@dataclass(frozen=True)
class _Slopes:
    params: Tree
    hparams: Tree
    constraints: Tensor


class _Lagrangian:
    """First derivatives of g + ⟨μ, c⟩, all on one batch and with the same random numbers."""

    def __init__(self, problem: Problem, constraints: Constraints, hparams: Tree) -> None:
        self.problem, self.constraints, self.hparams = problem, constraints, hparams
        self.draws = guards.Draws.capture(tree.device_of(hparams))
        self.batch = problem.draw_inner()
        self.reached: set[str] = set()

    def slopes(self, params: Tree, multipliers: Tensor | None, *, hparams: bool = True) -> _Slopes:
        """Return the derivatives by θ and x; without ``multipliers`` those of g, without ``hparams`` by θ only."""
        self.draws.restore()
        point = tree.leaves(params)
        lam = tree.attached(self.hparams) if hparams else tree.detached(self.hparams)
        with torch.enable_grad():
            value = self.problem.inner_value(point, lam, self.batch)
            values = value.new_zeros(0)
            if multipliers is not None and len(multipliers):
                values = self.constraints.values(point, lam)
                value = value + values @ multipliers
        inputs = {**point, **{f"hparams/{key}": leaf for key, leaf in lam.items()}} if hparams else point
        found = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)  # unused: a zero derivative
        full: dict[str, Any] = dict(zip(inputs, found, strict=True))
        self.reached |= {key for key in lam if full.get(f"hparams/{key}") is not None}
        slopes = {
            key: torch.zeros_like(inputs[key]).detach() if slope is None else tree.dense(slope)
            for key, slope in full.items()
        }
        direct = {key: slopes[f"hparams/{key}"] for key in lam} if hparams else {}
        return _Slopes({key: slopes[key] for key in point}, direct, values.detach())
