"""A small run with everything that can be lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.errors import InputError
from hypergrad.tree import Tree

GENERATOR = torch.Generator().manual_seed(0)


X, XV = (torch.randn(9, 3, dtype=torch.float64, generator=GENERATOR) for _ in range(2))


TRUTH = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)


Y, YV = (x @ TRUTH + 0.3 * torch.randn(9, dtype=torch.float64, generator=GENERATOR) for x in (X, XV))


def start() -> tuple[Tree, Tree]:
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    hparams = {"decay": torch.full((3,), -1.0, dtype=torch.float64), "scale": torch.tensor(0.5, dtype=torch.float64)}
    return params, hparams


def fit_loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (X, Y) if batch is None else batch
    return ((x @ params["w"]) * hparams["scale"].exp() - y).square().mean()


def shrink(params: Tree, hparams: Tree) -> Tensor:
    return (hparams["decay"].exp() * params["w"].square()).sum() / 10


def inner(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    return fit_loss(params, hparams, batch) + shrink(params, hparams)


def outer(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (XV, YV) if batch is None else batch
    return (x @ params["w"] - y).square().mean() + hparams["scale"].square() / 50


def noisy(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (X, Y) if batch is None else batch
    return inner(params, hparams, (nn.functional.dropout(x, 0.3), y))


DESCENT = hg.GradientDescent(lr=0.1, steps=6)


LOOSE = hg.Implicit(hg.CG(rtol=1e-2), inner=DESCENT, stationarity=math.inf)


MOMENTUM = hg.Unrolled(4, hg.GradientDescent(lr=0.05, momentum=0.7), warm_start=True)


def plain() -> hg.Problem:
    return hg.Problem(inner, outer)


def batches() -> hg.Problem:
    return hg.Problem(
        inner,
        outer,
        inner_data=hg.TensorSampler(X, Y, batch_size=4, seed=1),
        outer_data=hg.TensorSampler(XV, YV, batch_size=2, seed=2),
    )


class Recorder(hg.Callback):
    """Keep what every step said."""

    def __init__(self) -> None:
        self.seen: list[hg.Progress] = []
        self.ended = 0

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self.seen.append(progress)

    def end(self, run: hg.Run) -> None:
        self.ended += 1


def same(left: Any, right: Any) -> bool:
    """Whether two nested plain values are equal, bit for bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return isinstance(right, Mapping) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)  # NaN is the same as NaN


def parts(error: InputError) -> tuple[str, str, str]:
    assert error.passed
    assert error.expected
    assert error.do
    return error.passed, error.expected, error.do


SGD = hg.outer.Torch(torch.optim.SGD, lr=0.1)


def scheduled(scheduler: Callable[..., Any], optimizer: Any = torch.optim.SGD, **options: Any) -> hg.outer.Torch:
    return hg.outer.Torch(optimizer, scheduler, **{"lr": 0.2, **options})


LR = torch.optim.lr_scheduler


