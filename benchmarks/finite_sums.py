"""Bilevel problems that are means over examples, for stochastic methods: arrays, and what torch computes with them.

Nothing here imports this library. The quadratics are those of the simulated data of the bilevel benchmark of Dagréou
et al. (2022), generated anew: Hessians are aᵢaᵢᵀ with a covariance whose spectrum is spread over a decade, the mixed
derivatives are uᵢvᵢᵀ of rank one, so that an example is a few vectors. The logistic problem has the size of ijcnn1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import softplus

Arrays = dict[str, np.ndarray[Any, Any]]
Tree = dict[str, Tensor]
Objective = Callable[[Tree, Tree, tuple[Tensor, ...]], Tensor]

BATCH = 64
"""Examples in a batch, of both levels."""
QUADRATIC = {"n": 32768, "m": 1024, "d": 10}
LOGISTIC = {"n": 49984, "m": 91648, "p": 22}
"""Numbers of examples, multiples of the batch size: ijcnn1 has 49,990 and 91,701."""


def quadratic(p: int, n: int, m: int, d: int, seed: int = 0) -> Arrays:
    """Return the arrays of gᵢ = ½(aᵢ·θ)² + (uᵢ·λ)(vᵢ·θ) + cᵢ·θ and fⱼ = ½(aⱼ·θ)² + ½(bⱼ·λ)² + cⱼ·θ + eⱼ·λ.

    Args:
        p: number of parameters.
        n: inner examples.
        m: outer examples.
        d: number of hyperparameters.
        seed: of everything.

    Covariances of a and b have spectra spread evenly in the logarithm from 0.1 to 1, the mean of u vᵀ has the singular
    values 0.1, and c and e are normal with normal means.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape)

    def rows(count: int, size: int) -> np.ndarray[Any, Any]:
        basis = np.linalg.qr(normal(size, size))[0]
        found: np.ndarray[Any, Any] = normal(count, size) @ (basis * np.logspace(-0.5, 0, size)) @ basis.T
        return found

    k = min(p, d)
    left, right = np.linalg.qr(normal(d, d))[0][:, :k], np.linalg.qr(normal(p, p))[0][:, :k]
    shared = normal(n, k)
    return {
        "a": rows(n, p),
        "u": 0.1 * shared @ left.T,
        "v": shared @ right.T,
        "c": normal(n, p) + normal(p),
        "a_valid": rows(m, p),
        "b_valid": rows(m, d),
        "c_valid": normal(m, p) + normal(p),
        "e_valid": normal(m, d) + normal(d),
        "params": np.zeros(p),
        "hparams": np.zeros(d),
    }


def quadratic_inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the mean of gᵢ over a batch (a, u, v, c)."""
    a, u, v, c = batch
    w = params["w"]
    return 0.5 * (a @ w).square().mean() + ((u @ hparams["x"]) * (v @ w)).mean() + (c @ w).mean()


def quadratic_outer(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the mean of fⱼ over a batch (a, b, c, e)."""
    a, b, c, e = batch
    w, x = params["w"], hparams["x"]
    return 0.5 * ((a @ w).square().mean() + (b @ x).square().mean()) + (c @ w + e @ x).mean()


class QuadraticTruth:
    """F and ∇F of the whole quadratic, in closed form."""

    def __init__(self, arrays: Arrays) -> None:
        n, m = len(arrays["a"]), len(arrays["a_valid"])
        h, c = arrays["a"].T @ arrays["a"] / n, arrays["c"].mean(axis=0)
        response = -np.linalg.solve(h, (arrays["v"].T @ arrays["u"]) / n)  # θ* = response λ + start
        start = -np.linalg.solve(h, c)
        a, b = arrays["a_valid"].T @ arrays["a_valid"] / m, arrays["b_valid"].T @ arrays["b_valid"] / m
        self.hessian = response.T @ a @ response + b
        self.linear = response.T @ (a @ start + arrays["c_valid"].mean(axis=0)) + arrays["e_valid"].mean(axis=0)
        self.optimum = -np.linalg.solve(self.hessian, self.linear)

    def __call__(self, x: np.ndarray[Any, Any]) -> tuple[float, float]:
        """Return ‖∇F‖² and F(λ) − F(λ*)."""
        gradient, gap = self.hessian @ x + self.linear, x - self.optimum
        return float(gradient @ gradient), float(0.5 * gap @ self.hessian @ gap)


