"""Learning a total-variation denoiser: how accurate have the solves of an outer step to be?

The paper on MAID (Salehi, Mukherjee, Roberts, Ehrhardt, 2025) learns two parameters, the logarithms of weight and
smoothing, of

    y*(a, b) = argmin_y ½ ‖y − noisy‖² + e^a Σ_pixels (‖∇y‖² + e^2b)^½,   minimising ½ ‖y* − clean‖² over a, b,

and shows that MAID needs no good guess of a first accuracy, while schedules fixed in advance, those of HOAG, are too
loose or too tight. Compared here, at equal work from the same start a = b = −5 and with the same first step size:

- MAID from several first accuracies. The inner problem is 1-strongly convex and ½ ‖y − clean‖² is convex and 1-smooth,
  so the constants µ and L_f are certified, and with them the decrease of every step. ‖∂²g/∂λ∂y‖ is measured where the
  hypergradient is taken. The constants L_H and L_J of the bound on the direction are 0, which holds for quadratic g
  only: the direction is not certified, a bad one costs work but is not followed.
- MAID, all certified: with bounds on L_H and L_J proven for this regulariser (see ``Certified``).
- HOAG with its three schedules and with constant accuracies, its step rule unchanged.
- the best point of a grid, chosen by the training loss, and the noisy images.

One number is the first accuracy of a method: the distance to y*, which is the norm of the inner gradient as µ = 1, and
the residual of the linear solve. All other settings are the library's defaults for every method; the first step size is
that of HOAG, √2 / ‖hypergradient‖, for all. Work is inner iterations plus Hessian and mixed products, the paper's axis,
of Nesterov's method with the momentum of the condition number and of conjugate gradients.

Columns: PSNR on held-out patches (of the pooled squared error, as in F), training loss F at the exact y*, both where
the work ran out; F after a quarter of the work; work until F is within 1 % of the grid's best (all of the work where it
never was); outer steps; steps that raised F; CPU seconds of the run, evaluations for this table not counted.

    python -m benchmarks.papers.denoising [--full | --smoke] [--seeds N] [--out table.json]
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

import hypergrad as hg
from benchmarks.papers.datasets import photographs
from benchmarks.papers.experiment import Options, Table, read_options
from hypergrad.errors import ConvergenceWarning
from hypergrad.outer import OuterMove
from hypergrad.tree import Tree

NOISE = 0.1
WINDOW = 213
"""Side of the square of a photograph that tiles are cut from: the height of the photographs."""
EXACT = 1e-4
"""Distance to y* at which F is evaluated for the table."""
WEIGHTS = [-4 + 0.25 * place for place in range(11)]
SMOOTHINGS = [-6.0, -5.0, -4.0, -3.0]

Regulariser = Callable[[Tensor, Tree], Tensor]
Bound = Callable[[Tree], Tensor]


@final
@dataclass(frozen=True)
class Patches:
    """Images, and the same with noise."""

    clean: Tensor
    noisy: Tensor

    def psnr(self, images: Tensor) -> float:
        """Return −10 log₁₀ of the mean squared error over all images, as the outer objective pools them."""
        return -10 * math.log10(float((images - self.clean).square().mean()))


def patches(train: int, test: int, side: int, seed: int) -> tuple[Patches, Patches]:
    """Return training and test patches that do not overlap, tiles of one square of each photograph."""
    tiles = photographs(2, WINDOW, seed).unfold(1, side, side).unfold(2, side, side).reshape(-1, side, side)
    generator = torch.Generator().manual_seed(seed)
    clean = tiles[torch.randperm(len(tiles), generator=generator)[: train + test]]
    noisy = clean + NOISE * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
    return Patches(clean[:train], noisy[:train]), Patches(clean[train:], noisy[train:])


@final
@dataclass(frozen=True)
class Denoiser:
    """A regulariser, an upper bound on the curvature of the inner problem, and the domain of the hyperparameters."""

    regulariser: Regulariser
    smoothness: Bound
    domain: Mapping[str, hg.Box]

    def problem(self, data: Patches) -> hg.Problem:
        def inner(params: Tree, hparams: Tree) -> Tensor:
            return 0.5 * (params["image"] - data.noisy).square().sum() + self.regulariser(params["image"], hparams)

        def outer(params: Tree, _hparams: Tree) -> Tensor:
            return 0.5 * (params["image"] - data.clean).square().sum()

        return hg.Problem(inner, outer, hparams_domain=self.domain)

    @property
    def algorithm(self) -> hg.Implicit:
        """Nesterov's method for µ = 1, and conjugate gradients."""

        def momentum(hparams: Tree) -> Tensor:
            root = self.smoothness(hparams).sqrt()
            return (root - 1) / (root + 1)

        training = hg.GradientDescent(
            lr=hg.Tuned(lambda hparams: 1 / self.smoothness(hparams)),
            momentum=hg.Tuned(momentum),
            nesterov=True,
            steps=3000,
        )
        return hg.Implicit(hg.CG(max_steps=1000, preconditioner=None), inner=training)

    def restore(self, data: Patches, hparams: Tree, start: Tensor, accuracy: float = EXACT) -> tuple[Tensor, int]:
        """Return the images at a distance of at most ``accuracy`` from y*, and the gradients that took."""
        training: Any = self.algorithm.inner
        solver: hg.GradientDescent = dataclasses.replace(training, tolerance=accuracy)
        result = solver.run(self.problem(data), {"image": start}, hparams)
        return result.params["image"], result.cost.inner_gradients

    def psnr(self, test: Patches, hparams: Tree) -> float:
        """Return the PSNR of the restored test images."""
        return test.psnr(self.restore(test, hparams, test.noisy)[0])

    def first_step(self, data: Patches, hparams: Tree, length: float) -> float:
        """Return the step size whose first step has a given length."""
        algorithm = self.algorithm.at_tolerance(EXACT, EXACT)
        grads = hg.hypergradient(self.problem(data), {"image": data.noisy}, hparams, algorithm).grads
        return length / math.sqrt(sum(float(value.square().sum()) for value in grads.values()))


