"""Rows of THE TABLE for single-loop methods: without noise they settle at closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import hypergrad as hg
from hypergrad.testing import KnownProblem
from hypergrad.tree import Layout, Tree, detached, leaves
from tests.expected import inverse_series, truth
from tests.rates import RATES
from tests.row import Row

FEW = {"scalar", "quadratic", "ridge", "outer_only", "fixed_point"}
"""Problems on which a method is run that makes many passes an iteration."""


def some(known: KnownProblem) -> bool:
    return known.name in FEW


def light(known: KnownProblem) -> bool:
    return known.name in {"scalar", "outer_only", "fixed_point"}


def objectives(known: KnownProblem) -> bool:
    return known.name in {"scalar", "outer_only"}


def enough(known: KnownProblem) -> int:
    return 2 * known.steps + 20


def looped(name: str, kind: Any, **settings: Any) -> Callable[[KnownProblem], Any]:
    def build(known: KnownProblem) -> Any:
        chosen = {key: value(known) if callable(value) else value for key, value in settings.items()}
        return kind(step_size=known.step, **{"adjoint_iterations": enough(known), **chosen})

    return build


def row(name: str, kind: Any, *, expected: Any = truth, **options: Any) -> Row:
    settings = options.pop("settings")
    return Row(
        name=name,
        build=looped(name, kind, **settings),
        expected=expected,
        rate=RATES[name],
        **{"exact": expected is truth, "applies": some, "tolerance": 1e-8 if expected is truth else 1e-10, **options},
    )


def response_projected(known: KnownProblem) -> Tree:
    """The direct part, and the rest of dF projected on the directions of the first iteration."""
    layout = Layout.of(known.hparams)
    direct = known.problem.outer_gradients(known.trained(), known.hparams).hparams
    flat = layout.flatten({key: direct.get(key, torch.zeros_like(value)) for key, value in known.hparams.items()})
    rest = layout.flatten(known.hypergradient()) - flat
    vectors = torch.stack(perturbed(known).directions_at(0, layout))
    return layout.views(flat + (vectors @ rest) @ vectors / len(vectors))


def perturbed(known: KnownProblem) -> hg.PZOBO:
    radius = 1e-4 if next(iter(known.params.values())).dtype == torch.float64 else 3e-2
    return hg.PZOBO(step_size=known.step, inner_steps=enough(known), directions=3, radius=radius)


PENALTY = 30.0


def penalised(known: KnownProblem) -> hg.F2SA:
    step = known.step / 3
    return hg.F2SA(
        step_size=step, penalty=PENALTY, penalised_step_size=step / (1 + PENALTY), inner_steps=20 * enough(known)
    )


def penalised_difference(known: KnownProblem) -> Tree:
    """The formula of F2SA with both minimisers from Newton's method."""
    problem = known.problem

    def both(params: Tree, hparams: Tree) -> torch.Tensor:
        return problem.outer_value(params, hparams) + PENALTY * problem.inner_value(params, hparams)

    tight = hg.Newton(tolerance=1e-12 if next(iter(known.params.values())).dtype == torch.float64 else 1e-5)
    above = tight.run(hg.Problem(both, both), known.params, known.hparams).params
    below = tight.run(problem, known.params, known.hparams).params
    lam = leaves(known.hparams)
    value = both(leaves(above), lam) - PENALTY * problem.inner_value(leaves(below), lam)
    slopes = torch.autograd.grad(value, list(lam.values()), materialize_grads=True)
    return dict(zip(lam, slopes, strict=True))


def barrier(known: KnownProblem) -> hg.BOME:
    return hg.BOME(step_size=known.step / 2, inner_steps=3, eta=0.5)


def barrier_direction(known: KnownProblem) -> Tree:
    """The direction of BOME's first iteration, by plain autograd on one scalar of (θ, λ)."""
    problem, theta, lam = known.problem, leaves(known.params), leaves(known.hparams)
    solved = dict(known.params)
    for _ in range(3):
        slopes = problem.residual(leaves(solved), known.hparams)
        solved = {key: value - known.step / 2 * slopes[key] for key, value in solved.items()}
    inputs = [*theta.values(), *lam.values()]
    gap = problem.inner_value(theta, lam) - problem.inner_value(leaves(solved), lam)
    gaps = torch.autograd.grad(gap, inputs, materialize_grads=True)
    outers = torch.autograd.grad(problem.outer_value(theta, lam), inputs, materialize_grads=True)
    along = sum(float((g * f).sum()) for g, f in zip(gaps, outers, strict=True))
    length = sum(float(g.square().sum()) for g in gaps)
    weight = max(0.0, 0.5 - along / length) if length else 0.0
    moved = [f + weight * g for f, g in zip(outers, gaps, strict=True)]
    return dict(zip(lam, moved[len(theta) :], strict=True))


def seldom(known: KnownProblem, refinement: hg.EpochSGD | None) -> hg.BOREP:
    count = known.steps + 20
    return hg.BOREP(
        step_size=known.step,
        linear_step_size=known.step,
        inner_steps=3,
        refinement=refinement,
        iterations=count,
        adjoint_iterations=count,
    )


