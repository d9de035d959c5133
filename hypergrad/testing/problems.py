"""Bilevel problems whose solution and hypergradient are known in closed form.

Each function returns a :class:`KnownProblem` in the dtype asked for, the same at every call. Sizes are tiny: a
hypergradient takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad.domains import Positive
from hypergrad.problem import Problem
from hypergrad.tree import Tree, cloned, leaves


@final
@dataclass(frozen=True)
class KnownProblem:
    """A problem with a known answer.

    Attributes:
        name: what it is called in a test's name.
        problem: the two objectives.
        params: where training starts.
        hparams: the point at which the hypergradient is asked for.
        solution: θ*(λ) in differentiable torch operations.
        step: a step size with which gradient descent (or, for a root, the damped residual iteration) converges.
        steps: a number of such steps after which the error is below 1e-11 in float64.
        optimum: λ* where F is least and the outer gradient vanishes, or ``None``.
        symmetric: whether the residual is the gradient of an objective.
        definite: whether its Hessian is positive definite, at least on its range, where ∂f/∂θ lies.
        regular: whether its Jacobian is invertible.
        stationary: whether θ*(λ) brings the residual to zero; otherwise it is what ``steps`` steps of training reach.
    """

    name: str
    problem: Problem
    params: Tree
    hparams: Tree
    solution: Callable[[Tree], Tree]
    step: float
    steps: int
    optimum: Tree | None = None
    symmetric: bool = True
    definite: bool = True
    regular: bool = True
    stationary: bool = True

    def trained(self, hparams: Mapping[str, Tensor] | None = None) -> Tree:
        """Return θ*(λ), detached, at the problem's own point by default."""
        return cloned(self.solution(dict(hparams or self.hparams)))

    def hypergradient(self, hparams: Mapping[str, Tensor] | None = None) -> Tree:
        """Return dF/dλ by autograd through the closed form of θ*(λ)."""
        point = leaves(hparams or self.hparams)
        value = self.problem.outer_value(self.solution(point), point)
        slopes = torch.autograd.grad(value, list(point.values()), allow_unused=True)
        return {
            key: torch.zeros_like(leaf).detach() if slope is None else slope
            for (key, leaf), slope in zip(point.items(), slopes, strict=True)
        }