@final
@dataclass(frozen=True)
class Visit:
    """Hyperparameters at which a hypergradient was found, and the work until then."""

    hparams: Tree
    work: int


@final
@dataclass(frozen=True)
class Race:
    """An outer run until its work was spent."""

    visits: list[Visit]
    seconds: float

    def at(self, work: float) -> Visit:
        """Return the last visit within an amount of work, and the first one if there is none."""
        return next((visit for visit in reversed(self.visits) if visit.work <= work), self.visits[0])


def race(denoiser: Denoiser, data: Patches, hparams: Tree, move: OuterMove, work: int) -> Race:
    """Move the hyperparameters until the work is spent or nothing moves any more; steps taken back are left out."""
    visits, spent, began = [], 0, time.process_time()
    steps = hg.iterate(denoiser.problem(data), denoiser.algorithm, {"image": data.noisy}, hparams, outer=move)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that a run stands still is no surprise
        for progress in steps:
            spent += progress.cost.inner_gradients + progress.cost.products
            if progress.report.status != "rejected":
                visits.append(Visit(progress.hparams, spent))
            if spent >= work or progress.report.status in {"stationary", "stalled"}:
                break
    return Race(visits, time.process_time() - began)


def total_variation(images: Tensor, hparams: Tree) -> Tensor:
    """Return e^a Σ (‖∇y‖² + e^2b)^½ with forward differences, 0 across the border."""
    down = pad(images[:, 1:] - images[:, :-1], (0, 0, 0, 1))
    right = pad(images[:, :, 1:] - images[:, :, :-1], (0, 1))
    lengths = (down.square() + right.square() + (2 * hparams["smoothing"]).exp()).sqrt()
    return hparams["weight"].exp() * lengths.sum()


TOTAL_VARIATION = Denoiser(
    total_variation,
    lambda hparams: 1 + 8 * (hparams["weight"] - hparams["smoothing"]).exp(),  # ‖∇‖² ≤ 8, second derivatives ≤ e^−b
    {"weight": hg.Box(-10.0, 0.0), "smoothing": hg.Box(-8.0, 0.0)},
)


class Certified:
    """Lipschitz constants in y for total variation, with φ(t) = (‖t‖² + e^2b)^½ and ‖∇‖² ≤ 8.

    The third derivative of φ is at most 0.8587 e^−2b, and Σ ‖∇u‖³ ≤ √3 · 8 for ‖u‖ = 1, since ‖∇u‖² ≤ 3 in one pixel.
    The inverse Hessian varies by as much as the Hessian, whose eigenvalues are at least 1.
    """

    @staticmethod
    def inverse(hparams: Tree) -> float:
        """Return L_H."""
        return 8 * math.sqrt(3) * 0.8587 * math.exp(float(hparams["weight"] - 2 * hparams["smoothing"]))

    @staticmethod
    def mixed(hparams: Tree) -> float:
        """Return L_J: each of the two columns of the mixed derivative has the constant 8 e^(a−b)."""
        return math.sqrt(2) * 8 * math.exp(float(hparams["weight"] - hparams["smoothing"]))


def moves(step: float, accuracies: Sequence[float], **constants: Any) -> dict[str, OuterMove]:
    """Return the methods by the name of their row, all with one first step size."""
    found: dict[str, OuterMove] = {}
    for start in accuracies:
        found[f"MAID from {start:g}"] = hg.MAID(
            strong_convexity=1.0, smoothness=1.0, convex=True, accuracy=start, linear=start, step=step, **constants
        )
    schedules: tuple[Any, ...] = ("exponential", "quadratic", "cubic")
    for schedule, start in itertools.product(schedules, accuracies):
        found[f"HOAG {schedule} from {start:g}"] = hg.HOAG(schedule=schedule, start=start, lipschitz=1 / step)
    for start in accuracies:
        found[f"HOAG constant {start:g}"] = hg.HOAG(schedule=constant(start), lipschitz=1 / step)
    return found


