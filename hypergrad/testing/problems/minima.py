"""Problems whose inner solution is a minimum, with known answers."""

from __future__ import annotations

import torch
from torch import Tensor

from hypergrad.domains import Positive
from hypergrad.problem import Problem
from hypergrad.testing.problems.known import KnownProblem, maker
from hypergrad.tree import Tree


def scalar(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return g = (w − x)², f = w²/2 + x²/8 for scalars: dF/dx = x + x/4."""
    number = torch.tensor(1.5, dtype=dtype)
    return KnownProblem(
        name="scalar",
        problem=Problem(
            inner=lambda params, hparams: (params["w"] - hparams["x"]).square(),
            outer=lambda params, hparams: params["w"].square() / 2 + hparams["x"].square() / 8,
        ),
        params={"w": torch.zeros((), dtype=dtype)},
        hparams={"x": number},
        solution=lambda hparams: {"w": hparams["x"]},
        step=0.4,
        steps=20,
        optimum={"x": torch.zeros((), dtype=dtype)},
    )


def quadratic(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return g = ½ wᵀCw − wᵀ(Bx + e) over two tensors, f = ½‖w − t‖², where some x attains w = t."""
    normal = maker(dtype, 1)
    root: Tensor = torch.linalg.qr(normal(5, 5)).Q
    curvature = root @ torch.diag(torch.linspace(1.0, 4.0, 5, dtype=dtype)) @ root.mT
    slope, offset, target = normal(5, 5) + 2 * torch.eye(5, dtype=dtype), normal(5), normal(5)

    def join(params: Tree) -> Tensor:
        return torch.cat([params["u"].reshape(-1), params["v"]])

    def split(w: Tensor) -> Tree:
        return {"u": w[:2].reshape(2, 1), "v": w[2:]}

    def inner(params: Tree, hparams: Tree) -> Tensor:
        w = join(params)
        return 0.5 * w @ curvature @ w - w @ (slope @ hparams["x"] + offset)

    return KnownProblem(
        name="quadratic",
        problem=Problem(inner, lambda params, _: 0.5 * (join(params) - target).square().sum()),
        params=split(torch.zeros(5, dtype=dtype)),
        hparams={"x": normal(5)},
        solution=lambda hparams: split(torch.linalg.solve(curvature, slope @ hparams["x"] + offset)),
        step=0.4,
        steps=56,
        optimum={"x": torch.linalg.solve(slope, curvature @ target - offset)},
    )


def ridge(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return ridge regression with one log penalty per feature, the penalty given apart."""
    normal = maker(dtype, 2)
    x, y, xv, yv = normal(80, 10), normal(80), normal(60, 10), normal(60)

    def solution(hparams: Tree) -> Tree:
        return {"w": torch.linalg.solve(x.mT @ x / 80 + torch.diag(hparams["log_penalty"].exp()), x.mT @ y / 80)}

    return KnownProblem(
        name="ridge",
        problem=Problem(
            inner=lambda params, _: (x @ params["w"] - y).square().mean() / 2,
            outer=lambda params, _: (xv @ params["w"] - yv).square().mean() / 2,
            penalty=lambda params, hparams: (hparams["log_penalty"].exp() * params["w"].square()).sum() / 2,
        ),
        params={"w": torch.zeros(10, dtype=dtype)},
        hparams={"log_penalty": 0.3 * normal(10) - 1},
        solution=solution,
        step=0.65,
        steps=40,
    )


def logistic(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return logistic regression with one log penalty per weight, solved by Newton steps."""
    normal = maker(dtype, 3)
    x, xv = normal(60, 6), normal(40, 6)
    truth = normal(6)
    y, yv = (x @ truth + normal(60) > 0).to(dtype), (xv @ truth + normal(40) > 0).to(dtype)
    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def newton(hparams: Tree, w: Tensor) -> Tensor:
        p, decay = torch.sigmoid(x @ w), hparams["log_penalty"].exp()
        hessian = (x * (p * (1 - p))[:, None]).mT @ x / 60 + torch.diag(decay)
        step: Tensor = torch.linalg.solve(hessian, x.mT @ (p - y) / 60 + decay * w)
        return w - step

    def solution(hparams: Tree) -> Tree:
        w = torch.zeros(6, dtype=dtype)
        fixed = {key: value.detach() for key, value in hparams.items()}
        for _ in range(15):
            w = newton(fixed, w)
        return {"w": newton(hparams, w)}  # one Newton step at the solution carries the exact derivative

    return KnownProblem(
        name="logistic",
        problem=Problem(
            inner=lambda params, hparams: (
                loss(x @ params["w"], y) + (hparams["log_penalty"].exp() * params["w"].square()).sum() / 2
            ),
            outer=lambda params, _: loss(xv @ params["w"], yv),
        ),
        params={"w": torch.zeros(6, dtype=dtype)},
        hparams={"log_penalty": 0.5 * normal(6) - 1.5},
        solution=solution,
        step=1.8,
        steps=30,
    )


def maml(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return one-dimensional MAML over two tasks with curvatures (1, 0.1), one gradient step of 0.9 from x.

    It is an unrolled problem: training is exactly one step of size 0.9, from the initialisation that is tuned.
    """
    curvature, centre = torch.tensor([1.0, 0.1], dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
    weights = curvature * (1 - 0.9 * curvature) ** 2

    def task_loss(params: Tree, _: Tree) -> Tensor:
        return 0.5 * (curvature * (params["w"] - centre).square()).sum()

    return KnownProblem(
        name="maml",
        problem=Problem(
            inner=task_loss,
            outer=lambda params, hparams: task_loss(params, hparams) / 2,
            initial=lambda hparams: {"w": hparams["x"].expand(2)},
        ),
        params={"w": torch.zeros(2, dtype=dtype)},
        hparams={"x": torch.tensor(0.3, dtype=dtype)},
        solution=lambda hparams: {"w": hparams["x"] - 0.9 * curvature * (hparams["x"] - centre)},
        step=0.9,
        steps=1,
        optimum={"x": (weights * centre).sum() / weights.sum()},
        stationary=False,
    )


def singular(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return g = ½(aᵀw − x)², whose Hessian has rank one, and f = ½(aᵀw − 2)², which sees its range only."""
    a = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)
    return KnownProblem(
        name="singular",
        problem=Problem(
            inner=lambda params, hparams: 0.5 * (a @ params["w"] - hparams["x"]).square(),
            outer=lambda params, _: 0.5 * (a @ params["w"] - 2).square(),
        ),
        params={"w": torch.zeros(3, dtype=dtype)},
        hparams={"x": torch.tensor(0.7, dtype=dtype)},
        solution=lambda hparams: {"w": a * hparams["x"] / (a @ a)},
        step=0.15,
        steps=16,
        optimum={"x": torch.tensor(2.0, dtype=dtype)},
        regular=False,
    )


def outer_only(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return a problem with one hyperparameter that both objectives use and one that the outer objective alone uses."""
    normal = maker(dtype, 4)
    target = normal(3)
    return KnownProblem(
        name="outer_only",
        problem=Problem(
            inner=lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
            outer=lambda params, hparams: 0.5 * (params["w"] - target * hparams["z"]).square().sum(),
        ),
        params={"w": torch.zeros(3, dtype=dtype)},
        hparams={"x": normal(3), "z": torch.tensor(0.5, dtype=dtype)},
        solution=lambda hparams: {"w": hparams["x"]},
        step=0.4,
        steps=20,
    )


def envelope(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return the Lagrangian dual of min w² subject to w ≥ 1: inner and outer are the same, so dF/dx is the slack."""

    def lagrangian(params: Tree, hparams: Tree) -> Tensor:
        return params["w"].square() + hparams["x"] * (1 - params["w"])

    return KnownProblem(
        name="envelope",
        problem=Problem(lagrangian, lagrangian, hparams_domain={"x": Positive()}),
        params={"w": torch.zeros((), dtype=dtype)},
        hparams={"x": torch.tensor(0.5, dtype=dtype)},
        solution=lambda hparams: {"w": hparams["x"] / 2},
        step=0.4,
        steps=20,
    )
