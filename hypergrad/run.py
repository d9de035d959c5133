"""The outer loop: one step at a time, resumable exactly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

from torch import Tensor

from hypergrad import guards, saved, tree
from hypergrad.algorithm import Algorithm, Cost, Report, check_finite
from hypergrad.errors import InputError, WrappedModuleError
from hypergrad.memory import shortage_explained
from hypergrad.outer import Oracle, OuterMove
from hypergrad.probe import probe as look
from hypergrad.problem import Problem
from hypergrad.settings import check_count
from hypergrad.solvers.bilevel.named import resolve
from hypergrad.tree import Tree


class Companion(Protocol):
    """What goes along with a run and is saved with it."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and strings, nested in dicts and lists."""
        ...


@final
@dataclass(frozen=True)
class Progress:
    """One outer step.

    Attributes:
        step: number of the step, from 1.
        hparams: λ, where the hypergradient was taken.
        params: θ(λ), after training there.
        outer_loss: f(θ(λ), λ).
        norm: Euclidean norm of the hypergradient.
        report: the hypergradient's report.
        cost: passes of the whole step, line searches included.
        seconds: wall time of the whole step.
        moved: the hyperparameters after the move.
    """

    step: int
    hparams: Tree
    params: Tree
    outer_loss: float
    norm: float
    report: Report
    cost: Cost
    seconds: float
    moved: Tree


