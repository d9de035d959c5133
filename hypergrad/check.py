"""Compare a hypergradient with differences of re-solved training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import guards, tree
from hypergrad.algorithm import Algorithm, Hypergradient, check_algorithm
from hypergrad.errors import InputError, NumericalError
from hypergrad.inner import InnerSolver
from hypergrad.problem import Problem
from hypergrad.settings import check_count, check_number
from hypergrad.solvers.bilevel.implicit import Implicit
from hypergrad.solvers.inner.lbfgs import LBFGS
from hypergrad.tree import Tree

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"


@final
@dataclass(frozen=True)
class TensorCheck:
    """The comparison for one hyperparameter tensor.

    Attributes:
        name: of the tensor.
        relative_error: ‖predicted − measured‖ / ‖measured‖ over the directions.
        cosine: of predicted and measured slopes over the directions.
        floor: relative error that the differences themselves carry, from differences at several step sizes.
        predicted: slopes ⟨hypergradient, u⟩, the first along the hypergradient itself.
        measured: slopes (F(λ + hu) − F(λ − hu)) / 2h.
        verdict: ``"agrees"``, ``"disagrees"``, or ``"undecided"`` where the floor is too high to tell.
    """

    name: str
    relative_error: float
    cosine: float
    floor: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    verdict: str


@final
@dataclass(frozen=True)
class CheckResult:
    """The comparison of a hypergradient with differences.

    Attributes:
        tensors: one comparison for each hyperparameter tensor.
        verdict: ``"agrees"`` if all do, ``"disagrees"`` if any does, otherwise ``"undecided"``.
        cause: the likely cause of a disagreement, or what keeps the check from deciding; empty if all agree.
        trainings: training runs made.
        hypergradient: what was checked.
    """

    tensors: tuple[TensorCheck, ...]
    verdict: str
    cause: str
    trainings: int
    hypergradient: Hypergradient

    @property
    def passed(self) -> bool:
        """Whether all tensors agree."""
        return self.verdict == AGREES

    def __str__(self) -> str:
        """Return a table with the verdict under it."""
        width = max(14, *(len(row.name) for row in self.tensors))
        lines = [f"{'hyperparameter':{width}}  rel. error  cosine  noise floor  verdict"]
        lines += [
            f"{row.name:{width}}  {row.relative_error:10.2e}  {row.cosine:6.3f}  {row.floor:11.2e}  {row.verdict}"
            for row in self.tensors
        ]
        lines.append(f"{self.verdict} ({self.trainings} training runs)")
        return "\n".join([*lines, self.cause] if self.cause else lines)


def check(
    problem: Problem,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    algorithm: Algorithm[Any],
    *,
    resolve: InnerSolver | None = None,
    directions: int = 3,
    steps: tuple[float, ...] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    verbose: bool = True,
) -> CheckResult:
    """Compare an algorithm's hypergradient with central differences of re-solved training.

    For each hyperparameter tensor F(λ) = f(θ(λ), λ) is measured along the hypergradient itself and along random unit
    directions. All training runs start at the same parameters and see the same random numbers and batches. The
    differences are taken at several step sizes; where the two closest still differ is the noise floor.

    Args:
        problem: the two objectives.
        params: where training starts.
        hparams: the point to check at.
        algorithm: the algorithm to check.
        resolve: how to train again; by default as the algorithm trains, and L-BFGS to 1e-9 in float64 (1e-5 in
            float32) for an implicit algorithm without an inner solver.
        directions: directions for each tensor, at least 1.
        steps: two or more step sizes, falling, above 0, in units of the tensor's root mean square (1 for a zero
            tensor): by default 1e-2, 1e-3, 1e-4 in float64 and 1e-1, 3e-2, 1e-2 in float32.
        tolerance: largest relative error of a hypergradient that agrees, above 0.
        seed: seed of the directions and of the random numbers that all runs share.
        verbose: whether to print the result.

    Returns:
        The comparison with a verdict and the likely cause.

    Cost: 2 · directions · len(steps) training runs for each tensor, and 2.

    Raises:
        InputError: wrong inputs.
        NumericalError: NaN or a diverged solve on the way.

    Example:
        >>> import torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: ((params["w"] - hparams["x"].sin()) ** 2).sum(),
        ...     outer=lambda params, hparams: (params["w"] ** 2).sum(),
        ... )
        >>> start = {"w": torch.zeros(3, dtype=torch.float64)}, {"x": torch.ones(3, dtype=torch.float64)}
        >>> hg.check(problem, *start, hg.Implicit(hg.CG(), inner=hg.Newton()), verbose=False).verdict
        'agrees'
    """
    check_count("check", "directions", directions)
    check_number("check", "tolerance", tolerance, above=0)
    check_algorithm(algorithm)
    params, hparams = problem.check_inputs(params, hparams)
    steps = _default_steps(hparams) if steps is None else steps
    if len(steps) < 2 or not all(a > b > 0 for a, b in itertools.pairwise(steps)):
        raise InputError(f"check(steps={steps})", "two or more step sizes, falling, above 0", "leave steps out")
    runs = _Runs(problem, params, hparams, algorithm, resolve, seed)
    with guards.again(runs.draws):
        result = _checked(runs, directions, steps, tolerance)
    if verbose:
        print(result)
    return result


def _checked(runs: _Runs, directions: int, steps: tuple[float, ...], tolerance: float) -> CheckResult:
    found = runs.hypergradient()
    runs.base = runs.value(runs.hparams)
    repeatable = runs.base == runs.value(runs.hparams)
    generator = torch.Generator().manual_seed(runs.seed)
    vectors = {name: _directions(found.grads[name], directions, generator) for name in runs.hparams}
    rows = [_compare(name, found.grads[name], vectors[name], runs, steps, tolerance) for name in runs.hparams]
    verdicts = {row.verdict for row in rows} if repeatable else {UNDECIDED}
    verdict = next(v for v in (DISAGREES, UNDECIDED, AGREES) if v in verdicts)
    cause = "" if verdict == AGREES else _cause(rows, found, runs, vectors, repeatable=repeatable)
    return CheckResult(tuple(rows), verdict, cause, runs.trainings, found)


class _Runs:
    """Training runs from one start under common random numbers."""

    def __init__(
        self,
        problem: Problem,
        params: Tree,
        hparams: Tree,
        algorithm: Algorithm[Any],
        resolve: InnerSolver | None,
        seed: int,
    ) -> None:
        self.problem, self.params, self.hparams, self.algorithm = problem, params, hparams, algorithm
        self.device = tree.device_of(params)
        self.state = algorithm.init(problem, params, hparams)
        algorithm = algorithm.at_step(0)
        if resolve is None and isinstance(algorithm, Implicit) and algorithm.inner is None:
            dtype = next(iter(params.values())).dtype
            resolve = LBFGS(tolerance=1e-9 if dtype == torch.float64 else 1e-5, steps=1000)
        self.resolve = resolve
        self.trainings, self.base = 0, math.nan
        self.seed = seed
        self.draws = guards.Draws.capture(self.device, problem.inner_data, problem.outer_data)

    def hypergradient(self) -> Hypergradient:
        """Return what the algorithm says."""
        with self._pinned():
            return self.algorithm.step(self.problem, self.state, tree.leaves(self.hparams))[0]

    def value(self, hparams: Tree) -> float:
        """Return F after training again."""
        self.trainings += 1
        with self._pinned():
            trained = self._trained(hparams)
            with torch.no_grad():
                return float(self.problem.outer_value(trained, hparams, self.problem.draw_outer()))

    def slope(self, name: str, shift: Tensor, length: float) -> tuple[float, float]:
        """Return (F(λ + shift) − F(λ − shift)) / 2 length and its rounding error, NaN where training breaks down."""
        point = self.hparams[name]
        try:
            above, below = (self.value({**self.hparams, name: point + sign * shift}) for sign in (1, -1))
        except NumericalError:
            return math.nan, math.nan
        steepness = abs(above + below - 2 * self.base) / length  # F may be steep at both ends and level between them
        moved = steepness * float(torch.linalg.vector_norm(point))  # what rounding λ and θ(λ) does to F, but for eps
        rounding = 4 * torch.finfo(point.dtype).eps * (max(abs(above), abs(below)) + moved)
        return (above - below) / (2 * length), rounding / (2 * length)

    def _trained(self, hparams: Tree) -> Tree:
        if self.resolve is None:
            return self.algorithm.response(self.problem, self.state, hparams)
        return self.resolve.run(self.problem, self.params, hparams).params

    def direct(self) -> Tree:
        """Return ∂f/∂λ where training ended."""
        with self._pinned():
            trained = self._trained(self.hparams)
            return self.problem.outer_gradients(trained, self.hparams, self.problem.draw_outer()).hparams

    def _pinned(self) -> guards.Pinned:
        return guards.Pinned(self.draws, self.seed)


def _default_steps(hparams: Tree) -> tuple[float, ...]:
    double = next(iter(hparams.values())).dtype == torch.float64
    return (1e-2, 1e-3, 1e-4) if double else (1e-1, 3e-2, 1e-2)


def _directions(grad: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Return unit vectors: along the hypergradient, then at random."""
    random = [torch.randn(grad.shape, generator=generator, dtype=torch.float64).to(grad) for _ in range(count)]
    if bool(grad.any()):
        random[0] = grad
    if grad.numel() == 1:
        random = random[:1]
    return [vector / torch.linalg.vector_norm(vector) for vector in random]


