"""Several starts of the hyperparameters, of which the better ones get more outer steps: successive halving."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from hypergrad import saved, tree
from hypergrad.algorithm import Algorithm, Cost
from hypergrad.errors import DivergenceError, InputError, NonFiniteError, NumericalError
from hypergrad.files import write_whole
from hypergrad.held_out import HeldOut
from hypergrad.outer import OuterMove
from hypergrad.problem import Problem
from hypergrad.run import Progress, Run
from hypergrad.settings import check_choice, check_count, check_counts
from hypergrad.tree import Tree

Sample = Callable[[torch.Generator], Mapping[str, Tensor]]
RUNNING, HALVED, DIVERGED, BEST = "running", "halved", "diverged", "best"
ENTRIES = ("settings", "runs", "positions", "members", "rung", "waiting", "alive")
TREES = ("start", "hparams", "params")


@final
@dataclass
class Member:
    """One start of a :class:`Population`.

    Attributes:
        start: λ where it started, inside the domains.
        hparams: λ where it was judged last.
        params: θ there.
        steps: outer steps made.
        cost: passes counted in all of them.
        losses: what it was judged by after each rung.
        status: ``"running"``, ``"halved"`` (others were better), ``"diverged"`` or ``"best"``.
        reason: why it diverged.
    """

    start: Tree
    hparams: Tree
    params: Tree
    steps: int = 0
    cost: Cost = dataclasses.field(default_factory=Cost)
    losses: list[float] = dataclasses.field(default_factory=list)
    status: str = RUNNING
    reason: str = ""

    @property
    def passes(self) -> int:
        """Number of passes of all kinds."""
        return sum(dataclasses.astuple(self.cost))


@final
@dataclass(frozen=True)
class Selected:
    """What a :class:`Population` returns.

    Attributes:
        hparams: λ of the best member, where it was judged.
        params: θ there.
        loss: what it was judged by.
        best: its number.
        members: all members by number.
    """

    hparams: Tree
    params: Tree
    loss: float
    best: int
    members: list[Member]

    def __str__(self) -> str:
        """Return a table, one line a member."""
        lines = ["member  status    steps   passes  losses after each rung"]
        for number, member in enumerate(self.members):
            losses = "  ".join(f"{loss:.5g}" for loss in member.losses)
            reason = f"  {next(iter(member.reason.splitlines()), '')}" if member.reason else ""
            lines.append(
                f"{number:6d}  {member.status:8s}  {member.steps:5d}  {member.passes:7d}  {losses}{reason}".rstrip()
            )
        return "\n".join(lines)


@final
class Population:
    """Run several starts in turn, and after each rung keep the best 1/eta of them: successive halving.

    Rung r = 0, 1, … ends for a member once it has had ``rung`` · eta^r in all: outer steps, or passes counted in its
    reports. Then the best ⌊n / eta^(r+1)⌋ of the n members go on from where they stand; the last rung is that of fewer
    than eta members. All together cost less than 1 + log n / log eta times the first rung of all of them.

    All members see the same batches and random numbers, so that they differ by their start only. A member whose numbers
    fail drops out, with its reason.

    Args:
        problem: the two objectives and their samplers.
        algorithm: how hypergradients are found.
        outer: what moves the hyperparameters.
        rung: budget of a member in the first rung, at least 1.
        eta: factor between rungs, at least 2.
        unit: ``"steps"``, or ``"passes"`` where adaptive methods make steps of unequal cost: the step that reaches the
            budget is the last one of the rung, and what it took too much is missing in the next one.
        held_out: what members are judged by, where they made their last step: a batch for the problem's ``outer``, a
            sampler, whose full batch counts, or a function ``(params, hparams)``. By default it is the outer loss of
            that step, on whose examples the hyperparameters are tuned.
        seed: seed of the runs and of sampled starts.

    Cost: the members' outer steps, one after the other, and one evaluation of ``held_out`` for a member and rung.
    Memory holds one run for each member.

    Raises:
        InputError: settings out of range, or an outer objective that does not take the held-out batch.

    Source: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (AISTATS
    2016). Deviation: members move by hypergradients while they are compared.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: (params["w"].square() - 1).square().sum() - params["w"].sum(),
        ... )
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=0.05)
        >>> population = Population(problem, hg.Implicit(inner=hg.Newton(tolerance=1e-5)), move, rung=5)
        >>> found = population.fit({"w": torch.zeros(1)}, [{"x": torch.tensor([x])} for x in (-1.5, -0.5, 0.5, 1.5)])
        >>> found.best, [member.steps for member in found.members]
        (3, [5, 5, 10, 20])
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm[Any],
        outer: OuterMove,
        *,
        rung: int = 5,
        eta: int = 2,
        unit: Literal["steps", "passes"] = "steps",
        held_out: Any = None,
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.problem, self.algorithm, self.outer = problem, algorithm, outer
        self.rung, self.eta, self.unit, self.seed = rung, eta, unit, seed
        check_counts(self, "rung")
        check_counts(self, "eta", least=2)
        check_choice(self, "unit", ("steps", "passes"))
        self.held_out = None if held_out is None else HeldOut("Population", held_out)
        if self.held_out is not None:
            self.held_out.check(problem)

    def fit(
        self,
        params: Mapping[str, Tensor],
        hparams: Sequence[Mapping[str, Tensor]] | Sample,
        *,
        members: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Selected:
        """Run all rungs.

        Args:
            params: where the training of every member starts.
            hparams: the members' hyperparameters, or a function of a generator that draws them.
            members: how many to draw, at least 1; only with a function.
            checkpoint: a file that is written after every member's turn; if it exists, the run goes on from it, and is
                the same run then, bit for bit on the CPU. Afterwards it holds the finished run.

        Raises:
            InputError: wrong inputs, or a checkpoint of another population.
            DivergenceError: no member is left, with the reasons.
        """
        contest = _Contest(self, params, self._starts(hparams, members))
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and path.exists():
            contest.load(path)
        while contest.waiting:
            contest.turn()
            if path is not None:
                contest.save(path)
        return contest.selected()

    def _starts(
        self, hparams: Sequence[Mapping[str, Tensor]] | Sample, members: int | None
    ) -> list[Mapping[str, Tensor]]:
        if not callable(hparams):
            if isinstance(hparams, Mapping) or members is not None or not len(hparams):
                raise InputError(
                    passed=f"fit with hparams of type {type(hparams).__name__} and members={members}",
                    expected="a list of at least one start, or a function that draws one, and members=",
                    do="pass [hparams, ...], or lambda generator: {...} with members=8",
                )
            return list(hparams)
        check_count("fit", "members", members, do="pass how many starts to draw: members=8")
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        return [hparams(generator) for _ in range(members or 0)]


@final
class _Contest:
    """The members of a population and where they stand; one turn is one member's rung."""

    def __init__(
        self, population: Population, params: Mapping[str, Tensor], starts: list[Mapping[str, Tensor]]
    ) -> None:
        self.population = population
        problem = population.problem
        self.samplers = (problem.inner_data, problem.outer_data)
        self.runs = [
            Run(problem, population.algorithm, params, start, population.outer, seed=population.seed)
            for start in starts
        ]
        for run in self.runs:
            run.share_warnings(self.runs[0])
        first = self._positions()
        self.positions = [first for _ in self.runs]
        self.members = [Member(tree.cloned(run.hparams), run.hparams, run.params) for run in self.runs]
        self.rung, self.waiting = 0, list(range(len(starts)))
        self.alive = list(self.waiting)

    def _positions(self) -> list[Any]:
        return [None if sampler is None else sampler.state_dict() for sampler in self.samplers]

    def turn(self) -> None:
        """Run one member's rung, and after the last member of a rung choose."""
        number = self.waiting[0]
        saved.load_samplers(self.positions[number], self.samplers)
        member = self.members[number]
        try:
            self._run(self.runs[number], member)
        except NumericalError as error:
            member.status, member.reason = DIVERGED, error.passed
            self.alive.remove(number)
        self.positions[number] = self._positions()
        self.waiting = self.waiting[1:]
        if not self.waiting:
            self._choose()

    def _run(self, run: Run, member: Member) -> None:
        budget = self.population.rung * self.population.eta**self.rung
        progress: Progress | None = None
        while (member.steps if self.population.unit == "steps" else member.passes) < budget:
            progress = run.step()
            member.steps, member.cost = progress.step, member.cost + progress.cost
        loss = member.losses[-1] if member.losses else math.nan  # where one step took the budget of two rungs
        if progress is not None:
            member.hparams, member.params = progress.hparams, progress.params
            held_out, problem = self.population.held_out, self.population.problem
            loss = progress.outer_loss
            if held_out is not None:
                loss = held_out.loss(problem, member.params, member.hparams)
        if not math.isfinite(loss):
            raise NonFiniteError(f"a loss of {loss} to judge by", "a finite loss", "look at the objectives there")
        member.losses.append(loss)

    def _choose(self) -> None:
        """Let the best members wait for their next rung; after the last rung only the best one is left."""
        if not self.alive:
            reasons = "; ".join(f"member {number}: {member.reason}" for number, member in enumerate(self.members))
            raise DivergenceError(
                passed=f"a population of {len(self.members)} starts, all of which diverged: {reasons}",
                expected="a start from which the outer steps stay finite",
                do="lower the learning rates, clip the hypergradient (outer.Torch(clip=...)), or start nearer",
            )
        left = len(self.members) // self.population.eta ** (self.rung + 1)
        ranked = sorted(self.alive, key=lambda number: (self.members[number].losses[-1], number))
        for number in ranked[max(left, 1) :]:
            self.members[number].status = HALVED
        self.alive = sorted(ranked[: max(left, 1)])
        if left:
            self.rung, self.waiting = self.rung + 1, list(self.alive)
        else:
            self.members[self.alive[0]].status = BEST

    def selected(self) -> Selected:
        """Return the best member."""
        best = self.alive[0]
        member = self.members[best]
        return Selected(member.hparams, member.params, member.losses[-1], best, self.members)

    def save(self, path: Path) -> None:
        """Write everything that a resumed population needs."""
        members = [{**tree.pack(member), "cost": list(dataclasses.astuple(member.cost))} for member in self.members]
        state = {
            "settings": self._settings(),
            "runs": [run.state_dict() for run in self.runs],
            "positions": self.positions,
            "members": members,
            "rung": self.rung,
            "waiting": self.waiting,
            "alive": self.alive,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: torch.save(state, temporary))

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            InputError: a file of something else, or of another population.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found, *_ = (state[name] for name in ENTRIES)
        except Exception as error:
            raise saved.unfit(f"in {path}, which is no population ({type(error).__name__})", "a population") from error
        if found != self._settings():
            raise saved.unfit(f"of a population with {found}", str(self._settings()))
        members = [self._member(value, like) for value, like in zip(state["members"], self.members, strict=True)]
        for run, value in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(value)
        self.members, self.positions = members, state["positions"]
        self.rung, self.waiting, self.alive = state["rung"], state["waiting"], state["alive"]

    def _settings(self) -> dict[str, Any]:
        names = ("rung", "eta", "unit", "seed")
        return {**{name: getattr(self.population, name) for name in names}, "members": len(self.members)}

    def _member(self, value: Mapping[str, Any], like: Member) -> Member:
        trees = {name: saved.tree_like(f"the saved {name}", value[name], getattr(like, name)) for name in TREES}
        if any(not torch.equal(trees["start"][key], start) for key, start in like.start.items()):
            raise saved.unfit(f"of a population with the start {trees['start']}", f"the start {like.start}")
        return Member(**{**value, **trees, "cost": Cost(*value["cost"])})
