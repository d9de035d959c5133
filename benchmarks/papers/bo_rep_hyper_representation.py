"""BO-REP learns a recurrent representation of texts from small tasks.

The paper (Hao, Gong, Liu, "Bilevel optimization under unbounded smoothness", ICLR 2024) learns a recurrent encoder of
texts on the outer level, and on the inner level a classifier for each task on the encoder's output, from Amazon reviews
and SNLI. A task's classifier learns on its support documents, the encoder on the queries. The paper reports that
BO-REP, whose outer step has a fixed length, is more accurate sooner than MAML, ANIL, StocBiO, TTSA and SABA.

Here a task is to tell apart a few newsgroups that are drawn at random. The encoder is an Elman network over the first
words, its recurrent weights a random rotation at the start. The classifier of each task is linear with an L2 penalty,
so the inner problem is strongly convex. The training tasks are a finite set that a sampler of tasks draws from; SABA,
which remembers batches, gets them in sets that stay the same. Compared are these methods, BO-REP with plain momentum
(which shows what normalisation does), ANIL (unrolled steps of the classifier from a learned start), a random encoder,
and mean word vectors without an encoder.

Every encoder is judged by classifiers that solve the inner problem: outer loss on the training tasks, accuracy on new
tasks, of new documents of the known classes and of classes that training never saw. "Tenfold" repeats a run with ten
times its outer step, to see which methods survive it.

Every method makes the same number of calls of its oracles: gradients + products. Its inner and outer step are the best
of a grid of six: two inner steps and three outer ones a factor of about three apart. They are chosen by the loss on
tasks of held-out documents of the training classes, with a start and training tasks that no row of the table uses. The
step of the adjoint, 0.1, is the same for all.

    python -m benchmarks.papers.bo_rep_hyper_representation

20 Newsgroups stands in for Amazon reviews and SNLI, and vectors learned from counts of neighbouring words for GloVe's.
The texts are those of :func:`benchmarks.papers.datasets.texts`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg
from benchmarks.papers.datasets import texts
from benchmarks.papers.experiment import Options, Table, read_options
from benchmarks.papers.vocabulary import METHODS, MOMENTUM, Ended, Steps, drive, elman, encoded, learn_vocabulary
from hypergrad.tree import Tree

PENALTY = 0.1
"""Factor of ‖head‖²/2 in every task: the inner problem is strongly convex."""
ANIL_STEPS = 5
"""Unrolled steps of each task's classifier."""
TUNING_SEED = 1000
NEW = frozenset({"comp.windows.x", "rec.autos", "sci.space", "soc.religion.christian", "talk.politics.guns"})
"""Classes that no training task knows, one of each large topic."""


@final
@dataclass(frozen=True)
class Sizes:
    """What differs between a small experiment and a large one."""

    words: int
    width: int
    length: int
    hidden: int
    ways: int
    shots: int
    queries: int
    tasks: int
    batch: int
    tests: int
    calls: int


@final
@dataclass(frozen=True)
class Tasks:
    """Small classification problems, one a row.

    Attributes:
        support: documents to learn from, tasks × documents × words.
        support_labels: their classes.
        query: documents to be judged on.
        query_labels: their classes.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


@final
class TaskSampler:
    """Random sets of tasks; set number k depends on ``seed`` and k only.

    Args:
        tensors: one row a task.
        batch: tasks in a set.
        seed: seed of the sets.
        repeat: how many draws in a row give the same set, so that several inner steps are made on one.
    """

    def __init__(self, *tensors: Tensor, batch: int, seed: int, repeat: int = 1) -> None:
        """Start before the first set."""
        self.tensors, self.batch, self.seed, self.repeat = tensors, batch, seed, repeat
        self._drawn = 0

    def draw(self) -> tuple[Tensor, ...]:
        """Return the numbers of the tasks, and their rows."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._drawn // self.repeat)
        self._drawn += 1
        return self._rows(torch.randperm(len(self.tensors[0]), generator=generator)[: self.batch])

    def full(self) -> tuple[Tensor, ...]:
        """Return all tasks."""
        return self._rows(torch.arange(len(self.tensors[0])))

    def state_dict(self) -> dict[str, int]:
        """Return the number of draws."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a number of draws."""
        self._drawn = state["drawn"]

    def _rows(self, places: Tensor) -> tuple[Tensor, ...]:
        return (places, *(tensor[places] for tensor in self.tensors))


