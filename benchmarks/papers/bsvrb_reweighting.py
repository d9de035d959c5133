"""Reweighting examples for many models at once: does looking at more blocks in an iteration need fewer iterations?

The paper on BSVRB (Hu, Qiu, Guo, Zhang, Yang, 2023) learns one weight for each training example such that logistic
regressions at m temperatures, the blocks, do well on a validation set, while the training set has fewer positive
examples and wrong labels:

    min over x of (1/m) Σ_i f(y_i(x)),   y_i(x) = argmin_y mean_j σ(x_j) ℓ(y · a_j / T_i, b_j) + ridge.

It claims a parallel speed-up: looking at I of the m blocks in an iteration, the number of iterations falls with I.
Compared here:

- BSVRB v1 (tracked Hessians of 11 x 11) and v2 for several I, on minibatches of 32 that the sampled blocks share.
- one block in place of m: v2 on the logistic regression at temperature 1 alone, its weights judged on all blocks.
- gradient descent with exact hypergradients of all blocks and all examples: what can be reached.
- equal weights, and the right labels known: weight 0 for the wrong ones.

Step sizes are constant. Those of the inner steps, 1 or 4 times I/m (1 or 2 for I = m), and of the outer steps, 30 to
1000, are for every version and I the ones with the lowest F after 200 iterations on another seed; v2 was tried at
I/(4 m) with I = 1 and at 3000 with I = m as well, and was worse. α = β = 0.5 for all; 0.1 was worse wherever it was
tried, which was for both versions with I = 1, 10 and m.

Columns: F at the exact y_i(x) in the end; iterations, and looks at a block, until F has made 80 % of the way from equal
weights to what exact descent reaches (all of them where it never did); accuracy on the test set, in the mean over
blocks; AUC of the weights in finding the wrong labels; CPU seconds. A look is one evaluation of a block's derivatives,
the paper's oracle call: m in the first iteration and 2 I in each later one.

    python -m benchmarks.papers.bsvrb_reweighting [--full | --smoke] [--seeds N] [--out table.json]
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import hypergrad as hg
from benchmarks.papers.experiment import Options, Table, read_options
from hypergrad.errors import CurvatureWarning
from hypergrad.tree import Tree

RIDGE = 0.01
KEPT = 0.3
"""Share of the positive training examples that are kept."""
FLIPPED = 0.3
FEATURES = 10
EXACT_RATE = 1000.0
SHARE = 0.8
SETTINGS: dict[tuple[type[hg.BSVRBv1 | hg.BSVRBv2], int | None], tuple[float, float]] = {
    (hg.BSVRBv1, 1): (4, 1000),
    (hg.BSVRBv1, 5): (1, 100),
    (hg.BSVRBv1, 10): (1, 100),
    (hg.BSVRBv1, None): (1, 100),
    (hg.BSVRBv2, 1): (1, 100),
    (hg.BSVRBv2, 5): (1, 100),
    (hg.BSVRBv2, 10): (1, 300),
    (hg.BSVRBv2, None): (1, 1000),
}
"""Inner step in units of I/m, and outer step, for a version and I; ``None`` stands for all blocks."""


@final
@dataclass(frozen=True)
class Examples:
    """Rows of features with a 1 at the end, and labels 0 and 1."""

    rows: Tensor
    labels: Tensor


@final
@dataclass(frozen=True)
class Data:
    """Three parts, which training labels are wrong, and the temperature of each block."""

    train: Examples
    validation: Examples
    test: Examples
    flipped: Tensor
    temperatures: Tensor

    @property
    def blocks(self) -> int:
        return len(self.temperatures)


def draw(blocks: int, seed: int) -> Data:
    """Split scikit-learn's digits, the digits from 5 on being the positive class."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images, labels = torch.tensor(digits.data), torch.tensor(digits.target >= 5).double()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    places = {"train": order[:900], "validation": order[900:1200], "test": order[1200:]}
    keep = (labels[places["train"]] == 0) | (torch.rand(900, generator=generator) < KEPT)
    places["train"] = places["train"][keep]
    centred = images - images[places["train"]].mean(dim=0)
    axes = torch.linalg.svd(centred[places["train"]], full_matrices=False).Vh[:FEATURES]
    features = centred @ axes.T
    features = features / features[places["train"]].std(dim=0)
    rows = torch.cat([features, torch.ones(len(labels), 1, dtype=torch.float64)], dim=1)
    parts = {name: Examples(rows[place], labels[place]) for name, place in places.items()}
    flipped = torch.rand(len(places["train"]), generator=generator) < FLIPPED
    given = torch.where(flipped, 1 - parts["train"].labels, parts["train"].labels)
    parts["train"] = Examples(parts["train"].rows, given)
    temperatures = torch.logspace(-1, 1, blocks, base=2, dtype=torch.float64)
    return Data(**parts, flipped=flipped, temperatures=temperatures)


