"""Methods that tune hyperparameters with the same number of inner gradients and products: HOAG, MAID and searches."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

import hypergrad as hg
from benchmarks.papers.experiment import Options, Table
from hypergrad.errors import HypergradWarning
from hypergrad.inner import InnerResult
from hypergrad.tree import Tree

SEARCH_TOLERANCE = 0.1
COLUMNS = {"gap_at_quarter": ".1e", "gap": ".1e", "test_loss": ".4f", "work": ".0f", "cpu_seconds": ".1f"}
EXACT = hg.Implicit(hg.Dense(), inner=hg.Newton(tolerance=1e-10))
SCHEDULES = ("exponential", "quadratic", "cubic")
FIXED = (1e-1, 1e-3, 1e-6)


@final
@dataclass(frozen=True)
class Polished(hg.InnerSolver):
    """L-BFGS, and Newton's method below 1e-6, where rounding of the summed loss ends L-BFGS's line search.

    Attributes:
        tolerance: largest norm of the inner gradient that is left.
    """

    tolerance: float = SEARCH_TOLERANCE

    def run(self, problem: hg.Problem, params: Tree, hparams: Tree) -> InnerResult:
        """Train from ``params``."""
        first = hg.LBFGS(tolerance=max(self.tolerance, 1e-6), steps=1000).run(problem, params, hparams)
        if first.status is hg.Status.CONVERGED and self.tolerance >= 1e-6:
            return first
        second = hg.Newton(tolerance=self.tolerance).run(problem, first.params, hparams)
        return InnerResult(second.params, second.status, first.cost + second.cost)

    def budget(self) -> hg.Cost:
        """Return the most passes of both."""
        return hg.LBFGS(steps=1000).budget() + hg.Newton().budget()


ALGORITHM = hg.Implicit(hg.CG(max_steps=1000), inner=Polished())


@final
@dataclass(frozen=True)
class Task:
    """A bilevel problem, and what the methods need to know of it.

    Attributes:
        name: what the rows are called.
        problem: the two objectives; the domain of every hyperparameter is a box.
        params: where training starts.
        hparams: where gradient methods start.
        test: test loss of trained parameters.
        constants: of MAID, which hold for certain.
        budget: inner gradients and products that each method may make.
        quadratic: what replaces them as if the inner problem were quadratic; nothing where it is.
    """

    name: str
    problem: hg.Problem
    params: Tree
    hparams: Tree
    test: Callable[[Tree, Tree], Tensor]
    constants: Mapping[str, Any]
    budget: int
    quadratic: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of hyperparameters."""
        return sum(value.numel() for value in self.hparams.values())

    def trained(self, hparams: Tree) -> tuple[float, float]:
        """Return validation and test loss of training to the end."""
        params = hg.Newton(tolerance=1e-10).run(self.problem, self.params, hparams).params
        return float(self.problem.outer(params, hparams)), float(self.test(params, hparams))

    def box(self, key: str) -> hg.Box:
        """Return the domain of a hyperparameter."""
        domain = self.problem.hparams_domain[key]
        assert isinstance(domain, hg.Box)
        return domain

    def point(self, places: Sequence[float]) -> Tree:
        """Return the λ whose entries lie at these places of their boxes, from 0 to 1."""
        rest, found = iter(places), {}
        for key, value in self.hparams.items():
            box, place = self.box(key), torch.tensor([next(rest) for _ in range(value.numel())], dtype=value.dtype)
            found[key] = (box.low + (box.high - box.low) * place).view_as(value)
        return found


@final
@dataclass
class Track:
    """What a method had in hand after how much work.

    Attributes:
        budget: work after which nothing counts any more.
        points: work, and λ.
        seconds: CPU seconds of the method.
        spent: work done, with the last step, which may go over the budget.
    """

    budget: int
    points: list[tuple[int, Tree]] = field(default_factory=list)
    seconds: float = 0.0
    spent: int = 0

    def add(self, work: int, hparams: Tree) -> None:
        """Note what is in hand."""
        self.spent = work
        if work <= self.budget:
            self.points.append((work, {key: value.detach().clone() for key, value in hparams.items()}))

    def after(self, work: float, default: Tree) -> Tree:
        """Return what was in hand after some work."""
        return next((hparams for spent, hparams in reversed(self.points) if spent <= work), default)


