"""Laws that hold whatever the numbers are."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hypergrad as hg
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree

SEEDS = st.integers(0, 10_000)
ALGORITHMS: dict[str, hg.Algorithm[Any]] = {
    "cg": hg.Implicit(hg.CG(rtol=1e-13)),
    "minres": hg.Implicit(hg.MINRES(rtol=1e-13)),
    "dense": hg.Implicit(hg.Dense()),
    "neumann": hg.Implicit(hg.Neumann(7, step=0.05)),
    "identity": hg.Implicit(hg.Identity(0.2)),
    "unrolled": hg.Unrolled(6, hg.GradientDescent(lr=0.1, momentum=0.5)),
    "truncated": hg.Unrolled(6, hg.GradientDescent(lr=0.1), truncate=2, keep="iterates"),
    "forward": hg.ForwardMode(6, hg.GradientDescent(lr=0.1)),
}
EACH = pytest.mark.parametrize("name", ALGORITHMS)
FEW = settings(max_examples=8, deadline=None)


class Random:
    """A random smooth, strongly convex problem over two parameter tensors and two hyperparameter tensors."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        root = normal(5, 5)
        self.curvature = root @ root.mT / 5 + torch.eye(5, dtype=torch.float64)
        self.slope, self.targets = normal(5, 3), normal(2, 5)
        self.params = {"u": normal(2, 1), "v": normal(3)}
        self.hparams = {"x": normal(3), "z": normal(2)}

    def join(self, params: Tree) -> Tensor:
        return torch.cat([params["u"].reshape(-1), params["v"]])

    def inner(self, params: Tree, hparams: Tree) -> Tensor:
        w = self.join(params)
        bend = (hparams["z"].exp() * params["u"].reshape(-1).cosh()).sum()
        return 0.5 * w @ self.curvature @ w - w @ self.slope @ hparams["x"] + 0.1 * bend

    def outer(self, which: int) -> Any:
        def objective(params: Tree, hparams: Tree) -> Tensor:
            return (self.join(params) - self.targets[which]).square().sum() + which * hparams["x"].sum()

        return objective

    def gradient(self, algorithm: hg.Algorithm[Any], inner: Any = None, outer: Any = None, **trees: Tree) -> Tree:
        problem = hg.Problem(inner or self.inner, outer or self.outer(0))
        point = {"params": self.params, "hparams": self.hparams, **trees}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hg.errors.HypergradWarning)
            return hg.hypergradient(problem, point["params"], point["hparams"], algorithm).grads


@EACH
@given(seed=SEEDS, weight=st.floats(-3, 3))
@FEW
def test_linear_in_the_outer_objective(name: str, seed: int, weight: float) -> None:
    random, algorithm = Random(seed), ALGORITHMS[name]
    first, second = random.outer(0), random.outer(1)
    both = random.gradient(algorithm, outer=lambda p, h: first(p, h) + weight * second(p, h))
    parts = [random.gradient(algorithm, outer=objective) for objective in (first, second)]
    expected = {key: parts[0][key] + weight * parts[1][key] for key in both}
    assert relative_error(both, expected) < 1e-9


@EACH
@given(seed=SEEDS)
@FEW
def test_order_of_the_keys_does_not_matter(name: str, seed: int) -> None:
    random, algorithm = Random(seed), ALGORITHMS[name]
    reverse = {
        "params": dict(reversed(random.params.items())),
        "hparams": dict(reversed(random.hparams.items())),
    }
    assert relative_error(random.gradient(algorithm, **reverse), random.gradient(algorithm)) < 1e-9


@EACH
@given(seed=SEEDS)
@FEW
def test_orthogonal_change_of_parameters_does_not_matter(name: str, seed: int) -> None:
    random, algorithm = Random(seed), ALGORITHMS[name]
    rotation: Tensor = torch.linalg.qr(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).Q

    def back(params: Tree) -> Tree:
        w = rotation @ params["w"]
        return {"u": w[:2].reshape(2, 1), "v": w[2:]}

    outer = random.outer(0)
    rotated = random.gradient(
        algorithm,
        inner=lambda p, h: random.inner(back(p), h),
        outer=lambda p, h: outer(back(p), h),
        params={"w": rotation.mT @ random.join(random.params)},
    )
    assert relative_error(rotated, random.gradient(algorithm)) < 1e-9


@pytest.mark.parametrize("name", ["cg", "minres", "dense"])
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
@FEW
def test_scale_of_the_inner_objective_does_not_matter(name: str, seed: int, scale: float) -> None:
    """The optimum stays, and H⁻¹ and the mixed derivative scale against each other."""
    random, algorithm = Random(seed), ALGORITHMS[name]
    scaled = random.gradient(algorithm, inner=lambda p, h: scale * random.inner(p, h))
    assert relative_error(scaled, random.gradient(algorithm)) < 1e-8


@given(seed=SEEDS, scale=st.floats(1e-2, 1e2))
@FEW
def test_neumann_with_its_own_step_does_not_see_the_scale_either(seed: int, scale: float) -> None:
    random, algorithm = Random(seed), hg.Implicit(hg.Neumann(6))
    scaled = random.gradient(algorithm, inner=lambda p, h: scale * random.inner(p, h))
    assert relative_error(scaled, random.gradient(algorithm)) < 1e-8


@EACH
@given(seed=SEEDS)
@FEW
def test_direct_part_is_added_with_its_own_sign(name: str, seed: int) -> None:
    random, algorithm = Random(seed), ALGORITHMS[name]
    outer = random.outer(0)
    shifted = random.gradient(algorithm, outer=lambda p, h: outer(p, h) + 3 * h["z"].sum())
    plain = random.gradient(algorithm)
    assert torch.allclose(shifted["z"] - plain["z"], torch.full((2,), 3.0, dtype=torch.float64))
    assert torch.allclose(shifted["x"], plain["x"])


@given(seed=SEEDS)
@FEW
def test_penalty_given_apart_changes_nothing_but_the_cost(seed: int) -> None:
    random = Random(seed)

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        return (hparams["z"].sigmoid().sum() * params["v"].square()).sum() / 4 + params["u"].cosh().log().sum()

    for algorithm in ALGORITHMS.values():
        apart = hg.Problem(random.inner, random.outer(1), penalty=penalty)
        together = hg.Problem(lambda p, h: random.inner(p, h) + penalty(p, h), random.outer(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hg.errors.HypergradWarning)
            found = [hg.hypergradient(p, random.params, random.hparams, algorithm).grads for p in (apart, together)]
        assert relative_error(found[0], found[1]) < 1e-8
