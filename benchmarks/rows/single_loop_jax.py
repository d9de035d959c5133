"""SOBA and SABA written in JAX and jitted: all steps in one ``lax.scan``, or one call a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

jax.config.update("jax_enable_x64", val=True)
jax.config.update("jax_platforms", "cpu")

Arrays = Mapping[str, np.ndarray[Any, Any]]


def version() -> str:
    """Return what computes."""
    return f"jax {jax.__version__}"


def _quadratic() -> tuple[Any, Any, tuple[str, ...], tuple[str, ...]]:
    def inner(w: Any, x: Any, batch: Any) -> Any:
        a, u, v, c = batch
        return 0.5 * ((a @ w) ** 2).mean() + ((u @ x) * (v @ w)).mean() + (c @ w).mean()

    def outer(w: Any, x: Any, batch: Any) -> Any:
        a, b, c, e = batch
        return 0.5 * (((a @ w) ** 2).mean() + ((b @ x) ** 2).mean()) + (c @ w + e @ x).mean()

    return inner, outer, ("a", "u", "v", "c"), ("a_valid", "b_valid", "c_valid", "e_valid")


def _logistic() -> tuple[Any, Any, tuple[str, ...], tuple[str, ...]]:
    def outer(w: Any, _x: Any, batch: Any) -> Any:
        features, y = batch
        return jax.nn.softplus(-y * (features @ w)).mean()

    def inner(w: Any, x: Any, batch: Any) -> Any:
        return outer(w, x, batch) + 0.5 * (jnp.exp(x) * w**2).sum()

    return inner, outer, ("x", "y"), ("x_valid", "y_valid")


def _derivatives(inner: Any, outer: Any, z: Any, q: Any, x: Any, below: Any, above: Any) -> tuple[Any, Any]:
    """Return (∇_θ g, H q, (∂²g/∂θ∂λ)ᵀ q) and (∂f/∂θ, ∂f/∂λ) as two flat vectors."""
    slope, pull = jax.vjp(lambda z, x: jax.grad(inner)(z, x, below), z, x)
    return jnp.concatenate([slope, *pull(q)]), jnp.concatenate(jax.grad(outer, (0, 1))(z, x, above))


def _row(method: str, *, scan: bool) -> Any:
    def build(kind: str, arrays: Arrays, settings: Mapping[str, Any]) -> Any:
        inner, outer, names, valid = (_quadratic if kind == "quadratic" else _logistic)()
        data = [tuple(jnp.asarray(arrays[name]) for name in part) for part in (names, valid)]
        orders = [jnp.asarray(arrays[f"batches_{name}"]) for name in "ij"]
        places = [jnp.asarray(arrays[f"places_{name}"]).reshape(settings["steps"], -1) for name in "ij"]
        rate, p = settings["step"], arrays["params"].size

        def batch(which: int, place: Any) -> Any:
            return tuple(part[orders[which][place]] for part in data[which])

        def iterate(z: Any, q: Any, x: Any, tables: Any, i: Any, j: Any) -> tuple[Any, ...]:
            rows = _derivatives(inner, outer, z, q, x, batch(0, i), batch(1, j))
            if method == "SABA":
                (table, mean), (outer_table, outer_mean) = tables
                changes = rows[0] - table[i], rows[1] - outer_table[j]
                sums = changes[0] + mean, changes[1] + outer_mean
                tables = (
                    (table.at[i].set(rows[0]), mean + changes[0] / len(table)),
                    (outer_table.at[j].set(rows[1]), outer_mean + changes[1] / len(outer_table)),
                )
                rows = sums
            below, above = rows
            moved = z - rate * below[:p], q - rate * (below[p : 2 * p] - above[:p])
            return (*moved, above[p:] - below[2 * p :], tables)

        def step(carry: Any, chosen: Any) -> tuple[Any, None]:
            z, q, x, tables = carry
            direction = x
            for k in range(len(chosen[0])):
                z, q, direction, tables = iterate(z, q, x, tables, chosen[0][k], chosen[1][k])
            return (z, q, x - rate * direction, tables), None

        start: Any = (jnp.asarray(arrays["params"]), jnp.zeros(p), jnp.asarray(arrays["hparams"]), ())
        if method == "SABA":
            z, q, x, _ = start
            some = jnp.asarray(0)
            every = (
                lax.map(
                    lambda k: _derivatives(inner, outer, z, q, x, batch(0, k), batch(1, some))[0],
                    jnp.arange(len(orders[0])),
                ),
                lax.map(
                    lambda k: _derivatives(inner, outer, z, q, x, batch(0, some), batch(1, k))[1],
                    jnp.arange(len(orders[1])),
                ),
            )
            tables = tuple((rows, rows.mean(axis=0)) for rows in every)
            below, above = tables[0][1], tables[1][1]
            start = (z - rate * below[:p], q - rate * (below[p : 2 * p] - above[:p]), x, tables)
        pairs = list(zip(*(np.asarray(part) for part in places), strict=True))
        whole = jax.jit(lambda carry: lax.scan(step, carry, tuple(places))[0])
        single = jax.jit(step)

        def run() -> dict[str, Any]:
            if scan:
                carry = whole(start)
            else:
                carry = start
                for pair in pairs:
                    carry, _ = single(carry, pair)
            return {"answer": [np.asarray(jax.block_until_ready(carry)[2])], "counts": {}}

        jax.block_until_ready(run()["answer"])
        return run

    return build


ROWS = {
    "SOBA": _row("SOBA", scan=True),
    "SABA": _row("SABA", scan=True),
    "SOBA, a call a step": _row("SOBA", scan=False),
}
