"""Data hyper-cleaning: find wrong labels by tuning one weight for each training example.

The inner problem trains a classifier on labels of which half are wrong, each example's loss multiplied by its weight
sigmoid(λ_i). The outer problem is the loss on a small validation set with right labels, and its hypergradient says
which examples help. All settings are constants of this module, fixed beforehand on other seeds than 0 to 4.

- The weights move by plain gradient steps. Adam levels the entries of the hypergradient, whose sizes tell how harmful
  a label is.
- Training goes on for a few steps only between two moves, from where it stood: at the optimum of every outer step the
  weights fit the validation set's own peculiarities, and the wrong labels are told apart less well.
- Damping keeps the Hessian of a network positive definite and does not hurt the linear model.
- Weights start at 1/2, and what falls below 1/2 counts as corrupted: the validation set wants less of it.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

import hypergrad as hg
from hypergrad.demo.data import SIDE, Examples, NoisySplit, load, require, split
from hypergrad.demo.figure import draw, previews, table
from hypergrad.errors import InputError, MissingDependencyError, did_you_mean
from hypergrad.files import write_whole
from hypergrad.report.record import write_json
from hypergrad.tree import Tree

MODELS = {"linear": "softmax regression", "mlp": "one hidden layer"}
DATA_NAMES = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
HIDDEN = 64
PENALTY = 0.01
"""Factor of ‖θ‖²/2, in tuning and in all four final trainings; training on right labels validates best with it."""
STEPS = 40
THRESHOLD = 0.5
"""An example with a lower weight counts as corrupted; the weights start here."""
ALGORITHM = hg.Implicit(
    hg.Neumann(5),
    inner=hg.GradientDescent(lr=0.2, momentum=0.8, steps=10),
    damping=0.1,
    stationarity=float("inf"),  # training is cut short on purpose: see the module's docstring
)
FINAL_TRAINING = hg.LBFGS(tolerance=1e-3, steps=100)
UNFINISHED = ("history.jsonl", "checkpoint.pt", "run.json", "hparams.jsonl")
FILES = ("result.json", "weights.npz", "cleaning.png", "previews.json", "report.html", *UNFINISHED)


def run(
    *,
    model: str = "linear",
    data: str = "mnist",
    seed: int = 0,
    out: Path,
    root: Path | None = None,
    steps: int | None = None,
    progress: bool | Literal["json"] = True,
    stream: TextIO | None = None,
    callbacks: Sequence[hg.Callback] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Clean a noisy training set, and write what was found.

    ``out`` gets ``result.json``, ``weights.npz``, ``cleaning.png``, ``previews.json``, ``history.jsonl``, ``run.json``,
    ``hparams.jsonl``, ``checkpoint.pt`` and, where jinja2 is installed, ``report.html``, which shows all of it. Files
    of an earlier run there are removed first. An interrupted run leaves the history and the checkpoint, from which it
    can be gone on with: the result is that of a run without interruption.

    Args:
        model: ``"linear"`` (softmax regression) or ``"mlp"`` (one hidden layer).
        data: ``"mnist"`` or ``"fashion"``.
        seed: seed of the split, the corruption and the start of training.
        out: folder for the files, made where it does not exist.
        root: folder with the files of Fashion-MNIST.
        steps: outer steps, at least 1; 40 by default.
        progress: whether to show progress on standard error; ``"json"`` as JSON lines.
        stream: where the table goes, standard output by default.
        callbacks: of the trainer, besides history, checkpoint and progress bar.
        resume: go on with the run whose checkpoint is in ``out``, given the same settings; without one, start.

    Returns:
        What ``result.json`` holds: ``accuracy`` on the test set, ``precision``, ``recall``, ``f1`` and ``auc`` of the
        detected labels, ``seconds``, ``seed``, ``versions``, ``model`` and ``data``.

    Raises:
        InputError: an unknown model or data set, a setting out of range, or a data file that is not what it should be.
        MissingDependencyError: a package or data set is not installed.
    """
    began = time.perf_counter()
    steps = STEPS if steps is None else steps
    _check(model, seed, steps)
    for module in ("matplotlib.figure", "sklearn.metrics"):
        require(module)  # missing ones are named before anything is computed
    parts = split(*load(data, root), seed)
    _clear(out, keep=UNFINISHED if resume and (out / "checkpoint.pt").exists() else ())
    title = f"Data hyper-cleaning: {DATA_NAMES[data]}, {MODELS[model]}, seed {seed}"
    record = hg.report.Record(out, title=title, kind="cleaning", settings={"model": model, "data": data})
    files: list[hg.Callback] = [record, hg.History(out / "history.jsonl"), hg.Checkpoint(out, every=10)]
    shown = [hg.ProgressBar(style="json") if progress == "json" else hg.ProgressBar()] if progress else []
    weights = tune(
        model,
        parts.train,
        parts.validation,
        seed=seed,
        steps=steps,
        callbacks=[*files, *callbacks, *shown],
        resume=out if (out / "checkpoint.pt").exists() else None,
    )
    result = {
        "accuracy": accuracies(model, parts, weights, seed),
        **detection(weights, parts.corrupted),
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "versions": versions(),
        "model": model,
        "data": data,
    }
    _write(out, parts, weights, result, title)
    with suppress(MissingDependencyError):  # the report wants one package more
        hg.report.write_report(out)
    (stream or sys.stdout).write(table(title, result, threshold=THRESHOLD))
    return result