@final
@dataclass(frozen=True)
class Corpus:
    """Documents as rows of words, by class.

    Attributes:
        vectors: of the words.
        members: the documents of each class, for each kind of task: ``"training"``; ``"tuning"``, other documents of
            the same classes; ``"documents"``, those of the test part; ``"classes"``, the test part's new classes.
    """

    vectors: Tensor
    members: dict[str, list[Tensor]]

    def tasks(self, kind: str, count: int, sizes: Sizes, seed: int) -> Tasks:
        """Return random tasks of a kind, each with classes of its own in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        members, each = self.members[kind], sizes.shots + sizes.queries
        tasks = []
        for _ in range(count):
            chosen = torch.randperm(len(members), generator=generator)[: sizes.ways].tolist()
            drawn = [members[c][torch.randperm(len(members[c]), generator=generator)[:each]] for c in chosen]
            tasks.append(torch.stack(drawn))
        rows = torch.stack(tasks)  # tasks x ways x documents x words
        labels = torch.arange(sizes.ways)[None, :, None].expand(count, sizes.ways, each)
        support, query = slice(None, sizes.shots), slice(sizes.shots, None)
        parts = [tensor[:, :, part].flatten(1, 2) for part in (support, query) for tensor in (rows, labels)]
        return Tasks(*parts)


def read(sizes: Sizes) -> Corpus:
    """Return the documents of 20 Newsgroups; the last quarter of a class's training part is for tuning."""
    first, second, names = texts("20newsgroups")
    vocabulary = learn_vocabulary(first.documents, size=sizes.words, width=sizes.width)
    rows, test = (vocabulary.rows(part.documents, sizes.length) for part in (first, second))
    members: dict[str, list[Tensor]] = {"training": [], "tuning": [], "documents": [], "classes": []}
    for number, name in enumerate(names):
        own, last = rows[first.labels == number], test[second.labels == number]
        if name in NEW:
            members["classes"].append(last)
        else:
            cut = 3 * len(own) // 4
            members["training"].append(own[:cut])
            members["tuning"].append(own[cut:])
            members["documents"].append(last)
    return Corpus(vocabulary.vectors, members)


def features(corpus: Corpus, encoder: Tree, rows: Tensor) -> Tensor:
    """Return the encoded documents of tasks, with a 1 for the shift: tasks × documents × entries."""
    codes = encoded(encoder, corpus.vectors, rows.flatten(0, 1)).view(*rows.shape[:2], -1)
    return torch.cat([codes, torch.ones_like(codes[..., :1])], dim=-1)