def _compare(
    name: str,
    grad: Tensor,
    vectors: list[Tensor],
    runs: _Runs,
    steps: tuple[float, ...],
    tolerance: float,
) -> TensorCheck:
    scale = float(runs.hparams[name].square().mean().sqrt()) or 1.0
    predicted = [float((grad * vector).sum()) for vector in vectors]
    measured, doubts = [], []
    for vector in vectors:
        slopes, roundings = zip(*(runs.slope(name, h * scale * vector, h * scale) for h in steps), strict=True)
        gaps = [
            abs(a - b) + rounding for (a, b), rounding in zip(itertools.pairwise(slopes), roundings[1:], strict=True)
        ]
        gaps = [gap if math.isfinite(gap) else math.inf for gap in gaps]
        best = min(range(len(gaps)), key=gaps.__getitem__)
        measured.append(slopes[best + 1])
        doubts.append(gaps[best])
    size, doubt = math.hypot(*measured), math.hypot(*doubts)
    gap = math.hypot(*(p - m for p, m in zip(predicted, measured, strict=True)))
    lengths = size * math.hypot(*predicted)
    cosine = sum(p * m for p, m in zip(predicted, measured, strict=True)) / lengths if lengths else float(gap == 0)
    if gap > max(tolerance * size, 3 * doubt):
        verdict = DISAGREES
    else:
        verdict = AGREES if doubt <= 0.1 * size or gap == size == 0 else UNDECIDED
    error, floor = (value / size if size else math.inf if value else 0.0 for value in (gap, doubt))
    return TensorCheck(name, error, cosine, floor, tuple(predicted), tuple(measured), verdict)


