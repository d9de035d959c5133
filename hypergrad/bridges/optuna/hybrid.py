"""An objective for a study: Optuna proposes structure, hypergradients tune the rest within the trial."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from hypergrad import guards
from hypergrad.bridges.optuna.artifacts import GoneError, Store, check_store, fetch, open_store, put
from hypergrad.bridges.optuna.installed import need_optuna
from hypergrad.bridges.optuna.stored import shapes_of, warm_start, worker
from hypergrad.bridges.optuna.summaries import summary
from hypergrad.bridges.optuna.trials import LOG, Guarded, Link, StorageLostError, attribute
from hypergrad.bridges.optuna.tuning import Tuning, read_tuning
from hypergrad.bridges.optuna.watching import CHECKPOINT, Kept, Watch, Watching, numbers_of
from hypergrad.errors import InputError, NumericalError, OutOfMemoryError, UnsupportedError
from hypergrad.outer import OuterMove, Torch
from hypergrad.settings import check_choice, check_counts, check_function, check_kind, check_numbers
from hypergrad.trainer import Fitted, Trainer

if TYPE_CHECKING:
    import optuna

TENSORS = "tensors.pt"
_at_work = threading.RLock()


@final
class HybridObjective:
    """An objective for ``study.optimize``, in a study of your own.

    For every trial ``build(trial)`` asks Optuna for structure and a few scalars and returns what there is to tune; a
    :class:`~hypergrad.Trainer` then moves the continuous hyperparameters, any number of them, by hypergradients. The
    trial reports its value at cumulative cost, so that pruners compare equal work, and stops where the pruner says so,
    after a checkpoint. Tensors are stored as artifacts and summaries as user attributes under ``hypergrad:`` names;
    they never become Optuna parameters.

    Random numbers of a trial, those of ``build`` included (torch's on the CPU, Python's and numpy's global ones),
    depend on ``seed`` and the trial's number only. They are global, so that one process runs one trial at a time: with
    ``n_jobs`` above 1 the second thread is refused; start several processes on one storage. The objective can be
    pickled where ``build``, ``store`` and ``outer`` can.

    A trial that is interrupted, fails or is killed goes on from its last checkpoint once it is queued again, by
    :func:`retry` or by Optuna for storages with heartbeats. Ctrl-C ends the step under way, saves, and raises.

    Args:
        build: ``trial -> (problem, params, hparams, algorithm)``, the same with an outer move, or a :class:`Tuning`.
            It must return the same for the same suggestions.
        steps: outer steps of a trial, at least 1.
        store: an artifact store of Optuna, or a folder's path; ``None`` keeps no tensors and no checkpoints.
        outer: what moves the hyperparameters where ``build`` does not say.
        unit: what reports count: ``"passes"``, inner and outer gradients and products, or ``"seconds"``, whole ones.
        report_every: outer steps from one report to the next, at least 1.
        checkpoint_every: outer steps from one checkpoint to the next, at least 1; the last step before a trial ends or
            is interrupted is saved in any case.
        keep: the trial's value and tensors: ``"best"``, those of the best report or of the point after the last step,
            or ``"last"``, those after the last step.
        warm_start: whether λ starts from the best finished trial whose hyperparameters have the same names and shapes.
            Later trials then have a head start; switch it off to compare structures from equal starts.
        failure: what becomes of a trial whose numbers fail, which has not enough memory, or whose algorithm cannot
            serve: ``"fail"`` or ``"prune"``. The reason is the attribute ``hypergrad:failure``, and the study goes on.
        keep_params: whether θ is stored beside λ.
        seed: seed of the trials.
        retries: how often a call of the storage or the store is tried again, at least 0.
        wait: seconds before the first of these, at least 0, doubled before each further one.
        rescue: the folder for a local checkpoint where the storage stays away; a new one for temporary files by
            default.

    Cost: that of the steps; after the last one a training and an evaluation where the last move went; for each report
    an evaluation of ``score``, or, with a sampler, of the outer objective on its full batch.

    Raises:
        InputError: wrong settings; at a trial a study of several directions, one that maximizes a loss, a ``build``
            that returns something else or suggests more than 1,000 parameters, or a second thread.
        StorageLostError: at a trial, a storage that stayed away; the message says where the checkpoint lies.
        MissingDependencyError: at a trial, Optuna is not installed.

    Example:
        >>> import optuna, torch, hypergrad as hg
        >>> from hypergrad.bridges.optuna import HybridObjective
        >>> def build(trial):
        ...     power = trial.suggest_int("power", 1, 2)
        ...     problem = hg.Problem(
        ...         inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        ...         outer=lambda params, hparams: (params["w"] ** power - 4).square().sum(),
        ...     )
        ...     start = {"w": torch.ones(1)}, {"x": torch.ones(1)}
        ...     return problem, *start, hg.Implicit(inner=hg.Newton(tolerance=1e-4))
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=optuna.samplers.GridSampler({"power": [1, 2]}))
        >>> study.optimize(HybridObjective(build, steps=3, outer=hg.outer.LBFGSB()))
        >>> round(study.best_value, 3)
        0.0
    """

    def __init__(
        self,
        build: Callable[[Any], Any],
        steps: int,
        *,
        store: Store | None = None,
        outer: OuterMove | None = None,
        unit: Literal["passes", "seconds"] = "passes",
        report_every: int = 1,
        checkpoint_every: int = 10,
        keep: Literal["best", "last"] = "best",
        warm_start: bool = True,
        failure: Literal["fail", "prune"] = "fail",
        keep_params: bool = True,
        seed: int = 0,
        retries: int = 5,
        wait: float = 0.5,
        rescue: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check the settings."""
        self.build, self.steps, self.store = build, steps, store
        self.outer = Torch(torch.optim.Adam, lr=0.05) if outer is None else outer
        self.unit: Literal["passes", "seconds"] = unit
        self.keep: Literal["best", "last"] = keep
        self.failure: Literal["fail", "prune"] = failure
        self.report_every, self.checkpoint_every = report_every, checkpoint_every
        self.warm_start, self.keep_params, self.seed = warm_start, keep_params, seed
        self.retries, self.wait = retries, wait
        self.rescue = None if rescue is None else Path(rescue)
        check_function(self, "build", "trial -> (problem, params, hparams, algorithm)", "pass a function")
        check_counts(self, "steps", "report_every", "checkpoint_every")
        check_counts(self, "retries", "seed", least=0)
        check_numbers(self, "wait", least=0)
        check_kind(self, "outer", OuterMove, "pass hypergrad.outer.Torch(torch.optim.Adam, lr=0.05)")
        check_store(store)
        check_choice(self, "unit", ["passes", "seconds"])
        check_choice(self, "keep", ["best", "last"])
        check_choice(self, "failure", ["fail", "prune"])

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial and return its value."""
        need_optuna("HybridObjective")
        maximize = _direction(trial) == "MAXIMIZE"
        with _alone():
            link = Link(trial, self.retries, self.wait)
            try:
                return self._run(link, maximize)
            except (NumericalError, OutOfMemoryError, UnsupportedError) as error:
                return self._failed(link, error)
            except KeyboardInterrupt:
                with suppress(StorageLostError):
                    link.note(stopped="interrupted")
                raise
            except StorageLostError as error:
                LOG.error("%s", error)  # Optuna will ask the same storage, and may raise something else
                raise

    def _run(self, link: Link, maximize: bool) -> float:
        trial, store = link.trial, open_store(self.store)
        inherited = trial.user_attrs
        seed = attribute(inherited, "seed")
        seed = (self.seed * 1_000_003 + trial.number) % 2**63 if seed is None else int(seed)
        link.note(seed=seed, worker=worker())
        if attribute(inherited, "failure") is not None:
            link.note(failure=None)
        with guards.pinned_rng(torch.device("cpu"), seed):
            tuning = read_tuning(self.build(Guarded(link)))
        if maximize and tuning.score is None:
            raise InputError(
                passed=f"the study {trial.study.study_name!r}, which maximizes, for an outer loss",
                expected='a study that minimizes: optuna.create_study(direction="minimize")',
                do="or return Tuning(..., score=...), which is maximized as the study says",
            )
        settings = Watching(
            self.unit, self.report_every, self.checkpoint_every, self.keep, maximize=maximize, rescue=self.rescue
        )
        watch = Watch(link, store, tuning, settings)
        try:
            return self._tuned(link, store, tuning, watch, seed)
        except StorageLostError as error:
            raise watch.lost(error) from error

    def _tuned(self, link: Link, store: Any, tuning: Tuning, watch: Watch, seed: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            resume, note = self._checkpoint(link, store, Path(folder))
            hparams: Mapping[str, Tensor] = tuning.start
            if resume is None:
                hparams, start = self._start(link, store, hparams, maximize=watch.settings.maximize)
                link.note(start=f"{note}{start}")
            else:
                link.note(resumed=note)
            trainer = Trainer(
                tuning.problem,
                tuning.algorithm,
                tuning.outer or self.outer,
                [*tuning.callbacks, watch],
                seed=seed,
                warn_overfitting=tuning.score is None,
            )
            fitted = trainer.fit(tuning.params, hparams, self.steps, resume=resume)
        return self._told(link, store, tuning, watch, fitted)

    def _checkpoint(self, link: Link, store: Any, folder: Path) -> tuple[Path | None, str]:
        """Return where to go on from, and in words what happened to the checkpoint."""
        attrs = link.trial.user_attrs
        rescued, entry = attribute(attrs, "rescued"), attribute(attrs, "checkpoint")
        if isinstance(rescued, str) and (Path(rescued) / CHECKPOINT).exists():
            return Path(rescued), f"from {rescued}"
        if store is None or entry is None:
            return None, ""
        try:
            link.call("the checkpoint", lambda: fetch(store, entry, folder / CHECKPOINT))
        except GoneError as error:
            return None, f"again, since the checkpoint cannot be used ({error}); "
        return folder, f"from step {entry.get('step')}"

    def _start(
        self, link: Link, store: Any, hparams: Mapping[str, Tensor], *, maximize: bool
    ) -> tuple[Mapping[str, Tensor], str]:
        if not self.warm_start:
            return hparams, "fresh: warm_start=False"
        if store is None:
            return hparams, "fresh: no store to start from"
        return warm_start(link, store, hparams, maximize=maximize)

    def _told(self, link: Link, store: Any, tuning: Tuning, watch: Watch, fitted: Fitted) -> float:
        """Store what is kept and return its value, or prune."""
        kept = watch.finish()
        if tuning.constraints is not None:
            with torch.no_grad():
                link.constrain(numbers_of(tuning.constraints(kept.params, kept.hparams)))
        link.note(
            steps=fitted.steps,
            stopped=fitted.stopped,
            kept_step=kept.step,
            passes=watch.passes,
            seconds=round(watch.seconds, 3),
            report={key: _plain(value) for key, value in watch.last.items()},
            outer=repr(tuning.outer or self.outer),
            hparams=summary(kept.hparams),
            shapes=shapes_of(kept.hparams),
        )
        if watch.pruned:
            raise _pruned(f"at {watch.at[-1]} {self.unit}, step {fitted.steps}")
        if store is not None:
            self._store(link, store, kept)
        return kept.value

    def _store(self, link: Link, store: Any, kept: Kept) -> None:
        trees = {"hparams": kept.hparams, **({"params": kept.params} if self.keep_params else {})}
        cpu = {name: {key: value.cpu() for key, value in tensors.items()} for name, tensors in trees.items()}
        link.note(tensors=link.call("the tensors", lambda: put(store, link.trial, cpu, TENSORS)))

    def _failed(self, link: Link, error: Exception) -> float:
        """End a trial with the reason in an attribute, and let the study go on."""
        reason = f"{type(error).__name__}: {error}"
        LOG.warning("trial %d: %s", link.trial.number, reason)
        link.note(failure=reason[:2000])
        if self.failure == "prune":
            raise _pruned(reason.splitlines()[0]) from error
        return math.nan  # which Optuna takes for a failure, and goes on


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pruned(reason: str) -> Exception:
    pruned: Exception = need_optuna().TrialPruned(reason)
    return pruned


def _direction(trial: optuna.Trial) -> str:
    """Return the direction of the trial's study.

    Raises:
        InputError: no trial of a study, or a study of several directions.
    """
    study = getattr(trial, "study", None)
    if study is None:
        raise InputError(
            passed=f"HybridObjective called with {type(trial).__name__}",
            expected="a trial of a study, which has a storage",
            do="run it again in the study: study.enqueue_trial(study.best_params), then study.optimize(objective, 1)",
        )
    if len(study.directions) != 1:
        raise InputError(
            passed=f"the study {study.study_name!r} with {len(study.directions)} directions",
            expected="one direction: hypergradients follow one loss, and Optuna prunes no trials of several",
            do="put the other values into constraints of a Tuning, or into user attributes",
        )
    return str(study.directions[0].name)


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second thread: random states are the process's."""
    if not _at_work.acquire(blocking=False):
        raise InputError(
            passed="study.optimize(n_jobs=...) with several threads in HybridObjective",
            expected="one trial at a time in a process: random states are global, and two trials would mix them up",
            do="leave n_jobs at 1 and start several processes on one storage (JournalStorage, or a database)",
        )
    try:
        yield
    finally:
        _at_work.release()
