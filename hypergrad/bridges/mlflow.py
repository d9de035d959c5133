"""MLflow: parameters, metrics of every step, and the hyperparameters found, in a store on this machine."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hypergrad.bridges.tracking import Identified, finite, settings
from hypergrad.run import Run
from hypergrad.tree import Tree


@final
class MLflow(Identified):
    """Write a run to an MLflow store (extra ``mlflow``); look at it with ``mlflow ui --backend-store-uri sqlite:///…``.

    Parameters are what the run was made of. Metrics of every step are outer_loss, norm (of the hypergradient),
    residual, inner_gradient_norm and implied_error where they are known, inner_gradients, products, outer_gradients
    (passes of the step) and seconds; now and then ``hparams/NAME/min``, ``/mean`` and ``/max``. At the end the files in
    ``artifacts`` and ``hparams.npz``, the hyperparameters after the last step, are kept as artifacts.

    A resumed run goes on with the same MLflow run, whose name its checkpoint holds, and steps that stand there already
    are not written again. A failure is a :class:`~hypergrad.errors.TrackerWarning`, once, and the run goes on. MLflow's
    messages home are switched off for a store on this machine (``MLFLOW_DISABLE_TELEMETRY``).

    Args:
        store: a file for SQLite, made where it does not exist, with artifacts in a folder ``NAME-artifacts`` beside it;
            or a tracking URI of MLflow (``sqlite:///…``, ``http://…``).
        experiment: name of the experiment, made where it does not exist.
        name: name of the run; MLflow makes one up by default.
        every: steps between two looks at the hyperparameters, at least 1.
        settings: more parameters to write down, by name.
        artifacts: files to keep at the end; those that do not exist are left out.

    Raises:
        MissingDependencyError: mlflow, sqlalchemy or alembic is not installed, when a run starts.

    Attributes:
        run_id: MLflow's name of the run; ``None`` before its first step.

    Example:
        >>> import hypergrad as hg
        >>> from hypergrad.bridges.mlflow import MLflow
        >>> callbacks = [MLflow("runs.db", artifacts=["history.jsonl"]), hg.History("history.jsonl")]
    """

    package = "mlflow"
    extra = "mlflow"

    def __init__(
        self,
        store: str | os.PathLike[str] = "mlflow.db",
        experiment: str = "hypergrad",
        name: str | None = None,
        *,
        every: int = 10,
        settings: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Keep the settings."""
        super().__init__(every)
        self.store, self.experiment, self.name = os.fspath(store), experiment, name
        self.settings, self.artifacts = dict(settings or {}), [Path(path) for path in artifacts]
        self._client: Any = None
        self._written = 0

    @property
    def uri(self) -> str:
        """The tracking URI of the store."""
        return self.store if "://" in self.store else f"sqlite:///{Path(self.store).absolute()}"

    def _before_import(self) -> None:
        if "mlflow" not in sys.modules and not self.uri.startswith("http"):
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    def _open(self, run: Run) -> None:
        from mlflow.tracking import MlflowClient

        if "://" not in self.store:
            Path(self.store).absolute().parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self.uri)
        if self.run_id is None:
            made = self._client.create_run(self._experiment_id(), run_name=self.name)
            for key, value in settings(run, self.settings).items():
                self._client.log_param(made.info.run_id, key, value)
            self.run_id, self._written = made.info.run_id, 0
        else:
            self._client.update_run(self.run_id, status="RUNNING")
            history = self._client.get_metric_history(self.run_id, "outer_loss")
            self._written = max((metric.step for metric in history), default=0)

    def _experiment_id(self) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        if known is not None:
            return str(known.experiment_id)
        folder = Path(self.store).absolute()
        place = None if "://" in self.store else folder.with_name(f"{folder.stem}-artifacts").as_uri()
        return str(self._client.create_experiment(self.experiment, artifact_location=place))

    def _log(self, step: int, values: Mapping[str, float], hparams: Tree | None) -> None:
        from mlflow.entities import Metric

        if step <= self._written:
            return
        now = int(time.time() * 1000)
        found = {**values, **_ranges(hparams or {})}
        self._client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in found.items()])
        self._written = step

    def _close(self, run: Run, error: BaseException | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hparams.npz"
            arrays: Any = {name: value.detach().cpu().numpy() for name, value in run.hparams.items()}
            np.savez(path, **arrays)
            self._client.log_artifact(self.run_id, str(path))
        for path in self.artifacts:
            if path.exists():
                self._client.log_artifact(self.run_id, str(path))
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self.run_id, status=status)
        self._client = None


def _ranges(hparams: Tree) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in hparams.items():
        entries = finite(value)
        if entries.numel():
            low, mean, high = entries.min(), entries.mean(), entries.max()
            found |= {f"hparams/{name}/min": float(low), f"hparams/{name}/mean": float(mean)}
            found[f"hparams/{name}/max"] = float(high)
    return found
