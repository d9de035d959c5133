"""A learning rate for every step of training, as hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor, nn

from hypergrad.domains import Box
from hypergrad.errors import InputError
from hypergrad.hyperparameters.module import HyperparameterModule
from hypergrad.inner import Tuned
from hypergrad.settings import check_choice, check_count, check_number
from hypergrad.tree import NamedTree


@final
class LearningRateSchedule(HyperparameterModule):
    """Learning rates exp(λ) for ``steps`` steps of training, between knots constant or linear in the logarithm.

    ``hg.GradientDescent(lr=schedule.tuned())`` reads the rate of its step from the hyperparameters; then
    :class:`~hypergrad.Unrolled` or :class:`~hypergrad.ForwardMode` give their hypergradients.

    Args:
        steps: number of steps of training, at least 1; later steps have the last rate.
        initial: rate at the start of tuning, above 0: one, or one for each knot.
        knots: number of rates, from 1 to ``steps``; by default one for each step. Constant pieces are of equal length
            but for rounding, linear ones have knots at equal distances, the first and last step among them.
        pieces: ``"constant"`` or ``"linear"`` between knots.
        bounds: (low, high) of the rates, above 0; :meth:`domains` keeps to them.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        log_learning_rate: λ, of shape (knots,).

    Raises:
        InputError: settings out of range.

    Example:
        >>> import torch, hypergrad as hg
        >>> schedule = hg.LearningRateSchedule(4, initial=0.1, knots=2)
        >>> rule = hg.GradientDescent(lr=schedule.tuned())
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - 1).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 1).square().sum(),
        ... )
        >>> result = hg.hypergradient(problem, {"w": torch.zeros(1)}, schedule.tree(), hg.Unrolled(4, rule))
        >>> result.grads["log_learning_rate"]  # −2 · 0.1 · 0.9⁷
        tensor([-0.0957, -0.0957])
    """

    def __init__(
        self,
        steps: int,
        initial: float | Sequence[float] = 0.1,
        *,
        knots: int | None = None,
        pieces: Literal["constant", "linear"] = "constant",
        bounds: tuple[float, float] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check the settings and start at the initial rates."""
        super().__init__()
        self.steps, self.knots, self.pieces, self.bounds = steps, knots, pieces, bounds
        check_count("LearningRateSchedule", "steps", steps)
        check_choice(self, "pieces", ("constant", "linear"))
        self.knots = count = steps if knots is None else knots
        check_count("LearningRateSchedule", "knots", count)
        if count > steps:
            raise InputError(f"LearningRateSchedule({steps}, knots={count})", "knots <= steps", "lower knots")
        rates = [initial] * count if isinstance(initial, int | float) else list(initial)
        low, high = self._check_bounds(bounds)
        if len(rates) != count:
            raise InputError(f"{len(rates)} initial rates", f"one, or one for each of {count} knots", "pass one number")
        for rate in rates:
            check_number("LearningRateSchedule", "initial", rate, above=0)
            if not low <= rate <= high:
                raise InputError(f"an initial rate of {rate:g}", f"a rate within {bounds}", "start inside the bounds")
        raw = torch.tensor([math.log(rate) for rate in rates], dtype=torch.float64)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.log_learning_rate = nn.Parameter(raw.to(dtype=dtype, device=device))

    @staticmethod
    def _check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float]:
        if bounds is None:
            return 0.0, math.inf
        try:
            low, high = bounds
            if not 0 < low < high:
                raise ValueError(low)
        except (TypeError, ValueError) as error:
            raise InputError(
                passed=f"LearningRateSchedule(bounds={bounds!r})",
                expected="(low, high), 0 < low < high",
                do="leave bounds out for none",
            ) from error
        return float(low), float(high)

    def at(self, hparams: Mapping[str, Tensor], step: int, name: str = "log_learning_rate") -> Tensor:
        """Return the rate at a step, counted from 0, from a tree that holds λ under ``name``; a 0-d tensor."""
        raw = NamedTree("hparams", hparams)[name]
        step, count = min(step, self.steps - 1), raw.numel()
        if self.pieces == "constant" or count == 1:
            return raw[step * count // self.steps].exp()
        place = step * (count - 1) / (self.steps - 1)
        left = min(int(place), count - 2)
        return torch.lerp(raw[left], raw[left + 1], place - left).exp()

    def tuned(self, name: str = "log_learning_rate") -> Tuned:
        """Return the schedule as a setting of an update rule.

        Args:
            name: λ's name among the hyperparameters: another one where the schedule is a part of a larger module.
        """
        return Tuned(partial(self.at, name=name))

    def forward(self, step: int) -> Tensor:
        """Return the present rate at a step."""
        return self.at({"log_learning_rate": self.log_learning_rate}, step)

    def rates(self) -> Tensor:
        """Return the present rates of all steps, of shape (steps,)."""
        return torch.stack([self(step) for step in range(self.steps)])

    def domains(self) -> dict[str, Box]:
        """Return the bounds of λ for ``hparams_domain`` of a :class:`~hypergrad.Problem`; empty without bounds."""
        if self.bounds is None:
            return {}
        return {"log_learning_rate": Box(math.log(self.bounds[0]), math.log(self.bounds[1]))}

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.steps}, knots={self.knots}, pieces={self.pieces!r}, bounds={self.bounds}"
