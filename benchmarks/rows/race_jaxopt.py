"""Races of jaxopt: ``GradientDescent`` with implicit derivatives by a linear solver, or unrolled; compiled.

One compiled function is an outer step. It is compiled once a process for each shape, off the clock: the data are its
arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxopt.linear_solve import solve_cg

from benchmarks.race import Arrays, drive

DECAY = 1e-3
"""As in the torch problem, which this environment cannot import."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam."""


def version() -> str:
    """Return what computes."""
    return f"jaxopt {metadata.version('jaxopt')} on jax {jax.__version__}"


def _scores(name: str, params: Any, x: Any) -> Any:
    if name == "cleaning linear":
        return x @ params["weight"].T + params["bias"]
    if name == "cleaning mlp":
        return jnp.tanh(x @ params["weight0"].T + params["bias0"]) @ params["weight1"].T + params["bias1"]
    return x @ params["weight"]


def _losses(name: str, params: Any, x: Any, y: Any) -> Any:
    scores = _scores(name, params, x)
    if name == "penalties":
        return jax.nn.softplus(scores) - y * scores
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1)[:, 0]


def _inner(name: str, params: Any, hparams: Any, data: Any) -> Any:
    losses = _losses(name, params, data["x"], data["y"])
    if name == "penalties":
        return losses.mean() + 0.5 * jnp.vdot(jnp.exp(hparams["log_penalty"]), params["weight"] ** 2)
    penalty = 0.5 * DECAY * sum(jnp.sum(value**2) for value in params.values())
    return jnp.vdot(jax.nn.sigmoid(hparams["logits"]), losses) / len(losses) + penalty


def _series(rate: float, terms: int) -> Any:
    """Return the Neumann series, which jaxopt lacks, as a linear solver of one's own."""

    def solve(matvec: Any, b: Any, **_options: Any) -> Any:
        def advance(_: Any, state: Any) -> Any:
            term, total = state
            term = jax.tree.map(lambda t, h: t - rate * h, term, matvec(term))
            return term, jax.tree.map(jnp.add, total, term)

        _, total = jax.lax.fori_loop(0, terms, advance, (b, b))
        return jax.tree.map(lambda t: rate * t, total)

    return solve


def _conjugate(terms: int) -> Any:
    def solve(matvec: Any, b: Any, **_options: Any) -> Any:
        return solve_cg(matvec, b, maxiter=terms, tol=0.0)

    return solve


@cache
def _step(name: str, method: str, rate: float, inner: int, terms: int) -> Any:
    """Return the compiled outer step."""
    implicit = {"solve": _series(rate, terms) if method == "neumann" else _conjugate(terms)}
    solver = jaxopt.GradientDescent(
        lambda params, hparams, data: _inner(name, params, hparams, data),
        maxiter=inner,
        stepsize=rate,
        acceleration=False,
        tol=0.0,
        implicit_diff=method != "unrolled",
        implicit_diff_solve=None if method == "unrolled" else implicit["solve"],
        unroll=True if method == "unrolled" else "auto",
    )

    def outer(hparams: Any, params: Any, data: Any) -> Any:
        trained = solver.run(params, hparams, data).params
        return _losses(name, trained, data["x_valid"], data["y_valid"]).mean(), trained

    def step(hparams: Any, params: Any, moments: Any, count: Any, outer_rate: Any, data: Any) -> Any:
        (_, trained), grads = jax.value_and_grad(outer, has_aux=True)(hparams, params, data)
        first, second = moments
        first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, first, grads)
        second = jax.tree.map(lambda m, g: BETAS[1] * m + (1 - BETAS[1]) * g * g, second, grads)

        def moved(value: Any, m: Any, v: Any) -> Any:
            m, v = m / (1 - BETAS[0] ** count), v / (1 - BETAS[1] ** count)
            return value - outer_rate * m / (jnp.sqrt(v) + EPSILON)

        return jax.tree.map(moved, hparams, first, second), trained, (first, second), grads

    return jax.jit(step)


def _row(method: str) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Any:
        if settings.get("momentum"):
            raise ValueError("jaxopt's GradientDescent has no momentum")
        call = _step(name, method, settings["rate"], settings["inner"], settings["terms"])
        data = {key: jnp.asarray(arrays[key]) for key in ("x", "y", "x_valid", "y_valid")}

        def tree(start: str) -> Any:
            return {k.removeprefix(start): jnp.asarray(v) for k, v in arrays.items() if k.startswith(start)}

        names, given = list(tree("params.")), tree("hparams.")
        zeros = jax.tree.map(jnp.zeros_like, given)
        jax.block_until_ready(call(given, tree("params."), (zeros, zeros), 1.0, 1.0, data))

        def start() -> Any:
            hparams, params, moments, count = tree("hparams."), tree("params."), (zeros, zeros), 0

            def advance() -> list[Any]:
                nonlocal hparams, params, moments, count
                count += 1
                found = call(hparams, params, moments, float(count), settings["outer_rate"], data)
                hparams, params, moments, grads = jax.block_until_ready(found)
                return [np.asarray(value) for value in grads.values()]

            return advance, lambda: ([params[key] for key in names], list(hparams.values()))

        return lambda: drive(settings["steps"], start)

    return build


ROWS = {"neumann": _row("neumann"), "cg": _row("cg"), "unrolled": _row("unrolled")}
