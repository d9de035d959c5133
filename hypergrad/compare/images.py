"""Tasks on 5,000 images of MNIST: a weight for each of 2,000 examples, a decay for each of 101,770 weights."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

import hypergrad as hg
from hypergrad.compare.regularisation import ranked
from hypergrad.compare.task import FromStart, Ours, Task
from hypergrad.demo.data import load, split
from hypergrad.tree import Tree

PENALTY = 0.01
HIDDEN = 128
STEPS = 60
LABELLED, JUDGED = 500, 2000
"""Training and validation images of the network."""
Part = tuple[Tensor, Tensor]


@cache
def _mnist() -> tuple[Tensor, Tensor]:
    return load("mnist")


def cleaning(seed: int) -> Task:
    """Return softmax regression on 2,000 images, half of whose labels are wrong, with one weight for each image.

    The data and the model of ``hypergrad demo``: 1,000 validation and 2,000 test images with right labels.

    Args:
        seed: of the split and of the wrong labels.
    """
    parts = split(*_mnist(), seed)
    count, inner = len(parts.train.labels), hg.LBFGS(tolerance=1e-2, steps=100)
    train = (parts.train.images, parts.train.labels)
    valid, test = (parts.validation.images, parts.validation.labels), (parts.test.images, parts.test.labels)

    def losses(params: Tree, part: Part) -> Tensor:
        return cross_entropy(part[0] @ params["weight"] + params["bias"], part[1], reduction="none")

    problem = hg.Problem(
        inner=lambda params, hparams: torch.dot(hparams["logits"].sigmoid(), losses(params, train)) / count,
        outer=lambda params, _: losses(params, valid).mean(),
        penalty=lambda params, _: PENALTY / 2 * (params["weight"].square().sum() + params["bias"].square().sum()),
        hparams_domain={"logits": hg.Box(-6.0, 6.0)},
    )
    start = {"weight": torch.zeros(784, 10), "bias": torch.zeros(10)}
    equal = {"logits": torch.zeros(count)}
    plain = inner.run(problem, start, equal).params
    implicit = hg.Implicit(hg.CG(rtol=1e-2), inner=inner, stationarity=math.inf)
    return Task(
        problem,
        start,
        equal,
        {"logits": (-6.0, 6.0)},
        test=lambda params, _: {
            "loss": losses(params, test).mean(),
            "accuracy": _accuracy(_linear(params, test), test),
        },
        inner=inner,
        groups={"logits": ranked(losses(plain, train).detach())},
        ours={
            "Implicit(CG), Adam": Ours(implicit, hg.outer.Torch(torch.optim.Adam, lr=0.3)),
            "auto, Adam": Ours("auto", hg.outer.Torch(torch.optim.Adam, lr=0.3)),
        },
        title="Hyper-cleaning of MNIST, one weight for each of 2,000 images",
        note="Half of the training labels are wrong. Groups: ten tenths of the images by their loss after training on "
        "the noisy labels.",
    )


def decay(seed: int) -> Task:
    """Return a network of 784, 128 and 10 units with one decay for each weight and bias, 101,770 in all.

    500 training, 2,000 validation and 2,500 test images. Training is 60 steps of gradient descent with momentum from
    the same random weights every time, for all methods.

    Args:
        seed: of the split and of the weights.
    """
    images, labels = _mnist()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    x = images.float() / 255
    rows = order.split([LABELLED, JUDGED, len(order) - LABELLED - JUDGED])
    x = x - x[rows[0]].mean(dim=0)
    train, valid, test = ((x[part], labels[part]) for part in rows)
    params = {
        "weight1": torch.randn(784, HIDDEN, generator=generator) * math.sqrt(2 / 784),
        "bias1": torch.zeros(HIDDEN),
        "weight2": torch.randn(HIDDEN, 10, generator=generator) * math.sqrt(1 / HIDDEN),
        "bias2": torch.zeros(10),
    }

    def loss(params: Tree, part: Part) -> Tensor:
        return cross_entropy(_network(params, part), part[1])

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        return torch.stack([(hparams[key].exp() * params[key].square()).sum() for key in params]).sum() / 2

    inner = hg.GradientDescent(lr=0.1, momentum=0.9, steps=STEPS)
    solver = FromStart(inner, params)
    move = hg.outer.Torch(torch.optim.Adam, lr=0.3)
    return Task(
        hg.Problem(
            lambda params, _: loss(params, train),
            lambda params, _: loss(params, valid),
            penalty=penalty,
            hparams_domain=dict.fromkeys(params, hg.Box(-9.0, 0.0)),
        ),
        params,
        {key: torch.full_like(value, -4.0) for key, value in params.items()},
        dict.fromkeys(params, (-9.0, 0.0)),
        test=lambda params, _: {"loss": loss(params, test), "accuracy": _accuracy(_network(params, test), test)},
        inner=inner,
        warm=False,
        groups=_layers(params, train[0]),
        ours={
            "Implicit(CG), Adam": Ours(
                hg.Implicit(hg.CG(max_steps=15), inner=solver, damping=0.03, stationarity=math.inf), move
            ),
            "Implicit(Neumann), Adam": Ours(
                hg.Implicit(hg.Neumann(20), inner=solver, damping=0.03, stationarity=math.inf), move
            ),
        },
        title="A network on MNIST, one decay for each of 101,770 weights and biases",
        note="500 training images, trained for 60 steps from the same start every time. Groups: first layer in seven "
        "by the variance of the pixel, first biases, second layer, second biases.",
    )


def _layers(params: Tree, images: Tensor) -> Tree:
    """Return ten groups: the first layer's weights by the variance of their pixel, and each other tensor."""
    pixels = ranked(images.var(dim=0), groups=7)
    rest = {"bias1": 7, "weight2": 8, "bias2": 9}
    others = {key: torch.full_like(params[key], group, dtype=torch.long) for key, group in rest.items()}
    return {"weight1": pixels[:, None].expand(-1, HIDDEN).contiguous(), **others}


def _linear(params: Tree, part: Part) -> Tensor:
    return part[0] @ params["weight"] + params["bias"]


def _network(params: Tree, part: Part) -> Tensor:
    return relu(part[0] @ params["weight1"] + params["bias1"]) @ params["weight2"] + params["bias2"]


def _accuracy(scores: Tensor, part: Part) -> Tensor:
    return (scores.argmax(dim=1) == part[1]).double().mean()
