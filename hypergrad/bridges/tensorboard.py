"""TensorBoard: the numbers of every step, and histograms of the hyperparameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from hypergrad.bridges.tracking import Tracker, finite, settings
from hypergrad.run import Run
from hypergrad.tree import Tree


@final
class TensorBoard(Tracker):
    """Write event files for TensorBoard (extra ``tensorboard``); look at them with ``tensorboard --logdir FOLDER``.

    Scalars of every step: outer_loss, norm (of the hypergradient), residual, inner_gradient_norm and implied_error
    where they are known, inner_gradients, products, outer_gradients (passes of the step), seconds. Histograms
    ``hparams/NAME`` of the finite entries after the move, and the settings as text.

    A resumed run goes on in the same folder: what was written behind the checkpoint does not count twice, and a run
    that starts anew takes the place of what was there. A failure to write is an
    :class:`~hypergrad.errors.TrackerWarning`, once, and the run goes on.

    Args:
        log_dir: folder of the event files, made where it does not exist.
        every: steps between two histograms, at least 1.
        settings: more settings to write down, by name.

    Raises:
        MissingDependencyError: tensorboard is not installed, when a run starts.

    Example:
        >>> import hypergrad as hg
        >>> from hypergrad.bridges.tensorboard import TensorBoard
        >>> callbacks = [TensorBoard("runs/first"), hg.Checkpoint("runs/first")]
    """

    package = "torch.utils.tensorboard"
    extra = "tensorboard"

    def __init__(
        self, log_dir: str | os.PathLike[str], every: int = 10, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the settings."""
        super().__init__(every)
        self.log_dir, self.settings = Path(log_dir), dict(settings or {})
        self._writer: Any = None

    def _open(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # the step under way is made already; whatever stands there from this step on belongs to an earlier attempt
        writer: Any = SummaryWriter(str(self.log_dir), purge_step=run.step_number)
        text = "\n".join(f"    {name} = {value}" for name, value in settings(run, self.settings).items())
        writer.add_text("settings", text, global_step=run.step_number)
        self._writer = writer

    def _log(self, step: int, values: Mapping[str, float], hparams: Tree | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, tensor in (hparams or {}).items():
            entries = finite(tensor)
            if entries.numel():
                self._writer.add_histogram(f"hparams/{name}", entries.numpy(), step)

    def _flush(self) -> None:
        self._writer.flush()

    def _close(self, run: Run, error: BaseException | None) -> None:
        self._writer.close()
        self._writer = None
