"""Races of Optuna's samplers: each trial trains from the start, and its value is the validation loss.

With groups, a trial has one number for each group of hyperparameters, which the sheet made from what is known before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import torch
from torch import Tensor

from benchmarks.problems import Arrays, Tree
from benchmarks.race import Race
from benchmarks.race_problems import descend, leaves, task
from benchmarks.rows.race_hand import Function

SAMPLERS: dict[str, Any] = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "CMA-ES": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def version() -> str:
    """Return what computes."""
    return f"optuna {optuna.__version__}"


def _row(sampler: str, *, grouped: bool) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Function:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        problem = task(name, arrays)
        (key, start), *_ = problem.hparams.items()
        groups = torch.from_numpy(arrays["groups"]) if grouped else torch.arange(start.numel())
        count, (low, high) = int(groups.max()) + 1, settings["range"]

        def run() -> dict[str, Any]:
            race, best, trials = Race(), float("inf"), 0
            kept: tuple[Tree, Tree] = problem.params, problem.hparams
            with race.clock():
                study = optuna.create_study(sampler=SAMPLERS[sampler](settings["seed"]))
            while not race.seconds or race.seconds[-1] < settings["seconds"]:
                with race.clock():
                    trial = study.ask()
                    values = [trial.suggest_float(f"x{place}", low, high) for place in range(count)]
                    hparams = {key: torch.tensor(values, dtype=start.dtype)[groups]}
                    params = leaves(problem.params)
                    descend(problem, params, hparams, settings)
                    loss = float(_value(problem, params, hparams))
                    study.tell(trial, loss)
                    trials += 1
                if loss < best:
                    best, kept = loss, (params, hparams)
                race.note(list(kept[0].values()), list(kept[1].values()))
            return race.result([], trials=trials)

        return run

    return build


@torch.no_grad()
def _value(problem: Any, params: Tree, hparams: Tree) -> Tensor:
    loss: Tensor = problem.outer(params, hparams)
    return loss


ROWS = {
    **{sampler: _row(sampler, grouped=False) for sampler in SAMPLERS},
    **{f"{sampler}, 10 groups": _row(sampler, grouped=True) for sampler in SAMPLERS},
}
