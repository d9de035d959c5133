"""Differences of training runs: coordinate-wise or along random directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Cost, Hypergradient, Report, Stopwatch, replayed
from hypergrad.errors import InputError
from hypergrad.inner import InnerSolver
from hypergrad.linear import Status
from hypergrad.problem import Problem
from hypergrad.settings import check_choice, check_counts, check_kind, check_numbers
from hypergrad.solvers.bilevel.training_runs import TrainingRuns, start, still
from hypergrad.tree import Layout, Tree


@final
@dataclass(frozen=True)
class ZerothOrderState:
    """Where every training run starts.

    Attributes:
        params: θ₀.
        steps: hypergradients taken.
    """

    params: Tree
    steps: int = 0


@final
@dataclass(frozen=True)
class ZerothOrder(Algorithm[ZerothOrderState]):
    """dF/dλ from values F(λ) = f(θ(λ), λ) of whole training runs, which may be black boxes.

    - ``"CGE"``: (F(λ + μ e_j) − F(λ − μ e_j)) / 2μ for every entry j.
    - ``"RGE"``: the mean over k random u of n (F(λ + μu) − F(λ − μu)) / 2μ · u with u uniform on the unit sphere.

    With ``central=False`` the second value is F(λ) and the divisor μ; on a quadratic F with Hessian A its error is
    exactly μ A_jj / 2, while the central difference is exact. All runs of a step start at the same parameters and
    see the same random numbers and batches. Points outside the hyperparameters' domain are projected first and the
    divisor is the distance that is left.

    Args:
        inner: how to train, any inner solver.
        mode: coordinates or random directions.
        directions: k for ``"RGE"``, at least 1.
        step_size: μ, above 0, in the hyperparameters' units. Values with an error σ ask for about (3σ)^(1/3); training
            needs a tolerance far below μ².
        central: whether to take differences on both sides.
        max_runs: largest number of training runs in a step, at least 1.
        warm_start: whether the runs of the next step start where this step's run at λ ended. That measures a short
            horizon's response, so by default all start at the first parameters.
        seed: seed of the directions, which are new at every step.

    Cost: 2n + 1 training runs with values of f (n + 1 without ``central``); for ``"RGE"`` k in the place of n.

    Raises:
        InputError: more runs than ``max_runs``.
        NonFiniteError: a run whose outer loss is NaN or infinite.

    Source: Chen et al., DeepZero (2024) for CGE and RGE; Nesterov and Spokoiny (2017). Deviation: RGE on the unit
    sphere carries the factor n, without which its mean is dF/n.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]) ** 2,
        ...     outer=lambda params, hparams: 0.5 * params["w"] ** 2,
        ... )
        >>> fit = hg.Training(lambda params, hparams: {"w": hparams["x"]})
        >>> point = {"w": torch.zeros((), dtype=torch.float64)}, {"x": torch.tensor(2.0, dtype=torch.float64)}
        >>> hg.hypergradient(problem, *point, hg.ZerothOrder(fit)).grads["x"].round(decimals=6)
        tensor(2., dtype=torch.float64)
    """

    inner: InnerSolver
    mode: Literal["CGE", "RGE"] = "CGE"
    directions: int = 1
    step_size: float = 1e-3
    central: bool = True
    max_runs: int = 1000
    warm_start: bool = False
    seed: int = 0
    order = 0
    cost = "2n + 1 training runs (RGE: 2k + 1; one-sided: n + 1)"
    needs = "values of training runs only; few hyperparameters"
    elsewhere = True

    @property
    def exact(self) -> bool:
        """Whether the estimate tends to dF/dλ as the step size goes to zero, for every draw."""
        return self.mode == "CGE"

    @property
    def stochastic(self) -> bool:
        """Whether random directions are drawn."""
        return self.mode == "RGE"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_kind(self, "inner", InnerSolver, "wrap a training function: hypergrad.Training(train)")
        check_choice(self, "mode", ("CGE", "RGE"))
        check_counts(self, "directions", "max_runs")
        check_numbers(self, "step_size", above=0)

    def budget(self, params_size: int, hparams_size: int) -> Cost:
        """Return the passes of all runs."""
        runs = self._runs(hparams_size)
        one = self.inner.budget()
        return Cost(runs * one.inner_gradients, runs * one.products, 0, runs)

    def init(self, problem: Problem, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> ZerothOrderState:
        """Check the inputs and start at ``params``."""
        params, checked = problem.check_inputs(params, hparams)
        runs = self._runs(Layout.of(checked).size)
        if runs > self.max_runs:
            raise InputError(
                passed=f"{runs} training runs a step for {Layout.of(checked).size} hyperparameter entries",
                expected=f"at most max_runs={self.max_runs}",
                do='use mode="RGE" with few directions, or an algorithm that differentiates: hypergrad.Implicit',
            )
        return ZerothOrderState(tree.detached(params))

    def response(self, problem: Problem, state: ZerothOrderState, hparams: Tree) -> Tree:
        """Return θ(λ)."""
        hparams = tree.detached(hparams)
        return self.inner.run(problem, start(problem, state.params, hparams), hparams).params

    def attach(self, problem: Problem, params: Mapping[str, Tensor], hparams: Tree) -> Tree:
        """Return θ(λ) with a backward pass by differences."""
        return replayed(self, problem, params, hparams)

    def step(self, problem: Problem, state: ZerothOrderState, hparams: Tree) -> tuple[Hypergradient, ZerothOrderState]:
        """Run training at λ and around it."""
        device = tree.device_of(state.params)
        watch, layout = Stopwatch(device), Layout.of(hparams)
        with guards.pinned_rng(device):
            runs = TrainingRuns(self.inner, problem, state.params, layout)
            origin = layout.flatten(tree.detached(hparams))
            value, params = runs.at(origin)
            vectors = self.directions_at(state.steps, layout)
            slopes = torch.stack([self._slope(runs, origin, value, vector) for vector in vectors])
        scale = 1 if self.mode == "CGE" else layout.size / len(vectors)
        grads = tree.cloned(layout.views(scale * (slopes @ torch.stack(vectors))))
        report = Report(
            algorithm=repr(self),
            status=str(Status.COMPLETED),
            outer_loss=float(value),
            cost=runs.cost,
            seconds=watch.seconds(),
            peak_bytes=watch.peak_bytes(),
            notes=still(grads, remedy="raise step_size"),
        )
        following = ZerothOrderState(params if self.warm_start else state.params, state.steps + 1)
        return Hypergradient(grads, params, value, report), following

    def _runs(self, size: int) -> int:
        return (2 if self.central else 1) * (size if self.mode == "CGE" else self.directions) + 1

    def directions_at(self, step: int, layout: Layout) -> list[Tensor]:
        """Return the flat unit directions that step ``step`` (from 0) uses."""
        if self.mode == "CGE":
            return list(torch.eye(layout.size, dtype=layout.dtype, device=layout.device))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        drawn = torch.randn(self.directions, layout.size, dtype=torch.float64, generator=generator)
        return list((drawn / drawn.norm(dim=1, keepdim=True)).to(layout.device, layout.dtype))

    def _slope(self, runs: TrainingRuns, origin: Tensor, value: Tensor, vector: Tensor) -> Tensor:
        """Return the difference quotient along a unit vector."""
        high, low, below = runs.inside(origin + self.step_size * vector), origin, value
        above, _ = runs.at(high)
        if self.central:
            low = runs.inside(origin - self.step_size * vector)
            below, _ = runs.at(low)
        distance = torch.dot(high - low, vector)
        return torch.where(distance > 0, (above - below) / distance, 0.0)