def constant(value: float) -> Callable[[int], float]:
    """Return the schedule that is always the same."""
    return lambda _: value


def losses(denoiser: Denoiser, data: Patches, path: Sequence[Tree]) -> tuple[list[float], int]:
    """Return F at hyperparameters, each solve from the end of the one before, and the gradients that took."""
    image, values, work = data.noisy, [], 0
    for hparams in path:
        image, gradients = denoiser.restore(data, hparams, image)
        values.append(0.5 * float((image - data.clean).square().sum()))
        work += gradients
    return values, work


def grid(data: Patches, weights: Sequence[float]) -> tuple[Tree, float, int]:
    """Return the best point of a grid, F there, and the work for the whole grid."""
    points = [start(weight, smoothing) for smoothing in SMOOTHINGS for weight in weights]
    values, work = losses(TOTAL_VARIATION, data, points)
    best = min(range(len(points)), key=values.__getitem__)
    return points[best], values[best], work


def start(weight: float = -5.0, smoothing: float = -5.0) -> Tree:
    """Return hyperparameters."""
    given = {"weight": weight, "smoothing": smoothing}
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in given.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment and return its table."""
    options = read_options(__doc__, arguments)
    side, train, test = options.pick(smoke=(16, 2, 4), default=(48, 8, 24), full=(96, 2, 6))
    work = options.pick(smoke=200, default=2000, full=20_000)
    table = Table(
        f"Total-variation denoising, two parameters learned with {work} inner iterations and products",
        f"{train} training and {test} held-out patches of {side} x {side} pixels of the two photographs of "
        f"scikit-learn, noise {NOISE}; for Kodak images of 96 x 96",
        {
            "psnr": ".2f",
            "loss": ".3f",
            "loss_at_quarter": ".3f",
            "work_to_1_percent": ".0f",
            "steps": ".0f",
            "rises": ".1f",
            "cpu_seconds": ".2f",
        },
    )
    for seed in options.seeds:
        _run(table, options, *patches(train, test, side, seed), work)
    return table.finish(options)


def _run(table: Table, options: Options, data: Patches, test: Patches, work: int) -> None:
    """Add the rows of one seed."""
    table.add("noisy", psnr=test.psnr(test.noisy), loss=0.5 * float((data.noisy - data.clean).square().sum()))
    began = time.process_time()
    best, target, spent = grid(data, options.pick(smoke=WEIGHTS[::5], default=WEIGHTS, full=WEIGHTS))
    seconds = time.process_time() - began
    psnr = TOTAL_VARIATION.psnr(test, best)
    table.add("best of a grid", psnr=psnr, loss=target, work_to_1_percent=spent, cpu_seconds=seconds)
    accuracies = options.pick(smoke=(0.1,), default=(10.0, 0.1, 1e-3), full=(100.0, 10.0, 0.1, 1e-3, 1e-5))
    step = TOTAL_VARIATION.first_step(data, start(), math.sqrt(2))
    rows: dict[str, OuterMove] = moves(step, accuracies)
    certified = {"inverse_lipschitz": Certified.inverse, "mixed_lipschitz": Certified.mixed}
    rows |= {f"{name}, all certified": move for name, move in moves(step, [0.1], **certified).items() if "MAID" in name}
    for name, move in rows.items():
        table.add(name, **_measured(race(TOTAL_VARIATION, data, start(), move, work), data, test, target, work))


def _measured(run: Race, data: Patches, test: Patches, target: float, work: int) -> Mapping[str, float]:
    """Return a row's values."""
    values, _ = losses(TOTAL_VARIATION, data, [visit.hparams for visit in run.visits])
    known = {id(visit): value for visit, value in zip(run.visits, values, strict=True)}
    last = run.at(work)
    near = (visit.work for visit, value in zip(run.visits, values, strict=True) if value <= 1.01 * target)
    blur = 2 * (math.sqrt(2 * max(values)) * EXACT + EXACT**2)  # what two evaluations of F may be wrong by
    return {
        "psnr": TOTAL_VARIATION.psnr(test, last.hparams),
        "loss": known[id(last)],
        "loss_at_quarter": known[id(run.at(work / 4))],
        "work_to_1_percent": min(next(near, work), work),
        "steps": len(run.visits),
        "rises": sum(after > before + blur for before, after in itertools.pairwise(values)),
        "cpu_seconds": run.seconds,
    }


if __name__ == "__main__":
    main()
