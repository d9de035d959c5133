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

from hypergrad import shortage
from hypergrad.errors import UnsupportedError
from hypergrad.stationarity import Stationarity, rescale
from hypergrad.tree import Layout

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Memory = dict[str, Any]
Product = Callable[[Tensor, Tensor, float, Tensor | None, Tensor | None], None]
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
    STALLED = "stalled"
    """Further corrections did not help: the products' precision is too low for this matrix."""
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
        product: ``product(y, v, alpha, scale, shift)`` sets the flat vector y ← shift + scale ⊙ y + alpha B v in place;
            ``None`` stands for scale 1 and shift 0. B v is formed before y is touched: y may be v itself.
        like: a flat vector of the right length, dtype and device, or the layout of one.
        diagonal: d, or ``None`` for zero.
        symmetric: whether A is symmetric.
        transpose: the same as ``product`` for Bᵀ; needed by solvers for matrices that are not symmetric.
        redraw: returns the operator on a fresh batch, for stochastic solvers.
        image: ``image(y, v, d)`` sets y ← B v + d ⊙ v for another vector y (``None`` stands for d = 0), where that is
            quicker than ``product`` on zeros.
        block: ``block(vectors)`` returns B v for each row v, where that is faster than one by one.
        lower: ``lower(dtype)`` returns a function ``(v) -> B v`` on vectors of a lower precision, for
            :class:`~hypergrad.Refined`.

    Attributes:
        products: products made so far.
    """

    def __init__(
        self,
        product: Product,
        like: Tensor | Layout,
        *,
        diagonal: Tensor | None = None,
        symmetric: bool = True,
        transpose: Product | None = None,
        redraw: Callable[[], Operator] | None = None,
        image: Callable[[Tensor, Tensor, Tensor | None], None] | None = None,
        block: Callable[[Tensor], Tensor] | None = None,
        lower: Callable[[torch.dtype], Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        """Keep the functions."""
        self._image, self._block, self._lower = image, block, lower
        self._product, self._transpose, self._redraw = product, product if symmetric else transpose, redraw
        self.size = like.size if isinstance(like, Layout) else like.numel()
        self.dtype, self.device = like.dtype, like.device
        self.diagonal, self.symmetric = diagonal, symmetric
        self.products = 0

    @classmethod
    def of(
        cls,
        stationarity: Stationarity,
        damping: float = 0.0,
        redraw: Callable[[], Operator] | None = None,
        lower: Callable[[torch.dtype], Callable[[Tensor], Tensor]] | None = None,
    ) -> Operator:
        """Return (∂R/∂θ)ᵀ + damping · I, which is the damped Hessian for an argmin."""
        diagonal = stationarity.diagonal
        if damping:
            shift = stationarity.layout.zeros() + damping
            diagonal = shift if diagonal is None else shift.add_(diagonal)

        def transpose(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
            image = stationarity.jvp(v, None)
            rescale(y, scale, shift)
            y.add_(image, alpha=alpha)

        return cls(
            stationarity.update,
            stationarity.layout,
            diagonal=diagonal,
            symmetric=stationarity.symmetric,
            transpose=transpose,
            redraw=redraw,
            image=stationarity.image,
            block=stationarity.images,
            lower=lower,
        )

    def multiply(self, y: Tensor, v: Tensor) -> None:
        """Set y ← A v, for another vector y; one product."""
        if self._image is None:
            self.add(y.zero_(), v)
            return
        self.products += 1
        try:
            self._image(y, v, self.diagonal)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            raise shortage.in_product(self.products, error) from error

    def add(self, y: Tensor, v: Tensor, alpha: float = 1.0) -> None:
        """Set y ← y + alpha A v, for another vector y, in place; one product."""
        self.add_rest(y, v, alpha)
        if self.diagonal is not None:
            y.addcmul_(self.diagonal, v, value=alpha)

    def add_rest(self, y: Tensor, v: Tensor, alpha: float = 1.0) -> None:
        """Set y ← y + alpha B v in place, without the known diagonal; one product."""
        self.update(y, v, alpha, None, None)

    def update(self, y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        """Set y ← shift + scale ⊙ y + alpha B v in place, where y may be v itself; one product."""
        self.products += 1
        try:
            self._product(y, v, alpha, scale, shift)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            raise shortage.in_product(self.products, error) from error

    def images(self, vectors: Tensor) -> Tensor:
        """Return B v for each row v of a matrix, without the known diagonal; one product a row."""
        if self._block is None:
            rows = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
            for row, v in zip(rows, vectors.contiguous(), strict=True):
                self.add_rest(row, v)
            return rows
        self.products += len(vectors)
        try:
            return self._block(vectors)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            raise shortage.in_product(self.products, error) from error

    def __call__(self, v: Tensor) -> Tensor:
        """Return A v as a new vector; one product."""
        y = torch.empty_like(v)
        self.multiply(y, v)
        return y

    def transposed(self) -> Operator:
        """Return Aᵀ, whose products are counted apart.

        Raises:
            UnsupportedError: A is not symmetric and its transpose is unknown.
        """
        if self._transpose is None:
            raise UnsupportedError(
                passed="a matrix that is not symmetric, without products with its transpose",
                expected="Operator(product, ..., transpose=...) for this solver",
                do="pass transpose, or use hypergrad.GMRES, which needs products with A only",
            )
        like = torch.empty(self.size, dtype=self.dtype, device=self.device)
        return Operator(
            self._transpose, like, diagonal=self.diagonal, symmetric=self.symmetric, transpose=self._product
        )

    def lowered(self, dtype: torch.dtype) -> Operator:
        """Return the same matrix with B's products in a lower precision, on vectors of the present one.

        Vectors are scaled to entries of 1 at most before they are converted, so that small ones do not vanish. The
        known diagonal stays as it is. Products are counted apart.

        Raises:
            UnsupportedError: products in a lower precision are not known, or the precision is no lower.
        """
        if self._lower is None or torch.finfo(dtype).eps <= torch.finfo(self.dtype).eps:
            known = "without products in a lower precision" if self._lower is None else f"of {self.dtype}"
            raise UnsupportedError(
                passed=f"products in {dtype} with a matrix {known}",
                expected="an inner problem, or Operator(product, ..., lower=...), in a higher precision",
                do="use the solver without hypergrad.Refined, or another product_dtype",
            )
        low = self._lower(dtype)

        def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
            largest = v.abs().max().clamp(min=torch.finfo(v.dtype).tiny)
            image = low((v / largest).to(dtype)).to(v.dtype).mul_(largest)
            rescale(y, scale, shift)
            y.add_(image, alpha=alpha)

        like = torch.empty(self.size, dtype=self.dtype, device=self.device)
        return Operator(product, like, diagonal=self.diagonal, symmetric=self.symmetric)

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
        view: Any = LinearOperator
        return view(
            shape=(self.size, self.size),
            dtype=like.numpy().dtype,
            matvec=product(self),
            rmatvec=None if transposed is None else product(transposed),
        )


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
    graphs: ClassVar[int] = 1
    """Graphs of ∇_θ g that the products of one solve need."""
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
        start = None if x0 is None else _flatten(x0)[1]
        if not isinstance(operator, Operator):
            operator = _wrap(operator, b, layout, flat)
        result = self.solve_flat(operator, flat, start, memory or {})
        return dataclasses.replace(result, value=_unflatten(result.value, b, layout))

    @final
    def solve_flat(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        """Solve for flat vectors without copying them: ``x0`` may be overwritten.

        Raises:
            UnsupportedError: A is not symmetric and the solver needs symmetry.
        """
        if self.needs_symmetric and not operator.symmetric:
            raise UnsupportedError(
                passed=f"{type(self).__name__} for a matrix that is not symmetric (a root or fixed point)",
                expected="a solver for general matrices",
                do="use hypergrad.GMRES, hypergrad.NormalCG or hypergrad.Dense",
            )
        if float(torch.linalg.vector_norm(b)) == 0:
            return LinearResult(b, Status.CONVERGED, 0.0, 0, memory=memory)
        return self._solve(operator, b, x0, memory)

    def solve_rows(self, operator: Operator, rows: Tensor) -> list[LinearResult]:
        """Solve A x = b for each row b of a matrix: one after the other, where a solver has no better way."""
        found: list[LinearResult] = []
        for b in rows:
            found.append(self.solve_flat(operator, b, None, found[-1].memory if found else {}))
        return found

    @abstractmethod
    def budget(self, size: int) -> int:
        """Return the products of a first solve with ``size`` unknowns, or the most where a tolerance can end it."""

    @abstractmethod
    def _solve(self, operator: Operator, b: Tensor, x0: Tensor | None, memory: Memory) -> LinearResult:
        """Solve for a flat, nonzero ``b``; ``x0`` may be overwritten, ``b`` and ``memory`` may not."""


def check_period(asked: int | None, b: Tensor) -> int:
    """Return how many iterations to run between two looks at the device: 1 on the CPU, 10 elsewhere by default."""
    return asked or (1 if b.device.type == "cpu" else 10)


def _flatten(b: Vector) -> tuple[Layout, Tensor]:
    """Return a layout of the tensors and a flat copy of them."""
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
    def product(y: Tensor, v: Tensor, alpha: float, scale: Tensor | None, shift: Tensor | None) -> None:
        image = layout.flatten(_named(function(_unflatten(v, b, layout))))
        rescale(y, scale, shift)
        y.add_(image, alpha=alpha)

    return Operator(product, like)
