"""The inner problem linearised at one point: the graph of its residual and products with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from hypergrad import shortage
from hypergrad.backward import pulled_back, widest
from hypergrad.errors import ObjectiveError
from hypergrad.tree import Layout, Tree, dense
from hypergrad.tree import norm as tree_norm
from hypergrad.versions import Versions, changed_in_place


def pushforward(outputs: Tree, inputs: Tree, tangents: Mapping[str, Tensor]) -> Tree:
    """Return the derivative of ``outputs`` along ``tangents`` of ``inputs``, by two reverse passes.

    The vector-Jacobian product Jᵀu is linear in u; its derivative with respect to u along the tangents is J times
    the tangents. Reverse mode twice works wherever double backward does, and is exact where forward mode over
    reverse mode is silently wrong (normalisation layers).
    """
    live = {key: value for key, value in outputs.items() if value.requires_grad}
    result = {key: torch.zeros_like(value) for key, value in outputs.items()}
    if not live:
        return result
    dummies = {key: torch.zeros_like(value, requires_grad=True) for key, value in live.items()}
    with explained():
        pulled = torch.autograd.grad(
            list(live.values()), list(inputs.values()), list(dummies.values()), create_graph=True, allow_unused=True
        )
        pairs = [(p, tangents[key]) for key, p in zip(inputs, pulled, strict=True) if p is not None and p.requires_grad]
        if not pairs:
            return result
        pushed = torch.autograd.grad(
            [p for p, _ in pairs], list(dummies.values()), [t for _, t in pairs], allow_unused=True
        )
        result.update({key: value for key, value in zip(live, pushed, strict=True) if value is not None})
    return result


Pair = tuple[Tensor, Tensor]


def rescale(y: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """Set y ← shift + scale ⊙ y in place, in one pass over memory."""
    if scale is not None and shift is not None:
        torch.addcmul(shift, y, scale, out=y)
    elif scale is not None:
        y.mul_(scale)
    elif shift is not None:
        y.add_(shift)


@final
class Stationarity:
    """One graph of the residual R(θ, λ), kept for every product with its derivatives.

    For an inner problem ``argmin g`` the residual is ∇_θ g and ∂R/∂θ is the Hessian H; for a root or a fixed point
    it is the user's condition. The penalty's part of the residual is held apart: its Hessian is a diagonal d, found
    by one product, so that H v = H_data v + d ⊙ v walks through the data's graph only.

    Cost: building took one evaluation with its gradient; each :meth:`update` is one reverse pass through the
    gradient's graph (0.8 to 2.9 times an evaluation with gradient), :meth:`cross` at most that.

    Attributes:
        params: θ, leaf tensors.
        hparams: λ, tensors that require grad.
        layout: how θ lies in a flat vector.
        loss: the value of the inner objective with its penalty, or ``None`` for a root.
        symmetric: whether ∂R/∂θ is symmetric.
        reached: the hyperparameters that the inner problem uses.
        products: number of products made so far, those with the penalty alone not counted.
        unbatched: what torch said where it cannot take several products in one pass, or ``None``.
    """

    def __init__(
        self,
        params: Tree,
        hparams: Tree,
        residual: Tree,
        penalty_residual: Tree | None,
        loss: Tensor | None,
        reached: frozenset[str] = frozenset(),
        slopes: Tree | None = None,
    ) -> None:
        """Keep the graph's ends: residuals under the keys of ``params``, ``slopes`` = ∇_λ g under those of λ."""
        self.params, self.hparams, self.loss = params, hparams, loss
        self.layout = Layout.of(params)
        self.symmetric = loss is not None
        self.reached = reached
        self.products = 0
        self._leaves = tuple(params.values())
        self._cut: list[tuple[Tensor, list[Tensor]]] = []  # a view costs as much as a kernel on a small network
        self._data = _Ends(residual, params)
        self._penalty = None if penalty_residual is None else _Ends(penalty_residual, params)
        self._diagonal: Tensor | None = None
        self._slopes = slopes
        self.unbatched: str | None = None
        self._chunk: int | None = None
        self.versions = Versions(params=params, hparams=hparams)

    @property
    def diagonal(self) -> Tensor | None:
        """The penalty's Hessian diagonal d as a flat vector, or ``None`` without a penalty."""
        if self._penalty is not None and self._diagonal is None:
            one = torch.ones((), dtype=self.layout.dtype, device=self.layout.device)
            self._diagonal = self.layout.zeros()
            self._add(self._diagonal, self._penalty.with_cotangents(one.expand(self.layout.size), self.layout))
        return self._diagonal

    def residual(self) -> Tensor:
        """Return R(θ, λ), penalty included, as a new flat vector without its graph."""
        return self.layout.flatten(self._values())

    def length(self) -> Tensor:
        """Return ‖R‖ without a flat copy of R."""
        return tree_norm(self._values())

    def slope(self, direction: Tensor) -> Tensor:
        """Return ⟨direction, R⟩ without a flat copy of R."""
        pieces = direction.split(self.layout.sizes)
        values = self._values().values()
        parts = [torch.dot(dense(value).reshape(-1), piece) for value, piece in zip(values, pieces, strict=True)]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def _values(self) -> Tree:
        data = {key: value.detach() for key, value in self._data.residual.items()}
        if self._penalty is None:
            return data
        return {key: value + self._penalty.residual[key].detach() for key, value in data.items()}

    def update(
        self, y: Tensor, v: Tensor, alpha: float, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        """Set the flat vector y ← shift + scale ⊙ y + alpha (∂R_data/∂θ)ᵀ v in place, by default scale 1 and shift 0.

        The product is formed before y is touched, so y may be v itself.
        """
        self.products += 1
        pulled = self._product(v)
        rescale(y, scale, shift)
        self._accumulate(y, pulled, alpha)

    def image(self, y: Tensor, v: Tensor, diagonal: Tensor | None = None) -> None:
        """Set the flat vector y ← (∂R_data/∂θ)ᵀ v + diagonal ⊙ v, for another vector y, in one pass over memory."""
        self.products += 1
        pulled, pieces = self._product(v), self._pieces(y)
        if diagonal is None:
            for piece, p in zip(pieces, pulled, strict=True):
                piece.zero_() if p is None else piece.copy_(dense(p))
            return
        for piece, p, d, u in zip(pieces, pulled, self._pieces(diagonal), self._pieces(v), strict=True):
            torch.mul(d, u, out=piece) if p is None else torch.addcmul(dense(p), d, u, out=piece)

    def images(self, vectors: Tensor) -> Tensor:
        """Return (∂R_data/∂θ)ᵀ v for each row v of a matrix, many rows in one reverse pass where that is faster.

        A pass takes as many rows, 64 at most, as have 2¹⁶ entries together and take the largest tensor in the graph to
        no more than 2²⁰ entries: small problems gain two to ten times, large ones nothing, for so many times the
        memory. Where torch cannot batch an operation, :attr:`unbatched` says why and the rows are taken one by one.
        """
        if self._chunk is None:
            largest = widest([end for end, _ in self._data.with_cotangents(vectors[0], self.layout)])
            self._chunk = max(1, min(64, 2**16 // self.layout.size, 2**20 // largest))
        made = self.products
        if self._chunk > 1 and len(vectors) > 1 and self.unbatched is None:
            try:
                return torch.cat([self._together(rows) for rows in vectors.split(self._chunk)])
            except (RuntimeError, NotImplementedError) as error:  # what vmap cannot do has no error of its own
                if shortage.is_shortage(error):
                    raise
                self.unbatched, self.products = str(error), made
        rows = torch.zeros_like(vectors, memory_format=torch.contiguous_format)
        for row, v in zip(rows, vectors.contiguous(), strict=True):
            self.update(row, v, 1.0)
        return rows

    def _together(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        pieces = {
            key: piece.reshape(len(vectors), *shape)
            for (key, shape), piece in zip(
                self.layout.shapes.items(), vectors.split(self.layout.sizes, dim=1), strict=True
            )
        }
        live = {key: end for key, end in self._data.residual.items() if end.requires_grad}
        if not live:
            return torch.zeros_like(vectors)
        with warnings.catch_warnings(), explained(self.versions):
            warnings.simplefilter("ignore", UserWarning)  # an operation that vmap takes one by one: slow, but right
            pulled = torch.autograd.grad(
                list(live.values()),
                list(self.params.values()),
                [pieces[key] for key in live],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        return torch.cat(
            [
                vectors.new_zeros(len(vectors), size) if found is None else found.reshape(len(vectors), size)
                for size, found in zip(self.layout.sizes, pulled, strict=True)
            ],
            dim=1,
        )

    def hvp(self, v: Tensor) -> Tensor:
        """Return (∂R/∂θ)ᵀ v, which is H v for an argmin, as a new flat vector."""
        y = torch.empty_like(v)
        self.image(y, v, self.diagonal)
        return y

    def cross(self, v: Tensor, *, last: bool = False) -> Tree:
        """Return (∂R/∂λ)ᵀ v, the mixed product (∂²g/∂θ∂λ)ᵀ v, over the hyperparameters; one product.

        The ``last`` product frees the graph on its way, which saves memory and time.
        """
        self.products += 1
        self._cut.clear()
        pulled = self._pull(self._all_ends(v), self.hparams, last=last)
        return {
            key: torch.zeros_like(value, requires_grad=False) if p is None else p
            for (key, value), p in zip(self.hparams.items(), pulled, strict=True)
        }

    def both(self, v: Tensor, *, last: bool = False) -> tuple[Tensor, Tree]:
        """Return (∂R/∂θ)ᵀ v as a flat vector and (∂R/∂λ)ᵀ v as a tree, from one reverse pass; one product."""
        self.products += 1
        inputs = {**self.params, **{f"hparams/{key}": value for key, value in self.hparams.items()}}
        pulled = self._pull(self._all_ends(v), inputs, last=last)
        product = self._joined(pulled[: len(self.params)])
        mixed = {
            key: torch.zeros_like(value, requires_grad=False) if p is None else p
            for (key, value), p in zip(self.hparams.items(), pulled[len(self.params) :], strict=True)
        }
        return product, mixed

    def _joined(self, pulled: list[Tensor | None]) -> Tensor:
        found = {key: p for key, p in zip(self.params, pulled, strict=True) if p is not None}
        if len(found) == len(self.params):
            return self.layout.flatten(found)
        product = self.layout.zeros()
        self._accumulate(product, pulled, 1.0)
        return product

    def jvp(self, params_tangent: Tensor | None, hparams_tangent: Mapping[str, Tensor] | None) -> Tensor:
        """Return ∂R/∂θ · θ̇ + ∂R/∂λ · λ̇ as a flat vector; ``None`` stands for a zero tangent.

        For an argmin it is one reverse pass: ∂/∂θ of ⟨∇_θ g, θ̇⟩ + ⟨∇_λ g, λ̇⟩. For a root it is a pushforward,
        two passes.
        """
        self.products += 1
        if self.loss is None:
            return self._push(params_tangent, hparams_tangent)
        ends = [] if params_tangent is None else self._all_ends(params_tangent)
        if hparams_tangent is not None:
            if self._slopes is None:
                slopes = torch.autograd.grad(
                    self.loss, list(self.hparams.values()), create_graph=True, allow_unused=True
                )
                found = zip(self.hparams, slopes, strict=True)
                self._slopes = {key: slope for key, slope in found if slope is not None}
            ends += [(slope, hparams_tangent[key]) for key, slope in self._slopes.items() if slope.requires_grad]
        y = self.layout.zeros()
        self._add(y, ends)
        return y

    def ends(self) -> Tree:
        """Return the residual with its graph, penalty included."""
        if self._penalty is None:
            return self._data.residual
        return {key: value + self._penalty.residual[key] for key, value in self._data.residual.items()}

    def _push(self, params_tangent: Tensor | None, hparams_tangent: Mapping[str, Tensor] | None) -> Tensor:
        inputs: Tree = {}
        tangents: Tree = {}
        if params_tangent is not None:
            inputs |= {f"params.{key}": value for key, value in self.params.items()}
            tangents |= {f"params.{key}": view for key, view in self.layout.views(params_tangent).items()}
        if hparams_tangent is not None:
            inputs |= {f"hparams.{key}": value for key, value in self.hparams.items()}
            tangents |= {f"hparams.{key}": value for key, value in hparams_tangent.items()}
        return self.layout.flatten(pushforward(self._data.residual, inputs, tangents))

    def _all_ends(self, v: Tensor) -> list[Pair]:
        ends = self._data.with_cotangents(v, self.layout)
        if self._penalty is not None:
            ends += self._penalty.with_cotangents(v, self.layout)
        return ends

    def _pull(self, ends: list[Pair], inputs: Tree, *, last: bool = False) -> list[Tensor | None]:
        """Return the vector-Jacobian products at ``inputs``; ``None`` where the ends do not depend on an input.

        ``allow_unused`` is safe here: a graph that was cut by a compiled function or by a function that can be
        differentiated once only was refused when the residual was built, so an unused input has the derivative zero.
        """
        if not ends:
            return [None] * len(inputs)
        outputs, cotangents = zip(*ends, strict=True)
        with explained(self.versions):
            return list(pulled_back(outputs, inputs.values(), cotangents, keep=not last))

    def _product(self, v: Tensor) -> Sequence[Tensor | None]:
        """Return (∂R_data/∂θ)ᵀ v, ``None`` where it is zero: :meth:`_pull` without dictionaries, for every product."""
        live, places = self._data.live, self._data.places
        if not live:
            return [None] * len(self._leaves)
        pieces = self._pieces(v)
        with explained(self.versions):
            return pulled_back(live, self._leaves, [pieces[place] for place in places], keep=True)

    def _pieces(self, vector: Tensor) -> Sequence[Tensor]:
        """Return views of a flat vector with the shapes of θ; those of the last two vectors are at hand."""
        for known, pieces in self._cut:
            if known is vector:
                return pieces
        flat = torch.split_with_sizes(vector, self.layout.sizes) if len(self._leaves) > 1 else (vector,)
        found = [piece.view(leaf.shape) for piece, leaf in zip(flat, self._leaves, strict=True)]
        self._cut = [*self._cut[-1:], (vector, found)]
        return found

    def _add(self, y: Tensor, ends: list[Pair]) -> None:
        self._accumulate(y, self._pull(ends, self.params), 1.0)

    def _accumulate(self, y: Tensor, pulled: Sequence[Tensor | None], alpha: float) -> None:
        pairs = [(t, p) for t, p in zip(self._pieces(y), pulled, strict=True) if p is not None]
        if len(pairs) == 1:
            pairs[0][0].add_(pairs[0][1], alpha=alpha)
        elif pairs:
            torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
                [t for t, _ in pairs], [p for _, p in pairs], alpha=alpha
            )


class _Ends:
    """The tensors of a residual, those with a graph apart from constants."""

    def __init__(self, residual: Tree, order: Tree) -> None:
        residual = {key: residual[key] for key in order}
        self.residual = residual
        self._keys = [key for key, value in residual.items() if value.requires_grad]
        self.live = tuple(residual[key] for key in self._keys)
        self.places = [place for place, value in enumerate(residual.values()) if value.requires_grad]

    def with_cotangents(self, v: Tensor, layout: Layout) -> list[Pair]:
        views = layout.views(v)
        return [(self.residual[key], views[key]) for key in self._keys]


class explained:  # noqa: N801 - used like a function
    """A block that says what is wrong where a second derivative fails.

    Args:
        versions: those of the tensors that the graph needs.

    Raises:
        ObjectiveError: an operation that torch cannot differentiate twice.
        InputError: a tensor that was changed in place after the graph was recorded.
    """

    def __init__(self, versions: Versions | None = None) -> None:
        """Keep the versions."""
        self.versions = versions

    def __enter__(self) -> None:
        """Enter; a class does so in a third of the time that a generator takes."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise what explains an error of torch's in its place."""
        if not isinstance(error, RuntimeError):
            return
        if "not implemented" in str(error):
            raise ObjectiveError(
                passed=f"an inner problem with an operation that has no second derivative ({error})",
                expected="operations that torch can differentiate twice",
                do="write that operation with others (torch.cdist as a difference and a norm, an embedding bag as an "
                "embedding and a sum), or use hypergrad.ZerothOrder, which needs no derivative",
            ) from error
        if "modified by an inplace operation" in str(error):
            names = [] if self.versions is None else self.versions.changed()
            other = "a tensor of the objective that is no parameter and no hyperparameter (a batch, a buffer, or one "
            raise changed_in_place(", ".join(names) or f"{other}that a loss changes itself: {error})") from error