def _cause(
    rows: list[TensorCheck], found: Hypergradient, runs: _Runs, vectors: dict[str, list[Tensor]], *, repeatable: bool
) -> str:
    """Return the likely cause of what went wrong, the most telling sign first."""
    if not repeatable:
        return (
            "likely cause: two training runs with the same hyperparameters differ, so no difference can be trusted; "
            "draw all random numbers from torch's generators, and fix the order of the data"
        )
    bad = [row for row in rows if row.verdict == DISAGREES]
    if not bad:
        return (
            "the noise floor is too high to decide: train to a tighter tolerance, use float64, or pass other steps "
            "(larger steps against noise, smaller where training breaks down)"
        )
    if not runs.algorithm.exact:
        return f"likely cause: this estimator is biased or random by design: {runs.algorithm!r}"
    for kind in ("curvature", "convergence", "stationarity"):
        if kind in found.report.notes:
            return f"likely cause: {found.report.notes[kind]}"
    return f"likely cause: {_pattern(bad, runs.direct(), vectors)}"


def _pattern(bad: list[TensorCheck], direct: Tree, vectors: dict[str, list[Tensor]]) -> str:
    names = ", ".join(repr(row.name) for row in bad)
    for row in bad:
        missing = [m - p for p, m in zip(row.predicted, row.measured, strict=True)]
        along = [float((direct[row.name] * v).sum()) for v in vectors[row.name]] if row.name in direct else []
        for times, fault in ((1, "is left out"), (2, "has the wrong sign")):
            gap = math.hypot(*(m - times * d for m, d in zip(missing, along, strict=False)))
            if any(along) and gap < 0.01 * math.hypot(*along):
                return f"the direct part ∂f/∂λ of {row.name!r} {fault}"
    if all(row.cosine < -0.9 for row in bad):
        return f"the sign of {names} is reversed"
    if all(row.cosine > 0.99 for row in bad):
        ratios = ", ".join(f"{row.predicted[0] / row.measured[0]:.3g}" for row in bad)
        return f"the direction of {names} is right and its length is off by a factor of {ratios}"
    return (
        f"{names}: the objectives are not smooth here (ReLU kinks, rounding, a metric), a path is cut (.detach(), "
        ".item(), torch.no_grad(), an autograd.Function whose backward is not differentiable), or training ends "
        "somewhere else than where the inner objective is least"
    )
