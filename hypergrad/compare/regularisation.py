"""Tasks: one log penalty for each feature or weight of a linear model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg
from hypergrad.compare.task import Ours, Task
from hypergrad.demo.data import require
from hypergrad.tree import Tree

RANGE = (-8.0, 4.0)
START = -2.0
INNER = hg.LBFGS(tolerance=1e-3)


def sparse(size: int, seed: int) -> Task:
    """Return linear regression in which a tenth of the features matter, with one penalty for each feature.

    x has independent standard normal entries; a random tenth of the true weights is standard normal, the others are
    0; the noise has half the standard deviation of the signal, and y is scaled so that the noise has variance 1.
    There are 1.5 training and 1.5 validation examples a feature, and 5,000 test examples. Losses are half mean squares,
    so 0.5 is what the noise alone costs.

    Args:
        size: number of features.
        seed: of the data.
    """
    generator = torch.Generator().manual_seed(seed)
    train, valid, test = 3 * size // 2, 3 * size // 2, 5000

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, truth = normal(train + valid + test, size), torch.zeros(size, dtype=torch.float64)
    used = torch.randperm(size, generator=generator)[: size // 10]
    truth[used] = normal(len(used))
    y = x @ truth * (2 / truth.norm()) + normal(len(x))
    parts = list(zip(x.split([train, valid, test]), y.split([train, valid, test]), strict=True))

    def loss(params: Tree, part: tuple[Tensor, Tensor]) -> Tensor:
        return (part[0] @ params["w"] - part[1]).square().mean() / 2

    problem = hg.Problem(
        inner=lambda params, _: loss(params, parts[0]),
        outer=lambda params, _: loss(params, parts[1]),
        penalty=lambda params, hparams: (hparams["log_penalty"].exp() * params["w"].square()).sum() / 2,
        hparams_domain={"log_penalty": hg.Box(*RANGE)},
    )
    return Task(
        problem,
        {"w": torch.zeros(size, dtype=torch.float64)},
        {"log_penalty": torch.full((size,), START, dtype=torch.float64)},
        {"log_penalty": RANGE},
        test=lambda params, _: loss(params, parts[2]),
        inner=INNER,
        groups={"log_penalty": ranked(-(parts[0][0].mT @ parts[0][1]).abs())},
        ours={
            "Implicit(CG), Adam": Ours(_algorithm(INNER), hg.outer.Torch(torch.optim.Adam, lr=0.3)),
            "Implicit(CG), L-BFGS-B": Ours(_algorithm(INNER), hg.outer.LBFGSB(iterations=5)),
        },
        title=f"Linear regression, one penalty for each of {size:,} features",
        note="Synthetic, a tenth of the features matter. Groups: ten tenths of the features by their correlation with "
        "the training targets. Test: half the mean square; the noise alone costs 0.5.",
    )


def digits(seed: int) -> Task:
    """Return softmax regression on scikit-learn's digits with one penalty for each of its 640 weights.

    400 training, 600 validation and 797 test images of 8 by 8 pixels, scaled to [0, 1].

    Args:
        seed: of the split.
    """
    data = require("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(data.data / 16).double(), torch.from_numpy(data.target).long()
    parts = [(x[rows], y[rows]) for rows in order.split([400, 600, len(order) - 1000])]
    inner = hg.LBFGS(tolerance=1e-3)

    def scores(params: Tree, images: Tensor) -> Tensor:
        return images @ params["weight"] + params["bias"]

    def loss(params: Tree, part: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(scores(params, part[0]), part[1])

    def test(params: Tree, _: Tree) -> dict[str, float]:
        hits = scores(params, parts[2][0]).argmax(dim=1) == parts[2][1]
        return {"loss": float(loss(params, parts[2])), "accuracy": float(hits.double().mean())}

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        # the bias has a fixed small one: adding a constant to all biases changes no probability
        return (hparams["log_penalty"].exp() * params["weight"].square()).sum() / 2 + 5e-4 * params[
            "bias"
        ].square().sum()

    classes = torch.nn.functional.one_hot(parts[0][1], 10).double()
    relation = ((parts[0][0] - parts[0][0].mean(0)).mT @ (classes - classes.mean(0))).abs()
    start = torch.full((64, 10), -4.0, dtype=torch.float64)
    return Task(
        hg.Problem(
            lambda params, _: loss(params, parts[0]),
            lambda params, _: loss(params, parts[1]),
            penalty=penalty,
            hparams_domain={"log_penalty": hg.Box(-10.0, 2.0)},
        ),
        {"weight": torch.zeros(64, 10, dtype=torch.float64), "bias": torch.zeros(10, dtype=torch.float64)},
        {"log_penalty": start},
        {"log_penalty": (-10.0, 2.0)},
        test=test,
        inner=inner,
        groups={"log_penalty": ranked(-relation)},
        ours={
            "Implicit(CG), Adam": Ours(_algorithm(inner), hg.outer.Torch(torch.optim.Adam, lr=0.3)),
            "auto, Adam": Ours("auto", hg.outer.Torch(torch.optim.Adam, lr=0.3)),
        },
        title="Softmax regression on the digits, one penalty for each of 640 weights",
        note="1,797 images of scikit-learn. Groups: ten tenths of the weights by the covariance of pixel and class.",
    )


def ranked(values: Tensor, groups: int = 10) -> Tensor:
    """Return the quantile group of each entry, the smallest values first.

    Args:
        values: what to sort by.
        groups: how many groups of equal size.

    >>> ranked(torch.tensor([0.3, 0.1, 0.2, 0.4]), groups=2)
    tensor([1, 0, 0, 1])
    """
    place = torch.empty(values.numel(), dtype=torch.long)
    place[values.flatten().argsort(stable=True)] = torch.arange(values.numel())
    return (place * groups // values.numel()).view_as(values)


def _algorithm(inner: hg.InnerSolver) -> hg.Implicit:
    return hg.Implicit(hg.CG(rtol=1e-2), inner=inner, stationarity=math.inf)
