"""Width and ridge of kernel regression by HOAG and MAID, against fixed accuracies and searches at equal inner work.

Pedregosa (2016, HOAG) tunes the two hyperparameters of a kernel ridge regression with a Gaussian kernel, its width and
its penalty. Rows, columns and methods are those of ``hoag_maid_regularisation``, which see. MAID's paper has no such
problem: here the outer objective depends on the width directly, so that its bound needs one more constant, and the
inner problem is quadratic, so that all its constants can be given.

The inner problem is g(α) = αᵀ(K + ρI)α/2 − αᵀy with k(x, x′) = exp(−‖x − x′‖²/(2pσ²)) on p features: strongly convex
with the constant ρ, and optimal where (K + ρI)α = y. The outer one is half the sum of squared errors of validation.
Both hyperparameters are logarithms, log σ in [-1, 2] and log ρ in [-4, 3]; gradient methods start at (0, 2).

    python -m benchmarks.papers.kernel_ridge

Data: diabetes of scikit-learn (442 patients, 10 features), a third each for training, validation and test, features
and target standardised, stand in for Parkinsons telemonitoring; ``--full`` takes more work, and no other data.
The validation loss has a long flat valley, from wide kernels with a small ridge to narrow ones with a large ridge.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import hypergrad as hg
from benchmarks.papers.equal_work import COLUMNS, Task, compare
from benchmarks.papers.experiment import Table, read_options
from benchmarks.papers.hoag_maid_regularisation import Part, draw
from hypergrad.tree import Tree

BUDGET = 2400
"""Inner gradients and products of one row."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print its table, and return it."""
    options = read_options(__doc__, arguments)
    table = Table(
        "Kernel ridge regression, width and ridge, equal inner work",
        "diabetes of scikit-learn (stands in for Parkinsons telemonitoring)",
        COLUMNS,
    )
    data: Any = load_diabetes()
    features, targets = torch.from_numpy(data.data).double(), torch.from_numpy(data.target).double()
    for seed in options.seeds:
        compare(table, options, regression(draw(features, targets, seed)), seed)
    return table.finish(options)


def regression(parts: tuple[Part, Part, Part]) -> Task:
    """Return the task, with the targets standardised by those of training."""
    (features, targets), validation, test = parts
    spread, mean = torch.std_mean(targets)
    targets, size = (targets - mean) / spread, features.shape[1]

    def kernel(rows: Tensor) -> Callable[[Tensor], Tensor]:
        squares = torch.cdist(rows, features).square() / (2 * size)
        return lambda log_width: torch.exp(-squares * torch.exp(-2 * log_width))

    def errors(part: Part) -> Callable[[Tree, Tree], Tensor]:
        at, values = kernel(part[0]), (part[1] - mean) / spread
        return lambda params, hparams: at(hparams["log_width"]) @ params["alpha"] - values

    own, wrong, tested = kernel(features), errors(validation), errors(test)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        alpha = params["alpha"]
        return 0.5 * torch.dot(alpha, own(hparams["log_width"]) @ alpha) - torch.dot(alpha, targets)

    problem = hg.Problem(
        inner=inner,
        outer=lambda params, hparams: 0.5 * wrong(params, hparams).square().sum(),
        penalty=lambda params, hparams: 0.5 * hparams["log_ridge"].exp() * params["alpha"].square().sum(),
        hparams_domain={"log_width": hg.Box(-1.0, 2.0), "log_ridge": hg.Box(-4.0, 3.0)},
    )
    zero = torch.zeros((), dtype=torch.float64)
    return Task(
        name="diabetes",
        problem=problem,
        params={"alpha": torch.zeros_like(targets)},
        hparams={"log_width": zero, "log_ridge": zero + 2.0},
        test=lambda params, hparams: tested(params, hparams).square().mean(),
        constants=bounds(
            own, kernel(validation[0]), float(targets.norm()), float(((validation[1] - mean) / spread).norm())
        ),
        budget=BUDGET,
    )


def bounds(
    own: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], targets: float, judged: float
) -> dict[str, Callable[[Tree], float]]:
    """Return MAID's constants as functions of λ.

    With K of training, V of validation and derivatives by log σ marked by a prime: ∇²f = VᵀV; the columns of the
    mixed derivative are K′α and ρα; ∂f/∂log σ = (Vα − y)ᵀV′α has the gradient VᵀV′α + V′ᵀ(Vα − y), where
    ‖α‖ ≤ ‖y‖/ρ + 1 for every α within 1 of the optimum.

    Args:
        own: K as a function of log σ.
        other: V.
        targets: norm of the targets of training.
        judged: that of the targets of validation.
    """

    @functools.lru_cache(maxsize=8)
    def norms(log_width: float) -> tuple[float, float, float]:
        at = torch.tensor(log_width, dtype=torch.float64)
        values = other(at)
        matrices = (values, slope(own(at)), slope(values))
        first, second, third = (float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices)
        return first, second, third

    def read(hparams: Tree) -> tuple[float, float, float]:
        return norms(float(hparams["log_width"]))

    def ridge(hparams: Tree) -> float:
        return float(hparams["log_ridge"].exp())

    def direct(hparams: Tree) -> float:
        values, _, slopes = read(hparams)
        return slopes * (2 * values * (targets / ridge(hparams) + 1) + judged)

    return {
        "strong_convexity": ridge,
        "smoothness": lambda hparams: read(hparams)[0] ** 2,
        "mixed_lipschitz": lambda hparams: (read(hparams)[1] ** 2 + ridge(hparams) ** 2) ** 0.5,
        "direct_lipschitz": direct,
    }


def slope(kernel: Tensor) -> Tensor:
    """Return the derivative of k = exp(−s/σ²) with respect to log σ, which is −2 k log k."""
    return -2 * torch.xlogy(kernel, kernel)


if __name__ == "__main__":
    main()