def blockwise_v1(known: KnownProblem) -> hg.BSVRBv1:
    count = 2 * known.steps
    return hg.BSVRBv1(inner_step=known.step, mu=1e-6, iterations=count, adjoint_iterations=count)


def blockwise_v2(known: KnownProblem) -> hg.BSVRBv2:
    count = 2 * known.steps
    return hg.BSVRBv2(inner_step=known.step, radius=math.inf, iterations=count, adjoint_iterations=count)


def joint_descent(known: KnownProblem) -> hg.LVHBA:
    return hg.LVHBA(step_size=0.2, inner_step_size=0.3, center_step_size=0.2, penalty=1.0, power=0.3)


def joint_direction(known: KnownProblem) -> Tree:
    """d(f/c₀ + g(y) − g(θ⁺)) by autograd, θ⁺ one gradient step of 0.3 from y, then the domain's gradient mapping."""
    problem, lam, point = known.problem, leaves(known.hparams), leaves(known.params)
    slopes = torch.autograd.grad(problem.inner_value(point, lam), list(point.values()))
    moved = {k: (v - 0.3 * s).detach() for (k, v), s in zip(point.items(), slopes, strict=True)}
    total = problem.outer_value(detached(point), lam) + problem.inner_value(point, lam)
    total = total - problem.inner_value(leaves(moved), lam)
    found = torch.autograd.grad(total, list(lam.values()), materialize_grads=True)
    direction = dict(zip(lam, found, strict=True))
    free = {k: v.detach() - 0.2 * direction[k] for k, v in lam.items()}
    landed = problem.project(free)
    return {k: direction[k] + (free[k] - landed[k]) / 0.2 for k in lam}


SINGLE_LOOP = [
    row("soba", hg.SOBA, settings={"iterations": enough}),
    row("saba", hg.SABA, settings={"iterations": enough}),
    row("srba", hg.SRBA, settings={"iterations": enough, "period": 7}),
    row("spaba", hg.SPABA, settings={"iterations": enough, "probability": 0.2}),
    row("fsla", hg.FSLA, settings={"iterations": enough}, applies=light),
    row("amigo", hg.AmIGO, settings={"inner_steps": enough, "linear_steps": enough, "adjoint_iterations": 1}),
    row(
        "stocbio",
        hg.StocBiO,
        settings={"inner_steps": enough, "terms": 5, "adjoint_iterations": 1},
        expected=partial(inverse_series, terms=5),
    ),
    row(
        "ttsa",
        hg.TTSA,
        settings={"iterations": enough, "terms": 1},
        expected=partial(inverse_series, terms=0),
        applies=light,
    ),
    row(
        "bsa",
        hg.BSA,
        settings={"inner_steps": enough, "terms": 1, "adjoint_iterations": 1},
        expected=partial(inverse_series, terms=0),
        applies=light,
    ),
    row(
        "mrbo",
        hg.MRBO,
        settings={"iterations": enough, "terms": 2},
        expected=partial(inverse_series, terms=2),
        applies=light,
    ),
    row(
        "sustain",
        hg.SUSTAIN,
        settings={"iterations": enough, "terms": 1},
        expected=partial(inverse_series, terms=0),
        applies=light,
    ),
    row(
        "vrbo",
        hg.VRBO,
        settings={"iterations": lambda known: known.steps, "terms": 2, "period": 9},
        expected=partial(inverse_series, terms=2),
        applies=light,
    ),
    Row(
        name="pzobo",
        rate=RATES["pzobo"],
        build=perturbed,
        expected=response_projected,
        exact=False,
        applies=objectives,
        tolerance=1e-6,
        tolerance32=2e-2,
    ),
    Row(
        name="f2sa",
        rate=RATES["f2sa"],
        build=penalised,
        expected=penalised_difference,
        exact=False,
        applies=objectives,
        tolerance=1e-8,
        tolerance32=1e-2,
    ),
    Row(
        name="bome",
        build=barrier,
        expected=barrier_direction,
        exact=False,
        applies=objectives,
        tolerance=1e-10,
        rate=RATES["bome"],
    ),
    Row(
        name="bo-rep",
        build=partial(seldom, refinement=hg.EpochSGD(epochs=2, steps=5)),
        expected=truth,
        applies=some,
        rate=RATES["bo-rep"],
    ),
    Row(
        name="bo-rep-plain",
        build=partial(seldom, refinement=None),
        expected=truth,
        applies=light,
        rate=RATES["bo-rep"],
    ),
    Row(
        name="lv-hba",
        build=joint_descent,
        expected=joint_direction,
        exact=False,
        applies=lambda known: known.symmetric and not known.problem.saddle and known.problem.initial is None,
        tolerance=1e-10,
    ),
    Row(
        name="bsvrb-v1",
        build=blockwise_v1,
        expected=truth,
        applies=lambda known: some(known) and known.definite,
        rate=RATES["bsvrb-v1"],
    ),
    Row(
        name="bsvrb-v2",
        build=blockwise_v2,
        expected=truth,
        applies=lambda known: some(known) and known.definite,
        rate=RATES["bsvrb-v2"],
    ),
]
