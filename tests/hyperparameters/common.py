"""What several tests of hyperparameters share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import hypergrad as hg

FIT = hg.LBFGS(tolerance=1e-11, steps=500)


def differences(function: Callable[[], float], raw: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function of a tensor that is moved in place."""
    found = torch.zeros_like(raw, requires_grad=False)
    flat, slopes = raw.detach().view(-1), found.view(-1)
    for place in range(flat.numel()):
        start = float(flat[place])
        values = []
        for sign in (1, -1):
            flat[place] = start + sign * step
            values.append(function())
        flat[place] = start
        slopes[place] = (values[0] - values[1]) / (2 * step)
    return found
