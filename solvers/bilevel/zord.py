"""Differences of training runs that are all remembered: the gradient of a Gaussian process through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, replayed
from hypergrad.errors import InputError
from hypergrad.inner import InnerSolver
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_counts, check_kind, check_numbers
from hypergrad.solvers.bilevel.training_runs import TrainingRuns, start, still
from hypergrad.tree import Layout, Tree


@final
class DerivativePosterior:
    """What values of a function at some points say of its gradient, under a Gaussian process.

    The process has mean zero and the kernel k(x, x') = exp(−‖x − x'‖² / 2ℓ²); values carry noise of variance s².
    With K = k(X, X) and D(x) = ∂ₓ k(x, X), of shape n × m:

    - mean of the gradient: D(x) (K + s² I)⁻¹ y,
    - trace of its covariance: n/ℓ² − tr(D(x) (K + s² I)⁻¹ D(x)ᵀ).

    Args:
        points: X, m × n, in float64.
        length_scale: ℓ, above 0, in units of x.
        noise: s², above 0, in units of the kernel's variance 1.

    Cost: one Cholesky factorisation of size m; O(m n) for a mean, O(m² n) for a trace, O(m² c) for c gains.
    """

    def __init__(self, points: Tensor, length_scale: float, noise: float) -> None:
        """Factorise the kernel's matrix."""
        self.points, self.length_scale, self.noise = points, length_scale, noise
        matrix = self._kernel(points, points)
        matrix.diagonal().add_(noise)
        self._factor = torch.linalg.cholesky(matrix)

    def mean(self, x: Tensor, values: Tensor) -> Tensor:
        """Return the expected gradient at ``x``, a vector of length n, given the values at the points."""
        return self._slopes(x) @ torch.cholesky_solve(values[:, None], self._factor)[:, 0]

    def spread(self, x: Tensor) -> float:
        """Return the trace of the gradient's covariance at ``x``: n/ℓ² where nothing is known, near 0 where all is."""
        known = torch.linalg.solve_triangular(self._factor, self._slopes(x).mT, upper=False)
        return x.numel() / self.length_scale**2 - float(known.square().sum())

    def gains(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Return by how much :meth:`spread` at ``x`` would fall with a value at each of the candidates, c × n.

        It is ‖cov(∇F(x), F(c))‖² / var F(c), both given the values at the points.
        """
        whitened = torch.linalg.solve_triangular(self._factor, self._kernel(self.points, candidates), upper=False)
        slopes = torch.linalg.solve_triangular(self._factor, self._slopes(x).mT, upper=False)
        covariance = self._slopes(x, candidates) - slopes.mT @ whitened
        variance = 1 + self.noise - whitened.square().sum(dim=0)
        gains: Tensor = covariance.square().sum(dim=0) / variance.clamp(min=self.noise)
        return gains

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        gaps = (left[:, None, :] - right).square().sum(dim=-1)
        return torch.exp(-gaps / (2 * self.length_scale**2))

    def _slopes(self, x: Tensor, points: Tensor | None = None) -> Tensor:
        points = self.points if points is None else points
        return ((points - x) * self._kernel(points, x[None])).mT / self.length_scale**2


@final
@dataclass(frozen=True)
class ZoRDState:
    """Every training run so far.

    Attributes:
        params: where every training run starts.
        steps: hypergradients taken.
        points: hyperparameters of the runs, m × n, in float64 on the CPU.
        values: their outer losses, m.
    """

    params: Tree
    steps: int
    points: Tensor
    values: Tensor


@final
@dataclass(frozen=True)
class ZoRD(Algorithm[ZoRDState]):
    """dF/dλ as the expected gradient of a Gaussian process through the values of all training runs so far.

    1. Train at λ, and remember F(λ).
    2. ``queries`` times: of ``candidates`` random points of a box around λ take the one whose value would tell most
       about the gradient at λ, train there, and remember the value.
    3. dF/dλ is the posterior mean of the gradient at λ, given the ``nearest`` runs.

    A run is never wasted: later steps use it as well, so that a step takes fewer runs than there are hyperparameters.
    What the process does not know of the gradient it takes to be zero, so that the estimate is too short: biased by
    design, less so with more runs nearby. Values are centred and divided by their range before the process sees them.

    Args:
        inner: how to train, any inner solver.
        queries: training runs around λ in each step, at least 0; twice as many as hyperparameter entries in the first.
        candidates: points to choose a query from, at least 1.
        radius: half the width of the box, above 0, in the hyperparameters' units.
        nearest: runs that the process sees, at least 1.
        length_scale: ℓ, above 0: how far the hyperparameters move before F bends, in their units.
        noise: s², above 0: variance of a value's error relative to the squared range of the values.
        memory: runs that are remembered, at least 1; the oldest are forgotten.
        max_size: largest number of hyperparameter entries accepted, at least 1.
        seed: seed of the candidates, which are new at every step.

    Cost: ``queries`` + 1 training runs with values of f, 2n + 1 in the first step; O(nearest³) for each query.

    Raises:
        InputError: more entries than ``max_size``.
        NonFiniteError: a run whose outer loss is NaN or infinite.

    Source: Shu et al., "Zeroth-order optimization with trajectory-informed derivative estimation" (ICLR 2023), with
    the active queries of Shu et al., FZooS (2023). Deviations: a query is chosen for what it tells of the gradient at
    λ (where the gradient is least certain itself is next to the points that are known already), one after the other;
    values are scaled by their range, and the gradient is scaled back.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]) ** 2,
        ...     outer=lambda params, hparams: 0.5 * params["w"] ** 2,
        ... )
        >>> fit = hg.Training(lambda params, hparams: {"w": hparams["x"]})
        >>> point = {"w": torch.zeros((), dtype=torch.float64)}, {"x": torch.tensor(2.0, dtype=torch.float64)}
        >>> hg.hypergradient(problem, *point, hg.ZoRD(fit)).grads["x"].round(decimals=1)
        tensor(2., dtype=torch.float64)
    """

    inner: InnerSolver
    queries: int = 5
    candidates: int = 100
    radius: float = 0.01
    nearest: int = 150
    length_scale: float = 1.0
    noise: float = 1e-6
    memory: int = 1000
    max_size: int = 1000
    seed: int = 0
    order = 0
    cost = "queries + 1 training runs (2n + 1 at the first step)"
    needs = "values of training runs only; few hyperparameters"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether the estimate tends to dF/dλ: never, since what is not known counts as zero."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn."""
        return True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_kind(self, "inner", InnerSolver, "wrap a training function: hypergrad.Training(train)")
        check_counts(self, "queries", least=0)
        check_counts(self, "candidates", "nearest", "memory", "max_size")
        check_numbers(self, "radius", "length_scale", "noise", above=0)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of a first step."""
        runs, one = 2 * hparams_size + 1, self.inner.budget()
        return Cost(runs * one.inner_gradients, runs * one.products, 0, runs)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> ZoRDState:
        """Check the inputs, and remember nothing yet."""
        params, checked = problem.check_inputs(params, hparams)
        size = Layout.of(checked).size
        if size > self.max_size:
            raise InputError(
                passed=f"{size} hyperparameter entries for ZoRD",
                expected=f"at most max_size={self.max_size}",
                do="use an algorithm that differentiates: hypergrad.Implicit",
            )
        points, values = torch.zeros(0, size, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        return ZoRDState(tree.detached(params), 0, points, values)

    def response(self, problem: Problem, state: ZoRDState, hparams: Tree) -> Tree:
        """Return θ(λ)."""
        hparams = tree.detached(hparams)
        return self.inner.run(problem, start(problem, state.params, hparams), hparams).params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ(λ) with a backward pass by training runs."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: ZoRDState, hparams: Tree) -> tuple[Hypergradient, ZoRDState]:
        """Train at λ and around it, and ask the process for the gradient."""
        device = tree.device_of(state.params)
        watch, layout = Stopwatch(device), Layout.of(hparams)
        with guards.pinned_rng(device):
            runs = TrainingRuns(self.inner, problem, state.params, layout)
            origin = layout.flatten(tree.detached(hparams))
            value, params = runs.at(origin)
            seen = _Seen(state.points.cpu(), state.values.cpu())
            seen.add(origin, value)
            self._ask(runs, origin, seen, 2 * layout.size if len(state.values) == 0 else self.queries, state.steps)
        center = origin.cpu().double()
        points, values = seen.nearest(center, self.nearest)
        scale = float(values.max() - values.min()) or 1.0
        posterior = DerivativePosterior(points, self.length_scale, self.noise)
        slope = scale * posterior.mean(center, (values - values.mean()) / scale)
        grads = tree.cloned(layout.views(slope.to(layout.device, layout.dtype)))
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED),
            outer_loss=float(value),
            cost=runs.cost,
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
            notes=still(grads, remedy="raise radius"),
        )
        following = ZoRDState(
            state.params, state.steps + 1, seen.points[-self.memory :].clone(), seen.values[-self.memory :].clone()
        )
        return Hypergradient(grads, params, value, report), following

    def _ask(self, runs: TrainingRuns, origin: Tensor, seen: _Seen, count: int, step: int) -> None:
        """Train at the points of the box that tell most about the gradient at its center, one after the other."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        center = origin.cpu().double()
        for _ in range(count):
            drawn = torch.rand(self.candidates, len(center), dtype=torch.float64, generator=generator) * 2 - 1
            places = torch.stack([runs.inside((center + self.radius * shift).to(origin)) for shift in drawn])
            points, _ = seen.nearest(center, self.nearest)
            posterior = DerivativePosterior(points, self.length_scale, self.noise)
            place = places[int(posterior.gains(center, places.cpu().double()).argmax())]
            seen.add(place, runs.at(place)[0])


class _Seen:
    """Points and values of training runs."""

    def __init__(self, points: Tensor, values: Tensor) -> None:
        self.points, self.values = points, values

    def add(self, place: Tensor, value: Tensor) -> None:
        self.points = torch.cat([self.points, place.detach().cpu().double()[None]])
        self.values = torch.cat([self.values, value.detach().cpu().double().reshape(1)])

    def nearest(self, center: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the points nearest to a center, and their values."""
        order = torch.argsort((self.points - center).square().sum(dim=1), stable=True)[:count]
        return self.points[order], self.values[order]
