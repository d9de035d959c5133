"""The linear-solver interface: A x = b from products with A only."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from hypergrad.errors import InputError, UnsupportedError
from hypergrad.stationarity import Stationarity
from hypergrad.tree import Layout

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Memory = dict[str, Any]
Vector = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


class Status(StrEnum):
    """How an iteration ended."""

    CONVERGED = "converged"
    """The residual reached the tolerance."""
    COMPLETED = "completed"
    """All the steps that were asked for were made; there was no tolerance to reach."""
    TRUNCATED = "truncated"
    """A series or a back-propagation was cut after the number of terms asked for, which biases the value."""
    MAX_STEPS = "max_steps"
    """The budget ended before the tolerance was reached."""
    NEGATIVE_CURVATURE = "negative_curvature"
    """vᵀAv ≤ 0 was met, so A is not positive definite; the value is the best iterate before it."""
    DIVERGED = "diverged"
    """The iterates grew; the value is useless."""
    NON_FINITE = "non_finite"
    """NaN or infinity appeared; the value is useless."""

    @property
    def usable(self) -> bool:
        """Whether the value that comes with this status means anything."""
        return self not in (Status.DIVERGED, Status.NON_FINITE)


@final
@dataclass(frozen=True)
class LinearResult:
    """What a linear solve returns: a value that says how good it is.

    Attributes:
        value: x, of the form of b.
        status: how the iteration ended.
        residual: ‖b − A x‖ / ‖b‖, as the solver knows it (see the solver for how).
        products: products with A that were made, those for a preconditioner included.
        negative_curvature: whether some vᵀAv ≤ 0 was met.
        memory: tensors and numbers worth handing to the next solve, such as a preconditioner's sketch.
    """

    value: Any
    status: Status
    residual: float
    products: int
    negative_curvature: bool = False
    memory: Memory = field(default_factory=dict)


@final
class Operator:
    """A square matrix A = B + diag(d) that is known by its products.

    Args:
        add: ``add(y, v, alpha)`` adds alpha · B v to the flat vector y in place; y is never v itself.
        like: a flat vector of the right length, dtype and device.
        diagonal: d, or ``None`` for zero.
        symmetric: whether A is symmetric.
        transpose: the same as ``add`` for Bᵀ; needed by solvers for matrices that are not symmetric.
        redraw: returns the operator on a fresh batch, for stochastic solvers.

    Attributes:
        products: products made so far.
    """

    def __init__(
        self,
        add: Callable[[Tensor, Tensor, float], None],
        like: Tensor,
        *,
        diagonal: Tensor | None = None,
        symmetric: bool = True,
        transpose: Callable[[Tensor, Tensor, float], None] | None = None,
        redraw: Callable[[], Operator] | None = None,
    ) -> None:
        """Keep the functions."""
        self._add, self._transpose, self._redraw = add, add if symmetric else transpose, redraw
        self.size, self.dtype, self.device = like.numel(), like.dtype, like.device
        self.diagonal, self.symmetric = diagonal, symmetric
        self.products = 0

    @classmethod
    def of(
        cls, stationarity: Stationarity, damping: float = 0.0, redraw: Callable[[], Operator] | None = None
    ) -> Operator:
        """Return (∂R/∂θ)ᵀ + damping · I, which is the damped Hessian for an argmin."""
        diagonal = stationarity.diagonal
        if damping:
            shift = torch.full_like(stationarity.residual, damping)
            diagonal = shift if diagonal is None else diagonal + shift

        def transpose(y: Tensor, v: Tensor, alpha: float) -> None:
            y.add_(stationarity.jvp(v, None), alpha=alpha)

        return cls(
            stationarity.add_data_hvp,
            stationarity.residual,
            diagonal=diagonal,
            symmetric=stationarity.symmetric,
            transpose=transpose,
            redraw=redraw,
        )

    def add(self, y: Tensor, v: Tensor, alpha: float = 1.0) -> None:
        """Add alpha · A v to ``y``, another vector, in place; one product."""
        self.add_rest(y, v, alpha)
        if self.diagonal is not None:
            y.addcmul_(self.diagonal, v, value=alpha)

    def add_rest(self, y: Tensor, v: Tensor, alpha: float = 1.0) -> None:
        """Add alpha · B v to ``y`` in place, A without its known diagonal; one product."""
        self.products += 1
        self._add(y, v, alpha)

    def __call__(self, v: Tensor) -> Tensor:
        """Return A v as a new vector; one product."""
        y = torch.zeros_like(v)
        self.add(y, v)
        return y

    def transposed(self) -> Operator:
        """Return Aᵀ, whose products are counted apart.

        Raises:
            UnsupportedError: A is not symmetric and its transpose is unknown.
        """
        if self._transpose is None:
            raise UnsupportedError(
                passed="a matrix that is not symmetric, without products with its transpose",
                expected="Operator(add, ..., transpose=...) for this solver",
                do="pass transpose, or use hypergrad.GMRES, which needs products with A only",
            )
        like = torch.empty(self.size, dtype=self.dtype, device=self.device)
        return Operator(self._transpose, like, diagonal=self.diagonal, symmetric=self.symmetric, transpose=self._add)

    def fresh(self) -> Operator:
        """Return the operator on a fresh batch, or this one when the data is always the same."""
        return self if self._redraw is None else self._redraw()

    def to_scipy(self) -> LinearOperator:
        """Return a :class:`scipy.sparse.linalg.LinearOperator` view; vectors go to numpy and back at each product."""
        from scipy.sparse.linalg import LinearOperator

        like = torch.empty(0, dtype=self.dtype)

        def product(operator: Operator) -> Callable[[Any], Any]:
            def apply(v: Any) -> Any:
                vector = torch.as_tensor(v, dtype=self.dtype).reshape(-1).to(self.device)
                return operator(vector).cpu().numpy()

            return apply

        transposed = self if self.symmetric else self.transposed() if self._transpose is not None else None
        return LinearOperator(
            shape=(self.size, self.size),
            dtype=like.numpy().dtype,
            matvec=product(self),
            rmatvec=None if transposed is None else product(transposed),
        )


class Preconditioner(ABC):
    """An approximate inverse M⁻¹ of a symmetric positive definite matrix.

    Subclasses are frozen dataclasses of their settings.
    """

    @abstractmethod
    def build(self, operator: Operator, memory: Memory) -> tuple[Callable[[Tensor], Tensor] | None, Memory]:
        """Return r ↦ M⁻¹ r (``None`` for the identity) and what to keep for the next solve.

        Args:
            operator: the matrix; products made here are counted.
            memory: what an earlier build returned, or an empty dict.
        """

    @abstractmethod
    def budget(self, size: int) -> int:
        """Return the products of the first build with ``size`` unknowns."""


class LinearSolver(ABC):
    """A way to solve A x = b with products only.

    Subclasses are frozen dataclasses of their settings and override :meth:`_solve`.
    """

    needs_symmetric: ClassVar[bool]
    """Whether A has to be symmetric."""
    needs_definite: ClassVar[bool]
    """Whether A has to be positive definite."""
    exact: ClassVar[bool]
    """Whether the solution is exact in the limit of its tolerance; the others are biased by design."""
    uses_start: ClassVar[bool]
    """Whether a starting point helps."""
    cost: ClassVar[str]
    """Products of one solve, in words."""

    @final
    def solve(
        self,
        operator: Operator | Callable[[Any], Any],
        b: Vector,
        x0: Vector | None = None,
        memory: Memory | None = None,
    ) -> LinearResult:
        """Solve A x = b.

        Args:
            operator: A, as an :class:`Operator` on flat vectors or a function that maps something of b's form to
                A times it (taken to be symmetric).
            b: right-hand side: a tensor of any shape, a dict of tensors or a list of tensors.
            x0: where to start, of b's form; zero by default.
            memory: the ``memory`` of an earlier result, to use its preconditioner or step again.

        Returns:
            A :class:`LinearResult` whose value has b's form.

        Raises:
            UnsupportedError: A is declared not symmetric and the solver needs symmetry.
        """
        layout, flat = _flatten(b)
        start = None if x0 is None else _flatten(x0)[1].detach().clone()
        if not isinstance(operator, Operator):
            operator = _wrap(operator, b, layout, flat)
        if self.needs_symmetric and not operator.symmetric:
            raise UnsupportedError(
                passed=f"{type(self).__name__} for a matrix that is not symmetric (a root or fixed point)",
                expected="a solver for general matrices",
                do="use hypergrad.GMRES, hypergrad.NormalCG or hypergrad.Dense",
            )
        if bool(flat.any()):
            result = self._solve(operator, flat, start, dict(memory or {}))
        else:
            result = LinearResult(torch.zeros_like(flat), Status.CONVERGED, 0.0, 0, memory=dict(memory or {}))
        return dataclasses.replace(result, value=_unflatten(result.value, b, layout))

    @abstractmethod
    def budget(self, size: int) -> int:
        """Return the products of a first solve with ``size`` unknowns, or the most where a tolerance can end it."""

    @abstractmethod
    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        """Solve for a flat, nonzero ``b``; ``x0`` is a copy that may be overwritten."""


def check_positive(owner: str, **numbers: float | int | None) -> None:
    """Raise :class:`~hypergrad.errors.InputError` for a number that is given and not above 0."""
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InputError(
                passed=f"{owner}({name}={number!r})", expected=f"{name} > 0", do=f"leave {name} out for the default"
            )


def check_period(asked: int | None, b: Tensor) -> int:
    """Return how many iterations to run between two looks at the device: 1 on the CPU, 10 elsewhere by default."""
    return asked or (1 if b.device.type == "cpu" else 10)


def _flatten(b: Vector) -> tuple[Layout, Tensor]:
    tree = _named(b)
    layout = Layout.of(tree)
    return layout, layout.flatten(tree).detach()


def _named(b: Vector) -> dict[str, Tensor]:
    if isinstance(b, Tensor):
        return {"0": b}
    if isinstance(b, Mapping):
        return dict(b)
    return {str(place): tensor for place, tensor in enumerate(b)}


def _unflatten(value: Tensor, like: Vector, layout: Layout) -> Any:
    views = layout.views(value)
    if isinstance(like, Tensor):
        return views["0"]
    return views if isinstance(like, Mapping) else list(views.values())


def _wrap(function: Callable[[Any], Any], b: Vector, layout: Layout, like: Tensor) -> Operator:
    def add(y: Tensor, v: Tensor, alpha: float) -> None:
        image = function(_unflatten(v, b, layout))
        y.add_(layout.flatten(_named(image)), alpha=alpha)

    return Operator(add, like)
