"""BO-REP cleans the labels of texts, with a recurrent classifier.

The paper (Hao, Gong, Liu, "Bilevel optimization under unbounded smoothness", ICLR 2024) flips labels of Sentiment140,
weighs each training document by σ(λ_i), and tunes λ on clean documents while a recurrent network learns on the weighted
ones. It reports that BO-REP, whose outer step has a fixed length, reaches a higher accuracy sooner than StocBiO, TTSA
and SABA, whose outer steps do not.

Here the labels are replaced by another class at random, for a share of 0.1 and of 0.3. The network is an Elman network
over the first words of each document. Compared are these four, BO-REP with plain momentum in place of the normalised
one (which shows what normalisation does), training on everything, and training on the right labels only. A document
counts as corrupted once its weight is below 1/2, where it starts. Each network is shown twice: as the run leaves it,
and trained anew from scratch on the weights found, with the same steps in every row.

Every method makes the same number of calls of its oracles: gradients + products. Its inner and outer step are the best
of a grid of eight: two inner steps that are the same for all, and four outer ones, a factor of ten apart (three for the
fixed length, which does not shrink with the gradient). They are chosen by the loss on held-out clean documents, at a
share of 0.3, on a split of its own. The step of the adjoint, 0.3, and the batches are the same for all. The inner
problem is not convex; an adjoint step of 1 is already too long for it.

    python -m benchmarks.papers.bo_rep_cleaning

Reuters-8 stands in for Sentiment140, 20 Newsgroups with ``--full``, and vectors learned from counts of neighbouring
words for GloVe's. The texts are those of :func:`benchmarks.papers.datasets.texts`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg
from benchmarks.papers.datasets import texts
from benchmarks.papers.experiment import Options, Table, read_options
from benchmarks.papers.vocabulary import METHODS, Ended, Method, Steps, drive, elman, encoded, learn_vocabulary
from hypergrad.tree import Tree

PENALTY = 1e-3
"""Factor of ‖θ‖²/2."""
TUNING_SEED, TUNING_NOISE = 1000, 0.3


@final
@dataclass(frozen=True)
class Data:
    """Documents as rows of words, with their labels.

    Attributes:
        vectors: of the words.
        train: documents, given labels.
        right: the training documents' right labels.
        valid: documents, labels.
        held: documents and labels that steps are chosen on.
        test: documents, labels.
        classes: their number.
    """

    vectors: Tensor
    train: tuple[Tensor, Tensor]
    right: Tensor
    valid: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


def draw(options: Options) -> Callable[[float, int], Data]:
    """Return a function of the share of wrong labels and the seed that deals the training documents out."""
    first, second, names = texts(options.pick(smoke="r8", default="r8", full="20newsgroups"))
    size, width = options.pick(smoke=(300, 8), default=(2000, 32), full=(8000, 128))
    vocabulary = learn_vocabulary(first.documents, size=size, width=width)
    length = options.pick(smoke=8, default=20, full=50)
    rows, test = vocabulary.rows(first.documents, length), vocabulary.rows(second.documents, length)
    sizes = options.pick(smoke=[200, 100, 100], default=[2000, 500, 500], full=[8000, 1000, 1000])

    def deal(noise: float, seed: int) -> Data:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(rows), generator=generator)[: sum(sizes)]
        train, valid, held = ((rows[part], first.labels[part]) for part in order.split(sizes))
        wrong = torch.rand(sizes[0], generator=generator) < noise
        shift = torch.randint(1, len(names), (sizes[0],), generator=generator)
        given = torch.where(wrong, (train[1] + shift) % len(names), train[1])
        return Data(vocabulary.vectors, (train[0], given), train[1], valid, held, (test, second.labels), len(names))

    return deal


def start(data: Data, hidden: int, seed: int) -> Tree:
    """Return an Elman network with a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    network = elman(data.vectors.shape[1], hidden, 1.0, generator)
    return {**network, "head": torch.zeros(hidden, data.classes), "bias": torch.zeros(data.classes)}


def scores(data: Data, params: Tree, rows: Tensor) -> Tensor:
    """Return a score for each class."""
    return encoded(params, data.vectors, rows) @ params["head"] + params["bias"]


def penalty(params: Tree) -> Tensor:
    """Return the penalty of all weights."""
    return PENALTY / 2 * torch.stack([value.square().sum() for value in params.values()]).sum()


def problem_of(data: Data, batch: int, seed: int) -> hg.Problem:
    """Return the problem of cleaning: one weight σ(λ_i) a training document."""

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        places, rows, labels = batch
        losses = cross_entropy(scores(data, params, rows), labels, reduction="none")
        return (hparams["weights"][places].sigmoid() * losses).mean()

    return hg.Problem(
        inner,
        lambda params, hparams, batch: cross_entropy(scores(data, params, batch[0]), batch[1]),
        penalty=lambda params, hparams: penalty(params),
        inner_data=hg.Partition(*data.train, batch_size=batch, seed=seed, index=True),
        outer_data=hg.Partition(*data.valid, batch_size=batch, seed=seed + 1),
    )


@final
@dataclass(frozen=True)
class Sizes:
    """What differs between a small experiment and a large one."""

    hidden: int
    batch: int
    calls: int
    final_steps: int


