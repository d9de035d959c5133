"""MSVR: estimators that follow the derivatives of many blocks from samples of a few, and methods made of them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Hypergradient, check_finite
from hypergrad.domains import Domain
from hypergrad.errors import InputError, UnsupportedError
from hypergrad.problem import Problem
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_counts, check_number
from hypergrad.solvers.bilevel.blocks import Stack, check_blocks
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Tree


def unbiased_gamma(alpha: float, sampled: int, blocks: int) -> float:
    """Return the γ at which old errors and new drift do not correlate: (1 − α) + (m − I) / (I (1 − α)).

    With e = s − h_{t−1} and the drift D = h_t − h_{t−1}, a sampled block's error becomes (1 − α) e + (γ − (1 − α)) D
    and another's e − D. Their mean product of e and D vanishes at this γ.

    Args:
        alpha: α, in (0, 1], and below 1 unless all blocks are sampled.
        sampled: I, blocks in a sample.
        blocks: m, blocks in all.

    >>> unbiased_gamma(0.5, 4, 4), unbiased_gamma(0.5, 1, 4)
    (0.5, 6.5)
    """
    keep = 1 - alpha
    return keep if sampled == blocks else keep + (blocks - sampled) / (sampled * keep)


def msvr(estimate: Tensor, new: Tensor, old: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return (1 − α) s + (α + γ) h(now) − γ h(before), both from one batch: the estimator of a sampled block."""
    return (1 - alpha) * estimate + (alpha + gamma) * new - gamma * old


def check_tracked(estimates: Mapping[str, Tensor], iteration: int) -> None:
    """Raise :class:`~hypergrad.errors.NonFiniteError` for an estimator that ran away; one look at the device."""
    check_finite("the tracked", estimates, when=f"at iteration {iteration}")


