"""What a torch learning-rate scheduler makes of the options of each group, step by step."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hypergrad.errors import InputError, UnsupportedError
from hypergrad.solvers.inner.torch_groups import Optimizer, options_of, stand_in

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
LOOK_AHEAD = 100
PASS_FUNCTION = (
    "pass scheduler=lambda optimizer: ..., built from optimizer.param_groups[0]['lr'], or leave lr out of settings"
)


class ScheduleEndError(InputError):
    """A training that is longer than its scheduler."""


@final
class Schedule:
    """The options of every group at every step, from a scheduler that runs on a stand-in for its optimizer.

    Args:
        scheduler: a scheduler of ``optimizer``, followed from where it stands, or a function that makes one.
        optimizer: whose groups; neither is changed.

    Raises:
        InputError: neither, or a scheduler of another optimizer.
        UnsupportedError: a scheduler that looks at a metric.
    """

    def __init__(self, scheduler: Any, optimizer: Optimizer) -> None:
        self.scheduler, self.optimizer = scheduler, optimizer
        self.groups = [options_of(optimizer, group) for group in range(len(optimizer.param_groups))]
        self.rows: dict[float, _Rows] = {}
        if not isinstance(scheduler, LRScheduler) and not callable(scheduler):
            raise InputError(
                passed=f"TorchRule(scheduler={scheduler!r})",
                expected="a torch scheduler of the optimizer, or a function optimizer -> scheduler",
                do="pass lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)",
            )
        self.at(0)

    def at(self, step: int, scale: float = 1.0) -> list[dict[str, Any]]:
        """Return the options that the scheduler has set at a step, with all learning rates times ``scale``."""
        if scale not in self.rows:
            self.rows[scale] = _Rows(*self._run(scale))
        return self.rows[scale].at(step)

    def line(self, step: int, group: int) -> tuple[float, float]:
        """Return a and c of the learning rate a + c · lr at a step, for a base learning rate lr.

        Raises:
            UnsupportedError: a schedule that is no such line, or that does not depend on lr.
        """
        base = self._base(group)
        one, two, four = (self._rate(step, group, scale) for scale in (1.0, 2.0, 4.0))
        slope = two - one
        if abs(four - one - 3 * slope) > 1e-9 * max(abs(four), abs(one)):
            raise UnsupportedError(
                passed=f"a tuned lr under {self._title}, whose rates are no linear function of the first one",
                expected="a scheduler that scales or shifts the learning rate that it is given",
                do="tune the rates themselves: settings={'lr': hypergrad.Tuned(lambda hparams, step: ...)}",
            )
        offset = one - slope
        if isinstance(self.scheduler, LRScheduler) and abs(offset) > 1e-9 * abs(one):
            raise UnsupportedError(
                passed=f"a tuned lr under a live {self._title}, which adds rates of its own",
                expected="a scheduler that scales the learning rate, or a function that makes one",
                do=PASS_FUNCTION,
            )
        return (0.0 if abs(offset) <= 1e-12 * abs(one) else offset), slope / base

    def moves(self, name: str, group: int) -> bool:
        """Whether the scheduler changes an option of a group."""
        with contextlib.suppress(ScheduleEndError):
            for step in range(LOOK_AHEAD):
                if self.at(step)[group].get(name) != self.at(0)[group].get(name):
                    return True
        return False

    def check_tuned(self, group: int) -> None:
        """Refuse a schedule that makes nothing of the learning rate it is given."""
        with contextlib.suppress(ScheduleEndError):
            for step in range(LOOK_AHEAD):
                if self.line(step, group)[1] != 0:
                    return
        raise UnsupportedError(
            passed=f"a tuned lr under {self._title}, which sets rates of its own",
            expected="a scheduler whose rates depend on the learning rate of the optimizer",
            do="for OneCycleLR: lambda optimizer: OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]['lr'], ...)",
        )

    @property
    def _title(self) -> str:
        return type(self.rows[1.0].scheduler).__name__

    def _base(self, group: int) -> float:
        """Return the learning rate whose place a tuned one takes."""
        held = self.optimizer.param_groups[group]
        if isinstance(self.scheduler, LRScheduler):
            return float(held["max_lr"] if self._title == "OneCycleLR" else held["initial_lr"])
        return float(held["lr"])

    def _rate(self, step: int, group: int, scale: float) -> float:
        return float(self.at(step, scale)[group]["lr"])

    def _run(self, scale: float) -> tuple[Any, Any]:
        """Return a scheduler and its stand-in optimizer at the first step, with rates times ``scale``."""
        live = isinstance(self.scheduler, LRScheduler)
        groups = [dict(group) for group in self.groups]
        for group in groups:
            group["params"] = [torch.zeros(())]
            for name in RATES[1:] if not live else ():
                group.pop(name, None)
            group.update({name: scale * float(group[name]) for name in RATES if name in group})
        twin = stand_in(self.optimizer, groups, {})
        twin.defaults = dict(self.optimizer.defaults)
        twin.step, twin._opt_called = _wrapped, True
        if not live:
            made = self.scheduler(twin)
        elif self.scheduler.optimizer is not self.optimizer:
            raise InputError(
                passed="TorchRule(scheduler=...) with a scheduler of another optimizer",
                expected="the scheduler of the optimizer that is passed",
                do="pass both as they belong together",
            )
        else:
            made = copy.deepcopy(self.scheduler, {id(self.optimizer): twin})
            for part in _all(made):
                part.base_lrs = [scale * float(rate) for rate in getattr(part, "base_lrs", [])]
        if isinstance(made, ReduceLROnPlateau):
            raise UnsupportedError(
                passed="TorchRule with ReduceLROnPlateau, which looks at a metric",
                expected="a scheduler that knows its rates beforehand",
                do="tune the rates themselves: settings={'lr': hypergrad.Tuned(lambda hparams, step: ...)}",
            )
        if not isinstance(made, LRScheduler):
            raise InputError(
                passed=f"TorchRule(scheduler=...), a function that returned {type(made).__name__}",
                expected="a torch scheduler",
                do="return the scheduler: lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)",
            )
        return made, twin


class _Rows:
    """The options of all groups at each step, as far as they were asked for."""

    def __init__(self, scheduler: Any, optimizer: Any) -> None:
        self.scheduler, self.optimizer = scheduler, optimizer
        self.rows = [self._read()]

    def _read(self) -> list[dict[str, Any]]:
        return [
            {name: _number(group[name]) for name in ("lr", "momentum", "betas") if name in group}
            for group in self.optimizer.param_groups
        ]

    def at(self, step: int) -> list[dict[str, Any]]:
        while len(self.rows) <= step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the stand-in's own step is never called
                try:
                    self.scheduler.step()
                except ValueError as error:
                    raise ScheduleEndError(
                        passed=f"step {len(self.rows)} of training under {type(self.scheduler).__name__}: {error}",
                        expected="a scheduler that is at least as long as training",
                        do="raise its total_steps, or lower the number of steps",
                    ) from error
            self.rows.append(self._read())
        return self.rows[step]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value


def _all(scheduler: Any) -> Iterable[Any]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", []):
        yield from _all(part)


def _wrapped() -> None:
    """Do nothing, in the place of a step that schedulers look for."""


vars(_wrapped)["_wrapped_by_lr_sched"] = True
