"""Reverse sweeps through a window of training steps: one graph, or an adjoint recursion over snapshots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.backward import pulled_back
from hypergrad.inner import Iterate, Slots, UpdateRule
from hypergrad.problem import Problem
from hypergrad.stationarity import explained
from hypergrad.tree import Tree
from hypergrad.versions import Versions

Keep = Literal["graph", "iterates", "sqrt", "log"]


@dataclass(frozen=True)
class Window:
    """The steps that are differentiated.

    Attributes:
        rule: the update rule.
        length: number of steps, at least 1.
        keep: what is kept of them (see :class:`~hypergrad.Unrolled`).
        initial: whether the window begins where training begins.
    """

    rule: UpdateRule
    length: int
    keep: Keep
    initial: bool


class GraphWindow:
    """All steps of the window in one autograd graph."""

    def __init__(self, settings: Window, problem: Problem, entry: Iterate, hparams: Tree) -> None:
        self.hparams, self.gradients = hparams, settings.length
        draws = problem.draws(tree.device_of(entry.params))
        from_start = settings.initial and problem.initial is not None
        iterate = entry.replace(problem.start(hparams, entry.params) if from_start else tree.leaves(entry.params))
        with guards.second_order(tree.device_of(entry.params)):
            for step in range(settings.length):
                iterate = settings.rule.advance(problem, iterate, hparams, create_graph=True, inspect=step == 0)
        self.ends, self.versions = iterate.params, Versions(params=entry.params, hparams=hparams)
        slots = {name: tree.detached(slot) for name, slot in iterate.slots.items()}
        self.last = Iterate(tree.detached(iterate.params), slots, iterate.step)
        settings.rule.check_end(problem, draws, entry, self.last, tree.detached(hparams))

    def pullback(self, cotangents: Tree) -> dict[str, Tensor | None]:
        """Return (dθ_T/dλ)ᵀ a."""
        ends = [(end, cotangents[key]) for key, end in self.ends.items() if end.requires_grad]
        inputs = list(self.hparams.values())
        with explained(self.versions):
            pulled = torch.autograd.grad(
                [end for end, _ in ends],
                inputs,
                [cotangent for _, cotangent in ends],
                allow_unused=True,  # told apart by the caller: unreached, or reached by the outer objective only
            )
        return dict(zip(self.hparams, pulled, strict=True))


class AdjointWindow:
    """The adjoint recursion over snapshots: one step's graph at a time."""

    def __init__(self, settings: Window, problem: Problem, entry: Iterate, hparams: Tree) -> None:
        self.settings, self.problem, self.hparams, self.entry = settings, problem, hparams, entry
        self.values = tree.detached(hparams)
        self.device = tree.device_of(entry.params)
        self.gradients, self.inspected = 0, False
        self.starts = cuts(0, settings.length, settings.keep)
        start = _Snapshot(entry, problem.draws(self.device))
        self.snapshots, end = self._advance(start, 0, self.starts, settings.length)
        self.last = end.iterate
        settings.rule.check_end(problem, start.draws, entry, self.last, self.values)

    def pullback(self, cotangents: Tree) -> dict[str, Tensor | None]:
        """Return (dθ_T/dλ)ᵀ a by the recursion, from the last step to the first."""
        end = self.problem.draws(self.device)
        self.total: dict[str, Tensor | None] = dict.fromkeys(self.hparams)
        slots = {name: tree.zeros_like(slot) for name, slot in self.last.slots.items()}
        self.adjoint: tuple[Tree, Slots] = (cotangents, slots)
        ends = [*self.starts[1:], self.settings.length]
        with guards.second_order(self.device):
            for lo, hi in reversed(list(zip(self.starts, ends, strict=True))):
                self._sweep(lo, hi, self.snapshots.pop())
        if self.problem.initial is not None and self.settings.initial:
            first = self.problem.start(self.hparams, self.entry.params)
            self._collect(list(first.values()), list(self.adjoint[0].values()))
        end.restore()
        return self.total

    def _sweep(self, lo: int, hi: int, snapshot: _Snapshot) -> None:
        """Pull the adjoint back from step ``hi`` to step ``lo``; it is held once, not in every frame."""
        if hi - lo == 1:
            self._adjoint_step(snapshot)
            return
        starts = cuts(lo, hi, below(self.settings.keep))
        snapshots, _ = self._advance(snapshot, lo, starts, starts[-1])
        for start, end in reversed(list(zip(starts, [*starts[1:], hi], strict=True))):
            self._sweep(start, end, snapshots.pop())

    def _advance(self, snapshot: _Snapshot, lo: int, starts: list[int], hi: int) -> tuple[list[_Snapshot], _Snapshot]:
        """Run from ``lo`` to ``hi`` and return snapshots at ``starts`` and at the end."""
        snapshot.draws.restore()
        kept, iterate, place = [], snapshot.iterate, lo
        for stop in [*starts, hi]:
            for _ in range(stop - place):
                iterate = self.settings.rule.advance(self.problem, iterate, self.values)
            self.gradients += stop - place
            place = stop
            kept.append(_Snapshot(iterate, self.problem.draws(self.device)))
        return kept[:-1], kept[-1]

    def _adjoint_step(self, snapshot: _Snapshot) -> None:
        snapshot.draws.restore()
        before = snapshot.iterate
        params = tree.leaves(before.params)
        slots = {name: tree.leaves(slot) for name, slot in before.slots.items()}
        after = self.settings.rule.advance(
            self.problem,
            Iterate(params, slots, before.step),
            self.hparams,
            create_graph=True,
            inspect=not self.inspected,
        )
        self.inspected = True
        self.gradients += 1
        outputs = [*after.params.values(), *(t for slot in after.slots.values() for t in slot.values())]
        weights = [*self.adjoint[0].values(), *(t for slot in self.adjoint[1].values() for t in slot.values())]
        inputs = params | {f"{name}/{key}": t for name, slot in slots.items() for key, t in slot.items()}
        pulled = self._collect(outputs, weights, list(inputs.values()))
        found = {
            key: torch.zeros_like(value, requires_grad=False) if p is None else p
            for (key, value), p in zip(inputs.items(), pulled, strict=True)
        }
        self.adjoint = (
            {key: found[key] for key in params},
            {name: {key: found[f"{name}/{key}"] for key in slot} for name, slot in slots.items()},
        )

    def _collect(
        self, outputs: list[Tensor], weights: list[Tensor], inputs: list[Tensor] | None = None
    ) -> list[Tensor | None]:
        """Add the hyperparameters' share to the total and return the share of ``inputs``."""
        inputs = inputs or []
        ends = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
        with explained():
            pulled = pulled_back(
                [output for output, _ in ends], [*inputs, *self.hparams.values()], [weight for _, weight in ends]
            )  # None: this step does not depend on it
        for name, share in zip(self.hparams, pulled[len(inputs) :], strict=True):
            if share is not None:
                held = self.total[name]
                self.total[name] = share if held is None else held + share
        return list(pulled[: len(inputs)])


@dataclass(frozen=True)
class _Snapshot:
    iterate: Iterate
    draws: guards.Draws


def below(keep: Keep) -> Keep:
    """Return what is kept inside a segment: of a segment of √K steps every iterate is."""
    return "iterates" if keep == "sqrt" else keep


def cuts(lo: int, hi: int, keep: Keep) -> list[int]:
    """Return where the segments of [lo, hi) start."""
    length = hi - lo
    pieces = {"iterates": length, "sqrt": math.isqrt(length - 1) + 1, "log": 2}[keep]
    size = -(-length // pieces)
    return list(range(lo, hi, size))


def replays(length: int, keep: Keep) -> int:
    """Return how many steps the recursion over a window repeats without a graph."""
    starts = cuts(0, length, keep)
    return sum(_replays(s, e, below(keep)) for s, e in zip(starts, [*starts[1:], length], strict=True))


def _replays(lo: int, hi: int, keep: Keep) -> int:
    if hi - lo == 1:
        return 0
    starts = cuts(lo, hi, keep)
    inside = sum(_replays(s, e, below(keep)) for s, e in zip(starts, [*starts[1:], hi], strict=True))
    return starts[-1] - lo + inside
