"""Constraints that couple both levels: their values, and projections of parameters and hyperparameters together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.domains import Domain
from hypergrad.errors import InputError, ObjectiveError, UnsupportedError, did_you_mean
from hypergrad.objective import count_arguments
from hypergrad.projections import Intersection, Polyhedron
from hypergrad.tree import Layout, NamedTree, Tree

V = TypeVar("V")
Constraint = Callable[..., Tensor]
"""``(params, hparams)`` to a tensor of which every entry is one constraint."""
JointProjection = Callable[[Tree, Tree], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""``(params, hparams)`` to the nearest pair that satisfies all constraints and domains."""


@final
@dataclass(frozen=True)
class Constraints:
    """Inequalities c ≤ 0 and equalities c = 0 as one flat vector, inequalities first."""

    inequality: Constraint | None
    equality: Constraint | None

    def __post_init__(self) -> None:
        """Refuse what takes other arguments."""
        for name, function in (("inequality", self.inequality), ("equality", self.equality)):
            if function is not None and (not callable(function) or count_arguments(function, (2,)) is None):
                raise InputError(
                    passed=f"{name}={function!r}",
                    expected="a function of (params, hparams) that returns a tensor",
                    do=f"pass {name}=lambda params, hparams: ...; constraints do not depend on batches",
                )

    def values(self, params: Tree, hparams: Tree) -> Tensor:
        """Return all constraints as one vector; empty without any."""
        pairs = (("inequality", self.inequality), ("equality", self.equality))
        parts = [self._value(name, function, params, hparams) for name, function in pairs]
        return torch.cat(parts)

    def count_inequalities(self, params: Tree, hparams: Tree) -> int:
        """Return how many entries of :meth:`values` are inequalities."""
        return len(self._value("inequality", self.inequality, params, hparams))

    @staticmethod
    def _value(name: str, function: Constraint | None, params: Tree, hparams: Tree) -> Tensor:
        like = next(iter(params.values()))
        if function is None:
            return like.new_zeros(0)
        value: Any = function(NamedTree("params", params), NamedTree("hparams", hparams))
        if not isinstance(value, Tensor) or value.dtype != like.dtype or not value.numel():
            found = (
                f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            )
            raise ObjectiveError(
                passed=f"{name}, which returned {found}",
                expected=f"a {like.dtype} tensor with at least one entry, one for each constraint",
                do=f"compute {name} from params and hparams with torch operations",
            )
        return value.reshape(-1)

    def polyhedron(self, params: Tree, hparams: Tree) -> Polyhedron:
        """Return the set of flat (params, hparams) that satisfy the constraints, which must be affine in both.

        Cost: two evaluations and one backward pass for each constraint.

        Raises:
            UnsupportedError: a constraint that is not affine.
            InputError: constraints that nothing satisfies.
        """
        point = joined(params, hparams)
        layout = Layout.of(point)
        origin = layout.flatten(tree.detached(point))

        def flat(place: Tensor) -> Tensor:
            return self.values(*parted(layout.views(place)))

        with guards.pinned_rng(origin.device):
            value, rows = _jacobian(flat, origin)
            generator = torch.Generator().manual_seed(0)
            shift = torch.randn(layout.size, dtype=torch.float64, generator=generator).to(origin)
            shift = shift * (1 + origin.abs())
            with torch.no_grad():
                gap = flat(origin + shift) - value - rows @ shift
        scale = 1 + value.abs() + rows.abs() @ shift.abs()
        bent = gap.abs() > torch.finfo(gap.dtype).eps ** 0.5 * scale
        if not bool(torch.isfinite(scale).all()) or bool(bent.any()):
            raise UnsupportedError(
                passed=f"constraints of which number {int(bent.int().argmax())} is not affine in params and hparams",
                expected='affine constraints for projection="affine"',
                do="pass projection=, a function (params, hparams) that returns the nearest pair satisfying them all",
            )
        count = self.count_inequalities(params, hparams)
        ends = rows @ origin - value
        return Polyhedron.of(rows[:count], ends[:count], rows[count:], ends[count:])


