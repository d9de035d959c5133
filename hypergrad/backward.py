"""Reverse passes without the checks that :func:`torch.autograd.grad` makes of each argument in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
"""Types without a ``__torch_function__`` of their own."""


def pulled_back(
    outputs: Iterable[Tensor],
    inputs: Iterable[Tensor],
    cotangents: Iterable[Tensor] | None = None,
    *,
    keep: bool = False,
    record: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the vector-Jacobian products of ``outputs`` at ``inputs``, ``None`` where they do not depend on one.

    What torch checks of shapes and types takes a fifth of the time of a small network's product, and here the
    cotangents have the outputs' shapes by construction. Tensors with a ``__torch_function__`` of their own go
    through torch's function, which hands them on.

    Args:
        outputs: tensors with a graph.
        inputs: tensors that the graph may reach.
        cotangents: one for each output, of its shape; 1 for scalars by default.
        keep: whether the graph is kept for another pass.
        record: whether the pass itself is recorded, which keeps the graph as well.
    """
    ends, starts = tuple(outputs), tuple(inputs)
    weights = tuple(map(torch.ones_like, ends) if cotangents is None else cotangents)
    if not all(type(tensor) in PLAIN for tensor in (*ends, *starts)):
        return torch.autograd.grad(
            ends, starts, weights, retain_graph=keep or record, create_graph=record, allow_unused=True
        )
    engine: Any = torch.autograd.Variable._execution_engine
    found: tuple[Tensor | None, ...] = engine.run_backward(
        ends, weights, keep or record, record, starts, allow_unreachable=True, accumulate_grad=False
    )
    return found


def widest(ends: list[Tensor]) -> int:
    """Return the entries of the largest tensor that a reverse pass from here goes through, at least 1."""
    largest, seen, waiting = 1, set(), [end.grad_fn for end in ends]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        shapes = [given.shape for given in node._input_metadata]
        largest = max([largest, *(math.prod(shape) for shape in shapes)])
        waiting += [following for following, _ in node.next_functions]
    return largest