@final
@dataclass(frozen=True)
class BSVRBState:
    """What :class:`BSVRBv1` and :class:`BSVRBv2` track; matrices have one row for each block.

    Attributes:
        params: y, the parameters of all blocks.
        slopes: s, which follows ∇_y g_i, m × d.
        solution: H_i, m × d × d (v1), or v_i ≈ H_i⁻¹ ∇_y f_i, m × d (v2).
        residual: u, which follows H_i v_i − ∇_y f_i, m × d (v2); empty (v1).
        momentum: z, the direction for λ.
        old_params: y one iteration before.
        old_hparams: λ one iteration before.
        old_solution: ``solution`` one iteration before.
        bounded: blocks of the last iteration whose ``solution`` had to be clipped or shortened, a 0-d tensor.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    slopes: Tensor
    solution: Tensor
    residual: Tensor
    momentum: Tree
    old_params: Tree
    old_hparams: Tree
    old_solution: Tensor
    bounded: Tensor
    steps: int = 0
    made: int = 0


@dataclass(frozen=True)
class Look:
    """The derivatives of the sampled blocks at one point.

    Attributes:
        value: the mean of f_i.
        slopes: ∇_y g_i.
        fresh: what the version tracks besides the slopes.
        solution: H_i or v_i that the direction was found with.
        hparams: the direction for λ.
    """

    value: Tensor
    slopes: Tensor
    fresh: Tensor
    solution: Tensor
    hparams: Tree


@dataclass(frozen=True, kw_only=True)
class Blockwise(SingleLoop[BSVRBState]):
    """What both versions share: samples of blocks, estimators, momentum and the moves of the blocks."""

    blocks: int | None = None
    sampled: int | None = None
    inner_step: Schedule = 0.1
    alpha: Schedule = 0.5
    beta: Schedule = 0.5
    gamma: float | Callable[[int], float] | None = None
    params_domain: Mapping[str, Domain] = field(default_factory=dict)
    vectorise: bool = True
    seed: int = 0
    order = 2

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ, at a fixed λ and without noise, as long as no bound is met."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether it draws blocks at random."""
        return self.sampled is not None and self.sampled != self.blocks

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        name = type(self).__name__
        check_counts(self, "blocks", "sampled")
        most = self.blocks or 1
        if self.sampled is not None and self.sampled > most:
            raise InputError(
                passed=f"{name}(sampled={self.sampled}) for blocks={self.blocks}",
                expected=f"at most {most}, all blocks",
                do="lower sampled, or leave it out for all blocks in every iteration",
            )
        check_schedules(self, "inner_step", "alpha", "beta")
        for setting in ("alpha", "beta"):
            if not callable(getattr(self, setting)):
                self._check_weight(setting, getattr(self, setting))
        if self.gamma is not None and not callable(self.gamma):
            check_number(name, "gamma", self.gamma, least=0, do="leave gamma out for the one that the formula gives")

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> BSVRBState:
        """Check the inputs and start at ``params``."""
        if isinstance(params, Mapping):
            check_blocks(problem, self.blocks, self.params_domain, params)
        stack = self._stack(tree.check_tree("params", params))
        return super().init(stack.problem(problem, self._chosen(stack, 0)), params, hparams)

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ after ``adjoint_iterations`` iterations with a backward pass that makes them again; one block only.

        Raises:
            UnsupportedError: ``blocks`` was given: an outer loss of all blocks together is not one of each.
        """
        if self.blocks is not None:
            raise UnsupportedError(
                passed=f"{type(self).__name__}(blocks={self.blocks}) as a function θ(λ) with a backward pass",
                expected="blocks=None, one inner problem",
                do="use hypergrad.Run or hypergrad.iterate, or hypergrad.Implicit on the sum of all blocks",
            )
        return super().attach(problem, params, hparams)

    def step(self, problem: Problem, state: BSVRBState, hparams: Tree) -> tuple[Hypergradient, BSVRBState]:
        """Make the iterations of one step and return the last direction for λ."""
        found, following = super().step(problem, state, hparams)
        bounded = int(following.bounded)
        if not bounded:
            return found, following
        kind, text = self._remark(bounded)
        report = dataclasses.replace(found.report, notes={**found.report.notes, kind: text})
        return dataclasses.replace(found, report=report), following

    @abstractmethod
    def _remark(self, bounded: int) -> tuple[str, str]:
        """Return the kind and text of the note for blocks that a bound changed."""

    @abstractmethod
    def _look(
        self, part: Oracles, stack: Stack, params: Tensor, solution: Tensor | None, batches: tuple[Any, Any]
    ) -> Look:
        """Return the derivatives of some blocks; ``solution`` is ``None`` in the first iteration."""

    @abstractmethod
    def _advance(self, stack: Stack, state: BSVRBState, fresh: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next ``solution``, ``residual`` and ``bounded``, given the estimates of the sampled blocks."""

    @abstractmethod
    def _tracked(self, state: BSVRBState) -> Tensor:
        """Return the estimates that ``fresh`` goes into."""

    def _iterate(self, oracles: Oracles, state: BSVRBState) -> tuple[Tensor, Tree, BSVRBState]:
        stack, first = self._stack(state.params), state.made == 0
        chosen, rows = self._chosen(stack, state.made), stack.rows(state.params)
        problem = oracles.problem
        batches = problem.draw_inner(), problem.draw_outer()
        part = stack.problem(problem, chosen)
        draws = guards.Draws.capture(oracles.layout.device)

        def look(params: Tensor, solution: Tensor | None, hparams: Tree) -> Look:
            draws.restore()
            here = Oracles(part, stack.tree(params[chosen]), hparams)
            found = self._look(here, stack, params[chosen], None if solution is None else solution[chosen], batches)
            oracles.cost += here.cost
            oracles.reached |= here.reached
            return found

        now = look(rows, None if first else state.solution, oracles.hparams)
        if first:
            slopes, fresh, momentum = now.slopes, now.fresh, now.hparams
        else:
            before = look(stack.rows(state.old_params), state.old_solution, tree.leaves(state.old_hparams))
            alpha, beta, gamma = self._weights(stack, state.made)
            slopes = msvr(state.slopes[chosen], now.slopes, before.slopes, alpha, gamma)
            fresh = msvr(self._tracked(state)[chosen], now.fresh, before.fresh, alpha, gamma)
            momentum = {
                key: slope + (1 - beta) * (state.momentum[key] - before.hparams[key])
                for key, slope in now.hparams.items()
            }
        check_tracked({"inner gradients": slopes, "second derivatives": fresh}, state.made)
        solution, residual, bounded = self._advance(stack, state, fresh, chosen)
        slopes = state.slopes.index_copy(0, chosen, slopes)
        moved = stack.tree(rows - scheduled(self, "inner_step", state.made) * slopes)
        following = BSVRBState(
            params=tree.cloned(stack.project(moved, self.params_domain)),
            slopes=slopes,
            solution=solution,
            residual=residual,
            momentum=tree.detached(momentum),
            old_params=state.params,
            old_hparams=tree.cloned(oracles.hparams),
            old_solution=now.solution if first else state.solution,
            bounded=bounded,
            steps=state.steps,
            made=state.made + 1,
        )
        return now.value, momentum, following

    def _stack(self, params: Tree) -> Stack:
        return Stack(params, self.blocks, vectorise=self.vectorise)

    def _chosen(self, stack: Stack, iteration: int) -> Tensor:
        """Return the numbers of the sampled blocks in order; in the first iteration of all."""
        count = self.sampled or stack.count
        if iteration == 0 or count == stack.count:
            return torch.arange(stack.count, device=stack.device)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + iteration) % 2**63)
        return torch.randperm(stack.count, generator=generator)[:count].sort().values.to(stack.device)

    def _weights(self, stack: Stack, iteration: int) -> tuple[float, float, float]:
        """Return α, β and γ at an iteration."""
        alpha, beta = (scheduled(self, name, iteration) for name in ("alpha", "beta"))
        self._check_weight("alpha", alpha)
        self._check_weight("beta", beta)
        if self.gamma is None:
            return alpha, beta, unbiased_gamma(alpha, self.sampled or stack.count, stack.count)
        gamma = self.gamma(iteration) if callable(self.gamma) else self.gamma
        check_number(type(self).__name__, "gamma", gamma, least=0, do="let the schedule return numbers of at least 0")
        return alpha, beta, float(gamma)

    def _check_weight(self, setting: str, value: float) -> None:
        partial = setting == "alpha" and self.gamma is None and self.sampled not in (None, self.blocks or 1)
        if value > 1 or (partial and value == 1):
            raise InputError(
                passed=f"{type(self).__name__}({setting}={value}) with sampled={self.sampled} of {self.blocks} blocks",
                expected="a weight above 0 and below 1" if partial else "a weight above 0 and at most 1",
                do=f"lower {setting}; 0.5 is a good start"
                + (", since γ grows as 1 / (1 - alpha) where not all blocks are sampled" if partial else ""),
            )


def started(params: Tree, hparams: Tree, rows: Tensor, solution: Tensor, residual: Tensor) -> BSVRBState:
    """Return the state before the first iteration."""
    return BSVRBState(
        params=params,
        slopes=torch.zeros_like(rows),
        solution=solution,
        residual=residual,
        momentum=tree.zeros_like(hparams),
        old_params=params,
        old_hparams=hparams,
        old_solution=solution,
        bounded=torch.zeros((), dtype=torch.int64, device=rows.device),
    )
