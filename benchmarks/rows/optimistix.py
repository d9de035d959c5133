"""optimistix: the implicit adjoint of a root find over lineax's CG, compiled; the setup is the compilation.

The root find takes no step (``max_steps=0``), so that the hypergradient is the one at the given point.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import lineax
import optimistix

from benchmarks.rows.jax_problems import Arrays, Tree, compiled, task


def version() -> str:
    """Return what computes."""
    names = ("optimistix", "lineax", "jax")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def cg(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Any:
    """Conjugate gradients to tolerances ``rtol`` and ``atol``, or for K steps where both are 0."""
    problem = task(name, arrays)
    gradient = jax.grad(problem.inner)
    rtol, atol = settings.get("rtol", 0.0), settings.get("atol", 0.0)
    adjoint = optimistix.ImplicitAdjoint(lineax.CG(rtol=rtol, atol=atol, max_steps=settings["terms"]))
    finder = optimistix.Newton(rtol=1e-3, atol=1e-3)

    def hypergradient(params: Tree, hparams: Tree) -> Any:
        def loss(given: Tree) -> jax.Array:
            found = optimistix.root_find(
                gradient,
                finder,
                params,
                given,
                max_steps=0,
                adjoint=adjoint,
                throw=False,
                tags=frozenset({lineax.positive_semidefinite_tag}),
            )
            return problem.outer(found.value, given)

        return jax.grad(loss)(hparams)

    # one more for the residual of the start, and one for every tenth step
    terms = settings["terms"]
    products = None if rtol or atol else terms + 1 + terms // 10
    return compiled(hypergradient, problem, arrays, products)


ROWS = {"cg": cg}
