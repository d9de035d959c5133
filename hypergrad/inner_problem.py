"""The inner problem's functions: their values, gradients and graphs, with checks of what they return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards
from hypergrad.backward import pulled_back
from hypergrad.errors import ObjectiveError, UnreachedError, UnsupportedError
from hypergrad.objective import UserFunction
from hypergrad.stationarity import Stationarity, explained
from hypergrad.tree import Layout, Tree, attached, detached, device_of, leaves


@final
@dataclass(frozen=True)
class InnerProblem:
    """argmin of an objective with its penalty, or the root of a condition.

    Attributes:
        function: the objective g, the condition R, or ``None`` where nothing but the solution is known.
        root: whether ``function`` is a condition.
        penalty: an elementwise part of the objective, or ``None``.
        saddle: whether ``function`` is a Lagrangian, which is not to be minimised.
        repairs: kernels that its graphs were seen to hold and that have to be replaced.
        looks: how often its graph was asked for by a loop, and what it was last seen to reach.
    """

    function: UserFunction | None
    root: bool
    penalty: UserFunction | None
    saddle: bool = False
    repairs: set[str] = field(default_factory=set)
    looks: _Looks = field(default_factory=lambda: _Looks())  # noqa: PLW0108 - defined below

    def value(self, params: Tree, hparams: Tree, batch: Any = None) -> Tensor:
        """Return g(θ, λ) with its penalty, a differentiable scalar.

        Raises:
            UnsupportedError: a root or fixed point, which has no objective, or a Lagrangian, which has no minimum.
            ObjectiveError: not a scalar, or not differentiable.
        """
        self.check_descent()
        value, penalty = self._evaluated(params, hparams, batch)
        if isinstance(value, dict):
            raise UnsupportedError(
                passed="a root or fixed point",
                expected="an inner objective, whose value a line search compares",
                do="use hypergrad.GradientDescent(lr=1.0), which iterates the map, or hypergrad.Newton",
            )
        return value if penalty is None else value + penalty

    def gradient(self, params: Tree, hparams: Tree, batch: Any = None) -> tuple[Tensor, Tree]:
        """Return g(θ, λ) with its penalty and ∇_θ g; the parameters must require grad."""
        with torch.enable_grad():
            value = self.value(params, hparams, batch)
        return value.detach(), _gradient(value, params, create_graph=False)

    def residual(
        self, params: Tree, hparams: Tree, batch: Any = None, *, create_graph: bool = False, inspect: bool = True
    ) -> Tree:
        """Return ∇_θ g(θ, λ), or the condition R(θ, λ), as a tree; the parameters must require grad.

        With ``create_graph`` the result can be differentiated, after the checks of :meth:`linearise` unless ``inspect``
        is off.

        Cost: one evaluation with its gradient.
        """
        if create_graph:
            data, penalty, _ = self._recorded(params, hparams, batch, inspect=inspect)
        else:
            with torch.enable_grad():
                data, penalty = self._evaluated(params, hparams, batch)
        if isinstance(data, dict):
            return data if create_graph else detached(data)
        return _gradient(_sum(data, penalty), params, create_graph=create_graph)

    def linearise(
        self,
        params: Mapping[str, Tensor],
        hparams: Mapping[str, Tensor],
        batch: Any = None,
        *,
        tangents: bool = False,
        looping: bool = False,
    ) -> Stationarity:
        """Return the residual at a point with its graph, from which all products are taken.

        Masks drawn in the forward pass are part of the graph, so every product sees the same function.
        Hyperparameters that require grad are used as they are, which lets a closure over them be differentiated.
        With ``tangents`` the same pass prepares directional derivatives along the hyperparameters. With ``looping`` the
        graph is looked at the first, second, fourth, eighth time and so on, since the look takes longer than a small
        graph's products.

        Cost: one evaluation with its gradient.

        Raises:
            ObjectiveError: not a scalar, not differentiable, or differentiable once only.
            WrappedModuleError: a graph that a compiled function recorded.
            UnreachedError: a parameter that the inner problem does not use.
        """
        if tangents:
            self.check_descent()
        params, hparams = leaves(params), attached(hparams)
        inspect = not looping or self.looks.due(hparams)
        data, penalty, facts = self._recorded(params, hparams, batch, inspect=inspect)
        if inspect:
            self.looks.reached = frozenset(key for key, tensor in hparams.items() if facts.reaches(tensor))
        reached = self.looks.reached
        if isinstance(data, dict):
            return Stationarity(params, hparams, data, None, None, reached)
        if tangents:
            value = _sum(data, penalty)
            both = _gradient(value, {**params, **{f"hparams/{k}": v for k, v in hparams.items()}}, create_graph=True)
            slopes = {key: both.pop(f"hparams/{key}") for key in hparams}
            return Stationarity(params, hparams, both, None, value, reached, slopes)
        gradient = _gradient(data, params, create_graph=True)
        if penalty is None:
            return Stationarity(params, hparams, gradient, None, data, reached)
        shrinkage = _gradient(penalty, params, create_graph=True)
        return Stationarity(params, hparams, gradient, shrinkage, _sum(data, penalty), reached)

    def products(self, params: Tree, hparams: Tree, cotangents: Tree, batch: Any = None) -> InnerProducts:
        """Return ∇_θ g, H v and (∂²g/∂θ∂λ)ᵀ v of an objective without a penalty, in a loop that asks again and again.

        The same as :meth:`linearise` with ``looping`` and one product, without what serves many products at a point.

        Cost: one evaluation with its gradient, and one reverse pass through it.

        Raises:
            ObjectiveError: as :meth:`linearise`.
            WrappedModuleError: as :meth:`linearise`.
            UnreachedError: as :meth:`linearise`.
        """
        params, hparams = leaves(params), attached(hparams)
        inspect = self.looks.due(hparams)
        value, _, facts = self._recorded(params, hparams, batch, inspect=inspect)
        if inspect:
            self.looks.reached = frozenset(key for key, tensor in hparams.items() if facts.reaches(tensor))
        assert isinstance(value, Tensor)
        points, inputs = tuple(params.values()), (*params.values(), *hparams.values())
        slopes = pulled_back([value], points, record=True)
        pairs = zip(cotangents.values(), slopes, strict=True)
        ends = [(s, v) for v, s in pairs if s is not None and s.requires_grad]
        with explained():
            pulled = pulled_back([s for s, _ in ends], inputs, [v for _, v in ends]) if ends else [None] * len(inputs)
        found = [
            p if p is not None else torch.zeros_like(x, requires_grad=False)
            for x, p in zip(inputs, pulled, strict=True)
        ]
        first = [
            s.detach() if s is not None else torch.zeros_like(x, requires_grad=False)
            for x, s in zip(points, slopes, strict=True)
        ]
        return InnerProducts(
            first, found[: len(points)], dict(zip(hparams, found[len(points) :], strict=True)), self.looks.reached
        )

    def check_reach(self, params: Tree, hparams: Tree, batch: Any) -> None:
        """Raise :class:`~hypergrad.errors.UnreachedError` for parameters that it does not use; random numbers stay.

        Cost: one evaluation.
        """
        if self.function is None:
            return
        with guards.pinned_rng(device_of(params)):
            self._recorded(leaves(params), attached(hparams), batch)

    def check_penalty(self, params: Tree, hparams: Tree) -> None:
        """Raise :class:`~hypergrad.errors.ObjectiveError` for a penalty that is not elementwise; random numbers stay.

        Cost: one gradient of the penalty and two products with it.
        """
        if self.penalty is None:
            return
        points, layout = leaves(params), Layout.of(params)
        with guards.pinned_rng(device_of(params)), torch.enable_grad():
            value = self.penalty.scalar(points, attached(hparams), None, differentiable=True)
        penalty = Stationarity(points, {}, _gradient(value, points, create_graph=True), None, value)
        generator = torch.Generator().manual_seed(0)
        v = torch.rand(layout.size, dtype=torch.float64, generator=generator).add_(0.5).to(layout.zeros())
        product, expected = penalty.hvp(v), v * penalty.hvp(torch.ones_like(v))
        gap = (product - expected).abs()
        if bool((gap > 1e-3 * expected.abs().max()).any()):
            raise ObjectiveError(
                passed=f"a penalty that couples the entries of params[{layout.name_at(int(gap.argmax()))!r}]",
                expected="an elementwise penalty, a sum of functions of one entry each, whose Hessian is a diagonal",
                do="add this term to inner instead",
            )

    def check_descent(self) -> None:
        """Raise UnsupportedError where there is nothing to descend: a saddle, or no objective."""
        self._check_known()
        if self.saddle:
            raise UnsupportedError(
                passed="a problem with constraints and a method that descends, or that differentiates descent",
                expected="a method that finds the saddle of its Lagrangian",
                do="use hypergrad.Implicit(hypergrad.MINRES(), inner=hypergrad.Newton()), or as inner your own solver: "
                "hypergrad.Training(train)",
            )

    def _evaluated(self, params: Tree, hparams: Tree, batch: Any) -> tuple[Tensor | Tree, Tensor | None]:
        self._check_known()
        assert self.function is not None
        if self.root:
            return self.function.tree(params, hparams, batch), None
        value = self.function.scalar(params, hparams, batch, differentiable=True)
        if self.penalty is None:
            return value, None
        return value, self.penalty.scalar(params, hparams, None, differentiable=True)

    def _check_known(self) -> None:
        if self.function is None:
            raise UnsupportedError(
                passed="a problem with response_vjp and no inner objective",
                expected="an algorithm that asks for the solution and its derivative only",
                do="use hypergrad.Implicit(inner=hypergrad.Training(train)), or pass inner= to the problem as well",
            )

    def _recorded(
        self, params: Tree, hparams: Tree, batch: Any, *, inspect: bool = True
    ) -> tuple[Tensor | Tree, Tensor | None, guards.GraphFacts]:
        """Evaluate with a graph that can be differentiated twice, and check that graph."""
        device = device_of(params)
        draws = guards.Draws.capture(device, torch_only=True) if inspect else None
        with guards.second_order(device, frozenset(self.repairs)):
            data, penalty = self._evaluated(params, hparams, batch)
        if draws is None:
            return data, penalty, guards.NOTHING
        assert self.function is not None
        outputs = [*(data.values() if isinstance(data, dict) else [data]), *([] if penalty is None else [penalty])]
        facts = guards.inspect_graph(outputs, [*params.values(), *hparams.values()], name=self.function.name)
        if not facts.repairs <= self.repairs:
            self.repairs.update(facts.repairs)
            draws.restore()
            return self._recorded(params, hparams, batch)
        _check_reached(params, facts)
        return data, penalty, facts


@dataclass(frozen=True)
class InnerProducts:
    """The first and second derivatives of an inner objective that one iteration asks for.

    Attributes:
        slopes: ∇_θ g, in the order of θ.
        products: H v, likewise.
        mixed: (∂²g/∂θ∂λ)ᵀ v.
        reached: the hyperparameters that the objective uses.
    """

    slopes: list[Tensor]
    products: list[Tensor]
    mixed: Tree
    reached: frozenset[str]


@dataclass
class _Looks:
    """How often a graph was asked for, and the hyperparameters that it was last seen to reach."""

    count: int = 0
    names: frozenset[str] = frozenset()
    reached: frozenset[str] = frozenset()

    def due(self, hparams: Tree) -> bool:
        """Count, and return whether it is the first, second, fourth, eighth time and so on for these names."""
        if self.names != hparams.keys():
            self.count, self.names = 0, frozenset(hparams)
        self.count += 1
        return self.count & (self.count - 1) == 0


def _sum(data: Tensor, penalty: Tensor | None) -> Tensor:
    with torch.enable_grad():
        return data if penalty is None else data + penalty


def _gradient(value: Tensor, params: Tree, *, create_graph: bool) -> Tree:
    slopes = pulled_back([value], params.values(), record=create_graph)
    return {
        key: torch.zeros_like(leaf, requires_grad=False) if slope is None else slope
        for (key, leaf), slope in zip(params.items(), slopes, strict=True)
    }


def _check_reached(params: Tree, facts: guards.GraphFacts) -> None:
    unused = [key for key, leaf in params.items() if not facts.reaches(leaf)]
    if unused:
        raise UnreachedError(
            unused,
            passed=f"params {unused}, which the inner problem does not use",
            expected="params that training learns: every tensor enters the inner problem",
            do="leave frozen and unused tensors out of params, or check the names "
            "(torch.func.functional_call ignores names that the module does not have)",
        )
