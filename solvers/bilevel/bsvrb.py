"""BSVRB: many inner problems with one shared outer variable, a few of them sampled at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.algorithm import Cost
from hypergrad.errors import DivergenceError
from hypergrad.schedules import Schedule, check_schedules, scheduled
from hypergrad.settings import check_numbers
from hypergrad.solvers.bilevel.blocks import Stack
from hypergrad.solvers.bilevel.msvr import Blockwise, BSVRBState, Look, check_tracked, started
from hypergrad.solvers.bilevel.oracles import Oracles
from hypergrad.tree import Tree


@final
@dataclass(frozen=True, kw_only=True)
class BSVRBv1(Blockwise):
    """BSVRB with tracked Hessians: m blocks of few parameters each, I of them sampled at a time.

    Minimise F(λ) = (1/m) Σ_i f_i(y_i(λ), λ), where y_i(λ) minimises g_i(y_i, λ). In iteration t, on one inner and one
    outer batch and a sample S of I blocks, with h(t) a derivative at (y, λ) now and h(t−1) at those one iteration ago:

    1. For i in S: s_i ← (1 − α) s_i + (α + γ) ∇_y g_i(t) − γ ∇_y g_i(t−1).
    2. For i in S: H_i ← Π[(1 − α) H_i + (α + γ) ∇²_yy g_i(t) − γ ∇²_yy g_i(t−1)], where Π lifts eigenvalues to μ.
    3. G(t) = (1/I) Σ_S [∂f_i/∂λ − (∂²g_i/∂y∂λ)ᵀ H_i⁻¹ ∇_y f_i], with H_i from before 2; G(t−1) with that before.
    4. z ← (1 − β) (z − G(t−1)) + G(t), the direction for λ.
    5. For all i: y_i ← Π_Y(y_i − τ s_i).

    γ = (1 − α) + (m − I) / (I (1 − α)), so that the error of s_i and its drift do not correlate, though a block is not
    looked at for m/I iterations on average. The first iteration looks at all blocks, with α = β = 1.

    *Blocks.* ``params`` holds all blocks: every tensor has one row for each along its first dimension. The problem's
    functions speak of one block: ``inner(params, hparams, block)`` gets the tensors of that block without this
    dimension, and ``block.index`` (its number, a 0-d tensor), ``block.batch`` (what the sampler drew, the same for
    all), ``block.row(data)`` (its row of a tensor); so does ``outer``. ``penalty`` is of one block, too. All
    blocks of a sample are evaluated at once by :func:`torch.func.vmap`, or one by one where it cannot.

    Args:
        blocks: m, at least 1, or ``None`` for one block whose tensors have no dimension of blocks and whose objectives
            get their batch as in any other problem.
        sampled: I, from 1 to m; all by default.
        mu: μ, above 0: a lower bound of the eigenvalues of all inner Hessians, in units of curvature. One that is too
            large biases the answer, and a warning says so.
        inner_step: τ, above 0: a number or a function of the iteration. Its stable range shrinks as I/m.
        alpha: α, in (0, 1], below 1 if I < m: weight of the fresh derivatives; a number or a function of the iteration.
        beta: β, in (0, 1]: weight of the fresh direction, likewise.
        gamma: γ, at least 0, likewise; ``None`` for the formula above.
        params_domain: sets that each block's tensors are projected onto after their steps, by name.
        vectorise: whether to try all blocks at once; ``False`` takes them in a loop.
        seed: seed of the samples of blocks.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1; for one block.

    Cost: 2 inner gradients, 2 outer gradients and 2 (d + 1) products an iteration, half in the first, d the parameters
    of a block; each is one pass over the sampled blocks. Memory for two Hessians a block.

    Raises:
        InputError: blocks of unequal shape, or another number of them; a setting out of range.
        UnsupportedError: a root or fixed point; a backward pass through several blocks.
        NonFiniteError: estimators that ran away: steps too long for I/m or for the noise.

    Source: Hu, Qiu, Guo, Zhang, Yang, "Blockwise stochastic variance-reduced methods with parallel speedup for
    multi-block bilevel optimization" (ICML 2023), the algorithm for low-dimensional inner problems, with MSVR from
    Jiang et al. (2022). Deviations: γ is always derived from α, I and m (the authors' code sets it to 1 or leaves out
    1 − α); eigenvalues are clipped (their code rescales H_i by its Frobenius norm); the first iteration looks at all
    blocks.

    Example:
        >>> import torch, hypergrad as hg
        >>> centre = torch.tensor([1.0, 2.0, 6.0])
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams, block: (params["y"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams, block: (params["y"] - block.row(centre)).square().sum() / 2,
        ... )
        >>> run = hg.Run(
        ...     problem,
        ...     hg.BSVRBv1(blocks=3, sampled=2, inner_step=0.2),
        ...     {"y": torch.zeros(3, 1)},
        ...     {"x": torch.zeros(1)},
        ...     hg.outer.Torch(torch.optim.SGD, lr=0.1),
        ... )
        >>> for _ in range(200):
        ...     progress = run.step()
        >>> run.hparams["x"].round()
        tensor([3.])
    """

    mu: float = 0.01
    cost = "2 inner gradients + 2 (d + 1) products + 2 outer gradients an iteration (d parameters a block)"
    needs = "strongly convex inner problems, many small ones side by side"
    elsewhere = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_numbers(self, "mu", above=0)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        looks = 2 * self.iterations - 1
        return Cost(looks, looks * (params_size // (self.blocks or 1) + 1), looks)

    def _start(self, params: Tree, hparams: Tree) -> BSVRBState:
        stack = self._stack(params)
        rows = stack.rows(params)
        matrices = torch.zeros_like(rows).unsqueeze(-1).repeat(1, 1, stack.size)
        return started(params, hparams, rows, matrices, rows[:0])

    def _tracked(self, state: BSVRBState) -> Tensor:
        return state.solution

    def _look(
        self, part: Oracles, stack: Stack, params: Tensor, solution: Tensor | None, batches: tuple[Any, Any]
    ) -> Look:
        z, count = stack.flat(params), len(params)
        point = part.problem.linearise(part.layout.views(z), part.hparams, batches[0])
        units = torch.eye(stack.size, dtype=z.dtype, device=z.device)
        rows = torch.stack([stack.flat(unit.expand(count, -1)) for unit in units])
        images = point.images(rows)
        if point.diagonal is not None:
            images.addcmul_(rows, point.diagonal)
        fresh = torch.stack([stack.unflat(image) for image in images], dim=-1)
        if solution is None:
            check_tracked({"second derivatives": fresh}, 0)
            solution, _ = clipped(fresh, self.mu)
        value, slope, direct = part.outer(z, batches[1])
        mixed = point.cross(stack.flat(solved(solution, self.mu, stack.unflat(slope))))
        part.cost += Cost(inner_gradients=1, products=point.products)
        part.reached |= point.reached
        hparams = {key: (direct[key] - value) / count for key, value in mixed.items()}
        return Look(value / count, stack.unflat(point.residual()), fresh, solution, hparams)

    def _advance(self, stack: Stack, state: BSVRBState, fresh: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrices, bounded = clipped(fresh, self.mu)
        return state.solution.index_copy(0, chosen, matrices), state.residual, bounded

    def _remark(self, bounded: int) -> tuple[str, str]:
        return "curvature", (
            f"the tracked Hessians of {bounded} blocks had eigenvalues below mu={self.mu:g}, and were lifted to it: "
            "noise that will pass, or inner problems less convex than mu says, which biases the direction; lower mu to "
            "the smallest eigenvalue, or lower alpha"
        )


@final
@dataclass(frozen=True, kw_only=True)
class BSVRBv2(Blockwise):
    """BSVRB with tracked solutions: m blocks of many parameters each, I of them sampled at a time.

    As :class:`BSVRBv1`, which says how a problem speaks of its blocks, but no Hessian is formed: v_i follows
    H_i⁻¹ ∇_y f_i by steps along an estimate u_i of H_i v_i − ∇_y f_i. In iteration t:

    1. For i in S: s_i ← (1 − α) s_i + (α + γ) ∇_y g_i(t) − γ ∇_y g_i(t−1).
    2. For i in S: u_i ← (1 − α) u_i + (α + γ) r_i(t) − γ r_i(t−1), where r_i = ∇²_yy g_i v_i − ∇_y f_i, v_i included.
    3. G(t) = (1/I) Σ_S [∂f_i/∂λ − (∂²g_i/∂y∂λ)ᵀ v_i], and G(t−1) with everything one iteration before.
    4. z ← (1 − β) (z − G(t−1)) + G(t), the direction for λ.
    5. For all i: y_i ← Π_Y(y_i − τ s_i) and v_i ← Π_V(v_i − τ' u_i), where Π_V shortens to ‖v_i‖ ≤ V.

    The product of step 2 and the mixed product come from one reverse pass. v_i starts at 0, so that the first direction
    is ∂f/∂λ alone.

    Args:
        blocks: m, at least 1, or ``None`` for one block whose tensors have no dimension of blocks and whose objectives
            get their batch as in any other problem.
        sampled: I, from 1 to m; all by default.
        radius: V, above 0: at least max ‖∇_y f_i‖ / μ, with μ the smallest eigenvalue of an inner Hessian. One that is
            too small biases the answer, and a warning says so; infinity for no bound.
        inner_step: τ, above 0: a number or a function of the iteration. Its stable range shrinks as I/m.
        linear_step: τ', likewise; τ by default.
        alpha: α, in (0, 1], below 1 if I < m: weight of the fresh derivatives; a number or a function of the iteration.
        beta: β, in (0, 1]: weight of the fresh direction, likewise.
        gamma: γ, at least 0, likewise; ``None`` for (1 − α) + (m − I) / (I (1 − α)).
        params_domain: sets that each block's tensors are projected onto after their steps, by name.
        vectorise: whether to try all blocks at once; ``False`` takes them in a loop.
        seed: seed of the samples of blocks.
        iterations: iterations in each step, at least 1; 1 in the paper.
        adjoint_iterations: iterations of a backward pass through :func:`~hypergrad.solve`, at least 1; for one block.

    Cost: 2 inner gradients, 2 outer gradients and 2 products an iteration, half in the first; each is one pass over the
    sampled blocks. Memory for seven copies of all blocks.

    Raises:
        InputError: blocks of unequal shape, or another number of them; a setting out of range.
        UnsupportedError: a root or fixed point; a backward pass through several blocks.
        NonFiniteError: estimators that ran away: steps too long for I/m or for the noise.

    Source: Hu, Qiu, Guo, Zhang, Yang (ICML 2023), the algorithm for high-dimensional inner problems. Deviations: γ is
    always derived; all v_i move in every iteration (the authors' code moves those of S, by as many steps as they
    missed); the first iteration looks at all blocks.

    Example:
        >>> import torch, hypergrad as hg
        >>> centre = torch.tensor([1.0, 2.0, 6.0])
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams, block: (params["y"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams, block: (params["y"] - block.row(centre)).square().sum() / 2,
        ... )
        >>> run = hg.Run(
        ...     problem,
        ...     hg.BSVRBv2(blocks=3, sampled=2, inner_step=0.2),
        ...     {"y": torch.zeros(3, 1)},
        ...     {"x": torch.zeros(1)},
        ...     hg.outer.Torch(torch.optim.SGD, lr=0.1),
        ... )
        >>> for _ in range(200):
        ...     progress = run.step()
        >>> run.hparams["x"].round()
        tensor([3.])
    """

    radius: float = 10.0
    linear_step: Schedule | None = None
    cost = "2 inner gradients + 2 products + 2 outer gradients an iteration"
    needs = "strongly convex inner problems, many side by side"
    elsewhere = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_numbers(self, "radius", above=0)
        check_schedules(self, "linear_step", optional=True)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        looks = 2 * self.iterations - 1
        return Cost(looks, looks, looks)

    def _start(self, params: Tree, hparams: Tree) -> BSVRBState:
        rows = self._stack(params).rows(params)
        return started(params, hparams, rows, torch.zeros_like(rows), torch.zeros_like(rows))

    def _tracked(self, state: BSVRBState) -> Tensor:
        return state.residual

    def _look(
        self, part: Oracles, stack: Stack, params: Tensor, solution: Tensor | None, batches: tuple[Any, Any]
    ) -> Look:
        solution = torch.zeros_like(params) if solution is None else solution
        found = part.directions(stack.flat(params), stack.flat(solution), *batches)
        count = len(params)
        hparams = {key: value / count for key, value in found.hparams.items()}
        slopes, fresh = stack.unflat(found.params), stack.unflat(found.linear)
        return Look(found.value / count, slopes, fresh, solution, hparams)

    def _advance(self, stack: Stack, state: BSVRBState, fresh: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = state.residual.index_copy(0, chosen, fresh)
        step = scheduled(self, "inner_step" if self.linear_step is None else "linear_step", state.made)
        solution, bounded = in_ball(state.solution - step * residual, self.radius)
        return solution, residual, bounded

    def _remark(self, bounded: int) -> tuple[str, str]:
        return "convergence", (
            f"the vectors v of {bounded} blocks were shortened to radius={self.radius:g}, so that the direction is too "
            "short; raise radius to at least the largest ‖∇_y f‖ divided by the smallest eigenvalue of an inner Hessian"
        )


def clipped(matrices: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return the nearest symmetric matrices with no eigenvalue below ``least``, and how many were changed."""
    values, vectors = _eigen((matrices + matrices.mT) / 2)
    nearest = (vectors * values.clamp(min=least).unsqueeze(-2)) @ vectors.mT
    return nearest, (values[..., 0] < least).sum()


def solved(matrices: Tensor, least: float, rows: Tensor) -> Tensor:
    """Return M⁻¹ b for symmetric matrices with no eigenvalue below ``least`` but for rounding."""
    values, vectors = _eigen(matrices)
    parts = (vectors.mT @ rows.unsqueeze(-1)) / values.clamp(min=least).unsqueeze(-1)
    found: Tensor = (vectors @ parts).squeeze(-1)
    return found


def _eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except RuntimeError as error:
        if "linalg" not in str(error):
            raise
        raise DivergenceError(
            passed=f"tracked Hessians without eigenvalues ({error})",
            expected="estimates that settle",
            do="lower inner_step and alpha; the stable range shrinks as sampled / blocks",
        ) from error
    return values, vectors


def in_ball(rows: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return rows shortened to at most ``radius``, and how many were."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    outside = lengths > radius
    return torch.where(outside, rows * (radius / lengths), rows), outside.sum()
