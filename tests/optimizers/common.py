"""The optimizers of torch, with the options that are tuned and the values they are tuned at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.tree import Tree, cloned

START = {"a": torch.tensor([[1.5, -2.0, 0.4], [0.3, 0.1, 0.2]]), "b": torch.tensor([0.7, -0.3])}


def inner(params: Tree, _: Tree) -> Tensor:
    a, b = params["a"], params["b"]
    return (1 - a[0]).square().sum() + (a[1] - a[0].square()).square().sum() + (0.1 * b**4 + b).sum() + a[0, 0] * b[0]


def outer(params: Tree, _: Tree) -> Tensor:
    return params["a"].sin().sum() + params["b"].square().sum()


def start(dtype: torch.dtype = torch.float64) -> Tree:
    return {key: value.to(dtype) for key, value in START.items()}


@dataclass(frozen=True)
class Case:
    """An optimizer.

    Attributes:
        kind: its class.
        options: it is made with.
        tuned: names of options, all of them tuned at once.
    """

    kind: Any
    options: dict[str, Any]
    tuned: tuple[str, ...]

    def make(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = self.kind(tensors, **self.options)
        return made

    def settings(self) -> tuple[dict[str, Any], Tree]:
        """Return settings and hyperparameters at the options' values."""
        group = self.make([torch.zeros(2, 2)]).param_groups[0]
        settings: dict[str, Any] = {}
        hparams: Tree = {}
        for name in self.tuned:
            value = group[name]
            several = value if isinstance(value, tuple) else (value,)
            keys = [f"{name}{spot}" if isinstance(value, tuple) else name for spot in range(len(several))]
            settings[name] = tuple(hg.Tuned(key) for key in keys) if isinstance(value, tuple) else hg.Tuned(name)
            hparams |= {key: torch.tensor(float(v), dtype=torch.float64) for key, v in zip(keys, several, strict=True)}
        return settings, hparams

    def trained(self, params: Tree, steps: int, scheduler: Any = None) -> Tree:
        """Return what the optimizer makes of parameters in a plain loop."""
        tensors = {key: value.requires_grad_() for key, value in cloned(params).items()}
        optimizer = self.make(list(tensors.values()))
        schedule = scheduler(optimizer) if scheduler else None
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(inner(tensors, {}))
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return {key: value.detach() for key, value in tensors.items()}


CASES = {
    "sgd": Case(torch.optim.SGD, {"lr": 0.01}, ("lr", "weight_decay", "momentum", "dampening")),
    "sgd-momentum": Case(
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
        ("lr", "momentum", "dampening", "weight_decay"),
    ),
    "sgd-nesterov": Case(
        torch.optim.SGD, {"lr": 0.01, "momentum": 0.8, "nesterov": True}, ("lr", "momentum", "weight_decay")
    ),
    "sgd-maximize": Case(torch.optim.SGD, {"lr": 0.001, "momentum": 0.5, "maximize": True}, ("lr", "momentum")),
    "adam": Case(torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95)}, ("lr", "betas", "weight_decay")),
    "adam-amsgrad": Case(
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.7), "amsgrad": True, "weight_decay": 0.1},
        ("lr", "betas", "weight_decay"),
    ),
    "adamw": Case(torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95)}, ("lr", "betas", "weight_decay")),
    "adamw-amsgrad": Case(
        torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.7), "amsgrad": True}, ("lr", "betas", "weight_decay")
    ),
    "rmsprop": Case(torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9}, ("lr", "alpha", "weight_decay")),
    "rmsprop-centered": Case(
        torch.optim.RMSprop,
        {"lr": 0.01, "alpha": 0.9, "centered": True, "momentum": 0.5, "weight_decay": 0.1},
        ("lr", "alpha", "momentum", "weight_decay"),
    ),
    "adagrad": Case(torch.optim.Adagrad, {"lr": 0.02, "lr_decay": 0.1}, ("lr", "lr_decay", "weight_decay")),
    "adadelta": Case(torch.optim.Adadelta, {"lr": 0.5}, ("lr", "rho", "weight_decay")),
    "adamax": Case(torch.optim.Adamax, {"lr": 0.01, "betas": (0.8, 0.95)}, ("lr", "betas", "weight_decay")),
    "nadam": Case(
        torch.optim.NAdam, {"lr": 0.01, "betas": (0.8, 0.95)}, ("lr", "betas", "weight_decay", "momentum_decay")
    ),
    "nadamw": Case(
        torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}, ("lr", "weight_decay")
    ),
    "radam": Case(torch.optim.RAdam, {"lr": 0.01, "betas": (0.8, 0.95)}, ("lr", "betas", "weight_decay")),
    "asgd": Case(torch.optim.ASGD, {"lr": 0.01, "lambd": 0.2, "t0": 3}, ("lr", "lambd", "alpha", "weight_decay")),
    "rprop": Case(torch.optim.Rprop, {"lr": 0.01}, ("etas", "step_sizes")),
    "adafactor": Case(torch.optim.Adafactor, {"lr": 0.01}, ("lr", "weight_decay", "beta2_decay")),
}