def tune(
    model: str,
    train: Examples,
    validation: Examples,
    *,
    seed: int,
    steps: int,
    callbacks: Sequence[hg.Callback] = (),
    resume: Path | None = None,
) -> Tensor:
    """Return the weights of the training examples after some outer steps.

    Args:
        model: the model's name.
        train: the training examples, with the labels that are given.
        validation: the examples that the model shall do well on.
        seed: seed of the start of training.
        steps: outer steps.
        callbacks: of the trainer.
        resume: folder of the checkpoint to go on from.
    """
    count = len(train.labels)

    def inner(params: Tree, hparams: Tree) -> Tensor:
        losses = cross_entropy(class_scores(params, train.images), train.labels, reduction="none")
        # divided by the fixed number of examples: relative to their sum, weights could not fall or rise all together
        # and 1/2 would mean nothing
        return torch.dot(hparams["logits"].sigmoid(), losses) / count

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return cross_entropy(class_scores(params, validation.images), validation.labels)

    trainer = hg.Trainer(
        hg.Problem(inner, outer, penalty=penalty),
        ALGORITHM,
        outer=hg.outer.Torch(torch.optim.SGD, lr=float(count)),  # undoes the division by the number of examples
        callbacks=callbacks,
        seed=seed,
    )
    fitted = trainer.fit(initial_params(model, seed), {"logits": torch.zeros(count)}, steps, resume=resume)
    return fitted.hparams["logits"].sigmoid()


def initial_params(model: str, seed: int) -> Tree:
    """Return the parameters that every training of a model starts at.

    Args:
        model: the model's name.
        seed: seed of the network's random weights; the linear model starts at zero.
    """
    pixels, classes = SIDE * SIDE, 10
    if model == "linear":
        return {"weight": torch.zeros(pixels, classes), "bias": torch.zeros(classes)}
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight1": torch.randn(pixels, HIDDEN, generator=generator) * (2 / pixels) ** 0.5,
        "bias1": torch.zeros(HIDDEN),
        "weight2": torch.randn(HIDDEN, classes, generator=generator) * (1 / HIDDEN) ** 0.5,
        "bias2": torch.zeros(classes),
    }


def class_scores(params: Tree, images: Tensor) -> Tensor:
    """Return the scores of all classes for each image.

    Args:
        params: of either model.
        images: rows of pixels.
    """
    if "weight" in params:
        return images @ params["weight"] + params["bias"]
    hidden = relu(images @ params["weight1"] + params["bias1"])
    return hidden @ params["weight2"] + params["bias2"]


