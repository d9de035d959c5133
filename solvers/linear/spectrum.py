"""The largest eigenvalue of an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from hypergrad.linear import Operator
from hypergrad.solvers.linear.preconditioners import rademacher


def top_curvature(operator: Operator, vector: Tensor | None, steps: int) -> tuple[float, Tensor]:
    """Return an estimate of the largest eigenvalue in modulus, and the vector that the iteration ended with.

    Power iteration with the bound |vᵀAv| + ‖Av − (vᵀAv) v‖ for a unit vector v: some eigenvalue lies within the
    second term of the first, so that a poor v makes the number larger, and a step of one over it shorter.

    Args:
        operator: A, taken to be symmetric.
        vector: a unit vector to start from; random signs by default.
        steps: number of products, at least 1.
    """
    v = rademacher(operator, seed=0) / operator.size**0.5 if vector is None else vector
    image = operator(v)
    for _ in range(steps - 1):
        v = image / torch.linalg.vector_norm(image).clamp(min=torch.finfo(image.dtype).tiny)
        image = operator(v)
    quotient = torch.dot(v, image)
    gap = torch.linalg.vector_norm(image - quotient * v)
    length = torch.linalg.vector_norm(image)
    following = torch.where(length > 0, image / length.clamp(min=torch.finfo(image.dtype).tiny), v)
    return float(quotient.abs() + gap), following