@final
class Run:
    """A bilevel optimization under way.

    Random numbers of step k depend on ``seed`` and k only, batches on the samplers' positions: a run that is stopped
    and resumed is the same run, bit for bit on the CPU.

    Args:
        problem: the two objectives and their samplers.
        algorithm: how hypergradients are found; ``"auto"`` to have it chosen at the first step.
        params: where training starts; copied.
        hparams: where the hyperparameters start; copied, and projected onto their domains.
        outer: what moves the hyperparameters.
        seed: seed of the run.
        probe: whether the first step looks whether the objectives repeat: two gradients of each, once, which no report
            counts (see :attr:`probe_cost`). A run that is resumed does not look again.

    Raises:
        InputError: what is wrong with the inputs, and what to do.

    Attributes:
        step_number: outer steps made.
        hparams: λ now.
        params: θ after the last training.
        whole: whether the run stands between two steps, so that it can be saved.
        probe_cost: passes that the probe made.
        companions: what is saved with the run, by name; the trainer puts its callbacks here.
        stopped: why the trainer ended the run, as in :class:`~hypergrad.Fitted`; ``None`` before that.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm[Any] | Literal["auto"],
        params: Mapping[str, Tensor],
        hparams: Mapping[str, Tensor],
        outer: OuterMove,
        *,
        seed: int = 0,
        probe: bool = True,
    ) -> None:
        """Check everything and stand before the first step."""
        if not isinstance(outer, OuterMove):
            raise InputError(
                passed=f"outer={outer!r}",
                expected="an outer move",
                do="pass hypergrad.outer.Torch(torch.optim.Adam, lr=1e-2) or hypergrad.outer.LBFGSB()",
            )
        algorithm = resolve(algorithm, problem)
        self.problem, self.algorithm, self.outer, self.seed = problem, algorithm, outer, seed
        start = tree.cloned(tree.check_tree("params", params))
        hparams = tree.check_tree("hparams", hparams)
        self.hparams = tree.cloned(problem.project(tree.detached(hparams)))
        self.params = start
        self._state = algorithm.init(problem, start, self.hparams)
        self._outer_state = outer.init(self.hparams, problem)
        self._told: set[str] = set()
        self.step_number = 0
        self.whole = True
        self._probe_wanted, self.probe_cost = probe, Cost()
        self.companions: dict[str, Companion] = {}
        self.stopped: str | None = None

    @property
    def reason(self) -> str | None:
        """Why ``"auto"`` uses what it uses, and every change since; ``None`` for an algorithm that was passed."""
        return getattr(self._state, "reason", None) or None

    def step(self) -> Progress:
        """Take one outer step; each kind of warning is given once in a run.

        Raises:
            NumericalError: NaN, a diverged solve, or a move to infinity; the run stays before the step.
            OutOfMemoryError: not enough memory, with a smaller plan; the run stays before the step, too.
        """
        start = time.perf_counter()
        notes = self._probed()
        algorithm = self.algorithm.at_step(self.step_number)
        oracle = Oracle(self.problem, algorithm, self._state, self._seed())
        try:
            with shortage_explained(f"step {self.step_number + 1} of a run", algorithm, self.problem):
                moved = self.outer.update(oracle, self.hparams, self._outer_state)
            check_finite("hparams", moved, when=f"after the outer move of step {self.step_number + 1}")
        except BaseException:
            self.whole = not oracle.results  # before the first answer the outer move has changed nothing
            oracle.rewind()
            raise
        first = oracle.results[0]
        report = dataclasses.replace(first.report, notes={**first.report.notes, **notes}) if notes else first.report
        hparams, self.hparams = self.hparams, moved
        self.params, self._state = first.params, oracle.state
        self.step_number += 1
        self._probe_wanted = False
        report.warn(skip=self._told)
        self._told |= set(report.notes)
        return Progress(
            step=self.step_number,
            hparams=hparams,
            params=first.params,
            outer_loss=float(first.outer_loss),
            norm=float(tree.norm(first.grads)),
            report=report,
            cost=oracle.cost,
            seconds=time.perf_counter() - start,
            moved=moved,
        )

    def response(self, hparams: Mapping[str, Tensor]) -> Tree:
        """Return θ(λ) as the next step would train it at ``hparams``; the run, its batches and random numbers stay.

        Args:
            hparams: λ.

        Cost: one training.

        Raises:
            NumericalError: training that diverged.
        """
        algorithm, device = self.algorithm.at_step(self.step_number), tree.device_of(self.params)
        draws = guards.Draws.capture(device, self.problem.inner_data, self.problem.outer_data)
        with guards.again(draws), guards.pinned_rng(device, self._seed()):
            return tree.cloned(algorithm.response(self.problem, self._state, tree.leaves(hparams)))

    def share_warnings(self, other: Run) -> None:
        """Give each kind of warning once in both runs together."""
        self._told = other._told

    def _seed(self) -> int:
        """Return the seed of the next step's random numbers."""
        return (self.seed * 1_000_003 + self.step_number) % 2**63

    def state_dict(self) -> dict[str, Any]:
        """Return everything the run needs to go on, as tensors, numbers and strings; the tensors are copies."""
        samplers = (self.problem.inner_data, self.problem.outer_data)
        return {
            **self._names(),
            "seed": self.seed,
            "step_number": self.step_number,
            "hparams": tree.pack(self.hparams),
            "params": tree.pack(self.params),
            "algorithm_state": tree.pack(self._state),
            "outer_state": tree.pack(self._outer_state.state_dict()),
            "samplers": [None if sampler is None else sampler.state_dict() for sampler in samplers],
            "callbacks": {name: tree.pack(companion.state_dict()) for name, companion in self.companions.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned; the run must have been made with the same settings.

        Raises:
            InputError: a state of another format, algorithm or outer move, or with other tensors; the run stays as
                it was.
        """
        saved.check_entries(state, self._names())
        hparams = saved.tree_like("the saved hparams", state["hparams"], self.hparams)
        params = saved.tree_like("the saved params", state["params"], self.params)
        algorithm_state = saved.algorithm_state(state["algorithm_state"], self._state, tree.device_of(params))
        outer_state = self.outer.init(hparams, self.problem)
        saved.load_part("outer_state", outer_state.load_state_dict, state["outer_state"])
        saved.load_samplers(state["samplers"], (self.problem.inner_data, self.problem.outer_data))
        self.hparams, self.params = hparams, params
        self._state, self._outer_state = algorithm_state, outer_state
        self.seed, self.step_number = state["seed"], state["step_number"]
        self.whole = True

    def _probed(self) -> dict[str, str]:
        """Look at the objectives before the first step."""
        if not self._probe_wanted or self.step_number:
            return {}
        try:
            found = look(self.problem, self.params, self.hparams, curvature=self.algorithm.order > 1)
        except WrappedModuleError:
            raise
        except Exception:  # the step raises it as well, unless its algorithm gives batches of another form
            return {}
        self.probe_cost = found.cost
        return found.notes

    def _names(self) -> dict[str, Any]:
        return {
            "format": saved.FORMAT,
            "algorithm": type(self.algorithm).__name__,
            "outer": type(self.outer).__name__,
        }


def iterate(
    problem: Problem,
    algorithm: Algorithm[Any] | Literal["auto"],
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    outer: OuterMove,
    steps: int | None = None,
    seed: int = 0,
    probe: bool = True,
) -> Iterator[Progress]:
    """Yield one :class:`Progress` an outer step, for loops of one's own.

    Args:
        problem: the two objectives and their samplers.
        algorithm: how hypergradients are found.
        params: where training starts.
        hparams: where the hyperparameters start.
        outer: what moves the hyperparameters.
        steps: number of outer steps, at least 1; without end by default.
        seed: seed of the run's random numbers.
        probe: whether the first step looks whether the objectives repeat (see :class:`Run`).

    Raises:
        InputError: at the call, what is wrong with the inputs.
        NumericalError: at a step, NaN or a diverged solve.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> algorithm = hg.Implicit(hg.CG(), inner=hg.Newton(tolerance=1e-5))
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=0.5)
        >>> for progress in hg.iterate(
        ...     problem, algorithm, {"w": torch.zeros(1)}, {"x": torch.zeros(1)}, outer=move, steps=20
        ... ):
        ...     pass
        >>> progress.moved["x"].round(decimals=3)
        tensor([3.])
    """
    if steps is not None:
        check_count("iterate", "steps", steps, do="pass the number of outer steps, or None for a loop without end")
    run = Run(problem, algorithm, params, hparams, outer, seed=seed, probe=probe)
    return _steps(run, steps)


def _steps(run: Run, steps: int | None) -> Iterator[Progress]:
    while steps is None or run.step_number < steps:
        yield run.step()