def penalty(params: Tree, _hparams: Tree) -> Tensor:
    """Return the penalty of every training, that of the tuning included.

    Args:
        params: θ.
    """
    return 0.5 * PENALTY * torch.stack([value.square().sum() for value in params.values()]).sum()


def train(model: str, examples: Examples, weights: Tensor, seed: int) -> Tree:
    """Return a model trained from scratch on the weighted mean of the examples' losses.

    Args:
        model: the model's name.
        examples: the training examples.
        weights: their weights; only the proportions matter.
        seed: seed of the start.
    """

    def inner(params: Tree, hparams: Tree) -> Tensor:
        losses = cross_entropy(class_scores(params, examples.images), examples.labels, reduction="none")
        return torch.dot(hparams["weights"], losses) / hparams["weights"].sum()

    problem = hg.Problem(inner, inner, penalty=penalty)
    return FINAL_TRAINING.run(problem, initial_params(model, seed), {"weights": weights}).params


def accuracies(model: str, parts: NoisySplit, weights: Tensor, seed: int) -> dict[str, float]:
    """Return the test accuracy of training with the same recipe on four versions of the training set.

    Args:
        model: the model's name.
        parts: the examples.
        weights: the learned weights.
        seed: seed of the start of training.
    """
    given, equal = parts.train, torch.ones_like(weights)
    versions_of_data = {
        "clean": (Examples(given.images, parts.true_labels), equal),
        "noisy": (given, equal),
        "cleaned": (given, weights),
        "oracle": (given, (~parts.corrupted).to(weights.dtype)),
    }
    found = {}
    for name, (examples, chosen) in versions_of_data.items():
        params = train(model, examples, chosen, seed)
        hits = class_scores(params, parts.test.images).argmax(dim=1) == parts.test.labels
        found[name] = hits.double().mean().item()
    return found


def detection(weights: Tensor, corrupted: Tensor) -> dict[str, float]:
    """Return how well "weight below 1/2" finds the corrupted labels, and how well the weights rank them.

    Args:
        weights: the learned weights.
        corrupted: which labels are wrong.
    """
    flagged = weights < THRESHOLD
    hits = int((flagged & corrupted).sum())
    return {
        "precision": hits / max(int(flagged.sum()), 1),
        "recall": hits / int(corrupted.sum()),
        "f1": 2 * hits / int(flagged.sum() + corrupted.sum()),
        "auc": float(require("sklearn.metrics").roc_auc_score(corrupted.numpy(), -weights.numpy())),
    }


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "hypergrad": hg.__version__,
    }


def _check(model: str, seed: int, steps: int) -> None:
    if model not in MODELS:
        raise InputError(
            passed=f"model={model!r}{did_you_mean(model, MODELS)}",
            expected=f"one of {list(MODELS)}",
            do="pick one of these",
        )
    for name, value, low in (("seed", seed, 0), ("steps", steps, 1)):
        if not low <= value < 2**63:
            raise InputError(f"{name}={value}", f"a whole number of at least {low}", f"leave {name} out")


def _clear(out: Path, keep: Sequence[str]) -> None:
    """Make the folder, and remove what an earlier run left there, but for what is to be kept."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}, which is a file", "a folder, or a name that is free", "choose another out")
    out.mkdir(parents=True, exist_ok=True)
    for name in (name for name in FILES if name not in keep):
        (out / name).unlink(missing_ok=True)


def _write(out: Path, parts: NoisySplit, weights: Tensor, result: dict[str, Any], title: str) -> None:
    def save_arrays(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                index=parts.index[0].numpy(),
                given_label=parts.train.labels.numpy(),
                weight=weights.numpy(),
                corrupted=parts.corrupted.numpy(),
            )

    write_whole(out / "weights.npz", save_arrays)
    write_whole(
        out / "cleaning.png",
        lambda path: draw(path, parts, weights, data=result["data"], threshold=THRESHOLD, title=title),
    )
    write_json(out / "previews.json", previews(parts, weights, data=result["data"]))
    write_whole(
        out / "result.json", lambda path: path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    )
