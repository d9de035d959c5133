"""The bilevel problem: two objectives, and nothing of how it is solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards
from hypergrad.data import Fixed, Sampler
from hypergrad.domains import Domain
from hypergrad.errors import InputError, ObjectiveError, UnreachedError, UnsupportedError
from hypergrad.objective import UserFunction
from hypergrad.stationarity import Stationarity
from hypergrad.tree import (
    Layout,
    NamedTree,
    Tree,
    attached,
    check_keys,
    check_same_kind,
    check_shapes,
    check_tree,
    detached,
    device_of,
    leaves,
)

Objective = Callable[..., Tensor]
Condition = Callable[..., Mapping[str, Tensor]]


@final
@dataclass(frozen=True)
class OuterGradients:
    """The outer objective at one point.

    Attributes:
        value: f, a 0-d tensor.
        params: ∂f/∂θ.
        hparams: ∂f/∂λ, the direct part of the hypergradient; only for the hyperparameters that f uses.
    """

    value: Tensor
    params: Tree
    hparams: Tree

    def minus(self, mixed: Tree) -> Tree:
        """Return ∂f/∂λ − mixed, overwriting ``mixed``."""
        return {k: self.hparams[k] - m if k in self.hparams else m.neg_() for k, m in mixed.items()}


@final
@dataclass(frozen=True)
class Problem:
    """Minimise F(λ) = f(θ*(λ), λ) over λ, where θ*(λ) minimises g(θ, λ).

    Objectives are pure functions ``(params, hparams)`` or ``(params, hparams, batch)`` that return a scalar
    tensor. They may draw random numbers from torch's generators.

    Args:
        inner: g, the objective of training, without what is given as ``penalty``. ``None`` for a root.
        outer: f, the objective that hyperparameters are judged by.
        penalty: an elementwise function ``(params, hparams)`` added to ``inner``, such as a weight decay. Its
            Hessian is a diagonal, so products walk through the data's graph only, and the diagonal preconditions
            the linear solve at no cost.
        inner_data: sampler of the batches that ``inner`` gets; without one it gets ``None``.
        outer_data: sampler of the batches that ``outer`` gets.
        initial: λ ↦ θ₀, where training starts, when the start depends on the hyperparameters (MAML).
        condition: R(θ, λ) with R(θ*, λ) = 0, in place of ``inner``: a root or fixed point. It returns a tree with
            the keys of ``params``. See :meth:`fixed_point`.
        hparams_domain: sets that named hyperparameters are projected onto by every outer move.

    Raises:
        InputError: neither or both of ``inner`` and ``condition``; an objective that takes another number of
            arguments; a penalty without ``inner``.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"]) ** 2).sum(),
        ...     outer=lambda params, hparams: (params["w"] ** 2).sum(),
        ... )
    """

    inner: Objective | None
    outer: Objective
    penalty: Objective | None = None
    inner_data: Sampler | None = None
    outer_data: Sampler | None = None
    initial: Callable[[Tree], Mapping[str, Tensor]] | None = None
    condition: Condition | None = None
    hparams_domain: Mapping[str, Domain] = field(default_factory=dict)
    _inner: UserFunction = field(init=False, repr=False, compare=False)
    _outer: UserFunction = field(init=False, repr=False, compare=False)
    _penalty: UserFunction | None = field(init=False, repr=False, compare=False)
    _repairs: set[str] = field(init=False, repr=False, compare=False, default_factory=set)

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if (self.inner is None) == (self.condition is None):
            raise InputError(
                passed="Problem with " + ("neither" if self.inner is None else "both") + " inner and condition",
                expected="exactly one: an objective to minimise, or a residual to bring to zero",
                do="pass inner=g, or use Problem.fixed_point(map, outer)",
            )
        if self.penalty is not None and self.inner is None:
            raise InputError("penalty without inner", "a penalty is added to inner", "put it into the condition")
        name, function = ("inner", self.inner) if self.condition is None else ("condition", self.condition)
        assert function is not None
        parts = {
            "_inner": UserFunction(name, function),
            "_outer": UserFunction("outer", self.outer),
            "_penalty": None if self.penalty is None else UserFunction("penalty", self.penalty),
        }
        for attribute, part in parts.items():
            object.__setattr__(self, attribute, part)

    @classmethod
    def fixed_point(cls, map: Condition, outer: Objective, **options: Any) -> Problem:
        """Return the problem whose inner solution is the fixed point θ = map(θ, λ).

        The residual is θ − map(θ, λ) and its Jacobian is not symmetric: use :class:`~hypergrad.GMRES`,
        :class:`~hypergrad.NormalCG` or :class:`~hypergrad.Dense`. :class:`~hypergrad.GradientDescent` with step 1 is
        the iteration θ ← map(θ, λ).

        Args:
            map: ``(params, hparams)`` or ``(params, hparams, batch)`` to a tree with the keys of ``params``.
            outer: f.
            options: further fields of :class:`Problem`.
        """
        image = UserFunction("map", map)

        def condition(params: Tree, hparams: Tree, batch: Any) -> Tree:
            images = image.tree(params, hparams, batch)
            return {key: value - images[key] for key, value in params.items()}

        return cls(inner=None, outer=outer, condition=condition, **options)

    @classmethod
    def equality_constrained(
        cls, inner: Objective, equality: Callable[..., Tensor], outer: Objective, **options: Any
    ) -> Problem:
        """Return the problem min g(θ, λ) subject to c(θ, λ) = 0, as the stationarity of its Lagrangian.

        ``params`` gets one more tensor, ``"multiplier"``, of the shape of c. The residual is the gradient of
        g + ⟨multiplier, c⟩ in both, and its Jacobian is symmetric but indefinite: use
        :class:`~hypergrad.MINRES` or :class:`~hypergrad.Dense`, never :class:`~hypergrad.CG`.

        Args:
            inner: g.
            equality: ``(params, hparams)`` or ``(params, hparams, batch)`` to the tensor c that must vanish.
            outer: f.
            options: further fields of :class:`Problem`.
        """
        objective, constraint = UserFunction("inner", inner), UserFunction("equality", equality)

        def lagrangian(params: Tree, hparams: Tree, batch: Any) -> Tensor:
            gap: Tensor = constraint(params, hparams, batch)
            value = objective.scalar(params, hparams, batch, differentiable=False)
            return value + (params["multiplier"] * gap).sum()

        return cls(inner=lagrangian, outer=outer, **options)

    def with_outer(self, outer: Objective) -> Problem:
        """Return the same problem with another outer objective."""
        return dataclasses.replace(self, outer=outer)

    def with_batches(self, inner: Any = None, outer: Any = None) -> Problem:
        """Return the same problem whose objectives get these batches every time."""
        return dataclasses.replace(
            self,
            inner_data=self.inner_data if inner is None else Fixed(inner),
            outer_data=self.outer_data if outer is None else Fixed(outer),
        )

    def project(self, hparams: Tree) -> Tree:
        """Return the hyperparameters with those that have a domain projected onto it."""
        domains = self.hparams_domain
        return {key: domains[key].project(value) if key in domains else value for key, value in hparams.items()}

    def draw_inner(self) -> Any:
        """Return the next inner batch, or ``None`` without a sampler."""
        return None if self.inner_data is None else self.inner_data.draw()

    def draw_outer(self) -> Any:
        """Return the next outer batch, or ``None`` without a sampler."""
        return None if self.outer_data is None else self.outer_data.draw()

    def check_inputs(self, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        """Return both trees as plain dicts after checking them and the penalty; nothing is changed.

        Raises:
            TreeError: keys, types, dtypes or devices that do not fit.
            ObjectiveError: a penalty that is not elementwise.
        """
        params, hparams = check_tree("params", params), check_tree("hparams", hparams)
        check_same_kind(params, hparams)
        if self._penalty is not None:
            self._check_elementwise(self._penalty, params, hparams)
        return params, hparams

    def inner_value(self, params: Tree, hparams: Tree, batch: Any = None) -> Tensor:
        """Return g(θ, λ) with its penalty, a differentiable scalar.

        Raises:
            UnsupportedError: a root or fixed point, which has no objective.
            ObjectiveError: not a scalar, or not differentiable.
        """
        value, penalty = self._evaluated(params, hparams, batch)
        if isinstance(value, dict):
            raise UnsupportedError(
                passed="a root or fixed point",
                expected="an inner objective, whose value a line search compares",
                do="use hypergrad.GradientDescent(lr=1.0), which iterates the map, or hypergrad.Newton",
            )
        return value if penalty is None else value + penalty

    def inner_gradient(self, params: Tree, hparams: Tree, batch: Any = None) -> tuple[Tensor, Tree]:
        """Return g(θ, λ) with its penalty and ∇_θ g; the parameters must require grad."""
        with torch.enable_grad(), guards.whole_graph:
            value = self.inner_value(params, hparams, batch)
        return value.detach(), _gradient(value, params, create_graph=False)

    def start(self, hparams: Tree, like: Mapping[str, Tensor]) -> Tree:
        """Return θ₀ = initial(λ), with its graph, after checking that it has the keys and shapes of ``like``."""
        assert self.initial is not None
        with torch.enable_grad():
            value = self.initial(NamedTree("hparams", hparams))
        check_keys("the value of initial", value, like)
        check_shapes("the value of initial", value, like)
        return {key: value[key] if value[key].requires_grad else value[key].detach().requires_grad_() for key in like}

    def draws(self, device: torch.device) -> guards.Draws:
        """Return the present point in the random numbers and in the inner batches."""
        return guards.Draws.capture(device, self.inner_data)

    def outer_value(self, params: Tree, hparams: Tree, batch: Any = None) -> Tensor:
        """Return f(θ, λ), a scalar.

        Raises:
            ObjectiveError: not a scalar.
        """
        return self._outer.scalar(params, hparams, batch, differentiable=False)

    def outer_gradients(self, params: Tree, hparams: Tree, batch: Any = None) -> OuterGradients:
        """Return f with ∂f/∂θ and ∂f/∂λ.

        Raises:
            ObjectiveError: f does not depend on the parameters, so there is nothing to differentiate through.
        """
        params, hparams = leaves(params), attached(hparams)
        with torch.enable_grad(), guards.whole_graph:
            value = self._outer.scalar(params, hparams, batch, differentiable=True)
        inputs = params | {f"hparams.{key}": tensor for key, tensor in hparams.items()}
        slopes = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)  # unused: a zero derivative
        if all(slope is None for slope in slopes[: len(params)]):
            raise ObjectiveError(
                passed="an outer objective that does not depend on params",
                expected="f(params, hparams) that uses what training learns",
                do="use the params argument inside outer (a module must be called with "
                "torch.func.functional_call); if f really depends on hparams alone, minimise it with torch.optim",
            )
        found = {key: slope for key, slope in zip(inputs, slopes, strict=True) if slope is not None}
        return OuterGradients(
            value=value.detach(),
            params={key: found[key] if key in found else torch.zeros_like(params[key]).detach() for key in params},
            hparams={key: found[f"hparams.{key}"] for key in hparams if f"hparams.{key}" in found},
        )

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
            with torch.enable_grad(), guards.whole_graph:
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
    ) -> Stationarity:
        """Return the residual at a point with its graph, from which all products are taken.

        Masks drawn in the forward pass are part of the graph, so every product sees the same function.
        Hyperparameters that require grad are used as they are, which lets a closure over them be differentiated.
        With ``tangents`` the same pass prepares directional derivatives along the hyperparameters.

        Cost: one evaluation with its gradient.

        Raises:
            ObjectiveError: not a scalar, not differentiable, or differentiable once only.
            WrappedModuleError: a graph that a compiled function recorded.
            UnreachedError: a parameter that the inner problem does not use.
        """
        params, hparams = leaves(params), attached(hparams)
        data, penalty, facts = self._recorded(params, hparams, batch)
        reached = frozenset(key for key, tensor in hparams.items() if facts.reaches(tensor))
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

    def check_reach(self, params: Tree, hparams: Tree) -> None:
        """Raise :class:`~hypergrad.errors.UnreachedError` for parameters that the inner problem does not use.

        Cost: one evaluation, with the next inner batch, whose position and random numbers are put back.
        """
        draws = self.draws(device_of(params))
        self._recorded(leaves(params), attached(hparams), self.draw_inner())
        draws.restore()

    def _evaluated(self, params: Tree, hparams: Tree, batch: Any) -> tuple[Tensor | Tree, Tensor | None]:
        if self.condition is not None:
            return self._inner.tree(params, hparams, batch), None
        value = self._inner.scalar(params, hparams, batch, differentiable=True)
        if self._penalty is None:
            return value, None
        return value, self._penalty.scalar(params, hparams, None, differentiable=True)

    def _recorded(
        self, params: Tree, hparams: Tree, batch: Any, *, inspect: bool = True
    ) -> tuple[Tensor | Tree, Tensor | None, guards.GraphFacts]:
        """Evaluate with a graph that can be differentiated twice, and check that graph."""
        device = device_of(params)
        draws = guards.Draws.capture(device)
        with guards.second_order(device, frozenset(self._repairs)):
            data, penalty = self._evaluated(params, hparams, batch)
        if not inspect:
            return data, penalty, guards.NOTHING
        outputs = [*(data.values() if isinstance(data, dict) else [data]), *([] if penalty is None else [penalty])]
        facts = guards.inspect_graph(outputs, params.values(), name=self._inner.name)
        if not facts.repairs <= self._repairs:
            self._repairs.update(facts.repairs)
            draws.restore()
            return self._recorded(params, hparams, batch)
        _check_reached(params, facts)
        return data, penalty, facts

    @staticmethod
    def _check_elementwise(function: UserFunction, params: Tree, hparams: Tree) -> None:
        points, layout = leaves(params), Layout.of(params)
        with torch.enable_grad():
            value = function.scalar(points, attached(hparams), None, differentiable=True)
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


def _sum(data: Tensor, penalty: Tensor | None) -> Tensor:
    with torch.enable_grad():
        return data if penalty is None else data + penalty


def _gradient(value: Tensor, params: Tree, *, create_graph: bool) -> Tree:
    slopes = torch.autograd.grad(value, list(params.values()), create_graph=create_graph, allow_unused=True)
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