def logistic(n: int, m: int, p: int, seed: int = 0) -> Arrays:
    """Return a binary classification with one log penalty for each feature.

    Args:
        n: training examples.
        m: validation examples.
        p: features.
        seed: of everything.

    Features are normal with standard deviations spread evenly in the logarithm from 0.1 to 1; of the true weights
    every second one is 0. The labels ±1 are drawn from the logistic model, and one in ten training labels is turned
    over, so that the weights that fit the training data are not those that fit the validation data.
    """
    rng = np.random.default_rng(seed)
    scale = np.logspace(-1, 0, p)
    truth = rng.standard_normal(p) / scale * (np.arange(p) % 2)

    def part(count: int, turned: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        x = rng.standard_normal((count, p)) * scale
        y = np.where(rng.random(count) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)
        return x, np.where(rng.random(count) < turned, -y, y)

    (x, y), (x_valid, y_valid) = part(n, 0.1), part(m, 0.0)
    return {
        "x": x,
        "y": y,
        "x_valid": x_valid,
        "y_valid": y_valid,
        "params": np.zeros(p),
        "hparams": np.zeros(p),
    }


def logistic_inner(params: Tree, hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the mean logistic loss of a batch with ½ Σ exp(λ) θ²."""
    w = params["w"]
    return logistic_outer(params, hparams, batch) + 0.5 * (hparams["x"].exp() * w.square()).sum()


def logistic_outer(params: Tree, _hparams: Tree, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the mean logistic loss of a batch."""
    x, y = batch
    return softplus(-y * (x @ params["w"])).mean()


def parts(kind: str, tensors: Tree) -> tuple[tuple[Objective, Objective], tuple[tuple[Tensor, ...], ...]]:
    """Return the inner and the outer objective of a problem, and what a batch of each is made of."""
    if kind == "quadratic":
        inner, outer = ("a", "u", "v", "c"), ("a_valid", "b_valid", "c_valid", "e_valid")
        functions: tuple[Objective, Objective] = quadratic_inner, quadratic_outer
    else:
        inner, outer = ("x", "y"), ("x_valid", "y_valid")  # type: ignore[assignment]
        functions = logistic_inner, logistic_outer
    return functions, tuple(tuple(tensors[key] for key in names) for names in (inner, outer))


class LogisticTruth:
    """F and ∇F of the whole logistic problem, with Newton's method from where the last call ended."""

    def __init__(self, arrays: Arrays) -> None:
        self.x, self.y = arrays["x"], arrays["y"]
        self.x_valid, self.y_valid = arrays["x_valid"], arrays["y_valid"]
        self.w = np.zeros(self.x.shape[1])
        self.best: float | None = None

    def solve(self, lam: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        """Return F(λ) and ∇F(λ)."""
        penalty = np.exp(lam)
        for _ in range(30):
            slope, curve = _slope(self.x, self.y, self.w)
            slope = slope + penalty * self.w
            hessian = (self.x.T * curve) @ self.x / len(self.y) + np.diag(penalty)
            if np.linalg.norm(slope) < 1e-12:
                break
            self.w = self.w - np.linalg.solve(hessian, slope)
        outer, _ = _slope(self.x_valid, self.y_valid, self.w)
        value = float(np.logaddexp(0, -self.y_valid * (self.x_valid @ self.w)).mean())
        return value, -penalty * self.w * np.linalg.solve(hessian, outer)

    def __call__(self, lam: np.ndarray[Any, Any]) -> tuple[float, float]:
        """Return ‖∇F‖² and F(λ) less the best value known."""
        value, gradient = self.solve(lam)
        return float(gradient @ gradient), value - (self.best or 0.0)


def _slope(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], w: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the gradient of the mean logistic loss, and the curvature of each example's."""
    wrong = 1 / (1 + np.exp(y * (x @ w)))
    return -(x.T @ (y * wrong)) / len(y), wrong * (1 - wrong)
