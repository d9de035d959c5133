"""Roots, fixed points and constrained problems with known answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hypergrad.problem import Problem
from hypergrad.testing.problems.known import KnownProblem, maker
from hypergrad.tree import Tree


def fixed_point(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return z = tanh(A z + x) with ‖A‖₂ = ½ and A not symmetric, f = ½‖z − t‖²."""
    normal = maker(dtype, 5)
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
    normal = maker(dtype, 6)
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
        problem=Problem.constrained(
            inner=lambda params, _: 0.5 * params["w"].square().sum(),
            outer=lambda params, _: params["w"][0].square(),
            equality=lambda params, hparams: params["w"].sum() - hparams["x"],
        ),
        params={"w": torch.zeros(2, dtype=dtype), "equality_multiplier": torch.zeros((), dtype=dtype)},
        hparams={"x": torch.tensor(3.0, dtype=dtype)},
        solution=lambda hparams: {"w": hparams["x"].expand(2) / 2, "equality_multiplier": -hparams["x"] / 2},
        step=0.0,
        steps=0,
        optimum={"x": torch.tensor(0.0, dtype=dtype)},
        definite=False,
    )


def inequality(dtype: torch.dtype = torch.float64) -> KnownProblem:
    """Return min ½‖w − x‖² subject to aᵀw ≤ r, which is active, and −10 ≤ w₁, which is not; f = ½‖w − t‖²."""
    a, target = torch.tensor([1.0, 2.0, 2.0], dtype=dtype), torch.tensor([0.2, 0.3, 0.4], dtype=dtype)

    def solution(hparams: Tree) -> Tree:
        multiplier = ((a @ hparams["x"] - hparams["r"]) / (a @ a)).clamp(min=0)
        return {
            "w": hparams["x"] - a * multiplier,
            "inequality_multiplier": torch.stack([multiplier, torch.zeros_like(multiplier)]),
        }

    return KnownProblem(
        name="inequality",
        problem=Problem.constrained(
            inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
            outer=lambda params, _: 0.5 * (params["w"] - target).square().sum(),
            inequality=lambda params, hparams: torch.stack([a @ params["w"] - hparams["r"], -10 - params["w"][0]]),
        ),
        params={"w": torch.zeros(3, dtype=dtype), "inequality_multiplier": torch.zeros(2, dtype=dtype)},
        hparams={
            "x": torch.tensor([1.0, 0.5, 1.5], dtype=dtype),
            "r": torch.tensor(2.0, dtype=dtype),
        },
        solution=solution,
        step=0.0,
        steps=0,
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
