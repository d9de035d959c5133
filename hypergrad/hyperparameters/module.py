"""What the ready-made modules of hyperparameters share: their tensors as a tree, and calls with other tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError
from hypergrad.tree import NamedTree, Tree


class HyperparameterModule(nn.Module):
    """A module whose parameters are hyperparameters λ: pass it to :class:`~hypergrad.Live` as it is.

    For objectives that get λ as an argument, :meth:`tree` gives the tensors and :meth:`read` calls the module with
    others in their place.
    """

    def tree(self) -> Tree:
        """Return the tensors that a gradient can reach, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def read(self, hparams: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Return what ``forward(*args, **kwargs)`` returns with the module's tensors taken from ``hparams``.

        Raises:
            TreeError: a tensor of the module that ``hparams`` does not have.
        """
        named = NamedTree("hparams", hparams)
        return torch.func.functional_call(self, {name: named[name] for name in self.tree()}, args, kwargs)


def check_index(call: str, index: object) -> Tensor:
    """Return the index of rows, or raise :class:`~hypergrad.errors.InputError` for what is none."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        found = f"a tensor of {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise InputError(
            passed=f"{call} called with {found}",
            expected="a tensor of whole numbers, the places of the batch's examples in the training set",
            do="let the sampler return torch.arange(n)[rows] beside the data, and pass that; mask.nonzero() for a mask",
        )
    return index.long()


def take_rows(table: Tensor, index: Tensor, *, sparse: bool) -> Tensor:
    """Return rows of a vector or matrix; with ``sparse`` the gradient is a sparse tensor of these rows alone.

    Cost: in the number of rows taken; without ``sparse`` the gradient costs the whole table.
    """
    if table.dim() > 1:
        return nn.functional.embedding(index, table, sparse=sparse)
    return torch.gather(table, 0, index.reshape(-1), sparse_grad=sparse).reshape(index.shape)