def compare(table: Table, options: Options, task: Task, seed: int) -> None:
    """Add one seed's row of every method on a task."""
    budget = options.pick(smoke=task.budget // 8, default=task.budget, full=4 * task.budget)
    tracks = {}
    for name, method in methods(task, seed, options).items():
        began = time.process_time()
        tracks[name] = method(Track(budget))
        tracks[name].seconds = time.process_time() - began
    in_hand = {
        name: [task.trained(track.after(share * budget, task.hparams)) for share in (0.25, 1)]
        for name, track in tracks.items()
    }
    losses = {name: late[0] for name, (_, late) in in_hand.items()}
    nearest = tracks[min(losses, key=losses.__getitem__)].after(budget, task.hparams)
    best, best_test = best_known(task, nearest, options.pick(smoke=10, default=300, full=300))
    best = min(best, *(loss for pair in in_hand.values() for loss, _ in pair))
    for name, ((early, _), (late, test)) in in_hand.items():
        table.add(
            f"{task.name}: {name}",
            gap_at_quarter=early / best - 1,
            gap=late / best - 1,
            test_loss=test,
            work=tracks[name].spent,
            cpu_seconds=tracks[name].seconds,
        )
    table.add(f"{task.name}: best known", test_loss=best_test)


def best_known(task: Task, hparams: Tree, iterations: int) -> tuple[float, float]:
    """Return validation and test loss where exact descent from λ ends."""
    move = hg.outer.LBFGSB(iterations=iterations)
    (progress,) = hg.iterate(task.problem, EXACT, task.params, hparams, outer=move, steps=1)
    return task.trained(progress.moved)


def methods(task: Task, seed: int, options: Options) -> dict[str, Callable[[Track], Track]]:
    """Return the methods by the names of their rows."""
    found: dict[str, Callable[[Track], Track]] = {}

    def descent(name: str, move: hg.outer.OuterMove) -> None:
        found[name] = lambda track: descend(task, track, move)

    for schedule in options.pick(smoke=SCHEDULES[:1], default=SCHEDULES, full=SCHEDULES):
        descent(f"HOAG {schedule}", hg.HOAG(schedule))  # type: ignore[arg-type]
    for accuracy in options.pick(smoke=FIXED[1:2], default=FIXED, full=FIXED):
        # the floor holds the tolerance where a rejected step would halve it
        constant = hg.HOAG(lambda _step, accuracy=accuracy: accuracy, floor=accuracy)  # type: ignore[misc]
        descent(f"fixed {accuracy:.0e}", constant)
    found["MAID"] = lambda track: certified(task, track, task.constants)
    if task.quadratic:
        found["MAID, L_H = 0"] = lambda track: certified(task, track, {**task.constants, **task.quadratic})
    generator = torch.Generator().manual_seed(seed)
    found["grid"] = lambda track: search(task, track, grid(task))
    found["random"] = lambda track: search(task, track, at_random(task, generator))
    found["TPE"] = lambda track: tpe(task, track, seed)
    return found


def descend(task: Task, track: Track, move: hg.outer.OuterMove, work: int = 0) -> Track:
    """Take outer steps until the work is done."""
    start = (task.problem, ALGORITHM, task.params, task.hparams)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypergradWarning)  # a run that stands still has ended: see below
        for progress in hg.iterate(*start, outer=move):
            work += progress.cost.inner_gradients + progress.cost.products
            track.spent = work
            if progress.report.status != "rejected":
                track.add(work, progress.hparams)
            if work >= track.budget or progress.report.status in ("stationary", "stalled"):
                break
    return track


def certified(task: Task, track: Track, constants: Mapping[str, Any]) -> Track:
    """Run MAID, with a first step as long as HOAG's."""
    rough = ALGORITHM.at_tolerance(0.1, 0.1)
    first = hg.hypergradient(task.problem, task.params, task.hparams, rough)
    size = math.sqrt(sum(float(grad.square().sum()) for grad in first.grads.values()))
    move = hg.MAID(**constants, convex=True, step=math.sqrt(task.size) / size)
    return descend(task, track, move, first.report.cost.inner_gradients + first.report.cost.products)


@final
class Evaluation:
    """The validation loss of one λ after another, each training from where the last one ended."""

    def __init__(self, task: Task, track: Track) -> None:
        """Start with nothing."""
        self.task, self.track, self.params = task, track, task.params
        self.work, self.best = 0, (math.inf, task.hparams)

    def __call__(self, hparams: Tree) -> float:
        """Return the validation loss, and note the best."""
        result = Polished(SEARCH_TOLERANCE).run(self.task.problem, self.params, hparams)
        self.params, self.work = result.params, self.work + result.cost.inner_gradients
        loss = float(self.task.problem.outer(self.params, hparams))
        if self.work <= self.track.budget:
            self.best = min(self.best, (loss, hparams), key=lambda pair: pair[0])
        self.track.add(self.work, self.best[1])
        return loss

    @property
    def over(self) -> bool:
        """Whether the work is done."""
        return self.work >= self.track.budget


def search(task: Task, track: Track, points: Iterator[Tree]) -> Track:
    """Evaluate points until the work is done."""
    evaluate = Evaluation(task, track)
    for hparams in points:
        evaluate(hparams)
        if evaluate.over:
            break
    return track


def grid(task: Task) -> Iterator[Tree]:
    """Yield nested grids, from the high end of each box down; of many hyperparameters along their diagonal."""
    axes = task.size if task.size <= 2 else 1
    seen = set()
    for level in range(12):
        values = [1 - place / 2**level for place in range(2**level + 1)]
        lines = [[value] for value in values]
        if axes == 2:  # to and fro, so that neighbours follow each other
            lines = [
                [first, second] for row, first in enumerate(values) for second in (values if row % 2 else values[::-1])
            ]
        for line in lines:
            if tuple(line) not in seen:
                seen.add(tuple(line))
                yield task.point(line * (task.size // axes))


def at_random(task: Task, generator: torch.Generator) -> Iterator[Tree]:
    """Yield points that are uniform in the box."""
    while True:
        yield task.point(torch.rand(task.size, generator=generator, dtype=torch.float64).tolist())


def tpe(task: Task, track: Track, seed: int) -> Track:
    """Run Optuna's tree-structured Parzen estimator with its defaults."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    evaluate = Evaluation(task, track)
    while not evaluate.over:
        trial = study.ask()
        places = [trial.suggest_float(str(number), 0, 1) for number in range(task.size)]
        study.tell(trial, evaluate(task.point(places)))
    return track
