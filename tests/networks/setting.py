"""A network with its data and hyperparameters, as a user has them and as plain functions in float64."""

from __future__ import annotations

import copy
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from hypergrad.tree import Tree
from tests.networks.zoo import NETWORKS, Network

SEED, TRAIN, VALID = 11, 8, 6


def build(network: Network, dtype: torch.dtype, device: str, *, quiet: bool) -> nn.Module:
    """Return the module; its parameters are those of float32 in every dtype. ``quiet`` switches dropout off."""
    torch.manual_seed(3)
    model = network.make().to(device, dtype)
    for module in model.modules():
        if quiet and isinstance(module, nn.Dropout):
            module.p = 0.0
        elif quiet and hasattr(module, "dropout"):
            vars(module)["dropout"] = 0.0
    placed: Any = model
    return cast(nn.Module, placed.to(memory_format=network.layout))


def examples(network: Network, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % network.classes
    if network.tokens:
        return torch.randint(network.tokens, (count, *network.shape), generator=generator), y
    return torch.randn(count, *network.shape, generator=generator), y


@dataclass
class Setting:
    """What a user has.

    Attributes:
        name: of the network.
        dtype: of parameters, hyperparameters and data.
        device: where all of it is.
        autocast: whether the losses run the model in bfloat16.
        quiet: whether dropout is off.
    """

    name: str
    dtype: torch.dtype
    device: str = "cpu"
    autocast: bool = False
    quiet: bool = False
    model: nn.Module = field(init=False)
    hparams: Tree = field(init=False)

    def __post_init__(self) -> None:
        network = NETWORKS[self.name]
        self.model = build(network, self.dtype, self.device, quiet=self.quiet)
        values = {"weight": torch.linspace(-1, 1, TRAIN), "decay": torch.tensor(-1.0)}
        self.hparams = {key: value.to(self.device, self.dtype).requires_grad_() for key, value in values.items()}
        self.train, self.valid = (self._moved(*examples(network, *draw)) for draw in ((TRAIN, 0), (VALID, 1)))

    def _moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        layout = NETWORKS[self.name].layout
        x = x.to(self.device, self.dtype, memory_format=layout) if x.is_floating_point() else x.to(self.device)
        return x, y.to(self.device)

    @property
    def params(self) -> Tree:
        """The parameters that are trained."""
        return {key: value for key, value in self.model.named_parameters() if value.requires_grad}

    def predict(self, x: Tensor, tensors: Tree | None) -> Tensor:
        """Call the model, with other tensors in place of its own if they are given."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            out: Any = self.model(x) if tensors is None else torch.func.functional_call(self.model, tensors, (x,))
        value: Tensor = out.to(self.dtype)
        return value

    def inner_of(self, params: Tree, hparams: Tree, tensors: Tree | None) -> Tensor:
        x, y = self.train
        each = cross_entropy(self.predict(x, tensors), y, reduction="none")
        shrinkage = torch.stack([value.square().sum() for value in params.values()]).sum()
        value: Tensor = (hparams["weight"].sigmoid() * each).mean() + 0.1 * hparams["decay"].exp() * shrinkage
        return value

    def outer_of(self, hparams: Tree, tensors: Tree | None) -> Tensor:
        x, y = self.valid
        if NETWORKS[self.name].judged_in_eval:
            self.model.eval()
        value = cross_entropy(self.predict(x, tensors), y) + 0.1 * hparams["decay"].square()
        self.model.train()
        return value

    def inner(self) -> Tensor:
        """The training loss, a closure over the live model."""
        return self.inner_of(self.params, self.hparams, None)

    def outer(self) -> Tensor:
        """The validation loss."""
        return self.outer_of(self.hparams, None)

    def inner_function(self, params: Tree, hparams: Tree) -> Tensor:
        """The same as a function of both trees; the buffers are the model's own."""
        return self.inner_of(params, hparams, params)

    def outer_function(self, params: Tree, hparams: Tree) -> Tensor:
        return self.outer_of(hparams, params)


class Twin:
    """The same problem in float64, by plain torch.autograd and without gradient checkpointing.

    Every evaluation starts from the same buffers. ``g`` and ``f`` draw their noise from torch's generator.
    """

    def __init__(self, name: str, device: str, *, quiet: bool) -> None:
        self.setting = Setting(name, torch.float32, device, quiet=quiet)
        self.setting.dtype = torch.float64
        self.setting.model.double()
        self.setting.train, self.setting.valid = (
            (x.double() if x.is_floating_point() else x, y) for x, y in (self.setting.train, self.setting.valid)
        )
        self.buffers = {key: value.clone() for key, value in self.setting.model.named_buffers()}
        self.theta = {key: value.detach().requires_grad_() for key, value in self.setting.params.items()}
        self.lam = {key: value.detach().double().requires_grad_() for key, value in self.setting.hparams.items()}

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Attention and weight norm by kernels with a right double backward, no checkpoints, one draw of noise."""
        checkpointing = unittest.mock.patch("tests.networks.zoo.checkpoint", lambda body, x, use_reentrant: body(x))
        composite = unittest.mock.patch("torch._weight_norm", weight_norm)
        with checkpointing, composite, sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(SEED)
            yield

    def _tensors(self, theta: Tree) -> Tree:
        return theta | {key: value.clone() for key, value in self.buffers.items()}

    def g(self, theta: Tree) -> Tensor:
        return self.setting.inner_of(theta, self.lam, self._tensors(theta))

    def f(self, theta: Tree) -> Tensor:
        return self.setting.outer_of(self.lam, self._tensors(theta))


def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """The fused kernel has a wrong second derivative."""
    out: Tensor = v * (g / torch.norm_except_dim(v, 2, dim))
    return out


@dataclass
class Untouched:
    """Everything of the user's that a hypergradient may not move, as it was."""

    setting: Setting
    optimizer: torch.optim.Optimizer

    def __post_init__(self) -> None:
        self.before = copy.deepcopy(self._look())
        self.objects = self._objects()

    def _look(self) -> dict[str, Any]:
        model, device = self.setting.model, self.setting.device
        named: Tree = {f"param {key}": value for key, value in model.named_parameters()}
        named |= {f"buffer {key}": value for key, value in model.named_buffers()}
        named |= {f"hparam {key}": value for key, value in self.setting.hparams.items()}
        return {
            **{key: value.detach() for key, value in named.items()},
            **{f"grad of {key}": value.grad for key, value in named.items() if not key.startswith("hparam")},
            **{f"version of {key}": value._version for key, value in named.items()},
            "requires grad": {key: value.requires_grad for key, value in named.items()},
            "training": {key: module.training for key, module in model.named_modules()},
            "optimizer": self.optimizer.state_dict(),
            "cpu generator": torch.get_rng_state(),
            "device's generator": torch.cuda.get_rng_state() if device == "cuda" else None,
            "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        }

    def _objects(self) -> dict[str, int]:
        modules = self.setting.model.named_modules()
        kinds = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
        return {f"{n}.{k}.{e}": id(v) for n, m in modules for k in kinds for e, v in vars(m)[k].items()}

    def moved(self) -> list[str]:
        """Return the names of what is another now."""
        after, objects = self._look(), self._objects()
        exchanged = [key for key in self.objects | objects if self.objects.get(key) != objects.get(key)]
        return exchanged + [key for key, value in self.before.items() if not same(value, after[key])]


def same(one: Any, other: Any) -> bool:
    """Whether two nested containers of tensors agree bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
