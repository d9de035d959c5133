"""What the experiments with text share: word vectors, an Elman network, and the methods, in runs of equal cost."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree

MOMENTUM = 0.9
WINDOW = 4
"""Words on each side that count as neighbours."""


@final
@dataclass(frozen=True)
class Vocabulary:
    """Word vectors from counts of neighbours, in the place of pretrained ones.

    Attributes:
        places: row of each word that is kept.
        vectors: one a word; row 0 is zero and stands for no word.
    """

    places: dict[str, int]
    vectors: Tensor

    def rows(self, documents: Sequence[str], length: int) -> Tensor:
        """Return the first ``length`` known words of each document as rows of the vectors, with 0 behind the end."""
        found = torch.zeros(len(documents), length, dtype=torch.long)
        for number, document in enumerate(documents):
            known = [self.places[word] for word in document.split() if word in self.places][:length]
            found[number, : len(known)] = torch.tensor(known, dtype=torch.long)
        return found


def learn_vocabulary(documents: Sequence[str], *, size: int, width: int, shortest: int = 3) -> Vocabulary:
    """Return vectors of the most frequent words: a truncated SVD of their positive pointwise mutual information.

    Args:
        documents: what is counted, without labels.
        size: words kept.
        width: entries of a vector; their mean square is 1.
        shortest: letters that a word has at least.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    counts = Counter(word for document in documents for word in document.split() if len(word) >= shortest)
    words = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    places = {word: row for row, word in enumerate(words, start=1)}
    ids = [np.array([places.get(word, 0) for word in document.split()]) for document in documents]
    line = np.concatenate([np.append(row, np.zeros(WINDOW, dtype=np.int64)) for row in ids])
    pairs = [np.stack([line[:-shift], line[shift:]]) for shift in range(1, WINDOW + 1)]
    both = np.concatenate(pairs, axis=1)
    left, right = both[:, (both > 0).all(axis=0)] - 1
    near = coo_matrix((np.ones(len(left)), (left, right)), shape=(len(words), len(words))).tocsr()
    near = (near + near.T).tocoo()
    total = np.asarray(near.sum(axis=1)).ravel()
    weight = np.log(near.data * near.data.sum() / (total[near.row] * total[near.col])).clip(min=0)
    u, s, _ = svds(coo_matrix((weight, (near.row, near.col)), near.shape).tocsr(), k=width, v0=np.ones(len(words)))
    vectors = torch.from_numpy(np.ascontiguousarray(u * np.sqrt(s))).float()
    vectors = vectors / vectors.square().mean().sqrt()
    return Vocabulary(places, torch.cat([torch.zeros(1, width), vectors]))


def elman(width: int, hidden: int, gain: float, generator: torch.Generator) -> Tree:
    """Return the weights of an Elman network; the recurrent ones are ``gain`` times a random rotation."""
    rotation = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q
    return {
        "into": torch.randn(width, hidden, generator=generator) / width**0.5,
        "again": gain * rotation,
        "shift": torch.zeros(hidden),
    }


def encoded(weights: Tree, vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the mean over a document's words of the states h_t = tanh(x_t W + h_{t−1} U + b)."""
    known = (rows > 0).to(vectors.dtype)
    inputs = vectors[rows] @ weights["into"] + weights["shift"]
    state = inputs.new_zeros(len(rows), inputs.shape[-1])
    total = state
    for place in range(rows.shape[1]):
        state = torch.tanh(inputs[:, place] + state @ weights["again"])
        total = total + known[:, place, None] * state
    return total / known.sum(dim=1).clamp(min=1)[:, None]


@final
@dataclass(frozen=True)
class Steps:
    """Step sizes of one run.

    Attributes:
        inner: of the parameters.
        outer: of the hyperparameters; with a normalised step, its length.
        linear: of the adjoint, or of the Neumann series.
    """

    inner: float
    outer: float
    linear: float = 0.3


Chosen = tuple[hg.Algorithm[Any], hg.outer.OuterMove]
Method = Callable[[Steps, int], Chosen]


def normalised(steps: Steps, _seed: int) -> Chosen:
    """Return BO-REP."""
    refinement = hg.EpochSGD(epochs=2, steps=20)
    algorithm = hg.BOREP(step_size=steps.inner, linear_step_size=steps.linear, refinement=refinement)
    return algorithm, hg.outer.Torch(hg.NormalizedMomentum, lr=steps.outer, momentum=MOMENTUM)


def plain(steps: Steps, seed: int) -> Chosen:
    """Return BO-REP without the normalisation of its outer step."""
    move = hg.outer.Torch(torch.optim.SGD, lr=steps.outer, momentum=MOMENTUM, dampening=MOMENTUM)
    return normalised(steps, seed)[0], move


def stocbio(steps: Steps, _seed: int) -> Chosen:
    """Return StocBiO."""
    algorithm = hg.StocBiO(step_size=steps.inner, linear_step_size=steps.linear, inner_steps=3, terms=3)
    return algorithm, hg.outer.Torch(torch.optim.SGD, lr=steps.outer)


def ttsa(steps: Steps, seed: int) -> Chosen:
    """Return TTSA, with constant steps like the others."""
    algorithm = hg.TTSA(step_size=steps.inner, linear_step_size=steps.linear, terms=3, seed=seed)
    return algorithm, hg.outer.Torch(torch.optim.SGD, lr=steps.outer)


def saba(steps: Steps, seed: int) -> Chosen:
    """Return SABA."""
    algorithm = hg.SABA(step_size=steps.inner, linear_step_size=steps.linear, seed=seed)
    return algorithm, hg.outer.Torch(torch.optim.SGD, lr=steps.outer)


@final
@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        params: θ.
        hparams: λ.
        calls: inner gradients, products and outer gradients.
        seconds: of the CPU.
        norms: ‖direction of λ‖ at every step.
        finite: whether no iterate overflowed.
    """

    params: Tree
    hparams: Tree
    calls: int
    seconds: float
    norms: list[float]
    finite: bool


def drive(
    problem: hg.Problem,
    chosen: Chosen,
    params: Tree,
    hparams: Tree,
    calls: int,
) -> Ended:
    """Run a method until it has made a number of calls of its oracles, or until an iterate overflows."""
    began, made, norms, finite = time.process_time(), 0, [], True
    algorithm, move = chosen
    run = hg.Run(problem, algorithm, params, hparams, move)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hg.errors.CurvatureWarning)  # what comes of too long steps is in the table
        while made < calls:
            try:
                progress = run.step()
            except hg.errors.NumericalError:
                finite = False
                break
            cost = progress.cost
            made += cost.inner_gradients + cost.products + cost.outer_gradients
            norms.append(progress.norm)
    return Ended(run.params, run.hparams, made, time.process_time() - began, norms, finite)


METHODS: Mapping[str, tuple[Method, bool]] = {
    "BO-REP": (normalised, True),
    "BO-REP, plain momentum": (plain, False),
    "StocBiO": (stocbio, False),
    "TTSA": (ttsa, False),
    "SABA": (saba, False),
}
"""Each with whether its outer step is a length."""