def _maker(dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


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
    normal = _maker(dtype, 1)
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
    normal = _maker(dtype, 2)
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
    normal = _maker(dtype, 3)
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
    normal = _maker(dtype, 4)
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


def fixed_point(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return z = tanh(A z + x) with ‖A‖₂ = ½ and A not symmetric, f = ½‖z − t‖²."""
    normal = _maker(dtype, 5)
    a, target = normal(4, 4), 0.3 * normal(4)
    size: Tensor = torch.linalg.matrix_norm(a, 2)
    a = 0.5 * a / size

    def solution(hparams: Tree) -> Tree:
        z = torch.zeros(4, dtype=dtype)
        for _ in range(60):
            z = torch.tanh(a @ z + hparams["x"])
        return {"z": z}

    return KnownProblem(
        name="fixed_point",
        problem=Problem.fixed_point(
            map=lambda params, hparams: {"z": torch.tanh(a @ params["z"] + hparams["x"])},
            outer=lambda params, _: 0.5 * (params["z"] - target).square().sum(),
        ),
        params={"z": torch.zeros(4, dtype=dtype)},
        hparams={"x": 0.5 * normal(4)},
        solution=solution,
        step=1.0,
        steps=30,
        optimum={"x": torch.atanh(target) - a @ target},
        symmetric=False,
        definite=False,
    )


def markov_decision(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return an entropy-regularised Markov decision process: soft values as a fixed point, a leader's return outside.

    Three states, two actions, discount 0.5, temperature 0.5; x moves rewards and transitions. The leader has rewards of
    its own, earned under the follower's softmax policy.
    """
    normal = _maker(dtype, 6)
    reward, reward_slope = normal(3, 2), normal(3, 2, 2)
    logits, logit_slope, leader = normal(3, 2, 3), 0.5 * normal(3, 2, 3, 2), normal(3, 2)
    discount, temperature = 0.5, 0.5

    def action_values(value: Tensor, x: Tensor) -> Tensor:
        transition = torch.softmax(logits + logit_slope @ x, dim=-1)
        return reward + reward_slope @ x + discount * transition @ value

    def backup(params: Tree, hparams: Tree) -> Tree:
        q = action_values(params["value"], hparams["x"])
        return {"value": temperature * torch.logsumexp(q / temperature, dim=-1)}

    def leader_return(params: Tree, hparams: Tree) -> Tensor:
        policy = torch.softmax(action_values(params["value"], hparams["x"]) / temperature, dim=-1)
        transition = torch.softmax(logits + logit_slope @ hparams["x"], dim=-1)
        flow = torch.einsum("sa,sat->st", policy, transition)
        earned: Tensor = torch.linalg.solve(torch.eye(3, dtype=dtype) - discount * flow, (policy * leader).sum(-1))
        return -earned.mean()

    def solution(hparams: Tree) -> Tree:
        params = {"value": torch.zeros(3, dtype=dtype)}
        for _ in range(60):
            params = backup(params, hparams)
        return params

    return KnownProblem(
        name="markov_decision",
        problem=Problem.fixed_point(backup, leader_return),
        params={"value": torch.zeros(3, dtype=dtype)},
        hparams={"x": 0.3 * normal(2)},
        solution=solution,
        step=1.0,
        steps=45,
        symmetric=False,
        definite=False,
    )


def equality(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return min ½‖w‖² subject to w₁ + w₂ = x, f = w₁²: dF/dx = x/2 by an indefinite system."""
    return KnownProblem(
        name="equality",
        problem=Problem.equality_constrained(
            inner=lambda params, _: 0.5 * params["w"].square().sum(),
            equality=lambda params, hparams: params["w"].sum() - hparams["x"],
            outer=lambda params, _: params["w"][0].square(),
        ),
        params={"w": torch.zeros(2, dtype=dtype), "multiplier": torch.zeros((), dtype=dtype)},
        hparams={"x": torch.tensor(3.0, dtype=dtype)},
        solution=lambda hparams: {"w": hparams["x"].expand(2) / 2, "multiplier": -hparams["x"] / 2},
        step=0.0,
        steps=0,
        optimum={"x": torch.tensor(0.0, dtype=dtype)},
        definite=False,
    )


def box(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return min ½‖w − x‖² over 0 ≤ w ≤ 1 as the fixed point of projected gradient steps, with bounds active."""
    target = torch.tensor([0.2, 0.3, 0.4], dtype=dtype)
    return _projected(
        "box",
        lambda w, _: w.clamp(0.0, 1.0),
        lambda hparams: {"w": hparams["x"].clamp(0.0, 1.0)},
        {"x": torch.tensor([-0.4, 0.6, 1.7], dtype=dtype)},
        target,
    )


def halfspace(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return min ½‖w − x‖² over aᵀw ≤ r as the fixed point of projected gradient steps, with the constraint active."""
    a = torch.tensor([1.0, 2.0, 2.0], dtype=dtype)

    def project(w: Tensor, hparams: Tree) -> Tensor:
        return w - a * ((a @ w - hparams["r"]) / (a @ a)).clamp(min=0)

    return _projected(
        "halfspace",
        project,
        lambda hparams: {"w": project(hparams["x"], hparams)},
        {"x": torch.tensor([1.0, 0.5, 1.5], dtype=dtype), "r": torch.tensor(2.0, dtype=dtype)},
        torch.tensor([0.2, 0.3, 0.4], dtype=dtype),
    )


def _projected(
    name: str,
    project: Callable[[Tensor, Tree], Tensor],
    solution: Callable[[Tree], Tree],
    hparams: Tree,
    target: Tensor,
) -> KnownProblem:
    return KnownProblem(
        name=name,
        problem=Problem.fixed_point(
            map=lambda params, hparams: {"w": project(params["w"] - 0.8 * (params["w"] - hparams["x"]), hparams)},
            outer=lambda params, _: 0.5 * (params["w"] - target).square().sum(),
        ),
        params={"w": torch.full_like(target, 0.5)},
        hparams=hparams,
        solution=solution,
        step=1.0,
        steps=22,
        symmetric=False,
        definite=False,
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


KNOWN_PROBLEMS: tuple[Callable[..., KnownProblem], ...] = (
    scalar,
    quadratic,
    ridge,
    logistic,
    maml,
    singular,
    outer_only,
    fixed_point,
    markov_decision,
    equality,
    box,
    halfspace,
    envelope,
)


def arguments(known: KnownProblem) -> dict[str, Any]:
    """Return what a face needs of a known problem: the problem, where training starts, and the hyperparameters."""
    return {"problem": known.problem, "params": known.params, "hparams": known.hparams}
