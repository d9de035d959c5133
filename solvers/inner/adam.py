"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.inner import Setting, Slots, UpdateRule, axpy, check_settings, resolve
from hypergrad.settings import check_numbers
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class Adam(UpdateRule):
    """θ ← θ − lr · m̂ / (√v̂ + eps) with bias-corrected moments m̂ and v̂ of the gradient and its square.

    The iterates are bitwise those of :class:`torch.optim.Adam` (:class:`torch.optim.AdamW` with ``decoupled``).
    Where a second moment is exactly zero the square root's slope, infinite there, is taken to be zero.

    Args:
        lr: step size, above 0: a number, a function of the step, or :class:`~hypergrad.Tuned`.
        beta1: decay of the first moment, from 0 to below 1, likewise.
        beta2: decay of the second moment, from 0 to below 1, likewise.
        eps: added to the square root, above 0.
        weight_decay: at least 0; added to the gradient, or with ``decoupled`` applied to θ directly.
        decoupled: AdamW's form of the weight decay.
        steps: number of steps of a run, at least 1.
        tolerance: a run stops once ‖∇_θ g‖ is at most this.

    Cost: 1 gradient a step.

    Source: Kingma and Ba (2015), algorithm 1; Loshchilov and Hutter (2019) for ``decoupled``.

    Example:
        >>> Adam(lr=1e-3, steps=100).beta2
        0.999
    """

    lr: Setting
    beta1: Setting = 0.9
    beta2: Setting = 0.999
    eps: float = 1e-8
    weight_decay: Setting = 0.0
    decoupled: bool = False
    tuned = ("lr", "beta1", "beta2", "weight_decay")

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_settings(self, "lr", above=0)
        check_settings(self, "beta1", "beta2", least=0, below=1)
        check_settings(self, "weight_decay", least=0)
        check_numbers(self, "eps", above=0)

    def start(self, params: Tree) -> Slots:
        """Return zero moments."""
        return {"first": tree.zeros_like(params), "second": tree.zeros_like(params)}

    def update(self, params: Tree, gradient: Tree, slots: Slots, hparams: Tree, step: int) -> tuple[Tree, Slots]:
        """Return the next parameters and moments."""
        names = ("lr", "beta1", "beta2", "weight_decay")
        lr, beta1, beta2, decay = (resolve(getattr(self, name), hparams, step) for name in names)
        if isinstance(decay, Tensor) or decay != 0:
            if self.decoupled:
                params = {key: value * (1 - lr * decay) for key, value in params.items()}
            else:
                gradient = {key: axpy(decay, value, gradient[key]) for key, value in params.items()}
        first = {key: torch.lerp(old, gradient[key], 1 - beta1) for key, old in slots["first"].items()}
        second = {key: _second(old, gradient[key], beta2) for key, old in slots["second"].items()}
        correction1, correction2 = 1 - beta1 ** (step + 1), (1 - beta2 ** (step + 1)) ** 0.5
        size = lr / correction1
        moved = {}
        for key, value in params.items():
            scale = _root(second[key]) / correction2 + self.eps
            if isinstance(size, Tensor):
                moved[key] = value - size * (first[key] / scale)
            else:
                moved[key] = torch.addcdiv(value, first[key], scale, value=-size)
        return moved, {"first": first, "second": second}


def _second(old: Tensor, gradient: Tensor, beta2: float | Tensor) -> Tensor:
    if isinstance(beta2, Tensor):
        return old * beta2 + (1 - beta2) * gradient * gradient
    return torch.addcmul(old * beta2, gradient, gradient, value=1 - beta2)


def _root(square: Tensor) -> Tensor:
    """Return √square with slope 0 at 0, where a plain root's infinite slope would turn zeros into NaN."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