def losses(codes: Tensor, heads: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of each task."""
    scores = torch.einsum("tnd,tdw->tnw", codes, heads)
    return cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(dim=1)


def penalty(params: Tree, _hparams: Tree) -> Tensor:
    """Return the penalty of all heads."""
    return PENALTY / 2 * params["heads"].square().sum()


def problem_of(corpus: Corpus, tasks: Tasks, sizes: Sizes, seed: int, *, fixed: bool) -> hg.Problem:
    """Return the problem of one encoder and one head a task, with sets of tasks that stay the same or do not."""

    def inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        places, rows, labels = batch
        found = losses(features(corpus, hparams, rows), params["heads"][places], labels)
        return sizes.tasks * found.mean()  # estimates the sum over all tasks, so that no step depends on their number

    def outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        places, rows, labels = batch
        return losses(features(corpus, hparams, rows), params["heads"][places], labels).mean()

    support, query = (tasks.support, tasks.support_labels), (tasks.query, tasks.query_labels)
    samplers: tuple[hg.Sampler, hg.Sampler]
    if fixed:
        samplers = (
            hg.Partition(*support, batch_size=sizes.batch, seed=seed, index=True),
            hg.Partition(*query, batch_size=sizes.batch, seed=seed + 1, index=True),
        )
    else:
        samplers = (
            TaskSampler(*support, batch=sizes.batch, seed=2 * seed),
            TaskSampler(*query, batch=sizes.batch, seed=2 * seed + 1),
        )
    return hg.Problem(
        inner,
        outer,
        penalty=penalty,
        inner_data=samplers[0],
        outer_data=samplers[1],
    )


def adapted(corpus: Corpus, encoder: Tree, tasks: Tasks) -> tuple[float, float]:
    """Return loss and accuracy on the queries of heads that solve the inner problem, found from their supports."""
    return judged(features(corpus, encoder, tasks.support), features(corpus, encoder, tasks.query), tasks)


def judged(codes: Tensor, query: Tensor, tasks: Tasks) -> tuple[float, float]:
    """Return loss and accuracy on the queries of heads that solve the inner problem on fixed codes."""
    ways = int(tasks.support_labels.max()) + 1
    heads = {"heads": torch.zeros(len(codes), codes.shape[-1], ways)}
    problem = hg.Problem(
        lambda params, _: losses(codes.detach(), params["heads"], tasks.support_labels).sum(),
        lambda params, _: losses(query.detach(), params["heads"], tasks.query_labels).mean(),
        penalty=penalty,
    )
    solved = hg.LBFGS(tolerance=1e-3, steps=200).run(problem, heads, {"none": torch.zeros(1)}).params["heads"]
    with torch.no_grad():
        loss = float(losses(query, solved, tasks.query_labels).mean())
        best = torch.einsum("tnd,tdw->tnw", query, solved).argmax(dim=2)
    return loss, (best == tasks.query_labels).double().mean().item()


def anil(corpus: Corpus, tasks: Tasks, sizes: Sizes, steps: Steps, encoder: Tree, seed: int) -> Ended:
    """Run ANIL: the heads of a few tasks from a learned start by unrolled gradient steps, on one set of tasks each."""
    shape = (encoder["again"].shape[0] + 1, sizes.ways)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        _, rows, labels = batch
        return losses(features(corpus, encoder_of(hparams), rows), params["heads"], labels).sum()

    def encoder_of(hparams: Tree) -> Tree:
        return {key: hparams[key] for key in encoder}

    problem = hg.Problem(
        loss,
        lambda params, hparams, batch: loss(params, hparams, batch) / sizes.batch,
        penalty=penalty,
        inner_data=TaskSampler(tasks.support, tasks.support_labels, batch=sizes.batch, seed=seed, repeat=ANIL_STEPS),
        outer_data=TaskSampler(tasks.query, tasks.query_labels, batch=sizes.batch, seed=seed),
        initial=lambda hparams: {"heads": hparams["start"].expand(sizes.batch, *shape)},
    )
    algorithm = hg.Unrolled(steps=ANIL_STEPS, inner=hg.GradientDescent(lr=steps.inner))
    hparams = {**encoder, "start": torch.zeros(shape)}
    move = hg.outer.Torch(torch.optim.SGD, lr=steps.outer, momentum=MOMENTUM, dampening=MOMENTUM)
    ended = drive(problem, (algorithm, move), {"heads": torch.zeros(sizes.batch, *shape)}, hparams, sizes.calls)
    return replace(ended, hparams=encoder_of(ended.hparams))


@final
@dataclass(frozen=True)
class Experiment:
    """One set of training tasks and one start."""

    corpus: Corpus
    sizes: Sizes
    seed: int

    def tasks(self) -> Tasks:
        """Return the training tasks."""
        return self.corpus.tasks("training", self.sizes.tasks, self.sizes, self.seed)

    def start(self) -> Tree:
        """Return a random encoder."""
        return elman(self.sizes.width, self.sizes.hidden, 1.0, torch.Generator().manual_seed(self.seed))

    def learn(self, name: str, steps: Steps) -> Ended:
        """Return what a method makes of the start."""
        if name == "ANIL":
            return anil(self.corpus, self.tasks(), self.sizes, steps, self.start(), self.seed)
        problem = problem_of(self.corpus, self.tasks(), self.sizes, self.seed, fixed=name == "SABA")
        heads = {"heads": torch.zeros(self.sizes.tasks, self.sizes.hidden + 1, self.sizes.ways)}
        return drive(problem, METHODS[name][0](steps, self.seed), heads, self.start(), self.sizes.calls)

    def judge(self, kind: str, ended: Ended) -> tuple[float, float]:
        """Return loss and accuracy on new tasks of a kind; infinite after a run that overflowed."""
        if not ended.finite:
            return math.inf, math.inf
        return adapted(self.corpus, ended.hparams, self.new(kind))

    def new(self, kind: str) -> Tasks:
        """Return tasks to judge on."""
        return self.corpus.tasks(kind, self.sizes.tests, self.sizes, self.seed + 1)


def choose(experiment: Experiment, name: str, grid: Sequence[Steps]) -> Steps:
    """Return the steps whose encoder has the lowest loss on the tasks for tuning."""
    return min(grid, key=lambda steps: experiment.judge("tuning", experiment.learn(name, steps))[0])


def unlearned(experiment: Experiment, table: Table) -> None:
    """Add the rows without learning."""
    corpus, encoder = experiment.corpus, experiment.start()

    def means(rows: Tensor) -> Tensor:
        found = corpus.vectors[rows].sum(dim=2) / (rows > 0).sum(dim=2, keepdim=True).clamp(min=1)
        return torch.cat([found, torch.ones_like(found[..., :1])], dim=-1)

    def codes(rows: Tensor) -> Tensor:
        return features(corpus, encoder, rows).detach()

    for row, function in (("random encoder", codes), ("mean word vectors", means)):
        documents, classes = (experiment.new(kind) for kind in ("documents", "classes"))
        known = experiment.tasks()
        found = [judged(function(each.support), function(each.query), each) for each in (known, documents, classes)]
        table.add(row, outer_loss=found[0][0], new_documents=found[1][1], new_classes=found[2][1])


COLUMNS = {
    "outer_loss": ".3f",
    "new_documents": ".3f",
    "new_classes": ".3f",
    "tenfold:_new_documents": ".3f",
    "largest_gradient": ".2g",
    "calls": ".0f",
    "cpu_seconds": ".1f",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Learn an encoder with every method, for every seed."""
    options = read_options(__doc__, arguments)
    sizes, grids = chosen_sizes(options)
    corpus = read(sizes)
    chosen = {}
    for name, grid in grids.items():
        chosen[name] = choose(Experiment(corpus, sizes, TUNING_SEED), name, grid)
        print(f"{name}: inner step {chosen[name].inner:g}, outer {chosen[name].outer:g}")
    table = Table(
        "An Elman encoder of texts learned from small tasks",
        "20 Newsgroups in place of Amazon reviews and SNLI",
        COLUMNS,
    )
    for seed in options.seeds:
        experiment = Experiment(corpus, sizes, seed)
        unlearned(experiment, table)
        for name, steps in chosen.items():
            ended = experiment.learn(name, steps)
            tenfold = experiment.learn(name, replace(steps, outer=10 * steps.outer))
            known = experiment.tasks()
            values = {
                "outer_loss": adapted(corpus, ended.hparams, known)[0] if ended.finite else math.inf,
                "new_documents": experiment.judge("documents", ended)[1],
                "new_classes": experiment.judge("classes", ended)[1],
                "tenfold:_new_documents": experiment.judge("documents", tenfold)[1],
                "largest_gradient": max(ended.norms, default=math.inf),
            }
            table.add(name, **values, calls=ended.calls, cpu_seconds=ended.seconds)
    return table.finish(options)


def chosen_sizes(options: Options) -> tuple[Sizes, dict[str, list[Steps]]]:
    """Return the sizes and the grid of each method."""
    small = Sizes(
        words=400, width=8, length=6, hidden=8, ways=3, shots=2, queries=2, tasks=6, batch=3, tests=6, calls=30
    )
    middle = Sizes(
        words=3000, width=32, length=20, hidden=32, ways=5, shots=5, queries=5, tasks=48, batch=8, tests=200, calls=1000
    )
    large = replace(
        middle, words=8000, width=128, length=50, hidden=128, tasks=400, batch=20, shots=20, queries=20, calls=20_000
    )
    inner = options.pick(smoke=[0.2], default=[0.1, 0.2], full=[0.02, 0.05])
    lengths, rates = options.pick(
        smoke=([0.1], [1.0]), default=([0.03, 0.1, 0.3], [0.3, 1.0, 3.0]), full=([0.03, 0.1, 0.3], [0.3, 1.0, 3.0])
    )
    grids = {
        name: [
            Steps(step, move, 0.1) for step, move in itertools.product(inner, lengths if METHODS[name][1] else rates)
        ]
        for name in METHODS
    }
    grids["ANIL"] = [Steps(step, move) for step, move in itertools.product([0.3, 1.0][: len(inner)], rates)]
    return options.pick(smoke=small, default=middle, full=large), grids


if __name__ == "__main__":
    main()