def weighted_training(data: Data, sizes: Sizes, weights: Tensor, step: float, seed: int) -> Tree:
    """Return the network after stochastic gradient steps from scratch on weighted documents, the weights' mean at 1."""
    params = start(data, sizes.hidden, seed)
    batches = hg.TensorSampler(*data.train, batch_size=sizes.batch, seed=seed, index=True)
    shares = weights / weights.mean()
    for _ in range(sizes.final_steps):
        places, rows, labels = batches.draw()
        points = {key: value.detach().requires_grad_() for key, value in params.items()}
        losses = cross_entropy(scores(data, points, rows), labels, reduction="none")
        loss = (shares[places] * losses).mean() + penalty(points)
        slopes = torch.autograd.grad(loss, list(points.values()))
        params = {key: params[key] - step * slope for key, slope in zip(points, slopes, strict=True)}
    return params


def accuracy(data: Data, params: Tree) -> float:
    """Return the accuracy on the test documents."""
    with torch.no_grad():
        return (scores(data, params, data.test[0]).argmax(dim=1) == data.test[1]).double().mean().item()


def held_loss(data: Data, params: Tree) -> float:
    """Return the loss on the documents that steps are chosen on."""
    with torch.no_grad():
        loss = float(cross_entropy(scores(data, params, data.held[0]), data.held[1]))
    return loss if math.isfinite(loss) else math.inf


def cleaned(data: Data, sizes: Sizes, method: Method, steps: Steps, seed: int) -> Ended:
    """Run a method on the problem of cleaning."""
    problem = problem_of(data, sizes.batch, seed)
    hparams = {"weights": torch.zeros(len(data.right))}
    return drive(problem, method(steps, seed), start(data, sizes.hidden, seed), hparams, sizes.calls)


def choose(data: Data, sizes: Sizes, method: Method, grid: Sequence[Steps]) -> Steps:
    """Return the steps with the lowest held-out loss."""

    def loss(steps: Steps) -> float:
        ended = cleaned(data, sizes, method, steps, TUNING_SEED)
        return held_loss(data, ended.params) if ended.finite else math.inf

    return min(grid, key=loss)


def found(data: Data, ended: Ended) -> dict[str, float]:
    """Return how well the corrupted documents were found."""
    wrong, logits = (data.train[1] != data.right).numpy(), ended.hparams["weights"]
    if not ended.finite:
        return {"f1": math.inf, "auc": math.inf}
    return {"f1": float(f1_score(wrong, (logits < 0).numpy())), "auc": float(roc_auc_score(wrong, -logits.numpy()))}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Clean with every method, at every share of wrong labels and seed."""
    options = read_options(__doc__, arguments)
    sizes = options.pick(
        smoke=Sizes(hidden=8, batch=50, calls=40, final_steps=5),
        default=Sizes(hidden=32, batch=100, calls=1200, final_steps=600),
        full=Sizes(hidden=128, batch=200, calls=10_000, final_steps=4000),
    )
    inner = options.pick(smoke=[1.0], default=[0.5, 1.0], full=[0.5, 1.0])
    lengths, rates = options.pick(
        smoke=([1.0], [1e3]),
        default=([0.3, 1.0, 3.0, 10.0], [1e1, 1e2, 1e3, 1e4]),
        full=([0.6, 2.0, 6.0, 20.0], [4e1, 4e2, 4e3, 4e4]),
    )
    deal = draw(options)
    tuning = deal(TUNING_NOISE, TUNING_SEED)
    chosen = {}
    for name, (method, normed) in METHODS.items():
        grid = list(itertools.starmap(Steps, itertools.product(inner, lengths if normed else rates)))
        chosen[name] = choose(tuning, sizes, method, grid)
        print(f"{name}: inner step {chosen[name].inner:g}, outer {chosen[name].outer:g}")
    everything = torch.ones(len(tuning.right))
    final = min(inner, key=lambda step: held_loss(tuning, weighted_training(tuning, sizes, everything, step, 0)))
    table = Table(
        "Cleaning the labels of texts with an Elman network",
        options.pick(smoke="Reuters-8", default="Reuters-8", full="20 Newsgroups") + " in place of Sentiment140",
        {
            "accuracy_as_left": ".3f",
            "accuracy_trained_anew": ".3f",
            "f1": ".3f",
            "auc": ".3f",
            "largest_gradient": ".2g",
            "calls": ".0f",
            "cpu_seconds": ".1f",
        },
    )
    for noise, seed in itertools.product(options.pick(smoke=[0.3], default=[0.1, 0.3], full=[0.1, 0.3]), options.seeds):
        data = deal(noise, seed)
        right = (data.train[1] == data.right).float()
        for name, weights in (("everything", torch.ones_like(right)), ("right labels only", right)):
            params = weighted_training(data, sizes, weights, final, seed)
            table.add(f"{noise:g}: {name}", accuracy_trained_anew=accuracy(data, params))
        for name, (method, _) in METHODS.items():
            ended = cleaned(data, sizes, method, chosen[name], seed)
            anew = weighted_training(data, sizes, ended.hparams["weights"].sigmoid(), final, seed)
            table.add(
                f"{noise:g}: {name}",
                accuracy_as_left=accuracy(data, ended.params) if ended.finite else math.inf,
                accuracy_trained_anew=accuracy(data, anew) if ended.finite else math.inf,
                largest_gradient=max(ended.norms, default=math.inf),
                calls=ended.calls,
                cpu_seconds=ended.seconds,
                **found(data, ended),
            )
    return table.finish(options)


if __name__ == "__main__":
    main()
