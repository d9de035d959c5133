"""The bilevel problem: two objectives, and nothing of how it is solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards
from hypergrad.accumulated import Batches, check_data
from hypergrad.backward import pulled_back
from hypergrad.data import Fixed, Sampler, drawn
from hypergrad.domains import Domain
from hypergrad.errors import InputError, ObjectiveError
from hypergrad.inner_problem import InnerProblem, InnerProducts
from hypergrad.lagrangian import Lagrangian, lagrangian
from hypergrad.memo import Memo
from hypergrad.objective import ResponseVJP, UserFunction, check_initial
from hypergrad.stationarity import Stationarity
from hypergrad.tree import (
    NamedTree,
    Tree,
    attached,
    check_like,
    check_names,
    check_same_kind,
    check_tree,
    device_of,
    leaves,
    plus,
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
        return {k: _minus(self.hparams[k], m) if k in self.hparams else m.neg_() for k, m in mixed.items()}


def _minus(direct: Tensor, mixed: Tensor) -> Tensor:
    """Return direct − mixed, either of which may be sparse, overwriting ``mixed``."""
    return plus(direct, mixed.neg_()) if direct.is_sparse else direct - mixed


@final
@dataclass(frozen=True)
class Problem:
    """Minimise F(λ) = f(θ*(λ), λ) over λ, where θ*(λ) minimises g(θ, λ).

    Objectives are pure functions ``(params, hparams)`` or ``(params, hparams, batch)`` that return a scalar
    tensor. They may draw random numbers from torch's generators.

    Args:
        inner: g, the objective of training, without what is given as ``penalty``. ``None`` for a root, and where
            ``response_vjp`` is all that is known.
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
        envelope: whether the outer objective is the inner one, a multiple of it, or that plus a function of the
            hyperparameters, on the same data. Then ∂f/∂θ = 0 at θ*, so that dF/dλ = ∂f/∂λ (Danskin), and
            :class:`~hypergrad.Implicit` leaves the implicit term out. Without it that is done only where ``outer`` is
            the very function ``inner`` and there are no batches and no penalty.
        response_vjp: ``(params, hparams, cotangent)`` or ``(params, hparams, cotangent, batch)`` to the product
            (∂θ*/∂λ)ᵀ cotangent, where the derivative of the inner solution is known: a policy, a choice by softmax, a
            projection. ``params`` is θ*, ``cotangent`` a tree like it, and the value a tree with keys of ``hparams``;
            those left out do not move θ*. :class:`~hypergrad.Implicit` then solves no linear system and needs no
            ``inner``.

    Raises:
        InputError: neither ``inner`` nor ``condition`` nor ``response_vjp``, or both of the first two; a function that
            takes another number of arguments; a penalty without ``inner``; a domain that cannot project.

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
    envelope: bool = False
    response_vjp: Callable[..., Mapping[str, Tensor]] | None = None
    _inner: InnerProblem = field(init=False, repr=False, compare=False)
    _outer: UserFunction = field(init=False, repr=False, compare=False)
    _response: ResponseVJP | None = field(init=False, repr=False, compare=False)
    memo: Memo = field(init=False, repr=False, compare=False, default_factory=Memo)

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        given = [part for part in (self.inner, self.condition) if part is not None]
        if len(given) == 2 or (not given and self.response_vjp is None):
            raise InputError(
                passed="Problem with " + ("both" if given else "neither") + " inner and condition",
                expected="exactly one: an objective to minimise, or a residual to bring to zero",
                do="pass inner=g, or use Problem.fixed_point(map, outer), or pass response_vjp= where the derivative "
                "of the inner solution is known",
            )
        if self.penalty is not None and self.inner is None:
            raise InputError("penalty without inner", "a penalty is added to inner", "put it into the condition")
        name = "inner" if self.condition is None else "condition"
        function = UserFunction(name, given[0]) if given else None
        penalty = None if self.penalty is None else UserFunction("penalty", self.penalty)
        inner = InnerProblem(function, root=self.root, penalty=penalty, saddle=self.saddle)
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_outer", UserFunction("outer", self.outer))
        response = None if self.response_vjp is None else ResponseVJP(self.response_vjp)
        object.__setattr__(self, "_response", response)
        if self.initial is not None:
            check_initial(self.initial)
        _check_domains(self.hparams_domain)
        check_data(self.inner_data, self.outer_data)

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
    def constrained(
        cls,
        inner: Objective,
        outer: Objective,
        *,
        equality: Callable[..., Tensor] | None = None,
        inequality: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> Problem:
        """Return the problem min g(θ, λ) subject to c(θ, λ) = 0 and h(θ, λ) ≤ 0, by its Karush-Kuhn-Tucker conditions.

        ``params`` gets the multipliers as further tensors, ``"equality_multiplier"`` of the shape of c and
        ``"inequality_multiplier"`` of the shape of h. The residual is the gradient of the Lagrangian in all of them,
        with the constraints for which multiplier + h > 0 as equations and the multipliers of the others at zero. Its
        Jacobian is symmetric but indefinite: use :class:`~hypergrad.MINRES` or :class:`~hypergrad.Dense`, never
        :class:`~hypergrad.CG`. Train with :class:`~hypergrad.Newton`, which then is the primal-dual active-set method,
        or with a solver of your own in :class:`~hypergrad.Training`; methods that descend find no saddle.

        Where a constraint is active with a multiplier of zero θ*(λ) has a kink: the hypergradient is that of one side,
        and the report says so.

        Args:
            inner: g.
            outer: f.
            equality: ``(params, hparams)`` or ``(params, hparams, batch)`` to the tensor c that must vanish.
            inequality: the same to the tensor h whose entries must not be positive.
            options: further fields of :class:`Problem`.

        Raises:
            InputError: no constraint.

        Example:
            >>> import torch, hypergrad as hg
            >>> problem = hg.Problem.constrained(
            ...     inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
            ...     outer=lambda params, hparams: (params["w"] - 2).square().sum() / 2,
            ...     inequality=lambda params, hparams: params["w"] - 1,
            ... )
            >>> start = {"w": torch.zeros(2), "inequality_multiplier": torch.zeros(2)}
            >>> algorithm = hg.Implicit(hg.MINRES(), inner=hg.Newton(tolerance=1e-6))
            >>> result = hg.hypergradient(problem, start, {"x": torch.tensor([0.5, 3.0])}, algorithm)
            >>> result.params["w"], result.grads["x"].round(decimals=4) + 0.0
            (tensor([0.5000, 1.0000]), tensor([-1.5000,  0.0000]))
        """
        return cls(inner=lagrangian(inner, equality, inequality), outer=outer, **options)

    def with_outer(self, outer: Objective, *, data: bool = True) -> Problem:
        """Return the same problem with another outer objective, on the same outer batches or (``data=False``) none."""
        return dataclasses.replace(self, outer=outer, outer_data=self.outer_data if data else None, envelope=False)

    def with_batches(self, inner: Any = None, outer: Any = None) -> Problem:
        """Return the same problem whose objectives get these batches every time."""
        same = dataclasses.replace(
            self,
            inner_data=self.inner_data if inner is None else Fixed(inner),
            outer_data=self.outer_data if outer is None else Fixed(outer),
        )
        object.__setattr__(same, "memo", self.memo)  # of the same functions
        return same

    @property
    def root(self) -> bool:
        """Whether the inner problem is a root or fixed point, which has no objective."""
        return self.condition is not None

    @property
    def saddle(self) -> bool:
        """Whether the inner solution is the stationary point of a Lagrangian, which no descent finds."""
        return isinstance(self.inner, Lagrangian)

    @property
    def takes_outer_batch(self) -> bool:
        """Whether the outer objective has an argument for the batch."""
        return self._outer.takes_batch

    @property
    def is_envelope(self) -> bool:
        """Whether ∂f/∂θ = 0 at θ*: said by ``envelope``, or seen since f is g, without batches and penalty."""
        same = self.outer is self.inner and self.penalty is None
        return self.envelope or (same and self.inner_data is None and self.outer_data is None)

    def parts(self) -> dict[str, UserFunction]:
        """Return the functions under their names in messages: inner or condition, penalty, outer."""
        named = {part.name: part for part in (self._inner.function, self._inner.penalty) if part is not None}
        return {**named, "outer": self._outer}

    def pull_back(self, params: Tree, hparams: Tree, cotangent: Tree, batch: Any = None) -> Tree:
        """Return (∂θ*/∂λ)ᵀ cotangent as ``response_vjp`` gives it, for the hyperparameters that move θ*.

        Raises:
            TreeError: a value that is no tree of tensors under keys of ``hparams`` and of their shapes.
        """
        assert self._response is not None
        return self._response(params, hparams, cotangent, batch)

    def project(self, hparams: Tree) -> Tree:
        """Return the hyperparameters with those that have a domain projected onto it."""
        domains = self.hparams_domain
        return {key: domains[key].project(value) if key in domains else value for key, value in hparams.items()}

    def draw_inner(self) -> Any:
        """Return the next inner batch, or ``None`` without a sampler."""
        return drawn("inner_data", self.inner_data)

    def draw_outer(self) -> Any:
        """Return the next outer batch, or ``None`` without a sampler."""
        return drawn("outer_data", self.outer_data)

    def check_inputs(self, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        """Return both trees as plain dicts after checking them and the penalty; nothing is changed.

        Raises:
            TreeError: keys, types, dtypes or devices that do not fit, or a domain of an unknown hyperparameter.
            ObjectiveError: a penalty that is not elementwise.
        """
        params, hparams = check_tree("params", params), check_tree("hparams", hparams)
        check_same_kind(params, hparams)
        check_names("hparams_domain", self.hparams_domain, hparams)
        self._inner.check_penalty(params, hparams)
        return params, hparams

    def check_descent(self) -> None:
        """Raise UnsupportedError where there is nothing to descend: a Lagrangian, or no objective."""
        self._inner.check_descent()

    def start(self, hparams: Tree, like: Mapping[str, Tensor]) -> Tree:
        """Return θ₀ = initial(λ), with its graph, after checking that it is a tree like ``like``."""
        assert self.initial is not None
        with torch.enable_grad():
            value = check_like("initial", self.initial(NamedTree("hparams", hparams)), like)
        return {k: start if start.requires_grad else start.detach().requires_grad_() for k, start in value.items()}

    def inner_value(self, params: Tree, hparams: Tree, batch: Any = None) -> Tensor:
        """Return g(θ, λ) with its penalty, a differentiable scalar (:meth:`InnerProblem.value`)."""
        return self._inner.value(params, hparams, batch)

    def inner_gradient(self, params: Tree, hparams: Tree, batch: Any = None) -> tuple[Tensor, Tree]:
        """Return g(θ, λ) with its penalty, and ∇_θ g (:meth:`InnerProblem.gradient`)."""
        return self._inner.gradient(params, hparams, batch)

    def residual(self, params: Tree, hparams: Tree, batch: Any = None, **options: bool) -> Tree:
        """Return ∇_θ g(θ, λ), or the condition R(θ, λ) (:meth:`InnerProblem.residual`)."""
        return self._inner.residual(params, hparams, batch, **options)

    def linearise(
        self, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor], batch: Any = None, **options: bool
    ) -> Stationarity:
        """Return the residual at a point with its graph (:meth:`InnerProblem.linearise`)."""
        return self._inner.linearise(params, hparams, batch, **options)

    def inner_products(self, params: Tree, hparams: Tree, cotangents: Tree, batch: Any = None) -> InnerProducts:
        """Return ∇_θ g and both products with one vector (:meth:`InnerProblem.products`)."""
        return self._inner.products(params, hparams, cotangents, batch)

    def check_reach(self, params: Tree, hparams: Tree) -> None:
        """Raise :class:`~hypergrad.errors.UnreachedError` for parameters that the inner problem does not use.

        Cost: one evaluation, with the next inner batch; batches and random numbers are put back.
        """
        with guards.again(self.draws(device_of(params))):
            self._inner.check_reach(params, hparams, self.draw_inner())

    def draws(self, device: torch.device) -> guards.Draws:
        """Return the present point in the random numbers and in the inner batches."""
        return guards.Draws.capture(device, self.inner_data)

    def outer_value(self, params: Tree, hparams: Tree, batch: Any = None) -> Tensor:
        """Return f(θ, λ), a scalar; for :class:`~hypergrad.Batches` the mean over them.

        Raises:
            ObjectiveError: not a scalar.
        """
        if isinstance(batch, Batches):
            return torch.stack([self.outer_value(params, hparams, part) for part in batch]).mean()
        return self._outer.scalar(params, hparams, batch, differentiable=False)

    def outer_gradients(self, params: Tree, hparams: Tree, batch: Any = None) -> OuterGradients:
        """Return f with ∂f/∂θ and ∂f/∂λ; for :class:`~hypergrad.Batches` the means, one batch's graph at a time.

        Raises:
            ObjectiveError: f does not depend on the parameters, so there is nothing to differentiate through.
        """
        if isinstance(batch, Batches):
            return _mean((self.outer_gradients(params, hparams, part) for part in batch), len(batch))
        params, hparams = leaves(params), attached(hparams)
        with torch.enable_grad():
            value = self._outer.scalar(params, hparams, batch, differentiable=True)
        slopes = pulled_back([value], [*params.values(), *hparams.values()])
        own, others = slopes[: len(params)], slopes[len(params) :]
        if all(slope is None for slope in own):
            raise ObjectiveError(
                passed="an outer objective that does not depend on params",
                expected="f(params, hparams) that uses what training learns",
                do="use the params argument inside outer (a module must be called with "
                "torch.func.functional_call); if f really depends on hparams alone, minimise it with torch.optim",
            )
        return OuterGradients(
            value=value.detach(),
            params={
                key: torch.zeros_like(leaf, requires_grad=False) if slope is None else slope
                for (key, leaf), slope in zip(params.items(), own, strict=True)
            },
            hparams={key: slope for key, slope in zip(hparams, others, strict=True) if slope is not None},
        )


def _check_domains(domains: Mapping[str, Domain]) -> None:
    for key, domain in domains.items():
        if not isinstance(domain, Domain):
            raise InputError(
                passed=f"hparams_domain with {key!r}: {domain!r}",
                expected="a domain, with a method project(value)",
                do="pass hypergrad.Box(low, high), Positive(), UnitInterval(), Simplex(), Ball(), or one of your own",
            )


def _mean(found: Iterator[OuterGradients], count: int) -> OuterGradients:
    """Return the mean of gradients; where a batch does not use a hyperparameter its derivative is 0."""
    first = next(found)
    value, params, hparams = first.value, first.params, first.hparams
    for other in found:
        value = value + other.value
        params = {key: slope + other.params[key] for key, slope in params.items()}
        hparams = {
            key: sum((part[key] for part in (hparams, other.hparams) if key in part), start=torch.zeros(()))
            for key in {**hparams, **other.hparams}
        }
    shares = [{key: slope / count for key, slope in part.items()} for part in (params, hparams)]
    return OuterGradients(value / count, *shares)
