"""The problems of :mod:`benchmarks.problems` in JAX: the same arrays, shapes and losses, without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Tree = dict[str, jax.Array]


@final
@dataclass(frozen=True)
class Task:
    """What a hypergradient is taken of.

    Attributes:
        params: θ at which it is taken.
        hparams: λ, of the same names and shapes.
        inner: the training loss.
        outer: the validation loss.
    """

    params: Tree
    hparams: Tree
    inner: Callable[[Tree, Tree], jax.Array]
    outer: Callable[[Tree, Tree], jax.Array]


def penalty(params: Tree, hparams: Tree) -> jax.Array:
    """Return ½ Σ exp(λ) θ²."""
    return 0.5 * sum((jnp.exp(hparams[key]) * value**2).sum() for key, value in params.items())


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross entropy of integer labels."""
    logs = jax.nn.log_softmax(scores, axis=-1)
    return -jnp.take_along_axis(logs, labels[:, None], axis=-1).mean()


def squares(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Return half the mean squared distance of an example's outputs."""
    return 0.5 * ((values - targets) ** 2).sum(axis=1).mean()


def _logistic(params: Tree, x: jax.Array) -> jax.Array:
    return x @ params["weight"]


def _mlp(params: Tree, x: jax.Array) -> jax.Array:
    depth = len(params) // 2
    for layer in range(depth):
        x = x @ params[f"weight{layer}"].T + params[f"bias{layer}"]
        x = jax.nn.relu(x) if layer < depth - 1 else x
    return x


def _convnet(params: Tree, x: jax.Array) -> jax.Array:
    for layer in range(2):
        x = jax.lax.conv(x, params[f"conv{layer}"], (1, 1), "SAME") + params[f"shift{layer}"][:, None, None]
        x = jax.lax.reduce_window(
            jax.nn.relu(x), np.array(-np.inf, x.dtype), jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        )
    return x.reshape(len(x), -1) @ params["weight"].T + params["bias"]


def _transformer(params: Tree, x: jax.Array) -> jax.Array:
    x = x @ params["embed"]
    batch, length, width = x.shape
    for block in range(2):
        mixed = (_norm(x) @ params[f"qkv{block}"].T).reshape(batch, length, 3, 4, width // 4)
        q, k, v = mixed.transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(width // 4).astype(x.dtype), axis=-1)
        x = x + (weights @ v).swapaxes(1, 2).reshape(batch, length, width) @ params[f"out{block}"].T
        x = x + jnp.tanh(_norm(x) @ params[f"up{block}"].T) @ params[f"down{block}"].T
    return x.mean(axis=1) @ params["head"].T


def _norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


NETWORKS: dict[str, Callable[[Tree, jax.Array], jax.Array]] = {
    "logistic": _logistic,
    "ridge": _logistic,
    "mlp": _mlp,
    "convnet": _convnet,
    "transformer": _transformer,
}


def task(network: str, arrays: Arrays) -> Task:
    """Return a problem as JAX functions, in the arrays' own precision.

    Args:
        network: one of :data:`NETWORKS`.
        arrays: ``x``, ``y``, ``x_valid``, ``y_valid``, and ``params.NAME`` and ``hparams.NAME`` for each parameter.
    """
    jax.config.update("jax_enable_x64", arrays["x"].dtype == np.float64)
    call, loss = NETWORKS[network], squares if network == "ridge" else cross_entropy
    given = {key: jnp.asarray(value) for key, value in arrays.items()}
    params, hparams = (
        {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
        for start in ("params.", "hparams.")
    )

    def inner(params: Tree, hparams: Tree) -> jax.Array:
        return loss(call(params, given["x"]), given["y"]) + penalty(params, hparams)

    def outer(params: Tree, _hparams: Tree) -> jax.Array:
        return loss(call(params, given["x_valid"]), given["y_valid"])

    return Task(params, hparams, inner, outer)


def points(problem: Task, arrays: Arrays) -> list[tuple[Tree, Tree]]:
    """Return (θ, λ) of the problem, and those of later outer steps: ``later.1.params.NAME``, ``later.1.hparams.NAME``.

    Args:
        problem: made of the arrays.
        arrays: the problem's, and perhaps those of later steps.
    """
    found = [(problem.params, problem.hparams)]
    while any(key.startswith(f"later.{len(found)}.") for key in arrays):
        params, hparams = (
            {key: jnp.asarray(arrays[f"later.{len(found)}.{part}.{key}"]) for key in problem.params}
            for part in ("params", "hparams")
        )
        found.append((params, hparams))
    return found


def compiled(
    hypergradient: Callable[[Tree, Tree], Tree], problem: Task, arrays: Arrays, products: int | None
) -> Callable[[], dict[str, Any]]:
    """Compile a hypergradient and return a row's function, which waits for its answers and tells the compilation.

    Args:
        hypergradient: of θ and λ.
        problem: made of the arrays.
        arrays: the problem's, and perhaps those of later steps.
        products: of one hypergradient, where known.
    """
    began = time.process_time()
    program = jax.jit(hypergradient).lower(problem.params, problem.hparams).compile()
    seconds, given = time.process_time() - began, points(problem, arrays)

    def run() -> dict[str, Any]:
        answer = []
        for params, hparams in given:
            found = jax.block_until_ready(program(params, hparams))
            answer += [np.asarray(found[key]) for key in problem.hparams]
        counts = {"products": None if products is None else products * len(given), "compile_seconds": seconds}
        return {"answer": answer, "counts": counts}

    return run
