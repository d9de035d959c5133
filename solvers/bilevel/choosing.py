"""The rules by which an algorithm is chosen: counted passes, curvature and bytes decide, never a clock."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Cost
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.inner import InnerResult, InnerSolver, UpdateRule
from hypergrad.kinds import Entry, Kind, kinds
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.settings import check_count, check_number
from hypergrad.solvers.bilevel.plan import Choice, Forecast, Plan, freed, length
from hypergrad.solvers.bilevel.probe import Probe, probe, timed
from hypergrad.solvers.linear.krylov import Curvature
from hypergrad.tree import Layout, Tree

FEW = 3
"""Most hyperparameter entries for which forward mode is taken where back-propagation does not fit."""
STATIONARY = 0.01
"""Largest relative change of the outer loss that the rest of training may bring."""


def choose(
    problem: Problem,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Any],
    *,
    inner: InnerSolver | None = None,
    accuracy: float = 1e-4,
    most: int = 200,
    memory: float | None = None,
    measure: bool = True,
) -> Choice:
    """Look at a problem and choose an algorithm for it: estimator, linear solver, number of terms, damping.

    How the hyperparameters enter (:func:`~hypergrad.kinds`), how far training is from its optimum there, and the
    curvature as ∂f/∂θ sees it (20 products) decide, with the bytes that a graph holds. Times are measured for the
    forecast and decide nothing: the same problem has the same choice on every machine with ``memory`` given.

    Args:
        problem: the problem.
        params: where training starts, or trained parameters where there is no ``inner``.
        hparams: λ; discrete ones are refused by name.
        inner: how training goes, if the parameters are not trained already. An update rule has to have ``steps``.
        accuracy: relative residual that linear solves go to, above 0.
        most: most products of a linear solve, at least 1.
        memory: what one step may hold in MiB, above 0; half of the machine's or the device's memory by default.
        measure: whether to make the passes once more for the forecast's seconds.

    Returns:
        A :class:`~hypergrad.Choice`; ``print`` shows its reason and forecast.

    Cost: training once, where there is something to see at its end; 2 inner gradients, at most 21 products, 1 outer
    gradient and the evaluations of :func:`~hypergrad.kinds`. With ``measure`` 6 inner gradients, 3 products, 3 outer
    gradients more and, for the time only and not counted in ``cost``, training again where it takes less than ten
    seconds, or twelve training steps with their derivatives.

    Raises:
        UnsupportedError: hyperparameters that no algorithm here can see, by name.
        UnreachedError: one that nothing reads, such as a learning rate that no update rule reads.
        CutError: one that moves a value although no gradient flows.
        InputError: a setting out of range.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - 1) ** 2 + hparams["x"] * params["w"] ** 2).sum(),
        ...     outer=lambda params, hparams: (params["w"] - 0.5).square().sum(),
        ... )
        >>> choice = hg.choose(problem, {"w": torch.zeros(3)}, {"x": torch.tensor(0.5)}, inner=hg.LBFGS())
        >>> choice.plan.estimator, choice.plan.linear
        ('implicit', 'CG')
    """
    check_number("choose", "accuracy", accuracy, above=0)
    check_count("choose", "most", most)
    if memory is not None:
        check_number("choose", "memory", memory, above=0)
    if inner is not None and not isinstance(inner, InnerSolver):
        raise InputError(
            f"choose(inner={inner!r})", "an inner solver", "pass hypergrad.LBFGS(), an object, not a class"
        )
    counter = _Counted(problem)
    entries = kinds(counter.problem, params, hparams, inner=inner)
    _refuse_discrete(entries)
    params, checked = problem.check_inputs(params, hparams)
    chooser = _Chooser(problem, tree.detached(params), checked, inner, entries)
    return chooser.choose(accuracy, most, memory, measure=measure, spent=Cost(outer_values=counter.calls))


class _Counted:
    """The problem with an outer objective that counts its calls."""

    def __init__(self, problem: Problem) -> None:
        self.calls, self._outer = 0, UserFunction("outer", problem.outer)
        self.problem = problem.with_outer(self._call)

    def _call(self, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        self.calls += 1
        value: Tensor = self._outer(params, hparams, batch)
        return value


def _refuse_discrete(entries: dict[str, Entry]) -> None:
    discrete = [name for name, entry in entries.items() if entry.kind == Kind.DISCRETE]
    if discrete:
        raise UnsupportedError(
            passed=f"hparams {discrete}, which are whole numbers or categories",
            expected="hyperparameters with a derivative",
            do="tune them with hypergrad.best_response (Integer, Choice), which learns the response to their "
            "perturbations (the others go on beside them: SelfTuning(besides=Live(...))), or search over them outside",
        )


class _Chooser:
    """One look at one problem."""

    def __init__(
        self, problem: Problem, params: Tree, hparams: Tree, inner: InnerSolver | None, entries: dict[str, Entry]
    ) -> None:
        self.problem, self.params, self.hparams, self.inner = problem, params, hparams, inner
        self.entries = entries
        self.path = [name for name, entry in entries.items() if entry.kind in (Kind.OPTIMIZER, Kind.INITIAL)]
        self.inside = [name for name, entry in entries.items() if entry.kind == Kind.INNER]
        self.rest = [name for name in entries if name not in self.path]
        self.lines = [_described(entries, hparams)]
        self.trained, self.training, self.training_seconds = False, Cost(), 0.0

    def choose(self, accuracy: float, most: int, memory: float | None, *, measure: bool, spent: Cost) -> Choice:
        """Train if need be, look, decide, and write down why."""
        rule = self.inner if isinstance(self.inner, UpdateRule) and self.inner.steps is not None else None
        if self.path and self.inner is None:
            raise self._no_training()
        if not self.path and self.inner is not None:
            self.params, self.training = self._train(measure=measure)
            spent, self.trained = spent + self.training, True
        seen = probe(self.problem, self.params, self.hparams, bend=bool(self.inside), measure=measure)
        limit = (memory * 2**20) if memory is not None else _half(tree.device_of(self.params))
        if self.path and rule is None:
            plan = self._black_box()
        elif self.path:
            plan = self._along_training(seen, limit, accuracy, most)
        elif not self.inside:
            self._say("direct: only the outer objective reads them, so dF/dλ = ∂f/∂λ; no linear solve")
            plan = Plan("direct")
        elif rule is not None and seen.change > STATIONARY and self._keep(seen, limit) is not None:
            plan = self._short_training(seen, limit)
        else:
            plan = self._implicitly(seen, limit, accuracy, most)
        algorithm = plan.build(self.inner)
        forecast = self._forecast(plan, seen)
        top = seen.curvature.top if seen.curvature is not None else math.nan
        params, reason = self.params, "\n".join(self.lines)
        return Choice(algorithm, plan, reason, self.entries, forecast, spent + seen.cost, params, self.trained, top)

    def _say(self, line: str) -> None:
        self.lines.append(line)

    def _train(self, *, measure: bool) -> tuple[Tree, Cost]:
        assert self.inner is not None
        device, results = tree.device_of(self.params), list[InnerResult]()
        draws, inner = guards.Draws.capture(device, self.problem.inner_data), self.inner

        def run() -> None:
            with guards.again(draws), guards.pinned_rng(device):
                results.append(inner.run(self.problem, self.params, tree.detached(self.hparams)))

        seconds = timed(run, device, repeats=1)
        if measure and seconds < 10:  # a first run also loads what it uses
            seconds = timed(run, device, repeats=1)
        self.training_seconds = seconds
        return tree.detached(results[0].params), results[0].cost

    def _no_training(self) -> UnsupportedError:
        return UnsupportedError(
            passed=f"hparams {self.path}, which enter where training starts or how it goes, without an inner solver",
            expected="how to train: such hyperparameters have no implicit hypergradient",
            do="pass inner=hypergrad.GradientDescent(lr=..., steps=...) or another update rule",
        )

    def _black_box(self) -> Plan:
        size = Layout.of(self.hparams).size
        if any(self.entries[name].kind == Kind.OPTIMIZER for name in self.path) or size > 50:
            raise UnsupportedError(
                passed=f"hparams {self.path}, which enter training, with {type(self.inner).__name__}",
                expected="an update rule with steps=, which can be differentiated: a learning rate has no implicit "
                "hypergradient",
                do="pass inner=hypergrad.GradientDescent(lr=..., steps=...) or hypergrad.Adam(lr=..., steps=...)",
            )
        self._say(
            f"zeroth-order: {self.path} enter where training starts, and {type(self.inner).__name__} cannot be "
            f"differentiated; {2 * size + 1} training runs for {size} entries"
        )
        return Plan("zeroth-order")

    def _along_training(self, seen: Probe, limit: float, accuracy: float, most: int) -> Plan:
        steps, entries = length(self.inner), _entries(self.hparams, self.path)
        names = f"{self.path} enter how training goes, which no implicit hypergradient sees"
        if self._held(seen, "graph") <= limit:
            self._say(
                f"unrolled: {names}; the graph of {steps} steps holds {_mib(self._held(seen, 'graph'))}, which fits"
            )
            return Plan("unrolled", keep="graph")
        if entries <= FEW:
            self._say(
                f"forward: {names}; the graph of {steps} steps would hold {_mib(self._held(seen, 'graph'))}, more than "
                f"the limit of {_mib(limit)}, and {entries} tangents hold {_mib(2 * entries * seen.vector)}"
            )
            if not self.rest:
                return Plan("forward")
            self._say(f"implicit for {self.rest}, where that training ends: it costs no tangents")
            return Plan("forward+implicit", terms=most, accuracy=accuracy, path=self.path, rest=self.rest)
        keep = self._keep(seen, limit) or "log"
        self._say(
            f'unrolled: {names}; their {entries} entries are too many for forward mode, and keep="{keep}" holds '
            f"{_mib(self._held(seen, keep))} where the graph would hold {_mib(self._held(seen, 'graph'))}"
        )
        return Plan("unrolled", keep=keep)

    def _short_training(self, seen: Probe, limit: float) -> Plan:
        steps, keep = length(self.inner), self._keep(seen, limit)
        assert keep is not None
        self._say(
            f"unrolled: after {steps} steps ‖∇g‖ is {seen.gap:.3g}, and training on would change the outer loss by "
            f"{seen.change:.1%}, more than {STATIONARY:.0%}: the implicit formula would be biased"
        )
        self._say(f'keep="{keep}": {_mib(self._held(seen, keep))} for {steps} steps, limit {_mib(limit)}')
        return Plan("unrolled", keep=keep)

    def _held(self, seen: Probe, keep: str) -> float:
        """Return the bytes that back-propagation holds: graphs of steps, or iterates with their slots."""
        return _snapshots(seen, length(self.inner), keep, 1 + len(freed(self.inner).start(self.params)))

    def _keep(self, seen: Probe, limit: float) -> str | None:
        fitting = (keep for keep in ("graph", "iterates", "sqrt", "log") if self._held(seen, keep) <= limit)
        return next(fitting, None)

    def _implicitly(self, seen: Probe, limit: float, accuracy: float, most: int) -> Plan:
        if seen.curvature is None:
            return self._unseen(seen, accuracy, most)
        far = seen.change > STATIONARY
        self._say(
            f"implicit: ‖∇g‖ is {seen.gap:.3g}; training on would change the outer loss by {seen.change:.2g}"
            + (", so this hypergradient is biased: train longer" if far else " of itself, so θ is an optimum")
        )
        bend, size = seen.curvature, seen.size
        of = "preconditioned Hessian" if seen.preconditioned else "Hessian"
        if self.problem.saddle:
            self._say("MINRES: the Lagrangian's Hessian is indefinite by nature")
            return Plan("implicit", "MINRES", most, accuracy)
        noise = 100 * torch.finfo(next(iter(self.params.values())).dtype).eps * abs(bend.top)
        if bend.bottom < -noise or not math.isfinite(bend.bottom):
            return self._indefinite(seen, accuracy, most)
        terms = bend.terms(accuracy, size)
        shape = f"the {of} is positive definite, curvature {bend.bottom:.3g} to {bend.top:.3g}"
        if terms >= size and size <= most:
            self._say(f"Dense: {shape} (condition {bend.condition:.3g}), and CG would need all {size} products")
            return Plan("implicit", "Dense", size, accuracy)
        if seen.graph + 2 * seen.vector <= limit < seen.graph + 5 * seen.vector:
            self._say(f"Neumann: {shape}; CG's five vectors do not fit into {_mib(limit)}, two do")
            return Plan("implicit", "Neumann", most, accuracy)
        self._say(
            f"CG: {shape} (condition {bend.condition:.3g}); about {terms} products to a residual of {accuracy:.0e}"
            + (f", cut at {most}" if terms > most else "")
        )
        return Plan("implicit", "CG", min(most, 2 * terms + 5), accuracy)

    def _unseen(self, seen: Probe, accuracy: float, most: int) -> Plan:
        if seen.symmetric:
            self._say(f"implicit: no linear solve is needed, or ∂f/∂θ = 0 (‖∇g‖ is {seen.gap:.3g})")
            return Plan("implicit", "MINRES" if self.problem.saddle else "CG", most, accuracy)
        dense = seen.size <= 32
        self._say(
            f"implicit, {'Dense' if dense else 'GMRES'}: a root or fixed point, whose Jacobian is not symmetric; "
            f"{seen.size} unknowns; the residual's norm is {seen.gap:.3g}"
        )
        return Plan("implicit", "Dense" if dense else "GMRES", seen.size if dense else most, accuracy)

    def _indefinite(self, seen: Probe, accuracy: float, most: int) -> Plan:
        bend = seen.curvature
        assert bend is not None
        shape = f"negative curvature {bend.bottom:.3g} against {bend.top:.3g}: no strict minimum"
        if seen.preconditioned or not abs(bend.bottom) <= 0.1 * bend.top:
            self._say(f"MINRES: {shape}")
            return Plan("implicit", "MINRES", most, accuracy)
        damping = 2 * abs(bend.bottom)
        self._say(f"CG with damping {damping:.3g}: {shape}, which damping lifts at the price of a bias")
        return Plan("implicit", "CG", most, accuracy, damping)

    def _rehearsed(self, plan: Plan, steps: int) -> float:
        """Return the seconds of a step, from those with one and with three training steps."""
        device, seconds = tree.device_of(self.params), []
        draws = guards.Draws.capture(device, self.problem.inner_data, self.problem.outer_data)
        for count in (1, 3):
            whole: Any = plan.build(self.inner)
            short = dataclasses.replace(whole, steps=count)
            state = dataclasses.replace(short.init(self.problem, self.params, tree.detached(self.hparams)), steps=1)

            def run(short: Any = short, state: Any = state) -> None:
                with guards.again(draws):
                    short.step(self.problem, state, tree.leaves(self.hparams))

            seconds.append(timed(run, device))
        first, third = seconds
        return max(first, first + (steps - 1) * (third - first) / 2)

    def _claimed(self, plan: Plan, size: int, bend: Curvature | None) -> Cost:
        """Return the passes of a step that differentiates or repeats training."""
        if plan.estimator != "forward+implicit":
            return plan.build(self.inner).budget(size, _entries(self.hparams, list(self.hparams)))
        forward = Plan("forward").build(self.inner).budget(size, _entries(self.hparams, plan.path))
        terms = plan.terms if bend is None else min(plan.terms, bend.terms(plan.accuracy, size))
        return forward + Cost(inner_gradients=1, products=terms + 1, outer_gradients=1)

    def _forecast(self, plan: Plan, seen: Probe) -> Forecast:
        """Return passes, seconds and memory of one step from cold."""
        hparams = Layout.of(self.hparams).size
        times, vector = seen.times, seen.vector
        if plan.estimator in ("implicit", "direct"):
            bend = seen.curvature
            terms = 0 if bend is None else min(plan.terms, bend.terms(plan.accuracy, seen.size, plan.damping))
            solve = plan.terms if plan.linear in ("Dense", "GMRES", "Neumann") else terms
            training = self.training
            products = solve + 1 if plan.estimator == "implicit" else 0
            gradients = int(plan.estimator == "implicit")
            cost = training + Cost(inner_gradients=gradients, products=products, outer_gradients=1)
            seconds = self.training_seconds + _sum(
                (gradients, times.gradient),
                (products, times.product),
                (1, times.outer),
            )
            solving = 2 * seen.graph + 7 * vector + 2 * hparams * vector / seen.size  # a product holds as much again
            history = 2 * getattr(self.inner, "memory", 0) * vector
            return Forecast(cost, seconds, max(solving, 2 * seen.graph + history + 6 * vector) / 2**20)
        claimed = self._claimed(plan, seen.size, seen.curvature)
        steps = length(self.inner) if plan.estimator != "zeroth-order" else 0
        recorded = steps if plan.estimator != "zeroth-order" else 0
        if plan.estimator in ("unrolled", "forward") and plan.keep in ("graph", "iterates") and times.product > 0:
            seconds = self._rehearsed(plan, steps)
        else:
            seconds = _sum(
                (claimed.inner_gradients - recorded, times.training),
                (recorded, times.gradient),
                (claimed.products, times.product),
                (claimed.outer_gradients + claimed.outer_values, times.outer),
            )
        tangents = 2 * _entries(self.hparams, self.path) * vector
        held = self._held(seen, plan.keep) if plan.estimator == "unrolled" else 2 * seen.graph + tangents + 2 * vector
        return Forecast(claimed, seconds, (held + 4 * vector) / 2**20)


def _entries(hparams: Tree, names: list[str]) -> int:
    return sum(hparams[name].numel() for name in names)


def _snapshots(seen: Probe, steps: int, keep: str, trees: int = 1) -> float:
    """Return the bytes that back-propagation holds: graphs of steps, or iterates and the graph of one step."""
    if keep == "graph":
        return (seen.graph + 2 * seen.vector) * steps  # every step also holds its own θ and gradient
    kept = {"iterates": steps, "sqrt": 2 * math.isqrt(steps) + 1, "log": math.ceil(math.log2(steps + 1)) + 1}[keep]
    return seen.graph + kept * seen.vector * trees


def _sum(*parts: tuple[int, float]) -> float:
    return sum(count * each for count, each in parts if count)


def _described(entries: dict[str, Entry], hparams: Tree) -> str:
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        groups.setdefault(str(entry.kind), []).append(f"{name} ({hparams[name].numel()})")
    shown = [f"{kind}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" for kind, names in groups.items()]
    return "hyperparameters by where they enter, with their entries: " + "; ".join(shown)


def _mib(count: float) -> str:
    return f"{count / 2**20:.3g} MiB"


def _half(device: torch.device) -> float:
    """Return half of the memory of the device, or of this machine; what is free now would change from run to run."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    return 4 * 2**30
