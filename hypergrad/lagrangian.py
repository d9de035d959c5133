"""The Lagrangian of an inner problem with constraints, whose stationary point is the inner solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.errors import InputError, ObjectiveError, TreeError
from hypergrad.objective import UserFunction
from hypergrad.tree import Tree

EQUALITY, INEQUALITY = "equality_multiplier", "inequality_multiplier"


@final
@dataclass(frozen=True)
class Lagrangian:
    """L = g + ⟨ν, c⟩ + ⟨μ, a ⊙ h⟩ − ½ ‖(1 − a) ⊙ μ‖² with the active set a = [μ + h > 0], held fixed in derivatives.

    Its gradient in (θ, ν, μ) vanishes just where the Karush-Kuhn-Tucker conditions of min g subject to c = 0 and h ≤ 0
    hold: the multipliers of inactive constraints are zero, and active constraints are equations. The Jacobian of that
    gradient is symmetric and indefinite.

    Attributes:
        objective: g.
        equality: c, or ``None``.
        inequality: h, or ``None``.
    """

    objective: UserFunction
    equality: UserFunction | None
    inequality: UserFunction | None

    def __call__(self, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        """Return L, a scalar."""
        value = self.objective.scalar(params, hparams, batch, differentiable=False)
        if self.equality is not None:
            value = value + (params[EQUALITY] * self._gaps(EQUALITY, self.equality, params, hparams, batch)).sum()
        if self.inequality is not None:
            mu = params[INEQUALITY]
            gaps = self._gaps(INEQUALITY, self.inequality, params, hparams, batch)
            active = (mu + gaps).detach() > 0
            value = value + torch.where(active, mu * gaps, -0.5 * mu.square()).sum()
        return value

    def weakly_active(self, params: Tree, hparams: Tree, batch: Any) -> list[int]:
        """Return the flat places of inequalities that hold with equality and have a multiplier of zero.

        There θ*(λ) has a kink. Both count as zero below the root of the precision, relative to the largest of all.
        """
        if self.inequality is None:
            return []
        with torch.no_grad():
            gaps = self._gaps(INEQUALITY, self.inequality, params, hparams, batch)
        both = torch.maximum(gaps.abs(), params[INEQUALITY].detach().abs()).flatten()
        small = both <= torch.finfo(both.dtype).eps ** 0.5 * both.max()
        return [int(place) for place in small.nonzero()]

    def _gaps(self, key: str, constraint: UserFunction, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        gaps = constraint(params, hparams, batch)
        if not isinstance(gaps, Tensor) or not gaps.is_floating_point():
            raise ObjectiveError(
                passed=f"{constraint.name}, which returned {type(gaps).__name__}",
                expected="a floating-point tensor with one number a constraint",
                do="stack the constraints with torch.stack",
            )
        if gaps.shape != params[key].shape:
            raise TreeError(
                passed=f"params[{key!r}] of shape {tuple(params[key].shape)}",
                expected=f"the shape of {constraint.name}, {tuple(gaps.shape)}",
                do=f"pass torch.zeros({tuple(gaps.shape)}) where the multipliers are not known",
            )
        return gaps


def lagrangian(inner: Any, equality: Any, inequality: Any) -> Lagrangian:
    """Return the Lagrangian of user functions.

    Raises:
        InputError: no constraint at all, or a function that takes other arguments.
    """
    if equality is None and inequality is None:
        raise InputError(
            passed="Problem.constrained without a constraint",
            expected="equality=, inequality= or both",
            do="pass them, or use Problem(inner, outer) where there are none",
        )
    return Lagrangian(
        UserFunction("inner", inner),
        None if equality is None else UserFunction("equality", equality),
        None if inequality is None else UserFunction("inequality", inequality),
    )