def _jacobian(function: Callable[[Tensor], Tensor], origin: Tensor) -> tuple[Tensor, Tensor]:
    place = origin.clone().requires_grad_()
    with torch.enable_grad():
        value = function(place)
    if not value.requires_grad:
        return value.detach(), origin.new_zeros(len(value), len(origin))
    rows = [torch.autograd.grad(entry, place, retain_graph=True, materialize_grads=True)[0] for entry in value]
    return value.detach(), torch.stack(rows) if rows else origin.new_zeros(0, len(origin))


@final
@dataclass(frozen=True)
class Coupling:
    """The set of pairs (params, hparams) that satisfy all constraints and domains.

    Attributes:
        polyhedron: affine constraints, over the flat pair; ``None`` without.
        domains: domains of single tensors, under the joined names.
        projection: a projection of the user's own in place of all this, or ``None``.
    """

    polyhedron: Polyhedron | None
    domains: Mapping[str, Domain]
    projection: JointProjection | None = None

    def project(self, params: Tree, hparams: Tree) -> tuple[Tree, Tree]:
        """Return the nearest pair."""
        if self.projection is not None:
            return self._own(self.projection, params, hparams)
        point = joined(params, hparams)
        polyhedron = self.polyhedron
        if polyhedron is None:
            return parted(self._sides(point))
        layout = Layout.of(point)
        value = layout.flatten(point)
        if self.domains:
            value = Intersection([polyhedron, _Sides(layout, self)]).project(value)
        else:
            value = polyhedron.project(value)
        return parted(layout.views(value))

    def _sides(self, point: Tree) -> Tree:
        domains = self.domains
        return {key: domains[key].project(value) if key in domains else value for key, value in point.items()}

    @staticmethod
    def _own(projection: JointProjection, params: Tree, hparams: Tree) -> tuple[Tree, Tree]:
        found: Any = projection(params, hparams)
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError(
                passed=f"projection, which returned {type(found).__name__}",
                expected="a pair (params, hparams) of trees",
                do="return both trees from projection, moved to the nearest pair that satisfies the constraints",
            )
        pairs = (("projection (params)", found[0], params), ("projection (hparams)", found[1], hparams))
        new_params, new_hparams = (tree.check_like(*pair) for pair in pairs)
        return tree.detached(new_params), tree.detached(new_hparams)


@dataclass(frozen=True)
class _Sides:
    layout: Layout
    coupling: Coupling

    def project(self, value: Tensor) -> Tensor:
        return self.layout.flatten(self.coupling._sides(self.layout.views(value)))


def joined(params: Mapping[str, V], hparams: Mapping[str, V]) -> dict[str, V]:
    """Return what lies under the names of both trees as one dict."""
    return {f"{n}/{k}": v for n, t in (("params", params), ("hparams", hparams)) for k, v in t.items()}


def parted(joint: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
    """Return the two trees that :func:`joined` made one."""
    params, hparams = (
        {key.partition("/")[2]: value for key, value in joint.items() if key.partition("/")[0] == name}
        for name in ("params", "hparams")
    )
    return params, hparams


def check_params_domain(domains: Mapping[str, Domain], params: Tree) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for a domain of unknown parameters, or one that cannot project."""
    for key, domain in domains.items():
        if key not in params:
            raise InputError(
                passed=f"params_domain for {key!r}{did_you_mean(key, params)}",
                expected=f"names of parameters: {list(params)}",
                do="rename it in params_domain, or take it out",
            )
        if not isinstance(domain, Domain):
            raise InputError(
                passed=f"params_domain with {key!r}: {domain!r}",
                expected="a domain, with a method project(value)",
                do="pass hypergrad.Box(low, high), Simplex(), Ball(), or one of your own",
            )
