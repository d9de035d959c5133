"""Averages of the hyperparameters over the outer steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from hypergrad import saved, tree
from hypergrad.callbacks import Callback
from hypergrad.run import Progress, Run
from hypergrad.settings import check_counts, check_numbers
from hypergrad.tree import Tree


@final
class Averaging(Callback):
    """Average λ over the outer steps, which takes the noise of minibatches out of where a run ends.

    Polyak-Ruppert by default: λ̄ is the mean of λ after the steps from ``begin`` on. With ``decay`` an exponential
    moving average: λ̄ ← decay · λ̄ + (1 − decay) · λ, begun at the first of them. An average of points of a convex domain
    lies in it; λ̄ is projected all the same. The run itself goes on from λ, not from λ̄.

    :meth:`hypergrad.Trainer.fit` returns λ̄ and trains once more there, from where training stood.

    Args:
        decay: above 0 and below 1; ``None`` for the mean.
        begin: number of the first outer step that counts, from 1.

    Attributes:
        hparams: λ̄ so far, ``None`` before step ``begin``.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=1.5)  # too long: λ swings around its optimum
        >>> trainer = hg.Trainer(problem, hg.Implicit(inner=hg.Newton(tolerance=1e-5)), move, [Averaging(begin=2)])
        >>> trainer.fit({"w": torch.zeros(1)}, {"x": torch.zeros(1)}, steps=3).hparams["x"].round(decimals=3)
        tensor([2.8120])
    """

    def __init__(self, decay: float | None = None, *, begin: int = 1) -> None:
        """Keep the settings."""
        self.decay, self.begin = decay, begin
        check_numbers(self, "decay", above=0, below=1)
        check_counts(self, "begin")
        self.hparams: Tree | None = None
        self._counted = 0

    def start(self, run: Run, steps: int) -> None:
        """Forget an earlier run."""
        self.hparams, self._counted = None, 0

    def step(self, run: Run, progress: Progress) -> None:
        """Take the hyperparameters after the step in."""
        if progress.step < self.begin:
            return
        self._counted += 1
        if self.hparams is None:
            self.hparams = tree.cloned(progress.moved)
            return
        share = 1 / self._counted if self.decay is None else 1 - self.decay
        mixed = {key: value.lerp(progress.moved[key], share) for key, value in self.hparams.items()}
        self.hparams = tree.cloned(run.problem.project(mixed))

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps it is of."""
        return {} if self.hparams is None else {"counted": self._counted, "hparams": self.hparams}

    def load_state_dict(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on from an average."""
        counted = state.get("counted")
        if not (isinstance(counted, int) and counted > 0):
            raise saved.unfit(f"whose Averaging has {sorted(state)}", "counted and hparams")
        self.hparams = saved.tree_like("the saved average hparams", state.get("hparams"), run.hparams)
        self._counted = counted