ACCURATE = hg.Implicit(hg.CG(), inner=hg.GradientDescent(lr=0.1, steps=300))
RESUMED: dict[str, Callable[[], tuple[hg.Problem, Any, hg.outer.OuterMove]]] = {
    "hoag": lambda: (plain(), ACCURATE, hg.HOAG(lipschitz=0.2)),
    "maid": lambda: (
        plain(),
        ACCURATE,
        hg.MAID(lambda hparams: 0.2 * float(hparams["decay"].exp().min()), 9.0, convex=True, step=1.0),
    ),
    "implicit-cg": lambda: (plain(), LOOSE, SGD),
    "implicit-cg-penalty": lambda: (
        hg.Problem(fit_loss, outer, penalty=shrink),
        hg.Implicit(hg.CG(rtol=1e-2, preconditioner=hg.PenaltyDiagonal(refresh=2)), inner=DESCENT, stationarity=1e9),
        SGD,
    ),
    "implicit-cg-nystrom": lambda: (
        plain(),
        hg.Implicit(
            hg.CG(rtol=1e-2, preconditioner=hg.NystromPreconditioner(rank=1, oversample=0, refresh=3)),
            inner=DESCENT,
            stationarity=math.inf,
        ),
        SGD,
    ),
    "implicit-cg-recycled": lambda: (
        plain(),
        hg.Implicit(hg.CG(rtol=1e-2, preconditioner=hg.Recycled(keep=3)), inner=DESCENT, stationarity=math.inf),
        SGD,
    ),
    "implicit-neumann": lambda: (plain(), hg.Implicit(hg.Neumann(3), inner=DESCENT, stationarity=math.inf), SGD),
    "unrolled-momentum": lambda: (plain(), MOMENTUM, SGD),
    "unrolled-adam": lambda: (plain(), hg.Unrolled(4, hg.Adam(lr=0.05), keep="sqrt", warm_start=True), SGD),
    "forward-random": lambda: (plain(), hg.ForwardMode(4, hg.GradientDescent(lr=0.1), mode="random"), SGD),
    "zeroth-order-random": lambda: (plain(), hg.ZerothOrder(DESCENT, mode="RGE", warm_start=True), SGD),
    "adam": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)),
    "adam-groups": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1, groups={"scale": {"lr": 0.3}})),
    "sgd-momentum-clipped": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.SGD, lr=0.1, momentum=0.9, clip=0.1)),
    "lbfgs": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.LBFGS, lr=0.5, max_iter=2)),
    "lbfgs-wolfe": lambda: (
        plain(),
        hg.Implicit(inner=hg.Newton()),
        hg.outer.Torch(torch.optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
    ),
    "lbfgsb": lambda: (plain(), hg.Implicit(inner=hg.Newton()), hg.outer.LBFGSB(iterations=2)),
    "step-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.StepLR, step_size=2, gamma=0.5))),
    "multi-step-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.MultiStepLR, milestones=[2, 5, 6], gamma=0.5))),
    "cosine": lambda: (plain(), LOOSE, scheduled(partial(LR.CosineAnnealingLR, T_max=8))),
    "one-cycle": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.OneCycleLR, max_lr=0.3, total_steps=8), torch.optim.Adam),
    ),
    "one-cycle-momentum": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.OneCycleLR, max_lr=0.3, total_steps=8), momentum=0.9),
    ),
    "plateau": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.ReduceLROnPlateau, patience=1, threshold=0.5, factor=0.3)),
    ),
    "lambda-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)))),
    "sequential": lambda: (
        plain(),
        LOOSE,
        scheduled(
            lambda optimizer: LR.SequentialLR(
                optimizer,
                [LR.LinearLR(optimizer, 0.1, total_iters=2), LR.ExponentialLR(optimizer, 0.7)],
                milestones=[4],
            )
        ),
    ),
    "warm-up-then-plateau": lambda: (
        plain(),
        LOOSE,
        scheduled(
            lambda optimizer: [
                LR.LinearLR(optimizer, 0.1, total_iters=4),
                LR.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.3),
            ]
        ),
    ),
    "accumulated": lambda: (
        hg.Problem(inner, outer, outer_data=hg.Accumulated(hg.TensorSampler(XV, YV, batch_size=2), 3)),
        LOOSE,
        hg.outer.Torch(torch.optim.SGD, lr=0.1, clip_value=0.05),
    ),
    "cyclic": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=2, cycle_momentum=False)),
    ),
    "batches": lambda: (batches(), MOMENTUM, SGD),
    "batches-implicit": lambda: (batches(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)),
    "dropout": lambda: (hg.Problem(noisy, outer), MOMENTUM, SGD),
    "dropout-and-batches": lambda: (
        hg.Problem(noisy, outer, inner_data=hg.TensorSampler(X, Y, batch_size=4)),
        LOOSE,
        hg.outer.Torch(torch.optim.LBFGS, lr=0.02, max_iter=2),
    ),
}


