"""An outer loss on examples that neither objective sees."""

from __future__ import annotations

from typing import Any, final

import torch

from hypergrad import guards
from hypergrad.data import Sampler
from hypergrad.errors import InputError
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.tree import Tree, detached, device_of


@final
class HeldOut:
    """The outer objective on a held-out batch, or an objective of its own.

    Args:
        call: who asks, for messages.
        given: a batch for the problem's ``outer``, a sampler (its full batch counts), or a function ``(params,
            hparams)`` that returns a scalar.
    """

    def __init__(self, call: str, given: Any) -> None:
        """Read the function's signature, or keep the batch."""
        self.call, self.given = call, given
        self.function = None
        if callable(given) and not isinstance(given, Sampler):
            function: Any = given
            self.function = UserFunction("held_out", function)

    def check(self, problem: Problem) -> None:
        """Raise :class:`~hypergrad.errors.InputError` for a batch that the outer objective does not take."""
        if self.function is None and not problem.takes_outer_batch:
            raise InputError(
                passed=f"{self.call}(held_out=...) with a batch, for an outer objective without a batch",
                expected="outer(params, hparams, batch), which can be evaluated on other examples",
                do=f"pass a function: {self.call}(held_out=lambda params, hparams: ...)",
            )

    def loss(self, problem: Problem, params: Tree, hparams: Tree) -> float:
        """Return the loss; nothing is changed, and its random numbers are the same at every call.

        Cost: one evaluation.
        """
        params, hparams = detached(params), detached(hparams)
        with torch.no_grad(), guards.pinned_rng(device_of(params), seed=0):
            if self.function is not None:
                return float(self.function.scalar(params, hparams, None, differentiable=False))
            batch = self.given.full() if isinstance(self.given, Sampler) else self.given
            return float(problem.outer_value(params, hparams, batch))
