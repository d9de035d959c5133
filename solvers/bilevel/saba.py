"""SABA: SOBA with SAGA's variance reduction of all five sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.solvers.bilevel.oracles import Directions, Oracles, parts
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree

Tables = tuple[Tensor, Tensor, Tensor, Tensor]


@final
@dataclass(frozen=True)
class SABAState:
    """What :class:`SABA` tracks.

    Attributes:
        params: θ.
        solution: q, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        inner_table: ∇_θ g_i and H_i q of each inner batch when it was last seen, n × 2 × p.
        outer_table: ∂f_j/∂θ of each outer batch, m × p.
        inner_hparams: (∂²g_i/∂θ∂λ)ᵀ q of each inner batch, n × d.
        outer_hparams: ∂f_j/∂λ of each outer batch, m × d.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    inner_table: Tensor = field(default_factory=lambda: torch.zeros(0))
    outer_table: Tensor = field(default_factory=lambda: torch.zeros(0))
    inner_hparams: Tensor = field(default_factory=lambda: torch.zeros(0))
    outer_hparams: Tensor = field(default_factory=lambda: torch.zeros(0))
    steps: int = 0
    made: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class SABA(SingleLoop[SABAState]):
    """:class:`~hypergrad.SOBA` whose five stochastic sums are each corrected by a table of what every batch last gave.

    For each of ∇_θ g, H q, ∂f/∂θ, (∂²g/∂θ∂λ)ᵀ q, ∂f/∂λ the direction is value(now) − value(table) + mean(table) on a
    random batch, whose entry is renewed. The noise vanishes as the iterates settle, so that constant steps reach any
    accuracy; on strongly convex finite sums at a linear rate.

    The first iteration visits every batch once. Samplers have to be :class:`~hypergrad.Partition` (or nothing, or
    :class:`~hypergrad.Fixed`, where it is SOBA).

    Args:
        step_size: α, above 0: a number or a function of the iteration; constant in the paper.
        linear_step_size: step of q, likewise; α by default.
        seed: seed of the choice of batches.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1.

    Cost: 1 inner gradient, 1 product and 1 outer gradient an iteration; as many as there are batches in the first.
    Memory: (2n + m) vectors like θ and (n + m) like λ for n inner and m outer batches.

    Raises:
        InputError: a sampler whose batches are not numbered.
        NonFiniteError: steps so long that an iterate overflowed.

    Source: Dagréou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms" (2022), section 2.3. Our q is −v there.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams, batch: 0.5 * (params["w"] - hparams["x"] * batch[0]).square().mean(),
        ...     outer=lambda params, hparams, batch: 0.5 * params["w"].square().sum(),
        ...     inner_data=hg.Partition(torch.tensor([0.5, 1.5]), batch_size=1),
        ... )
        >>> algorithm = hg.SABA(step_size=0.2, iterations=300)
        >>> start = {"w": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
        >>> hg.hypergradient(problem, *start, algorithm).grads["x"].round(decimals=4)
        tensor([2.])
    """

    step_size: Schedule
    linear_step_size: Schedule | None = None
    seed: int = 0
    order = 2
    cost = "1 inner gradient + 1 product + 1 outer gradient an iteration (all batches in the first)"
    needs = "a strongly convex inner problem, and batches that stay the same"

    @property
    def exact(self) -> bool:
        """Whether it settles at dF/dλ, at a fixed λ."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether random batches are chosen."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_schedules(self, "step_size")
        check_schedules(self, "linear_step_size", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a step on one batch; the first visits every batch once."""
        return Cost(self.iterations, self.iterations, self.iterations)

    def _start(self, params: Tree, hparams: Tree) -> SABAState:
        return SABAState(params, Layout.of(params).zeros())

    def _iterate(self, oracles: Oracles, state: SABAState) -> tuple[Tensor, Tree, SABAState]:
        layout, z = oracles.layout, oracles.layout.flatten(state.params)
        found, tables = self._fill(oracles, state, z) if state.made == 0 else self._correct(oracles, state, z)
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        z = torch.sub(z, found.params, alpha=step)
        solution = torch.sub(state.solution, found.linear, alpha=linear)
        return found.value, found.hparams, SABAState(layout.views(z), solution, *tables, state.steps, state.made + 1)

    def _fill(self, oracles: Oracles, state: SABAState, z: Tensor) -> tuple[Directions, Tables]:
        """Return the mean over all batches and the tables."""
        problem, outer_layout = oracles.problem, Layout.of(oracles.hparams)
        inner_count, inner_batch = parts("inner_data", problem.inner_data)
        outer_count, outer_batch = parts("outer_data", problem.outer_data)
        inner = [oracles.inner(z, state.solution, inner_batch(place)) for place in range(inner_count)]
        outer = [oracles.outer(z, outer_batch(place)) for place in range(outer_count)]
        tables = (
            torch.stack([torch.stack([slope, product]) for slope, product, _ in inner]),
            torch.stack([slope for _, slope, _ in outer]),
            torch.stack([outer_layout.flatten(mixed) for _, _, mixed in inner]),
            torch.stack([outer_layout.flatten(direct) for _, _, direct in outer]),
        )
        slope, product = tables[0].mean(dim=0)
        hparams = outer_layout.views(tables[3].mean(dim=0) - tables[2].mean(dim=0))
        value = torch.stack([value for value, _, _ in outer]).mean()
        return Directions(slope, product - tables[1].mean(dim=0), hparams, value), tables

    def _correct(self, oracles: Oracles, state: SABAState, z: Tensor) -> tuple[Directions, Tables]:
        """Return value(now) − value(table) + mean(table) on random batches, and the tables with these renewed."""
        problem, outer_layout = oracles.problem, Layout.of(oracles.hparams)
        inner_count, inner_batch = parts("inner_data", problem.inner_data)
        outer_count, outer_batch = parts("outer_data", problem.outer_data)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + state.made) % 2**63)
        i, j = (int(torch.randint(count, (), generator=generator)) for count in (inner_count, outer_count))
        slope, product, mixed = oracles.inner(z, state.solution, inner_batch(i))
        value, outer, direct = oracles.outer(z, outer_batch(j))
        now = (torch.stack([slope, product]), outer, outer_layout.flatten(mixed), outer_layout.flatten(direct))
        before = (state.inner_table, state.outer_table, state.inner_hparams, state.outer_hparams)
        corrected, tables = [], []
        for place, new, table in zip((i, j, i, j), now, before, strict=True):
            corrected.append(new - table[place] + table.mean(dim=0))
            tables.append(table.index_copy(0, torch.tensor([place], device=table.device), new[None]))
        inner, outer, mixed_sum, direct_sum = corrected
        hparams = tree.detached(outer_layout.views(direct_sum - mixed_sum))
        return Directions(inner[0], inner[1] - outer, hparams, value), (tables[0], tables[1], tables[2], tables[3])
