"""Gradient descent, with momentum, Nesterov's momentum and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from hypergrad import tree
from hypergrad.errors import InputError
from hypergrad.inner import Setting, Slots, UpdateRule, axpy, check_settings, resolve
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class GradientDescent(UpdateRule):
    """θ ← θ − lr · d with d = g, or with momentum m ← momentum · m + g and d = m (Nesterov: d = g + momentum · m).

    With a sampler on the problem it is stochastic gradient descent. On a fixed-point problem with ``lr=1`` it is
    the iteration θ ← map(θ, λ). The iterates are bitwise those of :class:`torch.optim.SGD`.

    Args:
        lr: step size, above 0: a number, a function of the step, or :class:`~hypergrad.Tuned`.
        momentum: from 0 to below 1, likewise.
        nesterov: whether to use Nesterov's form; needs momentum.
        weight_decay: multiple of θ added to the gradient, at least 0, likewise. It is part of this rule and
            invisible to implicit algorithms: tune a decay as part of the objective there.
        steps: number of steps of a run, at least 1.
        tolerance: a run stops once ‖∇_θ g‖ is at most this.

    Cost: 1 gradient a step.

    Example:
        >>> GradientDescent(lr=0.1, momentum=0.9, steps=100)
        GradientDescent(steps=100, tolerance=0.0, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    """

    lr: Setting
    momentum: Setting = 0.0
    nesterov: bool = False
    weight_decay: Setting = 0.0
    tuned = ("lr", "momentum", "weight_decay")

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_settings(self, "lr", above=0)
        check_settings(self, "momentum", least=0, below=1)
        check_settings(self, "weight_decay", least=0)
        if self.nesterov and self.momentum == 0:
            raise InputError("GradientDescent(nesterov=True, momentum=0)", "momentum > 0", "pass momentum=0.9")

    def start(self, params: Tree) -> Slots:
        """Return no slots without momentum, a zero momentum otherwise."""
        return {} if self._plain else {"momentum": tree.zeros_like(params)}

    @property
    def _plain(self) -> bool:
        return isinstance(self.momentum, int | float) and self.momentum == 0

    def update(self, params: Tree, gradient: Tree, slots: Slots, hparams: Tree, step: int) -> tuple[Tree, Slots]:
        """Return the next parameters and momentum."""
        lr, decay = resolve(self.lr, hparams, step), resolve(self.weight_decay, hparams, step)
        if isinstance(decay, Tensor) or decay != 0:
            gradient = {key: axpy(decay, value, gradient[key]) for key, value in params.items()}
        direction = gradient
        if not self._plain:
            momentum = resolve(self.momentum, hparams, step)
            buffer = {key: momentum * slots["momentum"][key] + gradient[key] for key in params}
            slots = {"momentum": buffer}
            direction = buffer
            if self.nesterov:
                direction = {key: axpy(momentum, buffer[key], gradient[key]) for key in params}
        return {key: axpy(-lr, direction[key], value) for key, value in params.items()}, slots
