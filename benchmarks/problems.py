"""The problems that peers are compared on: arrays, and what torch computes with them.

Nothing here imports this library, so that a peer's process can use it in an environment of its own. Every problem has
one log penalty λ for each parameter: inner g = data loss + ½ Σ exp(λ) θ², outer f = data loss on validation examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, dropout, linear, max_pool2d, scaled_dot_product_attention

DEVICE = torch.device(os.environ.get("HYPERGRAD_BENCHMARK_DEVICE", "cpu"))
"""Where tensors live: the harness sets the variable for each process."""

Arrays = Mapping[str, np.ndarray[Any, Any]]
Tree = dict[str, Tensor]


@final
@dataclass(frozen=True)
class Task:
    """What a hypergradient is taken of.

    Attributes:
        params: θ at which it is taken.
        hparams: λ, of the same names and shapes.
        data: the training loss without its penalty.
        penalty: ½ Σ exp(λ) θ².
        outer: the validation loss.
    """

    params: Tree
    hparams: Tree
    data: Callable[[Tree, Tree], Tensor]
    penalty: Callable[[Tree, Tree], Tensor]
    outer: Callable[[Tree, Tree], Tensor]

    def inner(self, params: Tree, hparams: Tree) -> Tensor:
        """Return the whole training loss."""
        return self.data(params, hparams) + self.penalty(params, hparams)


def synchronize() -> None:
    """Wait until the device has done what it was told, so that a clock means something."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def penalty(params: Tree, hparams: Tree) -> Tensor:
    """Return ½ Σ exp(λ) θ²."""
    return 0.5 * torch.stack([(hparams[key].exp() * value.square()).sum() for key, value in params.items()]).sum()


def _logistic(params: Tree, x: Tensor) -> Tensor:
    return x @ params["weight"]


def _mlp(params: Tree, x: Tensor) -> Tensor:
    depth = len(params) // 2
    for layer in range(depth):
        x = linear(x, params[f"weight{layer}"], params[f"bias{layer}"])
        x = x.relu() if layer < depth - 1 else x
    return x


def _convnet(params: Tree, x: Tensor) -> Tensor:
    x = max_pool2d(conv2d(x, params["conv0"], params["shift0"], padding=1).relu(), 2)
    x = max_pool2d(conv2d(x, params["conv1"], params["shift1"], padding=1).relu(), 2)
    return linear(x.flatten(1), params["weight"], params["bias"])


def _transformer(params: Tree, x: Tensor) -> Tensor:
    """Return class scores of sequences: two blocks of attention and a feed-forward layer, without dropout."""
    x = x @ params["embed"]
    batch, length, width = x.shape
    for block in range(2):
        q, k, v = linear(_norm(x), params[f"qkv{block}"]).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            mixed = scaled_dot_product_attention(q, k, v)
        x = x + linear(mixed.transpose(1, 2).reshape(batch, length, width), params[f"out{block}"])
        x = x + linear(torch.tanh(linear(_norm(x), params[f"up{block}"])), params[f"down{block}"])
    return linear(x.mean(dim=1), params["head"])


def _dropout(params: Tree, x: Tensor) -> Tensor:
    """Return class scores of a network with one hidden layer, of whose units a tenth is dropped."""
    return linear(dropout(linear(x, params["weight0"]).relu(), 0.1, training=True), params["weight1"])


class _Normalised(nn.Module):
    """The same network with its hidden layer normalised over the batch, which moves running statistics."""

    def __init__(self, units: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(units, affine=False, device=DEVICE, dtype=dtype)

    def forward(self, params: Tree, x: Tensor) -> Tensor:
        return linear(self.norm(linear(x, params["weight0"])).relu(), params["weight1"])


NORMS: list[nn.BatchNorm1d] = []
"""The layers of the problems ``batchnorm`` that were made, for whoever asks how far their statistics moved."""


def _norm(x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


NETWORKS: dict[str, Callable[[Tree, Tensor], Tensor]] = {
    "logistic": _logistic,
    "ridge": _logistic,
    "dropout": _dropout,
    "mlp": _mlp,
    "convnet": _convnet,
    "transformer": _transformer,
}


def task(network: str, arrays: Arrays) -> Task:
    """Return a problem as torch functions.

    Args:
        network: one of :data:`NETWORKS`, or ``"batchnorm"``.
        arrays: ``x``, ``y``, ``x_valid``, ``y_valid``, and ``params.NAME`` and ``hparams.NAME`` for each parameter.
    """
    if network == "batchnorm":
        module = _Normalised(len(arrays["params.weight0"]), torch.from_numpy(arrays["x"]).dtype)
        NORMS.append(module.norm)
    call = module if network == "batchnorm" else NETWORKS[network]
    loss = _squares if network == "ridge" else cross_entropy
    given = {key: torch.from_numpy(np.ascontiguousarray(value)).to(DEVICE) for key, value in arrays.items()}
    params, hparams = (
        {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
        for start in ("params.", "hparams.")
    )

    def data(params: Tree, _hparams: Tree) -> Tensor:
        return loss(call(params, given["x"]), given["y"])

    def outer(params: Tree, _hparams: Tree) -> Tensor:
        return loss(call(params, given["x_valid"]), given["y_valid"])

    return Task(params, hparams, data, penalty, outer)


def _squares(values: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared distance of an example's outputs."""
    return 0.5 * (values - targets).square().sum(1).mean()


def shapes(network: str, width: int, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a network.

    Args:
        network: one of :data:`NETWORKS`.
        width: hidden units, channels or the transformer's width.
        inputs: features of an example, pixels on a side of an image, or features of a token.
        classes: number of classes.
    """
    if network == "logistic":
        return {"weight": (inputs, classes)}
    if network == "mlp":
        sizes = [(width, inputs), (width, width), (classes, width)]
        weights = {f"weight{layer}": size for layer, size in enumerate(sizes)}
        return weights | {f"bias{layer}": size[:1] for layer, size in enumerate(sizes)}
    if network == "convnet":
        kernels = {"conv0": (width, 1, 3, 3), "shift0": (width,), "conv1": (width, width, 3, 3), "shift1": (width,)}
        return {**kernels, "weight": (classes, width * (inputs // 4) ** 2), "bias": (classes,)}
    blocks = {
        f"{name}{block}": size
        for block in range(2)
        for name, size in {
            "qkv": (3 * width, width),
            "out": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
        }.items()
    }
    return {"embed": (inputs, width), **blocks, "head": (classes, width)}


def random_arrays(
    network: str, *, width: int, batch: int, inputs: int, classes: int = 10, length: int = 16, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Return a problem of random examples in float32, for measuring cost: θ scaled by fan-in, λ = −7."""
    rng = np.random.default_rng(seed)
    example = {"convnet": (1, inputs, inputs), "transformer": (length, inputs)}.get(network, (inputs,))
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for part in ("", "_valid"):
        arrays[f"x{part}"] = rng.standard_normal((batch, *example), dtype=np.float32)
        arrays[f"y{part}"] = rng.integers(classes, size=batch)
    for name, size in shapes(network, width, inputs, classes).items():
        fan = size[0] if name in ("weight", "embed") and network in ("logistic", "transformer") else size[1:]
        scale = float(np.sqrt(np.prod(fan))) if np.prod(fan) else 1.0
        flat = len(size) == 1
        values = np.zeros(size) if flat else rng.standard_normal(size) / scale
        arrays[f"params.{name}"] = values.astype(np.float32)
        arrays[f"hparams.{name}"] = np.full(size, -7.0, dtype=np.float32)
    return arrays
