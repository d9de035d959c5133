"""Face 3: the whole loop, with callbacks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

from torch import Tensor

from hypergrad import saved
from hypergrad.algorithm import Algorithm
from hypergrad.averaging import Averaging
from hypergrad.callbacks import Callback, Checkpoint, EarlyStopping, load_checkpoint
from hypergrad.data import count_examples
from hypergrad.errors import InputError, OverfittingWarning
from hypergrad.outer import OuterMove
from hypergrad.problem import Problem
from hypergrad.run import Progress, Run
from hypergrad.settings import check_count
from hypergrad.tree import Tree


@final
@dataclass(frozen=True)
class Fitted:
    """What a :class:`Trainer` returns.

    Attributes:
        hparams: the hyperparameters after the last step; with :class:`~hypergrad.EarlyStopping` the best ones, with
            :class:`~hypergrad.Averaging` the average.
        params: θ after the last training; with early stopping or averaging that of these hyperparameters.
        steps: outer steps made in all.
        stopped: why it ended: ``"steps"``, or a callback's reason.
        last: the last step's progress, ``None`` if there was none to make.
    """

    hparams: Tree
    params: Tree
    steps: int
    stopped: str
    last: Progress | None


@final
class Trainer:
    """Run a bilevel optimization with callbacks, and resume it exactly.

    Ctrl-C ends the run after the step under way, with the checkpoint and the history complete, and then raises
    :class:`KeyboardInterrupt`; a second Ctrl-C ends it at once, and the last checkpoint stays.

    Args:
        problem: the two objectives and their samplers.
        algorithm: how hypergradients are found; ``"auto"`` to have it chosen at the first step.
        outer: what moves the hyperparameters.
        callbacks: called in order after every step, checkpoints last.
        seed: seed of the run's random numbers.
        warn_overfitting: whether to give an :class:`~hypergrad.errors.OverfittingWarning` where hyperparameters
            outnumber the examples of ``outer_data`` and no callback is an early stopping on something else than the
            outer loss. Only samplers that know their number of examples are judged (attribute ``examples``).
        probe: whether the first step looks whether the objectives repeat (see :class:`~hypergrad.Run`).

    Raises:
        InputError: early stopping together with averaging, both of which choose what is returned.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> trainer = hg.Trainer(
        ...     problem,
        ...     hg.Implicit(hg.CG(), inner=hg.Newton(tolerance=1e-5)),
        ...     outer=hg.outer.Torch(torch.optim.SGD, lr=0.5),
        ...     callbacks=[hg.EarlyStopping(patience=3)],
        ... )
        >>> fitted = trainer.fit({"w": torch.zeros(1)}, {"x": torch.zeros(1)}, steps=30)
        >>> fitted.hparams["x"].round(decimals=3)
        tensor([3.])
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm[Any] | Literal["auto"],
        outer: OuterMove,
        callbacks: Sequence[Callback] = (),
        *,
        seed: int = 0,
        warn_overfitting: bool = True,
        probe: bool = True,
    ) -> None:
        """Keep the settings."""
        self.problem, self.outer = problem, outer
        self.algorithm: Algorithm[Any] | Literal["auto"] = algorithm
        self.callbacks, self.seed, self.probe = list(callbacks), seed, probe
        self.warn_overfitting = warn_overfitting
        kinds = {type(callback) for callback in self.callbacks}
        if {EarlyStopping, Averaging} <= kinds:
            raise InputError(
                passed="Trainer with EarlyStopping and Averaging",
                expected="one callback that chooses what is returned: the best hyperparameters or their average",
                do="drop one; stop a run that averages with a callback of your own",
            )

    def fit(
        self,
        params: Mapping[str, Tensor],
        hparams: Mapping[str, Tensor],
        steps: int,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> Fitted:
        """Run until ``steps`` outer steps are made in all, or a callback stops.

        Args:
            params: where training starts.
            hparams: where the hyperparameters start.
            steps: number of outer steps, at least 1, those before a checkpoint included.
            resume: a directory that :class:`~hypergrad.Checkpoint` wrote to, to go on from there.

        Raises:
            InputError: wrong inputs, or a checkpoint that does not fit.
            NumericalError: NaN or a diverged solve; callbacks have finished then.
            KeyboardInterrupt: after Ctrl-C; callbacks have finished then.
        """
        check_count("fit", "steps", steps, do="pass the number of outer steps in all")
        run = Run(self.problem, self.algorithm, params, hparams, self.outer, seed=self.seed, probe=self.probe)
        kept: Mapping[str, Any] = {}
        if resume is not None:
            state = load_checkpoint(resume)
            run.load_state_dict(state)
            kept = state["callbacks"]
        if self.warn_overfitting and not any(isinstance(c, EarlyStopping) and c.guards for c in self.callbacks):
            _warn_overfitting(self.problem, run.hparams)
        with ExitStack() as ends:
            for name, callback in self._named().items():
                callback.start(run, steps)
                ends.callback(callback.end, run)
                if kept.get(name):
                    saved.load_part("callbacks", partial(callback.load_state_dict, run=run), kept[name])
                run.companions[name] = callback
            last, stopped = self._go(run, steps)
            run.stopped = stopped
        return self._fitted(run, stopped, last)

    def _go(self, run: Run, steps: int) -> tuple[Progress | None, str]:
        last, callbacks = None, list(self._named().values())
        with _graceful_interrupt() as interrupted:
            while run.step_number < steps:
                last = run.step()
                reasons = [reason for callback in callbacks if (reason := callback.step(run, last))]
                if interrupted:
                    raise KeyboardInterrupt
                if reasons:
                    return last, reasons[0]
        return last, "steps"

    def _named(self) -> dict[str, Callback]:
        """Return the callbacks under names, checkpoints last, so that they save what the others learned from a step."""
        found: dict[str, Callback] = {}
        for callback in sorted(self.callbacks, key=lambda callback: isinstance(callback, Checkpoint)):
            kind = type(callback).__name__
            found[f"{kind} {sum(name.startswith(f'{kind} ') for name in found)}"] = callback
        return found

    def _fitted(self, run: Run, stopped: str, last: Progress | None) -> Fitted:
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping) and callback.best is not None:
                _, _, hparams, params = callback.best
                return Fitted(hparams, params, run.step_number, stopped, last)
            if isinstance(callback, Averaging) and callback.hparams is not None:
                return Fitted(callback.hparams, run.response(callback.hparams), run.step_number, stopped, last)
        return Fitted(run.hparams, run.params, run.step_number, stopped, last)


def _warn_overfitting(problem: Problem, hparams: Tree) -> None:
    examples = count_examples(problem.outer_data)
    entries = sum(value.numel() for value in hparams.values())
    if examples is not None and entries > examples:
        text = (
            f"{entries} hyperparameters are tuned on {examples} validation examples, so they can fit these examples "
            "and nothing else. Keep a third part of the data aside (hypergrad.split) and stop by it: "
            "callbacks=[hypergrad.EarlyStopping(held_out=batch)]; or penalise the hyperparameters in outer. "
            "Trainer(warn_overfitting=False) silences this"
        )
        warnings.warn(OverfittingWarning(text), stacklevel=3)


@contextmanager
def _graceful_interrupt() -> Iterator[list[bool]]:
    """Yield a list that gets an entry at the first Ctrl-C; the second raises as usual."""
    seen: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(True)
        sys.stderr.write("\nstopping after this step; press Ctrl-C again to stop at once\n")

    signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)