def run(setup: str, steps: int, *callbacks: hg.Callback, resume: Path | None = None, seed: int = 5) -> hg.Fitted:
    problem, algorithm, move = RESUMED[setup]()
    return hg.Trainer(problem, algorithm, move, callbacks, seed=seed).fit(*start(), steps, resume=resume)


def cut(tensors: Tree) -> Tree:
    return {key: value[..., :1] if value.ndim else value.expand(2) for key, value in tensors.items()}


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda state: state | {"format": 0}, "'format': 0"),
    "hparams-renamed": (lambda state: state | {"hparams": {"decoy": state["hparams"]["decay"]}}, "'decoy'"),
    "hparams-shape": (lambda state: state | {"hparams": cut(state["hparams"])}, "'decay'"),
    "hparams-dtype": (
        lambda state: state | {"hparams": {k: v.float() for k, v in state["hparams"].items()}},
        "float32",
    ),
    "params-renamed": (lambda state: state | {"params": {"v": state["params"]["w"]}}, "'v'"),
    "params-shape": (lambda state: state | {"params": cut(state["params"])}, "'w'"),
    "params-dtype": (lambda state: state | {"params": {k: v.float() for k, v in state["params"].items()}}, "float32"),
    "algorithm-state-fields": (lambda state: state | {"algorithm_state": {"params": state["params"]}}, "fields"),
    "algorithm-state-shape": (
        lambda state: state | {"algorithm_state": state["algorithm_state"] | {"params": cut(state["params"])}},
        "'w'",
    ),
    "outer-state-empty": (lambda state: state | {"outer_state": {}}, "outer"),
    "outer-state-groups": (
        lambda state: (
            state
            | {"outer_state": state["outer_state"] | {"optimizer": {"state": {}, "param_groups": [{"params": []}]}}}
        ),
        "outer",
    ),
    "samplers-fewer": (lambda state: state | {"samplers": state["samplers"][:1]}, "samplers"),
    "samplers-other": (lambda state: state | {"samplers": [{}, {}]}, "samplers"),
    "samplers-none": (lambda state: state | {"samplers": [None, None]}, "samplers"),
}


def strict(line: str) -> Any:
    """Parse one line as JSON proper, which knows no NaN."""

    def never(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=never)


TARGET = torch.tensor([3.0, -4.0, 0.25], dtype=torch.float64)


DOMAINS: dict[str, tuple[Any, Callable[[Tensor], bool], Tensor]] = {
    "box": (hg.Box(-1.0, 1.0), lambda x: bool((x.abs() <= 1).all()), TARGET.clamp(-1, 1)),
    "positive": (hg.Positive(0.1), lambda x: bool((x >= 0.1).all()), TARGET.clamp(min=0.1)),
    "unit": (hg.UnitInterval(), lambda x: bool(((x >= 0) & (x <= 1)).all()), TARGET.clamp(0, 1)),
    "simplex": (
        hg.Simplex(),
        lambda x: bool((x >= 0).all()) and float(x.sum()) == pytest.approx(1.0),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    ),
    "ball": (hg.Ball(2.0), lambda x: float(x.norm()) <= 2 * (1 + 1e-12), 2 * TARGET / TARGET.norm()),
}


MOVES: dict[str, Any] = {
    "hoag": hg.HOAG(lipschitz=1.5),
    "maid": hg.MAID(1.0, 1.0, mixed=1.0, convex=True, step=0.5),
    "sgd": hg.outer.Torch(torch.optim.SGD, lr=0.5),
    "sgd-far-too-long": hg.outer.Torch(torch.optim.SGD, lr=50.0),
    "adam": hg.outer.Torch(torch.optim.Adam, lr=0.5),
    "lbfgs": hg.outer.Torch(torch.optim.LBFGS, lr=1.0, max_iter=3),
    "lbfgsb": hg.outer.LBFGSB(iterations=5),
}


NO_BOX = ("simplex", "ball")


PAIRS = [(kind, move) for kind in DOMAINS for move in MOVES if not (move == "lbfgsb" and kind in NO_BOX)]
