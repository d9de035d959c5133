"""What a trial tunes by hypergradients: made by the user for every trial, checked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from hypergrad.algorithm import Algorithm
from hypergrad.averaging import Averaging
from hypergrad.callbacks import Callback
from hypergrad.errors import InputError
from hypergrad.hyperparameters import Hyperparameters
from hypergrad.outer import OuterMove
from hypergrad.problem import Problem
from hypergrad.settings import check_function, check_kind
from hypergrad.tree import Tree

Score = Callable[[Tree, Tree], float | Tensor]
Constraints = Callable[[Tree, Tree], Mapping[str, float | Tensor]]


@final
@dataclass(frozen=True)
class Tuning:
    """What one trial tunes by hypergradients.

    Attributes:
        problem: the two objectives and their samplers.
        params: where training starts.
        hparams: where the hyperparameters start: a tree, or a :class:`~hypergrad.Hyperparameters`.
        algorithm: how hypergradients are found; ``"auto"`` to have it chosen.
        outer: what moves the hyperparameters; ``None`` for that of the :class:`HybridObjective`.
        score: ``(params, hparams) -> number``, what the trial is worth, under ``torch.no_grad``; ``None`` for the outer
            loss, which over a sampler is that of its full batch. Only with a score may a study be maximized.
        constraints: ``(params, hparams) -> {name: number}``; a trial is feasible where all are at most 0.
        callbacks: callbacks of the trial's :class:`~hypergrad.Trainer`; none that averages.

    Raises:
        InputError: parts of another kind.
    """

    problem: Problem
    params: Mapping[str, Tensor]
    hparams: Mapping[str, Tensor] | Hyperparameters
    algorithm: Algorithm[Any] | Literal["auto"] = "auto"
    outer: OuterMove | None = None
    score: Score | None = None
    constraints: Constraints | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        """Refuse what is no problem, function or callback; the rest is checked where the run begins."""
        check_kind(self, "problem", Problem, "pass hypergrad.Problem(inner=..., outer=...)")
        check_function(self, "score", "(params, hparams) -> number", "leave score out for the outer loss")
        check_function(self, "constraints", "(params, hparams) -> {name: number}", "leave constraints out for none")
        for callback in self.callbacks:
            if not isinstance(callback, Callback) or isinstance(callback, Averaging):
                raise InputError(
                    passed=f"Tuning(callbacks=...) with {callback!r}",
                    expected="callbacks that watch or stop; what is kept is the best or the last step",
                    do="leave it out; see keep= of HybridObjective",
                )

    @property
    def start(self) -> Mapping[str, Tensor]:
        """Return the tree of the hyperparameters."""
        return self.hparams.tree() if isinstance(self.hparams, Hyperparameters) else self.hparams


def read_tuning(built: object) -> Tuning:
    """Return what ``build`` returned as a :class:`Tuning`.

    Raises:
        InputError: neither one nor the tuple of its first four or five fields.
    """
    if isinstance(built, Tuning):
        return built
    if isinstance(built, tuple) and len(built) in (4, 5):
        return Tuning(*built)
    shown = f"a tuple of {len(built)}" if isinstance(built, tuple) else type(built).__name__
    raise InputError(
        passed=f"build(trial), which returned {shown}",
        expected="(problem, params, hparams, algorithm), the same with an outer move, or a Tuning",
        do="return hypergrad.bridges.optuna.Tuning(problem, params, hparams, algorithm)",
    )
