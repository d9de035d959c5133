"""When to take outer steps in a training loop of one's own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, SupportsFloat, final

from torch import Tensor

from hypergrad.errors import InputError
from hypergrad.settings import check_count, check_counts, check_numbers


class OuterSchedule(ABC):
    """How many outer steps are due after a step of training.

    Call it once after every step of training, with the number of that step from 0. The answer is a number of outer
    steps, mostly 0 or 1, so that both forms read well::

        if schedule(step): ...
        for _ in range(schedule(step)): ...

    Subclasses give :meth:`due`; those that remember something extend the state, too.
    """

    def __init__(self, *, outer: int = 1, warmup: int = 0) -> None:
        """Keep the settings, which subclasses document."""
        self.outer, self.warmup = outer, warmup
        check_counts(self, "outer")
        check_counts(self, "warmup", least=0)

    def __call__(self, step: int, loss: Tensor | SupportsFloat | None = None) -> int:
        """Return how many outer steps are due.

        Args:
            step: number of the step of training that was just made, from 0.
            loss: training loss of that step, a number or a 0-d tensor, for schedules that look at it.

        Raises:
            InputError: a step that is no whole number, or a loss that is missing.
        """
        check_count(type(self).__name__, "step", step, least=0, do="count the steps of training from 0")
        return self.outer if step >= self.warmup and self.due(step - self.warmup, loss) else 0

    @abstractmethod
    def due(self, step: int, loss: Tensor | SupportsFloat | None) -> bool:
        """Return whether outer steps are due.

        Args:
            step: number of the step of training after the warm-up, from 0.
            loss: training loss of that step, if the caller passed one.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed loop goes on with, as numbers; save it with the model's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises:
            InputError: the state of another schedule.
        """
        mine = self.state_dict()
        if {key: type(value) for key, value in state.items()} != {key: type(value) for key, value in mine.items()}:
            raise InputError(
                passed=f"a saved {type(self).__name__} with {dict(state)}",
                expected=f"numbers under {sorted(mine)}",
                do="load the state of a schedule of the same class",
            )
        vars(self).update({f"_{key}": value for key, value in state.items()})


@final
class Every(OuterSchedule):
    """After every ``inner`` steps of training ``outer`` outer steps: T_train : T_valid.

    It is a function of the step's number, and remembers nothing.

    Args:
        inner: T_train, steps of training between outer steps, at least 1.
        outer: T_valid, outer steps in a row, at least 1.
        warmup: steps of training before the first period begins, at least 0.

    Example:
        >>> schedule = Every(3, outer=2, warmup=2)
        >>> [schedule(step) for step in range(9)]
        [0, 0, 0, 0, 2, 0, 0, 2, 0]
    """

    def __init__(self, inner: int = 1, *, outer: int = 1, warmup: int = 0) -> None:
        """Keep the settings."""
        self.inner = inner
        check_counts(self, "inner")
        super().__init__(outer=outer, warmup=warmup)

    def due(self, step: int, loss: Tensor | SupportsFloat | None) -> bool:
        """Return whether the step ends a period."""
        return (step + 1) % self.inner == 0


@final
class OnPlateau(OuterSchedule):
    """Outer steps where the training loss has stopped falling: training is close to its optimum there.

    The loss, smoothed as s ← smoothing · s + (1 − smoothing) · loss, has to fall below its lowest value by the share
    ``min_delta`` of that value's size; after ``patience`` steps without that outer steps are due, and the search for a
    lowest value starts again, since other hyperparameters make another training loss. Reading a loss on an accelerator
    waits for it. NaN and infinity are no fall.

    Args:
        patience: steps without a fall, at least 1.
        min_delta: relative fall that counts, at least 0.
        smoothing: from 0, every loss as it is, to below 1; for losses of minibatches 0.9 or more.
        longest: outer steps are due after so many steps at the latest, at least 1; ``None`` for no limit.
        outer: outer steps in a row, at least 1.
        warmup: steps of training whose losses are not looked at, at least 0.

    Example:
        >>> schedule = OnPlateau(patience=2)
        >>> [schedule(step, loss) for step, loss in enumerate([3.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0])]
        [0, 0, 0, 1, 0, 0, 1]
    """

    def __init__(
        self,
        patience: int = 10,
        *,
        min_delta: float = 1e-4,
        smoothing: float = 0.0,
        longest: int | None = None,
        outer: int = 1,
        warmup: int = 0,
    ) -> None:
        """Keep the settings."""
        self.patience, self.min_delta, self.smoothing, self.longest = patience, min_delta, smoothing, longest
        check_counts(self, "patience", "longest")
        check_numbers(self, "min_delta", least=0)
        check_numbers(self, "smoothing", least=0, below=1)
        super().__init__(outer=outer, warmup=warmup)
        self._lowest = self._smooth = math.inf
        self._made = self._waited = 0

    def due(self, step: int, loss: Tensor | SupportsFloat | None) -> bool:
        """Return whether the loss has stopped falling."""
        if loss is None:
            raise InputError(
                passed=f"OnPlateau called without a loss at step {step + self.warmup}",
                expected="the training loss of every step",
                do="call schedule(step, loss)",
            )
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if math.isnan(value):
            value = math.inf
        if self._made and math.isfinite(self._smooth):
            value = self.smoothing * self._smooth + (1 - self.smoothing) * value
        self._smooth, self._made, self._waited = value, self._made + 1, self._waited + 1
        first = math.isinf(self._lowest)
        if math.isfinite(value) and (first or value < self._lowest - self.min_delta * abs(self._lowest)):
            self._lowest, self._waited = value, 0
        if self._waited < self.patience and (self.longest is None or self._made < self.longest):
            return False
        self._lowest = self._smooth = math.inf
        self._made = self._waited = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest and the present smoothed loss, and the steps made and waited since."""
        return {"lowest": self._lowest, "smooth": self._smooth, "made": self._made, "waited": self._waited}