class Exact:
    """The bilevel problem solved block by block with Newton's method: what the table is made of."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.start = torch.zeros(data.blocks, FEATURES + 1, dtype=torch.float64)

    def solve(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return y_i and the Hessians there, for weights of the training examples: damped Newton steps."""
        y, before = self.start, self.objective(weights, self.start)
        slopes, hessians = self.derivatives(weights, y)
        for _ in range(100):
            if float(slopes.norm()) < 1e-9:
                break
            step = torch.linalg.solve(hessians, slopes)
            after = self.objective(weights, y - step)
            while bool((rises := after > before + 1e-12).any()):
                step[rises] /= 2
                after = self.objective(weights, y - step)
            y, before = y - step, after
            slopes, hessians = self.derivatives(weights, y)
        self.start = y
        return y, hessians

    def objective(self, weights: Tensor, y: Tensor) -> Tensor:
        """Return g_i of all blocks."""
        train = self.data.train
        logits = y @ train.rows.T / self.data.temperatures[:, None]
        return ((softplus(logits) - train.labels * logits) * weights).mean(dim=1) + RIDGE / 2 * y.square().sum(dim=1)

    def derivatives(self, weights: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients and Hessians of g_i of all blocks."""
        train, scales = self.data.train, 1 / self.data.temperatures[:, None]
        chances = torch.sigmoid(y @ train.rows.T * scales)
        slopes = (weights * (chances - train.labels) * scales) @ train.rows / len(weights) + RIDGE * y
        curvatures = weights * chances * (1 - chances) * scales**2 / len(weights)
        ridge = RIDGE * torch.eye(FEATURES + 1, dtype=torch.float64)
        return slopes, (curvatures[:, None] * train.rows.T) @ train.rows + ridge

    def loss(self, y: Tensor) -> Tensor:
        """Return the mean of f_i."""
        part = self.data.validation
        logits = y @ part.rows.T / self.data.temperatures[:, None]
        return (softplus(logits) - part.labels * logits).mean()

    def value(self, logits: Tensor) -> tuple[float, Tensor]:
        """Return F and its gradient, from the implicit function theorem with dense Hessians."""
        weights = torch.sigmoid(logits)
        y, hessians = self.solve(weights)
        leaf = y.clone().requires_grad_()
        value = self.loss(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        q = torch.linalg.solve(hessians, slope)
        train, scales = self.data.train, 1 / self.data.temperatures[:, None]
        chances = torch.sigmoid(y @ train.rows.T * scales)
        pulls = ((chances - train.labels) * scales * (q @ train.rows.T)).sum(dim=0) / len(weights)
        return float(value.detach()), -weights * (1 - weights) * pulls

    def accuracy(self, weights: Tensor) -> float:
        """Return the share of test examples that are right, in the mean over blocks."""
        y, _ = self.solve(weights)
        test = self.data.test
        return float((((y @ test.rows.T) > 0) == test.labels.bool()).double().mean())


def problem(data: Data, batch: int, seed: int) -> hg.Problem:
    """Return the problem of one block, on minibatches that all blocks share."""

    def inner(params: Tree, hparams: Tree, block: hg.Block) -> Tensor:
        places, rows, labels = block.batch
        logits = rows @ params["y"] / block.row(data.temperatures)
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        ridge = RIDGE / 2 * params["y"].square().sum()
        return (hparams["logits"][places].sigmoid() * losses).mean() + ridge

    def outer(params: Tree, _hparams: Tree, block: hg.Block) -> Tensor:
        _, rows, labels = block.batch
        return binary_cross_entropy_with_logits(rows @ params["y"] / block.row(data.temperatures), labels)

    samplers = [
        hg.TensorSampler(part.rows, part.labels, batch_size=batch, seed=seed + shift, index=True)
        for shift, part in enumerate((data.train, data.validation))
    ]
    return hg.Problem(inner, outer, inner_data=samplers[0], outer_data=samplers[1])


@final
@dataclass(frozen=True)
class Course:
    """How F fell in a run, and where it ended."""

    weights: Tensor
    iterations: list[int]
    values: list[float]
    seconds: float

    def until(self, target: float) -> int:
        """Return the iterations until F was at a target, all of them where it never was."""
        reached = (step for step, value in zip(self.iterations, self.values, strict=True) if value <= target)
        return next(reached, self.iterations[-1])


def tune(data: Data, algorithm: Any, rate: float, steps: int, seed: int, judge: Exact) -> Course:
    """Learn the logits of the weights; every tenth F is noted, at no charge."""
    count = data.blocks
    begin = {"y": torch.zeros(count, FEATURES + 1, dtype=torch.float64)}
    weights = {"logits": torch.zeros(len(data.train.labels), dtype=torch.float64)}
    move = hg.outer.Torch(torch.optim.SGD, lr=rate)
    run = hg.Run(problem(data, 32, seed), algorithm, begin, weights, move)
    seconds, iterations, values = 0.0, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)  # a noisy Hessian below μ, which v1 lifts
        for step in range(1, steps + 1):
            began = time.process_time()
            run.step()
            seconds += time.process_time() - began
            if step % 10 == 0 or step == steps:
                iterations.append(step)
                values.append(judge.value(run.hparams["logits"])[0])
    return Course(run.hparams["logits"].sigmoid(), iterations, values, seconds)


def descend(data: Data, steps: int) -> Course:
    """Descend along exact hypergradients."""
    judge, logits = Exact(data), torch.zeros(len(data.train.labels), dtype=torch.float64)
    began, values = time.process_time(), []
    for _ in range(steps):
        value, slope = judge.value(logits)
        values.append(value)
        logits = logits - EXACT_RATE * slope
    values.append(judge.value(logits)[0])
    return Course(logits.sigmoid(), list(range(steps + 1)), values, time.process_time() - began)


def auc(weights: Tensor, flipped: Tensor) -> float:
    """Return how well low weights find the wrong labels."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(flipped.numpy(), -weights.numpy()))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment and return its table."""
    options = read_options(__doc__, arguments)
    blocks = options.pick(smoke=6, default=50, full=100)
    steps = options.pick(smoke=20, default=300, full=3000)
    table = Table(
        f"Weights of examples for {blocks} logistic regressions, {steps} iterations",
        f"scikit-learn's digits, 5 to 9 against 0 to 4, {FEATURES} principal components, about 570 for training with "
        f"{KEPT:.0%} of the positive ones kept and {FLIPPED:.0%} wrong labels, 300 for validation, 597 for the test; "
        "for a8a and w8a",
        {
            "loss": ".4f",
            "iterations_to_target": ".0f",
            "looks_to_target": ".0f",
            "accuracy": ".3f",
            "auc": ".3f",
            "cpu_seconds": ".2f",
        },
    )
    for seed in options.seeds:
        _run(table, options, draw(blocks, seed), steps, seed)
    return table.finish(options)


def _run(table: Table, options: Options, data: Data, steps: int, seed: int) -> None:
    """Add the rows of one seed."""
    judge, count = Exact(data), len(data.train.labels)
    equal = torch.full((count,), 0.5, dtype=torch.float64)
    for name, weights in {"equal weights": equal, "right labels known": (~data.flipped).double()}.items():
        table.add(name, loss=float(judge.loss(judge.solve(weights)[0])), accuracy=judge.accuracy(weights))
    best = descend(data, options.pick(smoke=10, default=100, full=300))
    target = best.values[0] - SHARE * (best.values[0] - best.values[-1])

    def add(row: str, course: Course, first: int, later: int) -> None:
        iterations = course.until(target)
        table.add(
            row,
            loss=course.values[-1],
            iterations_to_target=iterations,
            looks_to_target=first + later * (iterations - 1),
            accuracy=judge.accuracy(course.weights),
            auc=auc(course.weights, data.flipped),
            cpu_seconds=course.seconds,
        )

    add("exact descent", best, data.blocks, data.blocks)
    one = dataclasses.replace(data, temperatures=torch.ones(1, dtype=torch.float64))
    share, rate = SETTINGS[hg.BSVRBv2, None]
    add("one block, v2", tune(one, hg.BSVRBv2(blocks=1, inner_step=share), rate, steps, seed, judge), 1, 2)
    for (kind, size), (share, rate) in SETTINGS.items():
        sampled = size or data.blocks
        if size is not None and size >= data.blocks:
            continue
        algorithm = kind(blocks=data.blocks, sampled=sampled, inner_step=share * sampled / data.blocks, seed=seed)
        course = tune(data, algorithm, rate, steps, seed, judge)
        add(f"{kind.__name__[-2:]}, I = {size or 'm'}", course, data.blocks, 2 * sampled)


if __name__ == "__main__":
    main()
