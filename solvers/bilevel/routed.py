"""Hyperparameters of several kinds in one run, each with the algorithm that can see it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, check_algorithm, replayed
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.inner import InnerSolver
from hypergrad.kinds import Kind, kinds, reads
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.direct import Direct
from hypergrad.solvers.bilevel.implicit import Implicit
from hypergrad.solvers.bilevel.restricted import holding, restricted
from hypergrad.tree import Tree

Key = str | tuple[str, ...]
BLIND: dict[type, tuple[str, ...]] = {Implicit: ("optimizer", "initial"), Direct: ("optimizer", "initial", "inner")}
"""Places at which an algorithm does not see a hyperparameter."""


@final
@dataclass(frozen=True)
class RoutedState:
    """What :class:`Routed` remembers between steps.

    Attributes:
        params: where the next training starts.
        steps: hypergradients taken.
        parts: the state of each route, by its place; after a load a plain dict of its fields.
    """

    params: Tree
    steps: int = 0
    parts: dict[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Routed(Algorithm[RoutedState]):
    """One hypergradient from several algorithms, each for the hyperparameters that it can see.

    A penalty enters the inner objective, a learning rate the update rule, a threshold the outer objective alone:
    implicit differentiation sees the first, back-propagation through training the second, and the third needs neither.

    1. The leader trains: the first route that is neither :class:`~hypergrad.Implicit` nor :class:`~hypergrad.Direct`,
       or without one the first with an inner solver.
    2. Every other route of these two kinds begins where the leader's training ended: with ``inner=None`` it trains
       nothing. Routes of other kinds train for themselves, from the same start and with the same batches.
    3. Each route sees the problem as a function of its own hyperparameters while the others are held, on the same outer
       batch. The entries are put together.

    θ and the outer loss that are returned are the leader's.

    Args:
        routes: from a hyperparameter's name, or a tuple of names, to an algorithm. Every hyperparameter has one route.

    Cost: the sum over the routes, ``Implicit(inner=None)`` and ``Direct()`` without training of their own; at the first
    step one evaluation of the inner objective.

    Raises:
        InputError: a hyperparameter with two routes or with none.
        UnsupportedError: a hyperparameter that its algorithm does not see, such as a learning rate with ``Implicit``.
        CutError: one that moves a value although no gradient flows.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: (params["w"] ** 2).sum() - hparams["x"] * params["w"].sum(),
        ...     outer=lambda params, hparams: 0.5 * ((params["w"] - 1) ** 2).sum(),
        ... )
        >>> rule = hg.GradientDescent(lr=hg.Tuned("lr"))
        >>> routed = hg.Routed({"lr": hg.Unrolled(5, rule), "x": hg.Implicit(stationarity=9.0)})
        >>> hparams = {"x": torch.tensor(1.0), "lr": torch.tensor(0.1)}
        >>> hg.hypergradient(problem, {"w": torch.zeros(1)}, hparams, routed).grads["lr"]
        tensor(-1.3595)
    """

    routes: Mapping[Key, Algorithm[Any]]
    order = 2
    cost = "the sum over the routes, training shared"
    needs = "for every hyperparameter an algorithm that sees it"

    def __post_init__(self) -> None:
        """Refuse what is no route, and two routes for one hyperparameter."""
        if not isinstance(self.routes, Mapping) or not self.routes:
            raise InputError(
                passed=f"Routed({self.routes!r})",
                expected="a mapping from names of hyperparameters to algorithms",
                do='pass hypergrad.Routed({"penalty": hypergrad.Implicit(), "lr": hypergrad.Unrolled(...)})',
            )
        claimed: list[str] = []
        for key, algorithm in self.routes.items():
            check_algorithm(algorithm)
            names = key if isinstance(key, tuple) else (key,)
            if not names or not all(isinstance(name, str) for name in names):
                raise InputError(f"Routed with the key {key!r}", "a name, or a tuple of names", "rename the key")
            claimed += _names(key)
        twice = sorted({name for name in claimed if claimed.count(name) > 1})
        if twice:
            raise InputError(
                passed=f"Routed with two routes for the hyperparameters {twice}",
                expected="one route for each hyperparameter",
                do="take them out of all keys but one",
            )

    @classmethod
    def by_kind(
        cls,
        problem: Problem,
        params: Mapping[str, Tensor],
        hparams: Mapping[str, Tensor],
        algorithms: Mapping[Kind | str, Algorithm[Any]],
    ) -> Routed:
        """Return the routing that sends every hyperparameter to the algorithm for its :class:`~hypergrad.Kind`.

        Args:
            problem: the problem.
            params: θ.
            hparams: λ.
            algorithms: under each kind that occurs, ``"inner"``, ``"optimizer"``, ``"initial"`` or ``"outer"``.

        Raises:
            InputError: a kind that occurs and has no algorithm, or a name that is no kind.
        """
        for algorithm in algorithms.values():
            check_algorithm(algorithm)
        rules = [getattr(algorithm, "inner", None) for algorithm in algorithms.values()]
        rule = next((rule for rule in rules if isinstance(rule, InnerSolver)), None)
        found = kinds(problem, params, hparams, inner=rule)
        wanted = {str(entry.kind): [n for n, e in found.items() if e.kind == entry.kind] for entry in found.values()}
        lacking = {kind: names for kind, names in wanted.items() if kind not in algorithms}
        unknown = [str(kind) for kind in algorithms if kind not in list(Kind)]
        if lacking or unknown:
            raise InputError(
                passed=f"Routed.by_kind with no algorithm for {lacking}" + (f" and with {unknown}" if unknown else ""),
                expected=f"an algorithm for each kind that occurs: {sorted(wanted)}",
                do="pass them; discrete hyperparameters have no derivative: see hypergrad.best_response",
            )
        return cls({tuple(names): algorithms[kind] for kind, names in wanted.items()})

    @property
    def exact(self) -> bool:
        """Whether all routes are."""
        return all(algorithm.exact for algorithm in self.routes.values())

    @property
    def stochastic(self) -> bool:
        """Whether any route draws random directions."""
        return any(algorithm.stochastic for algorithm in self.routes.values())

    @property
    def elsewhere(self) -> bool:  # type: ignore[override]
        """Whether any route evaluates the objectives at other hyperparameters."""
        return any(algorithm.elsewhere for algorithm in self.routes.values())

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the sum over the routes, as if each had all the hyperparameters: at most this."""
        parts = [algorithm.budget(params_size, hparams_size) for algorithm in self.routes.values()]
        return sum(parts, start=Cost())

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> RoutedState:
        """Check the inputs, and that every hyperparameter has a route."""
        params, checked = problem.check_inputs(params, hparams)
        claimed = [name for key in self.routes for name in _names(key)]
        lost, extra = [n for n in checked if n not in claimed], [n for n in claimed if n not in checked]
        if lost or extra:
            raise InputError(
                passed=f"Routed with no route for the hyperparameters {lost}"
                + (f" and with routes for {extra}, which are none" if extra else ""),
                expected=f"one route for each of {list(checked)}",
                do="add the missing names to the keys of Routed, and take out the others",
            )
        checked = tree.detached(checked)
        parts = {str(place): self._begin(problem, params, checked, key) for place, key in enumerate(self.routes)}
        return RoutedState(tree.detached(params), 0, parts)

    def response(self, problem: Problem, state: RoutedState, hparams: Tree) -> Tree:
        """Return the leader's θ."""
        place = self._leader
        route = _Route(self, problem, tree.detached(hparams), place)
        return route.algorithm.response(route.problem, self._part(state, problem, hparams, place), route.own)

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return the leader's θ with a backward pass of all routes."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: RoutedState, hparams: Tree) -> tuple[Hypergradient, RoutedState]:
        """Let the leader train and every route give its entries."""
        device = tree.device_of(state.params)
        watch = Stopwatch(device)
        if state.steps == 0:
            with guards.pinned_rng(device):
                self._check_kinds(problem, state.params, hparams)
        start = problem.draws(device)
        outer = None if problem.outer_data is None else problem.outer_data.state_dict()
        found: dict[int, Hypergradient] = {}
        parts = {}
        for place in self._order:
            route = _Route(self, problem, hparams, place)
            part: Any = self._part(state, problem, hparams, place)
            if found and route.follows:
                part = dataclasses.replace(part, params=found[self._leader].params)
            elif found:
                start.restore()
            if found and outer is not None:
                assert problem.outer_data is not None
                problem.outer_data.load_state_dict(outer)
            found[place], parts[str(place)] = route.algorithm.step(route.problem, part, route.own)
        result = self._merged(found, hparams, watch)
        following: Any = parts[str(self._leader)]
        return result, RoutedState(following.params, state.steps + 1, parts)

    @property
    def _leader(self) -> int:
        return next(iter(self._order))

    @property
    def _order(self) -> list[int]:
        """Places of the routes, the leader first, those that follow it last."""

        def rank(place: int) -> int:
            algorithm = list(self.routes.values())[place]
            if not isinstance(algorithm, Implicit | Direct):
                return 0
            return 2 if algorithm.inner is None else 1

        return sorted(range(len(self.routes)), key=rank)

    def _begin(self, problem: Problem, params: Tree, hparams: Tree, key: Key) -> Any:
        route = _Route(self, problem, hparams, list(self.routes).index(key))
        return route.algorithm.init(route.problem, params, route.own)

    def _part(self, state: RoutedState, problem: Problem, hparams: Tree, place: int) -> Any:
        """Return a route's state: built again where a load left its fields only, and where the run stands now."""
        part = state.parts[str(place)]
        if isinstance(part, Mapping):
            like = self._begin(problem, state.params, tree.detached(hparams), list(self.routes)[place])
            part = tree.unpack(like, part)
        start = state.params if place == self._leader else part.params
        return dataclasses.replace(part, steps=state.steps, params=start)

    def _check_kinds(self, problem: Problem, params: Tree, hparams: Tree) -> None:
        rules = [getattr(a, "inner", None) for a in self.routes.values() if not isinstance(a, Implicit | Direct)]
        rule = next((rule for rule in rules if isinstance(rule, InnerSolver)), None)
        places = reads(problem, params, hparams, inner=rule, places=("optimizer", "initial", "inner"))
        for key, algorithm in self.routes.items():
            blind = set(BLIND.get(type(algorithm), ()))
            lost = {name: sorted(blind & set(places[name])) for name in _names(key) if blind & set(places[name])}
            if lost:
                raise UnsupportedError(
                    passed=f"hparams {list(lost)} with {type(algorithm).__name__}, which does not see where they "
                    f"enter: {lost}",
                    expected="an algorithm that sees them: a learning rate or a start has no implicit hypergradient, "
                    "and what the inner objective reads has more than a direct one",
                    do="route what the update rule or the start reads to hypergrad.Unrolled or hypergrad.ForwardMode, "
                    "what the inner objective reads to hypergrad.Implicit",
                )

    def _merged(self, found: dict[int, Hypergradient], hparams: Tree, watch: Stopwatch) -> Hypergradient:
        first = found[self._leader]
        ordered = [found[place] for place in sorted(found)]
        grads = {name: value for result in ordered for name, value in result.grads.items()}
        reports = [result.report for result in ordered]
        notes: dict[str, str] = {}
        for report in reports:
            for kind, text in report.notes.items():
                notes[kind] = f"{notes[kind]}; {text}" if kind in notes else text
        report = Report(
            algorithm=repr(self),
            status=", ".join(dict.fromkeys(report.status for report in reports)),
            outer_loss=first.report.outer_loss,
            cost=sum((report.cost for report in reports), start=Cost()),
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
            residual=_largest(report.residual for report in reports),
            negative_curvature=any(report.negative_curvature for report in reports),
            inner_gradient_norm=_largest(report.inner_gradient_norm for report in reports),
            implied_error=_largest(report.implied_error for report in reports),
            notes=notes,
        )
        return Hypergradient({name: grads[name] for name in hparams}, first.params, first.outer_loss, report)


class _Route:
    """One algorithm with its hyperparameters, and the problem as a function of these."""

    def __init__(self, routed: Routed, problem: Problem, hparams: Tree, place: int) -> None:
        key, algorithm = list(routed.routes.items())[place]
        names = set(_names(key))
        self.own = {name: value for name, value in hparams.items() if name in names}
        held = {name: value.detach() for name, value in hparams.items() if name not in names}
        self.follows = isinstance(algorithm, Implicit | Direct)
        self.algorithm, self.problem = holding(algorithm, held), restricted(problem, held)


def _names(key: Key) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


def _largest(numbers: Iterator[float]) -> float:
    """Return the largest number that is known, NaN for none."""
    return max((number for number in numbers if not math.isnan(number)), default=math.nan)
