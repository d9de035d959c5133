"""THE TABLE: one row for every algorithm, linear solver, preconditioner, inner solver and mode.

A row says how to build the algorithm for a known problem, what its answer has to equal there, and which problems it
applies to. The tests in ``test_faces.py`` run every row against every law; a class without a row fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import scipy.sparse.linalg
import torch

import hypergrad as hg
from hypergrad.algorithm import Algorithm
from hypergrad.linear import LinearSolver
from hypergrad.testing import KnownProblem
from hypergrad.tree import Layout
from tests.expected import by_autograd, damped, guided, inverse_series, process_gradient, projections, truncated, truth
from tests.rates import RATES
from tests.row import Row
from tests.single_loop_rows import SINGLE_LOOP


def fitted(known: KnownProblem) -> hg.Training:
    return hg.Training(lambda params, hparams: known.solution(hparams))


def rtol(known: KnownProblem) -> float:
    return 1e-11 if next(iter(known.params.values())).dtype == torch.float64 else 1e-6


def solvable(linear: LinearSolver, known: KnownProblem) -> bool:
    """Whether the linear solver's needs are met by a problem's Jacobian."""
    return (
        known.stationary
        and (known.symmetric or not linear.needs_symmetric)
        and (known.definite or not linear.needs_definite)
        and (known.regular or not isinstance(linear, hg.Nystrom))
    )


def minimises(known: KnownProblem) -> bool:
    """Whether the inner problem has an objective to go down on."""
    return known.symmetric and not known.problem.saddle


def implicit(name: str, linear: Callable[[KnownProblem], LinearSolver], **options: Any) -> Row:
    return Row(
        name=f"implicit-{name}",
        build=lambda known: hg.Implicit(linear(known), inner=fitted(known)),
        applies=lambda known: solvable(linear(known), known),
        **{"expected": truth, **options},
    )


def half(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.bfloat16


def refined(known: KnownProblem) -> hg.Refined:
    dtype = next(iter(known.params.values())).dtype
    return hg.Refined(hg.CG(rtol=1e-2), product_dtype=half(dtype), rtol=rtol(known))


def follows(known: KnownProblem) -> bool:
    """Whether the inner objective takes parameters of half the precision: it holds no tensor of its own."""
    params, hparams = ({k: v.to(half(v.dtype)) for k, v in part.items()} for part in (known.params, known.hparams))
    try:
        value = known.problem.inner(params, hparams) if known.problem.inner is not None else None
    except RuntimeError:
        return False
    return value is not None and value.dtype == next(iter(params.values())).dtype


def neumann(terms: int, known: KnownProblem) -> hg.Neumann:
    return hg.Neumann(terms, step=known.step or 0.5)


IMPLICIT = [
    implicit("cg", lambda known: hg.CG(rtol=rtol(known)), adaptive=True),
    implicit("cg-plain", lambda known: hg.CG(rtol=rtol(known), preconditioner=None), adaptive=True),
    implicit("cg-jacobi", lambda known: hg.CG(rtol=rtol(known), preconditioner=hg.Jacobi(probes=3)), adaptive=True),
    implicit(
        "cg-nystrom",
        lambda known: hg.CG(rtol=rtol(known), preconditioner=hg.NystromPreconditioner(rank=2)),
        adaptive=True,
    ),
    implicit(
        "cg-recycled",
        lambda known: hg.CG(rtol=rtol(known), preconditioner=hg.Recycled(keep=6)),
        adaptive=True,
    ),
    implicit("cg-looking-seldom", lambda known: hg.CG(rtol=rtol(known), check_every=7), adaptive=True),
    implicit("minres", lambda known: hg.MINRES(rtol=rtol(known)), adaptive=True),
    implicit("gmres", lambda known: hg.GMRES(rtol=rtol(known)), adaptive=True),
    implicit("gmres-restarted", lambda known: hg.GMRES(rtol=rtol(known), restart=4, max_steps=300), adaptive=True),
    implicit("normal-cg", lambda known: hg.NormalCG(rtol=rtol(known)), adaptive=True),
    Row(
        name="implicit-refined",
        build=lambda known: hg.Implicit(refined(known), inner=fitted(known)),
        expected=truth,
        applies=lambda known: solvable(hg.CG(), known) and follows(known),
        adaptive=True,
    ),
    implicit("dense", lambda known: hg.Dense()),
    implicit("scipy", lambda known: hg.Scipy(scipy.sparse.linalg.gmres, {"rtol": rtol(known)}), opaque=True),
    implicit("nystrom-full-rank", lambda known: hg.Nystrom(rank=20, damping=0.0), tolerance32=2e-3),
    implicit("neumann-long", partial(neumann, 400), tolerance=1e-8),
    implicit(
        "stochastic",
        lambda known: hg.Stochastic(partial(torch.optim.SGD, lr=known.step or 0.5), steps=200),
    ),
    *(
        implicit(
            f"neumann-{terms}",
            partial(neumann, terms),
            expected=partial(inverse_series, terms=terms),
            exact=False,
            tolerance=1e-10,
        )
        for terms in (0, 1, 5)
    ),
    implicit(
        "t1-t2",
        lambda known: hg.Identity(scale=known.step or 0.5),
        expected=partial(inverse_series, terms=0),
        exact=False,
        tolerance=1e-10,
    ),
    Row(
        name="implicit-damped",
        build=lambda known: hg.Implicit(hg.CG(rtol=rtol(known)), inner=fitted(known), damping=0.3),
        expected=partial(damped, damping=0.3),
        exact=False,
        applies=lambda known: solvable(hg.CG(), known),
        tolerance=1e-9,
        adaptive=True,
    ),
]


def trained_by(name: str, inner: Callable[[KnownProblem], hg.InnerSolver], **options: Any) -> Row:
    """An exact linear solve after each inner solver, on objectives with a minimum."""
    return Row(
        name=f"implicit-after-{name}",
        build=lambda known: hg.Implicit(hg.CG(rtol=rtol(known)), inner=inner(known)),
        applies=lambda known: known.stationary and known.symmetric and known.definite,
        adaptive=True,
        **{"expected": truth, **options},
    )


def tolerance(known: KnownProblem) -> float:
    return 1e-11 if next(iter(known.params.values())).dtype == torch.float64 else 3e-6


INNER = [
    trained_by("newton", lambda known: hg.Newton(tolerance=tolerance(known))),
    trained_by("lbfgs", lambda known: hg.LBFGS(tolerance=tolerance(known))),
    trained_by(
        "gradient-descent", lambda known: hg.GradientDescent(lr=known.step, steps=2000, tolerance=tolerance(known))
    ),
    trained_by(
        "adam",  # a large eps makes the steps shrink with the gradient, so that the iterates settle
        lambda known: hg.Adam(lr=known.step, beta1=0.5, beta2=0.9, eps=1.0, steps=3000, tolerance=tolerance(known)),
    ),
    trained_by(
        "torch-optimizer",
        lambda known: hg.TorchOptimizer(partial(torch.optim.SGD, lr=known.step, momentum=0.3), steps=known.steps * 2),
    ),
    trained_by("training", fitted),
]


def descends(known: KnownProblem) -> bool:
    return known.step > 0


def unrolled(name: str, build: Callable[[KnownProblem], Algorithm[Any]], **options: Any) -> Row:
    return Row(name=f"unrolled-{name}", build=build, **{"expected": truth, "applies": descends, **options})


SMALL_ADAM = hg.Adam(lr=0.05, beta2=0.99, eps=1e-3)


def plain_optimum(known: KnownProblem) -> bool:
    """Whether momentum, which changes the trajectory, still ends at θ*."""
    return known.stationary and known.symmetric and known.definite


def back_propagation(known: KnownProblem, keep: Any, window: int | None = None) -> hg.Unrolled:
    truncate = None if window is None else min(window, known.steps)
    return hg.Unrolled(known.steps, hg.GradientDescent(lr=known.step), truncate=truncate, keep=keep)


def with_momentum(known: KnownProblem, keep: Any, nesterov: bool) -> hg.Unrolled:
    rule = hg.GradientDescent(lr=known.step / 2, momentum=0.4, nesterov=nesterov)
    return hg.Unrolled(known.steps + 50, rule, keep=keep)


def with_adam(known: KnownProblem, keep: Any) -> hg.Unrolled:
    return hg.Unrolled(12, SMALL_ADAM, keep=keep)


def with_torch_rule(known: KnownProblem, keep: Any) -> hg.Unrolled:
    rule = hg.TorchRule(partial(torch.optim.SGD, lr=known.step / 2, momentum=0.4))
    return hg.Unrolled(known.steps + 50, rule, keep=keep)


UNROLLED = [
    *(
        unrolled(
            f"full-{keep}",
            partial(back_propagation, keep=keep),
        )
        for keep in ("graph", "iterates", "sqrt", "log")
    ),
    *(
        unrolled(
            f"{name}-{keep}",
            partial(with_momentum, keep=keep, nesterov=nesterov),
            applies=plain_optimum,
        )
        for name, nesterov in (("momentum", False), ("nesterov", True))
        for keep in ("graph", "sqrt")
    ),
    *(
        unrolled(f"torch-rule-{keep}", partial(with_torch_rule, keep=keep), applies=plain_optimum)
        for keep in ("graph", "sqrt")
    ),
    *(
        unrolled(
            f"adam-{keep}",
            partial(with_adam, keep=keep),
            expected=partial(by_autograd, lr=0.05, steps=12),
            exact=False,
            applies=lambda known: minimises(known) and known.stationary and known.problem.initial is None,
            tolerance=1e-9,
            tolerance32=1e-3,
        )
        for keep in ("graph", "log")
    ),
    *(
        unrolled(
            f"k-rmd-{window}-{keep}",
            partial(back_propagation, keep=keep, window=window),
            expected=partial(truncated, window),
            exact=False,
            tolerance=1e-10,
        )
        for window, keep in ((1, "graph"), (5, "graph"), (5, "iterates"), (5, "log"))
    ),
]


def gradient_descent(known: KnownProblem) -> hg.GradientDescent:
    return hg.GradientDescent(lr=known.step)


def forward_random(known: KnownProblem, distribution: Any, directions: int) -> hg.ForwardMode:
    return hg.ForwardMode(
        known.steps, gradient_descent(known), mode="random", directions=directions, distribution=distribution
    )


def size(known: KnownProblem) -> int:
    return Layout.of(known.hparams).size


FORWARD = [
    Row(
        name="forward-exact",
        build=lambda known: hg.ForwardMode(known.steps, gradient_descent(known)),
        expected=truth,
        applies=descends,
    ),
    Row(
        name="forward-exact-momentum",
        build=lambda known: hg.ForwardMode(
            known.steps + 50, hg.GradientDescent(lr=known.step / 2, momentum=0.4, nesterov=True)
        ),
        expected=truth,
        applies=plain_optimum,
    ),
    Row(
        name="forward-exact-adam",
        build=lambda known: hg.ForwardMode(12, SMALL_ADAM),
        expected=partial(by_autograd, lr=0.05, steps=12),
        exact=False,
        applies=lambda known: minimises(known) and known.stationary and known.problem.initial is None,
        tolerance=1e-9,
        tolerance32=1e-3,
    ),
    Row(
        name="forward-orthonormal-complete",
        build=lambda known: forward_random(known, "orthonormal", size(known)),
        expected=truth,
        applies=descends,
    ),
    *(
        Row(
            name=f"forward-{distribution}",
            build=partial(forward_random, distribution=distribution, directions=2),
            expected=partial(
                projections, build=partial(forward_random, distribution=distribution, directions=2), scale=1.0
            ),
            exact=False,
            applies=descends,
            tolerance=1e-8,
            rate=RATES[f"forward-{distribution}"],
        )
        for distribution in ("rademacher", "gaussian")
    ),
    Row(
        name="forward-guided",
        build=lambda known: hg.ForwardMode(known.steps, gradient_descent(known), mode="guided"),
        expected=guided,
        exact=False,
        applies=descends,
    ),
    Row(
        name="forward-guided-complete",
        build=lambda known: hg.ForwardMode(
            known.steps, gradient_descent(known), mode="guided", directions=size(known) - 1
        ),
        expected=truth,
        applies=lambda known: descends(known) and size(known) > 1,
    ),
]


def runs(known: KnownProblem, **options: Any) -> hg.ZerothOrder:
    dtype = next(iter(known.params.values())).dtype
    step_size = 1e-4 if dtype == torch.float64 else 3e-2
    return hg.ZerothOrder(fitted(known), step_size=step_size, **options)


def remembering(known: KnownProblem) -> hg.ZoRD:
    return hg.ZoRD(fitted(known), radius=0.05, candidates=20)


ZEROTH_ORDER = [
    Row(
        name="zeroth-order-cge",
        build=runs,
        expected=truth,
        tolerance=1e-6,
        tolerance32=3e-3,
    ),
    Row(
        name="zeroth-order-cge-one-sided",
        build=lambda known: runs(known, central=False),
        expected=truth,
        tolerance=1e-3,
        tolerance32=1e-1,
    ),
    Row(
        name="zeroth-order-rge",
        build=lambda known: runs(known, mode="RGE", directions=3),
        expected=lambda known: projections(
            known, lambda known: runs(known, mode="RGE", directions=3), scale=float(size(known))
        ),
        exact=False,
        tolerance=1e-6,
        tolerance32=1e-2,
        rate=RATES["zeroth-order-rge"],
    ),
    Row(
        name="zord",
        build=remembering,
        expected=partial(process_gradient, build=remembering),
        exact=False,
        tolerance=1e-6,
        tolerance32=1e-5,
    ),
]


def plain_descent(known: KnownProblem) -> bool:
    return minimises(known) and descends(known)


def first_unrolled(known: KnownProblem) -> hg.Routed:
    """The first hyperparameter by back-propagation, the others implicitly where that training ends."""
    first, *others = known.hparams
    back = hg.Unrolled(known.steps, gradient_descent(known))
    routes: dict[Any, Algorithm[Any]] = {name: hg.Implicit(hg.CG(rtol=rtol(known))) for name in others}
    return hg.Routed({first: back, **routes})


def outer_direct(known: KnownProblem) -> hg.Routed:
    """What only the outer objective reads directly, the others implicitly, each after its own solve."""
    direct = ("z",) if known.name == "outer_only" else ()
    exact = hg.Implicit(hg.CG(rtol=rtol(known)), inner=fitted(known))
    routes: dict[Any, Algorithm[Any]] = {name: exact for name in known.hparams if name not in direct}
    return hg.Routed(routes | {name: hg.Direct() for name in direct})


ROUTED = [
    Row(name="routed-unrolled-implicit", build=first_unrolled, expected=truth, applies=plain_descent, adaptive=True),
    Row(
        name="routed-implicit-direct",
        build=outer_direct,
        expected=truth,
        applies=lambda known: solvable(hg.CG(), known),
        adaptive=True,
    ),
]


def growing(known: KnownProblem) -> hg.Scheduled:
    algorithm = hg.Implicit(neumann(0, known), inner=fitted(known))
    return hg.Scheduled(algorithm, terms=lambda k: 5 + k)


def lengthening(known: KnownProblem) -> hg.Scheduled:
    return hg.Scheduled(back_propagation(known, "graph"), steps=lambda k: known.steps + 10 * k)


def tightening(known: KnownProblem) -> hg.Scheduled:
    algorithm = hg.Implicit(hg.CG(rtol=0.5), inner=fitted(known))
    return hg.Scheduled(algorithm, {"linear.rtol": lambda k: rtol(known)}, damping=lambda k: 0.0)


SCHEDULED = [
    Row(
        name="scheduled-neumann",
        build=growing,
        expected=partial(inverse_series, terms=5),
        exact=False,
        applies=lambda known: solvable(neumann(0, known), known),
        tolerance=1e-10,
    ),
    Row(name="scheduled-unrolled", build=lengthening, expected=truth, applies=descends),
    Row(
        name="scheduled-cg",
        build=tightening,
        expected=truth,
        applies=lambda known: solvable(hg.CG(), known),
        adaptive=True,
    ),
]


AUTO = [
    Row(
        name="auto",
        build=lambda known: hg.Auto(inner=fitted(known), accuracy=rtol(known)),
        expected=truth,
        applies=lambda known: known.stationary,
        exact=True,
        tolerance=1e-8,
        adaptive=True,
    ),
]


TABLE: list[Row] = [
    *IMPLICIT,
    *INNER,
    *UNROLLED,
    *FORWARD,
    *ZEROTH_ORDER,
    *ROUTED,
    *AUTO,
    *SINGLE_LOOP,
    *SCHEDULED,
]
