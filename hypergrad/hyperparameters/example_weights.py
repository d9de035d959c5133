"""One weight for each training example, with gradients and updates of the batch's rows alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from hypergrad.hyperparameters.links import Each
from hypergrad.hyperparameters.module import HyperparameterModule, check_index, take_rows
from hypergrad.settings import check_choice, check_count, check_number
from hypergrad.solvers.best_response.domains import Logit
from hypergrad.tree import NamedTree

WeightLink = Literal["sigmoid", "softmax", "identity"]


@final
class ExampleWeights(HyperparameterModule):
    """Weights w = r(λ) of n training examples; ``weights(index)`` returns those of a batch.

    With ``sparse`` the gradient of a call is a sparse tensor of the batch's rows. Then an outer step of
    :class:`~hypergrad.Live` with :class:`torch.optim.SparseAdam` or :class:`torch.optim.SGD` (without momentum and
    weight decay) costs the same for ten thousand examples and ten million. Both move the rows of the batch only:
    the moments of Adam do not decay for rows that a batch does not have. Other optimizers of torch raise for sparse
    gradients; pass ``sparse=False`` for them, at a cost of n a step.

    Call it on the module for live losses; :meth:`read` is for objectives that get λ as an argument, with dense
    gradients.

    Args:
        n: number of training examples, at least 1.
        link: ``"sigmoid"`` for weights between 0 and 1; ``"softmax"`` for positive ones that sum to 1 over a batch;
            ``"identity"`` for any number.
        initial: all weights at the start; by default 0.5 for sigmoid and 1 for identity. Softmax starts equal.
        sparse: whether gradients are sparse.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        example_weights: λ, of shape (n,).

    Raises:
        InputError: a number of examples below 1, a link that does not exist, an initial weight that the link cannot
            give; at a call, an index that is no tensor of whole numbers.

    Example:
        >>> import torch, hypergrad as hg
        >>> weights = hg.ExampleWeights(10_000_000)
        >>> rows = torch.tensor([3, 9_999_999])
        >>> weights(rows)
        tensor([0.5000, 0.5000], grad_fn=<SigmoidBackward0>)
        >>> weights(rows).sum().backward()
        >>> weights.example_weights.grad._nnz()
        2
    """

    def __init__(
        self,
        n: int,
        link: WeightLink = "sigmoid",
        *,
        initial: float | None = None,
        sparse: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the table."""
        super().__init__()
        self.link, self.sparse, self.n = link, sparse, n
        check_count("ExampleWeights", "n", n)
        check_choice(self, "link", ("sigmoid", "softmax", "identity"))
        start = 0.0
        if initial is not None and link == "softmax":
            check_number("ExampleWeights", "initial", initial, above=0, do="leave initial out: softmax starts equal")
        elif initial is not None and link == "sigmoid":
            check_number("ExampleWeights", "initial", initial, above=0, below=1)
            start = float(Each(Logit()).inverse(torch.tensor(float(initial))))
        elif link == "identity":
            start = 1.0 if initial is None else float(initial)
            check_number("ExampleWeights", "initial", start, above=-float("inf"), below=float("inf"))
        self.example_weights = nn.Parameter(torch.full((n,), start, dtype=dtype, device=device))

    def forward(self, index: Tensor) -> Tensor:
        """Return the weights of the examples at ``index``, of its shape."""
        return self._linked(self.example_weights, index, sparse=self.sparse)

    def read(self, hparams: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return the weights at ``index`` under the table ``hparams["example_weights"]``, with dense gradients."""
        return self._linked(NamedTree("hparams", hparams)["example_weights"], index, sparse=False)

    def _linked(self, table: Tensor, index: Any, *, sparse: bool) -> Tensor:
        rows = take_rows(table, check_index("ExampleWeights", index), sparse=sparse)
        if self.link == "identity":
            return rows
        return rows.sigmoid() if self.link == "sigmoid" else rows.softmax(-1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.n}, link={self.link!r}, sparse={self.sparse}"
