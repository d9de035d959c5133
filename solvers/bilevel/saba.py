"""SABA: SOBA with SAGA's variance reduction of all five sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.schedules import Schedule, check_schedules, scheduled, scheduled_like
from hypergrad.solvers.bilevel.oracles import Oracles, parts
from hypergrad.solvers.bilevel.single_loop import SingleLoop
from hypergrad.tree import Layout, Tree

BLOCK = 256
"""Iterations whose batches one generator chooses."""
RECENT = 32
"""Renewed rows that are kept beside a table before they are written into it, which copies it."""


@final
@dataclass(frozen=True)
class Table:
    """What every batch last gave, one row a batch, and the mean of the rows.

    Attributes:
        rows: the table without the latest changes.
        mean: of all rows, with the latest changes.
        places: rows that were renewed since, the latest last.
        renewed: what stands there now.
    """

    rows: Tensor
    mean: Tensor
    places: tuple[int, ...] = ()
    renewed: tuple[Tensor, ...] = ()

    def correct(self, place: int, now: Tensor) -> tuple[Tensor, Table]:
        """Return now − row + mean, and the table with the row renewed."""
        places, renewed = self.places, self.renewed
        last = next((k for k in reversed(range(len(places))) if places[k] == place), None)
        change = now - (self.rows[place] if last is None else renewed[last])
        places, renewed = (*places, place), (*renewed, now)
        if len(places) < RECENT:
            mean = torch.add(self.mean, change, alpha=1 / len(self.rows))
            return change + self.mean, Table(self.rows, mean, places, renewed)
        latest = dict(zip(places, renewed, strict=True))
        where = torch.tensor(list(latest), device=self.rows.device)
        rows = self.rows.index_copy(0, where, torch.stack(list(latest.values())))
        return change + self.mean, Table(rows, rows.mean(dim=0))


@lru_cache(maxsize=8)
def _places(seed: int, block: int, *counts: int) -> list[tuple[int, ...]]:
    """Return the inner and the outer batch of each iteration of a block of iterations."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
    return list(zip(*(torch.randint(count, (BLOCK,), generator=generator).tolist() for count in counts), strict=True))


NOTHING = torch.zeros(0)


@final
@dataclass(frozen=True)
class SABAState:
    """What :class:`SABA` tracks; a table's fields are those of :class:`Table`.

    Attributes:
        params: θ.
        solution: q, which follows H⁻¹ ∂f/∂θ, as a flat vector.
        inner_rows: ∇_θ g_i, H_i q and (∂²g_i/∂θ∂λ)ᵀ q of each inner batch when it was last seen, n × (2p + d).
        inner_mean: mean of the rows.
        inner_places: rows that were renewed since.
        inner_renewed: what stands there now.
        outer_rows: ∂f_j/∂θ and ∂f_j/∂λ of each outer batch, m × (p + d).
        outer_mean: mean of the rows.
        outer_places: rows that were renewed since.
        outer_renewed: what stands there now.
        steps: hypergradients taken.
        made: iterations made.
    """

    params: Tree
    solution: Tensor
    inner_rows: Tensor = NOTHING
    inner_mean: Tensor = NOTHING
    inner_places: tuple[int, ...] = ()
    inner_renewed: tuple[Tensor, ...] = ()
    outer_rows: Tensor = NOTHING
    outer_mean: Tensor = NOTHING
    outer_places: tuple[int, ...] = ()
    outer_renewed: tuple[Tensor, ...] = ()
    steps: int = 0
    made: int = 0

    @property
    def tables(self) -> tuple[Table, Table]:
        """The inner and the outer table."""
        inner = Table(self.inner_rows, self.inner_mean, self.inner_places, self.inner_renewed)
        return inner, Table(self.outer_rows, self.outer_mean, self.outer_places, self.outer_renewed)

    def after(self, params: Tree, solution: Tensor, inner: Table, outer: Table) -> SABAState:
        """Return the state after an iteration."""
        return SABAState(
            params,
            solution,
            *(inner.rows, inner.mean, inner.places, inner.renewed),
            *(outer.rows, outer.mean, outer.places, outer.renewed),
            steps=self.steps,
            made=self.made + 1,
        )


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
        compile: whether the derivatives of an iteration are one graph of :func:`torch.compile`, checked against the
            eager ones at its first use (see :ref:`compiled-iterations`).
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
    compiles = True
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
        if state.made == 0:
            value, sums, tables = self._fill(oracles, state, z)
        else:
            value, sums, tables = self._correct(oracles, state, z)
        step = scheduled(self, "step_size", state.made)
        linear = scheduled_like(self, "linear_step_size", "step_size", state.made)
        (slope, product, mixed), (outer, direct) = self._parted(sums, layout)
        z = torch.sub(z, slope, alpha=step)
        solution = torch.sub(state.solution, product - outer, alpha=linear)
        hparams = oracles.outer_layout.views(direct - mixed)
        return value, hparams, state.after(layout.views(z), solution, *tables)

    @staticmethod
    def _parted(sums: tuple[Tensor, Tensor], layout: Layout) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        p = layout.size
        inner, outer = sums
        d = len(outer) - p
        return inner.split((p, p, d)), outer.split((p, d))

    def _fill(
        self, oracles: Oracles, state: SABAState, z: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Table, Table]]:
        """Return f, the means over all batches, and the tables."""
        inner_count, inner_batch = parts("inner_data", oracles.problem.inner_data)
        outer_count, outer_batch = parts("outer_data", oracles.problem.outer_data)
        inner = torch.stack([oracles.inner_row(z, state.solution, inner_batch(k)) for k in range(inner_count)])
        outer = [oracles.outer_row(z, outer_batch(k)) for k in range(outer_count)]
        rows = torch.stack([row for row, _ in outer])
        tables = Table(inner, inner.mean(dim=0)), Table(rows, rows.mean(dim=0))
        return torch.stack([value for _, value in outer]).mean(), (tables[0].mean, tables[1].mean), tables

    def _correct(
        self, oracles: Oracles, state: SABAState, z: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Table, Table]]:
        """Return f, value(now) − value(table) + mean(table) on random batches, and the tables with these renewed."""
        inner_count, inner_batch = parts("inner_data", oracles.problem.inner_data)
        outer_count, outer_batch = parts("outer_data", oracles.problem.outer_data)
        i, j = _places(self.seed, state.made // BLOCK, inner_count, outer_count)[state.made % BLOCK]
        inner_table, outer_table = state.tables
        inner_row, outer_row, value = oracles.rows(z, state.solution, inner_batch(i), outer_batch(j))
        inner, inner_table = inner_table.correct(i, inner_row)
        outer, outer_table = outer_table.correct(j, outer_row)
        return value, (inner, outer), (inner_table, outer_table)
