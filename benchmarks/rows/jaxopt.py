"""jaxopt: ``custom_root`` over its linear solvers, compiled; the setup is the compilation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jaxopt
from jaxopt.implicit_diff import custom_root
from jaxopt.linear_solve import solve_cg, solve_normal_cg

from benchmarks.rows.jax_problems import Arrays, Tree, compiled, task


def version() -> str:
    """Return what computes."""
    return f"jaxopt {metadata.version('jaxopt')} on jax {jax.__version__}"


def _implicit(solver: Any, products: Any) -> Any:
    def build(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Any:
        problem = task(name, arrays)

        def given(params: Tree, _hparams: Tree) -> Tree:
            return params

        solve = custom_root(jax.grad(problem.inner), solve=solver(settings), reference_signature=given)(given)

        def hypergradient(params: Tree, hparams: Tree) -> Any:
            return jax.grad(lambda at: problem.outer(solve(params, at), at))(hparams)

        return compiled(hypergradient, problem, arrays, products(settings))

    return build


def unrolled(name: str, arrays: Arrays, settings: Mapping[str, Any]) -> Any:
    """K steps of gradient descent, differentiated through; there is no window in the library."""
    if "window" in settings:
        raise ValueError("jaxopt has no truncated unrolling")
    problem = task(name, arrays)
    solver = jaxopt.GradientDescent(
        problem.inner,
        maxiter=settings["steps"],
        stepsize=settings["lr"],
        acceleration=False,
        tol=0.0,
        implicit_diff=False,
    )

    def hypergradient(params: Tree, hparams: Tree) -> Any:
        return jax.grad(lambda given: problem.outer(solver.run(params, given).params, given))(hparams)

    return compiled(hypergradient, problem, arrays, None)


def _series(settings: Mapping[str, Any]) -> Any:
    """Return the Neumann series, which jaxopt lacks, as a linear solver of one's own."""
    step, terms = settings["step"], settings["terms"]

    def solve(matvec: Any, b: Any) -> Any:
        def advance(_: Any, state: Any) -> Any:
            term, total = state
            term = jax.tree.map(lambda t, h: t - step * h, term, matvec(term))
            return term, jax.tree.map(jax.numpy.add, total, term)

        _, total = jax.lax.fori_loop(0, terms, advance, (b, b))
        return jax.tree.map(lambda t: step * t, total)

    return solve


def _cg(settings: Mapping[str, Any]) -> Any:
    return partial(solve_cg, maxiter=settings["terms"], tol=settings.get("rtol", 0.0))


def _normal_cg(settings: Mapping[str, Any]) -> Any:
    return partial(solve_normal_cg, maxiter=settings["terms"], tol=settings.get("rtol", 0.0))


ROWS = {
    "neumann": _implicit(_series, lambda settings: settings["terms"]),
    # one more for the residual of the start; the solver counts products only where it stops at the limit
    "cg": _implicit(_cg, lambda settings: None if settings.get("rtol") else settings["terms"] + 1),
    "normal cg": _implicit(_normal_cg, lambda settings: None if settings.get("rtol") else 2 * settings["terms"] + 3),
    "unrolled": unrolled,
}
