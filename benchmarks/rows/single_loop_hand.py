"""The gradients and products of single-loop methods by torch.autograd and nothing else: no method, no checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.finite_sums import parts
from benchmarks.problems import DEVICE, Arrays
from benchmarks.rows.hand import Function, version

__all__ = ["ROWS", "version"]


def _row(points: int) -> Any:
    """Return the row that evaluates all derivatives of an iteration at so many points, one after another."""

    def build(kind: str, arrays: Arrays, _settings: Mapping[str, Any]) -> Function:
        tensors = {key: torch.from_numpy(value).to(DEVICE) for key, value in arrays.items()}
        (inner, outer), data = parts(kind, tensors)
        batches = list(zip(*(tensors[f"batches_{name}"][tensors[f"places_{name}"]] for name in "ij"), strict=True))
        params, hparams, v = tensors["params"], tensors["hparams"], torch.ones_like(tensors["params"])

        def run() -> dict[str, Any]:
            product = v
            for rows in batches:
                below, above = (
                    tuple(part.index_select(0, chosen) for part in whole)
                    for whole, chosen in zip(data, rows, strict=True)
                )
                for _ in range(points):
                    w, x = params.detach().requires_grad_(), hparams.detach().requires_grad_()
                    tree, lam = {"w": w}, {"x": x}
                    (slope,) = torch.autograd.grad(inner(tree, lam, below), w, create_graph=True)
                    product, _ = torch.autograd.grad(slope, (w, x), v)
                    torch.autograd.grad(outer(tree, lam, above), (w, x), allow_unused=True)
            return {"answer": [product.cpu().numpy()], "counts": {}}

        return run

    return build


ROWS = {"gradients": _row(1), "gradients at two points": _row(2)}
