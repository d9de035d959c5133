"""Implicit differentiation: the implicit function theorem with any linear solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Self, final

import torch
from torch import Tensor

from hypergrad import evaluation, guards, tree
from hypergrad.algorithm import (
    Algorithm,
    Cost,
    Hypergradient,
    Report,
    Stopwatch,
    check_finite,
    check_reached,
    refuse_second_order,
)
from hypergrad.errors import UnsupportedError
from hypergrad.inner import InnerSolver, Tuned, UpdateRule
from hypergrad.linear import LinearResult, LinearSolver, Memory
from hypergrad.problem import Objective, Problem
from hypergrad.settings import check_kind, check_numbers
from hypergrad.solvers.bilevel.compiled import Program, check_compiled, check_problem, excused
from hypergrad.solvers.bilevel.compiled_probe import Place
from hypergrad.solvers.bilevel.compiler import Compiled
from hypergrad.solvers.bilevel.implicit_remarks import Scales, remarks
from hypergrad.solvers.bilevel.known_response import attach_known, is_known, known_response
from hypergrad.solvers.bilevel.point import Point
from hypergrad.solvers.linear.cg import CG
from hypergrad.solvers.linear.dense import Dense
from hypergrad.tree import Tree

PLAIN = Compiled()
"""What ``compile=True`` stands for."""


@final
@dataclass(frozen=True)
class ImplicitState:
    """What :class:`Implicit` remembers between steps.

    Attributes:
        params: θ, where training ended last.
        steps: hypergradients taken.
        solution: the last H⁻¹∇_θ f as a flat vector, to start the next solve from, or ``None``.
        memory: the linear solver's memory (a preconditioner's sketch, a power vector).
    """

    params: Tree
    steps: int = 0
    solution: Tensor | None = None
    memory: Memory = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Implicit(Algorithm[ImplicitState]):
    """dF/dλ = ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q with H q = ∂f/∂θ and H = ∂²g/∂θ² (+ damping · I).

    1. Train: θ ← inner(θ, λ), from where the last training ended.
    2. Build the graph of ∇_θ g at θ once; v = ∂f/∂θ.
    3. Solve H q = v with ``linear``, one reverse pass a product.
    4. dF/dλ = ∂f/∂λ − (∂²g/∂θ∂λ)ᵀ q, one more reverse pass on the same graph.

    Without a linear solve, and without its passes, where the problem says ``envelope`` (dF/dλ = ∂f/∂λ) or brings a
    ``response_vjp`` (dF/dλ = ∂f/∂λ + response_vjp(∂f/∂θ)).

    The formula holds where ∇_θ g = 0. Elsewhere it is the hypergradient of a nearby problem, and the report says
    by how much the outer loss would still move. Memory does not depend on the length of training.

    Args:
        linear: how the linear system is solved. ``CG`` is exact, ``Neumann(k)`` and ``Identity`` (T1-T2) are biased.
        inner: how to train; ``None`` when the parameters that are passed are trained already.
        damping: number of at least 0 added to H, in units of curvature; it biases the answer.
        stationarity: how far the rest of training may move the outer loss, at least 0, before a
            :class:`~hypergrad.errors.StationarityWarning` is given: relative to max(|f|, ‖∂f/∂θ‖ ‖θ‖ / 10).
        compile: whether a whole hypergradient, without its training, is compiled by ``torch.compile``: True, or
            :class:`~hypergrad.Compiled` with settings. Only with ``CG`` and ``Neumann``. What cannot be compiled, or
            disagrees with eager products, is computed eagerly with a :class:`~hypergrad.errors.CompileWarning`.

    Cost: training; 1 inner gradient, 1 outer gradient; the linear solver's products and 1.

    Raises:
        UnsupportedError: a hyperparameter that enters the inner solver only (a learning rate); ``compile`` with another
            linear solver, a root, constraints, several outer batches as one, or for a backward pass.
        UnreachedError: a hyperparameter that enters nothing.
        TreeError: a ``response_vjp`` that returns other names or shapes than those of the hyperparameters.
        DivergenceError: a linear solve that diverged.
        NonFiniteError: NaN or infinity, with the tensor's name.

    Source: Lorraine, Vicol, Duvenaud (2020) for ``Neumann``; Pedregosa (2016) for ``CG``; Luketina et al. (2016) for
    ``Identity``. Deviation: the direct term ∂f/∂λ keeps its own sign.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"]) ** 2).sum(),
        ...     outer=lambda params, hparams: (params["w"] ** 2).sum(),
        ... )
        >>> point = {"w": torch.tensor([3.0])}, {"x": torch.tensor([3.0])}
        >>> hg.hypergradient(problem, *point, hg.Implicit(hg.CG())).grads["x"]
        tensor([6.])
    """

    linear: LinearSolver = field(default_factory=CG)
    inner: InnerSolver | None = None
    damping: float = 0.0
    stationarity: float = 0.01
    compile: bool | Compiled = False
    order = 2
    cost = "training + 1 inner gradient + 1 outer gradient + linear solve + 1 product"
    needs = "an inner optimum (∇g = 0) and a regular Hessian there"
    lighter = (
        "use a smaller inner batch, whose graph is kept during the solve; CG, Neumann and Identity keep the fewest "
        "vectors, GMRES, Nystrom and Dense the most; hypergrad.F2SA needs first derivatives only"
    )

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn: never."""
        return False

    @property
    def exact(self) -> bool:
        """Whether the linear solver is exact and nothing is damped."""
        return self.linear.exact and not self.damping

    def __post_init__(self) -> None:
        """Refuse settings out of range and parts of another kind."""
        check_kind(self, "linear", LinearSolver, "pass one of hypergrad's, such as hypergrad.CG()")
        check_kind(self, "inner", InnerSolver, "pass hypergrad.LBFGS(), or your own: hypergrad.Training(train)")
        check_numbers(self, "damping", "stationarity", least=0)
        if not isinstance(self.compile, bool):
            check_kind(self, "compile", Compiled, "pass True, False or hypergrad.Compiled() with settings")
        if self.compile:
            check_compiled(self.linear)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return training's passes, one gradient of each objective, the solve's products and one."""
        training = Cost() if self.inner is None else self.inner.budget()
        solve = Cost(
            inner_gradients=self.linear.graphs, outer_gradients=1, products=self.linear.budget(params_size) + 1
        )
        return training + solve

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> ImplicitState:
        """Check the inputs and start at ``params``."""
        params, hparams = problem.check_inputs(params, hparams)
        if self.compile:
            check_problem(problem)
            self._compiler.check_device(tree.device_of(params))
        return ImplicitState(tree.detached(params))

    def response(self, problem: Problem, state: ImplicitState, hparams: Tree) -> Tree:
        """Return θ after training at ``hparams``; the state's parameters where there is no inner solver."""
        return self.trained(problem, state, hparams)[0]

    def trained(self, problem: Problem, state: ImplicitState, hparams: Tree) -> tuple[Tree, Cost]:
        """Return θ as :meth:`response` does, with the passes of its training."""
        if self.inner is None:
            return state.params, Cost()
        result = self.inner.run(problem, state.params, hparams)
        return result.params, result.cost

    def at_tolerance(self, inner: float, linear: float) -> Self:
        """Return this algorithm with absolute tolerances, which take the place of its own ones.

        The stationarity is not judged any more: how far training goes is now somebody else's choice.

        Raises:
            UnsupportedError: no inner solver, or a part without a tolerance (``Neumann``, ``TorchOptimizer``);
                :class:`~hypergrad.Dense` has none and needs none.
        """
        if self.inner is None or "tolerance" not in _settings(self.inner):
            raise _no_tolerance(
                "inner", self.inner, "hypergrad.LBFGS() or hypergrad.GradientDescent(lr=..., steps=...)"
            )
        trainer: Any = self.inner
        solver: Any = self.linear
        if {"rtol", "atol"} <= _settings(solver):
            solver = dataclasses.replace(solver, rtol=0.0, atol=linear)
        elif not isinstance(solver, Dense):
            raise _no_tolerance("linear", self.linear, "hypergrad.CG()")
        trainer = dataclasses.replace(trainer, tolerance=inner)
        return dataclasses.replace(self, inner=trainer, linear=solver, stationarity=math.inf)

    def step(self, problem: Problem, state: ImplicitState, hparams: Tree) -> tuple[Hypergradient, ImplicitState]:
        """Train, solve, and return the hypergradient."""
        if self.compile and not is_known(problem):
            return self._compiled_step(problem, state, hparams)
        device = tree.device_of(state.params)
        watch = Stopwatch(device)
        with guards.pinned_rng(device):
            params, cost = state.params, Cost()
            if self.inner is not None:
                trained = self.inner.run(problem, params, hparams)
                params, cost = trained.params, trained.cost
            with evaluation.held():
                outer = problem.outer_gradients(params, hparams, problem.draw_outer())
                if is_known(problem):
                    found = known_response(self, problem, params, hparams, outer, cost, watch, first=state.steps == 0)
                    return found, ImplicitState(params, state.steps + 1)
                point = Point(self.linear, self.damping, problem, params, hparams)
            numbers = point.check(outer)
            b = point.stationarity.layout.flatten(outer.params)
            outer.params.clear()
            solution, kinks = point.solve(b, state.solution, state.memory), point.kinks()
            grads, scales = point.mixed(outer, b, numbers, solution, last=True)
        if state.steps == 0:
            self._check_reached(hparams, point.stationarity.reached | set(outer.hparams))
        check_finite("the mixed product for hparams", grads, when="where training ended")
        cost += Cost(inner_gradients=point.linearised) + point.spent(solution)
        report = self._report(scales, solution, cost, watch, kinks)
        keep = solution.value if self.linear.uses_start else None
        following = ImplicitState(params, state.steps + 1, keep, solution.memory)
        return Hypergradient(grads, params, outer.value, report), following

    def several(
        self, problem: Problem, state: ImplicitState, hparams: Tree, outers: Mapping[str, Objective]
    ) -> dict[str, Hypergradient]:
        """Train once, build one graph of ∇_θ g, and return the hypergradient of each outer objective.

        The systems H q = ∂f/∂θ share H, so that the linear solver takes all of them at once where it can. Training and
        the graph are in the cost of the first.
        """
        if self.compile or problem.response_vjp is not None:
            return super().several(problem, state, hparams, outers)
        device = tree.device_of(state.params)
        watch = Stopwatch(device)
        found: dict[str, Hypergradient] = {}
        with guards.pinned_rng(device):
            params, cost = self.trained(problem, state, hparams)
            batch = problem.draw_outer()
            with evaluation.held():
                ends = {
                    name: problem.with_outer(outer).outer_gradients(params, hparams, batch)
                    for name, outer in outers.items()
                }
                point = Point(self.linear, self.damping, problem, params, hparams)
            numbers = [point.check(outer) for outer in ends.values()]
            rows = torch.stack([point.stationarity.layout.flatten(outer.params) for outer in ends.values()])
            solutions, kinks = point.solve_rows(rows), point.kinks()
            cost += Cost(inner_gradients=point.linearised)
            for place, ((name, outer), solution) in enumerate(zip(ends.items(), solutions, strict=True)):
                last = place == len(ends) - 1
                grads, scales = point.mixed(outer, rows[place], numbers[place], solution, last=last)
                check_finite(f"the mixed product for hparams of {name}", grads, when="where training ended")
                report = self._report(scales, solution, cost + point.spent(solution), watch, kinks)
                found[name] = Hypergradient(grads, params, outer.value, report)
                cost = Cost()
        self._check_reached(hparams, point.stationarity.reached.union(*(outer.hparams for outer in ends.values())))
        return found

    @property
    def _compiler(self) -> Compiled:
        return self.compile if isinstance(self.compile, Compiled) else PLAIN

    def _compiled_step(
        self, problem: Problem, state: ImplicitState, hparams: Tree
    ) -> tuple[Hypergradient, ImplicitState]:
        """Do as :meth:`step` does with compiled code, or eagerly where there is none."""
        device = tree.device_of(state.params)
        watch = Stopwatch(device)
        program = Program.of(problem, self.linear, self._compiler, device)
        if program.refused is not None:
            plain = dataclasses.replace(self, compile=False)
            found, after = plain.step(problem, state, hparams)
            return excused(found, repr(self), program), after
        reached = partial(self._check_reached, hparams) if state.steps == 0 else None
        with program.pinned(training=self.inner is not None):
            params, cost = self.trained(problem, state, hparams)
            outer_batch, batch = problem.draw_outer(), problem.draw_inner()
            place = Place(problem, params, hparams, batch, outer_batch, state.solution, state.memory)
            solved = program.solve(place, self.linear, self.damping, reached)
            if solved is None:
                plain = dataclasses.replace(self, compile=False, inner=None)
                again = problem.with_batches(batch, outer_batch)
                found, after = plain.step(again, dataclasses.replace(state, params=params), hparams)
                program.refused = program.refused or program.doubt
                report = dataclasses.replace(found.report, cost=cost + found.report.cost, seconds=watch.seconds())
                return excused(dataclasses.replace(found, report=report), repr(self), program), after
        result = solved.result
        made = Cost(inner_gradients=solved.linearised, products=result.products + solved.mixed, outer_gradients=1)
        cost = made if self.inner is None else cost + made
        report = self._report(Scales(*solved.scales, params), result, cost, watch)
        following = ImplicitState(
            params, state.steps + 1, result.value if self.linear.uses_start else None, result.memory
        )
        return Hypergradient(solved.grads, params, solved.value, report), following

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ* = response(λ) as θ* + S(∇_θ g(θ*, λ)), where S is 0 forwards and −H⁻¹ backwards.

        The gradient's graph is ordinary autograd, so hyperparameters that a closure hides are found as well.
        """
        if self.compile:
            raise UnsupportedError(
                passed=f"{self!r} for a backward pass (differentiable, solve, attach)",
                expected="an algorithm that runs eagerly: autograd asks it for products one at a time",
                do="leave compile out here, or call hypergrad.hypergradient or a Run",
            )
        params, _ = problem.check_inputs(params, tree.detached(hparams))
        device = tree.device_of(params)
        if problem.response_vjp is not None:
            return attach_known(self, problem, params, hparams)
        with guards.pinned_rng(device):
            trained = self.response(problem, ImplicitState(tree.detached(params)), tree.detached(hparams))
            point = Point(self.linear, self.damping, problem, trained, hparams)
        ends = point.stationarity.ends()
        check_finite("the inner gradient of params", ends, when="where training ended")
        apply: Any = _Attach.apply
        correction = apply(point, *ends.values())
        return {key: trained[key] + shift for key, shift in zip(ends, correction, strict=True)}

    def _check_reached(self, hparams: Tree, reached: frozenset[str]) -> None:
        lost = [name for name in hparams if name not in reached]
        rule = self.inner
        if lost and isinstance(rule, UpdateRule) and any(isinstance(getattr(rule, s), Tuned) for s in rule.tuned):
            raise UnsupportedError(
                passed=f"hparams {lost}, which enter the inner solver {type(rule).__name__} and no objective, "
                "with Implicit",
                expected="hyperparameters of the inner or outer objective: an optimum does not depend on the learning "
                "rate that led to it, so there is no implicit hypergradient",
                do="use hypergrad.Unrolled, hypergrad.ForwardMode or hypergrad.ZerothOrder for these",
            )
        check_reached(
            hparams,
            reached,
            advice="use them in inner, penalty or outer with torch operations (.item(), .detach() and torch.no_grad() "
            "cut the path); for a learning rate or another setting of the training itself use hypergrad.Unrolled "
            "with hypergrad.Tuned",
        )

    @cached_property
    def _text(self) -> str:
        return repr(self)

    def _report(
        self, scales: Scales, solution: LinearResult, cost: Cost, watch: Stopwatch, kinks: Sequence[int] = ()
    ) -> Report:
        notes = remarks(scales, solution, kinks, share=self.stationarity, definite=self.linear.needs_definite)
        return Report(
            algorithm=self._text,
            status=str(solution.status),
            outer_loss=scales.loss,
            cost=cost,
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
            residual=solution.residual,
            negative_curvature=solution.negative_curvature,
            inner_gradient_norm=scales.gap,
            implied_error=scales.error,
            notes=notes,
        )


def _settings(part: object) -> set[str]:
    return {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()


def _no_tolerance(name: str, part: InnerSolver | LinearSolver | None, instead: str) -> UnsupportedError:
    return UnsupportedError(
        passed=f"Implicit({name}={part!r}) with an outer move that chooses the accuracy of each hypergradient",
        expected="an inner and a linear solver that stop at an absolute tolerance",
        do=f"pass {name}={instead}, or move the hyperparameters with hypergrad.outer.Torch",
    )


class _Attach(torch.autograd.Function):
    """S: zero forwards, −H⁻¹ backwards."""

    @staticmethod
    def forward(ctx: Any, point: Point, *ends: Tensor) -> tuple[Tensor, ...]:
        ctx.point = point
        return tuple(torch.zeros_like(end) for end in ends)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        point: Point = ctx.point
        point.stationarity.versions.check()
        layout = point.stationarity.layout
        b = layout.flatten(dict(zip(layout.shapes, cotangents, strict=True)))
        check_finite("the cotangent of params", layout.views(b), when="in the backward pass")
        with guards.pinned_rng(b.device):
            result = point.solve(b, None, {})
        point.check_solution(result, b, finite=tree.first_non_finite({"": result.value}) is None)
        return (None, *(-view for view in layout.views(result.value).values()))
