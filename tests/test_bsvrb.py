"""BSVRB: the optimum of many inner problems from samples of a few, its estimators, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.errors import InputError, NonFiniteError, NumericalError, TreeError, UnsupportedError
from hypergrad.schedules import power
from hypergrad.solvers.bilevel.blocks import Block, Stack
from hypergrad.solvers.bilevel.bsvrb import BSVRBv1, BSVRBv2, clipped, in_ball, solved
from hypergrad.solvers.bilevel.msvr import BSVRBState, msvr, unbiased_gamma
from hypergrad.testing import problems
from hypergrad.testing.conformance import check_conformance, relative_error
from hypergrad.tree import Tree, pack, unpack

BOTH: list[Any] = [BSVRBv1, BSVRBv2]
M, P, D = 20, 5, 4


def maker(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


normal = maker()
ROOTS = torch.linalg.qr(normal(M, D, D)).Q
A = ROOTS @ torch.diag_embed(torch.linspace(1, 2, D, dtype=torch.float64).expand(M, D)) @ ROOTS.mT
B = 0.9 * torch.linalg.qr(normal(P, P)).Q[:D] + 0.3 * normal(M, D, P)
C, TARGET = 0.1 * normal(M, D), 0.3 * normal(D) + 0.1 * normal(M, D)
INVERSE = torch.linalg.inv(A)


def inner(params: Tree, hparams: Tree, block: Block) -> Tensor:
    """½ yᵀA_i y − yᵀ(B_i x + c_i), one such term for each stream r of noise, in its own y_r and x_r."""
    y, x = params["y"], hparams["x"]
    slope = x @ block.row(B).mT + block.row(C)
    if block.batch is not None:
        slope = slope + block.row(block.batch)
    return 0.5 * ((y @ block.row(A)) * y).sum() - (y * slope).sum()


def outer(params: Tree, hparams: Tree, block: Block) -> Tensor:
    target = block.row(TARGET) if block.batch is None else block.row(TARGET) + block.row(block.batch)
    return 0.5 * (params["y"] - target).square().sum() + 0.05 * hparams["x"].square().sum()


def true_gradient(x: Tensor) -> Tensor:
    """∇F for each stream, from the closed form y_i = A_i⁻¹ (B_i x + c_i)."""
    y = torch.einsum("mde,rme->rmd", INVERSE, torch.einsum("mdp,rp->rmd", B, x) + C)
    return torch.einsum("mdp,mde,rme->rp", B, INVERSE, y - TARGET) / M + 0.1 * x


class Noise:
    """Normal numbers of scale 0.3 for each block and stream."""

    def __init__(self, seed: int, streams: int, scale: float = 0.3) -> None:
        self.seed, self.shape, self.scale, self.count = seed, (M, streams, D), scale, 0

    def draw(self) -> Tensor:
        self.count += 1
        return self.scale * maker(1_000_003 * self.seed + self.count)(*self.shape)

    def full(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float64)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]


EXACT = hg.Problem(inner, outer)


def noisy(streams: int, scale: float = 0.3) -> hg.Problem:
    return hg.Problem(inner, outer, inner_data=Noise(1, streams, scale), outer_data=Noise(2, streams, scale))


def start(streams: int = 1) -> tuple[Tree, Tree]:
    y, x = torch.zeros(M, streams, D, dtype=torch.float64), torch.zeros(streams, P, dtype=torch.float64)
    return {"y": y}, {"x": x}


def descend(problem: hg.Problem, algorithm: Any, steps: int, rate: Callable[[int], float], streams: int = 1) -> Tensor:
    """‖∇F‖ of every stream after every step of λ ← λ − rate · z."""
    params, hparams = start(streams)
    state, norms = algorithm.init(problem, params, hparams), []
    for step in range(steps):
        found, state = algorithm.step(problem, state, hparams)
        hparams = {"x": hparams["x"] - rate(step) * found.grads["x"]}
        norms.append(true_gradient(hparams["x"]).norm(dim=1))
    return torch.stack(norms)


@pytest.mark.parametrize("kind", BOTH)
def test_all_blocks_without_noise_reach_the_optimum(kind: Any) -> None:
    norms = descend(EXACT, kind(blocks=M, inner_step=0.3, alpha=0.5, beta=0.5), 500, lambda _: 0.15)
    assert float(true_gradient(start()[1]["x"]).norm()) > 0.5
    assert float(norms[-1]) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_the_error_falls_with_the_number_of_sampled_blocks(kind: Any) -> None:
    errors = {}
    for sampled in (1, 4, 20):
        share = min(1.0, sampled / 4)

        def q(step: int) -> float:
            return float((1 + step / 200) ** (-1 / 3))

        def weight(step: int) -> float:
            return 0.5 * q(step) ** 2

        def inner_step(step: int, share: float = share) -> float:
            return 0.05 * share * q(step)

        def rate(step: int, share: float = share) -> float:
            return 0.02 * math.sqrt(share) * q(step)

        algorithm = kind(blocks=M, sampled=sampled, inner_step=inner_step, alpha=weight, beta=weight)
        streams = 3 if kind is BSVRBv2 else 1
        norms = descend(noisy(streams), algorithm, 1500, rate, streams)
        errors[sampled] = float(norms[750:].mean())
    assert errors[20] <= errors[4] <= errors[1] < 0.1


@pytest.mark.slow
def test_the_rate_is_that_of_the_paper() -> None:
    """ε after O(ε⁻³) iterations: log ‖∇F‖ falls with a slope of −1/3 in log t, over three streams of noise."""

    def q(step: int) -> float:
        return float((1 + step / 20) ** (-1 / 3))

    algorithm = BSVRBv2(
        blocks=M,
        inner_step=lambda step: 0.3 * q(step),
        alpha=lambda step: 0.5 * q(step) ** 2,
        beta=lambda step: 0.5 * q(step) ** 2,
    )
    norms = descend(noisy(3), algorithm, 2048, lambda step: 0.1 * q(step), streams=3)
    ends = [128, 256, 512, 1024, 2048]
    errors = torch.stack([norms[end // 2 : end].mean(0) for end in ends]).log()
    times = torch.tensor(ends, dtype=torch.float64).log()
    times -= times.mean()
    slopes = (times[:, None] * errors).sum(0) / times.square().sum()
    assert float(slopes.mean()) == pytest.approx(-1 / 3, abs=0.15)
    assert float(slopes.max()) < -0.1


@pytest.mark.parametrize("kind", BOTH)
def test_without_the_correction_it_diverges(kind: Any) -> None:
    """The same seed and settings: γ of the formula converges, γ = 0 does not."""
    settings: dict[str, Any] = {"blocks": M, "sampled": 4, "inner_step": 0.15, "alpha": 0.1}
    if kind is BSVRBv2:
        settings["radius"] = math.inf

    def worst(gamma: float | None) -> float:
        try:
            return float(descend(EXACT, kind(**settings, gamma=gamma), 500, lambda _: 0.1)[400:].max())
        except NumericalError:
            return math.inf

    assert worst(None) < 0.4
    assert worst(0.0) > 100


@pytest.mark.parametrize("sampled", [1, 4, 10, 20])
def test_the_estimator_has_the_error_that_the_formula_says(sampled: int) -> None:
    """Over all blocks: (p (1−α)² + 1 − p) |e|² + (p (γ−(1−α))² + 1 − p) |D|², p = I/m, e and D uncorrelated or not."""
    generator, alpha, blocks = torch.Generator().manual_seed(0), 0.3, 20
    p, gamma = sampled / blocks, unbiased_gamma(alpha, sampled, blocks)
    assert p * (1 - alpha) * (gamma - (1 - alpha)) - (1 - p) == pytest.approx(0, abs=1e-12)
    tracked, old, new = (torch.randn(3, dtype=torch.float64, generator=generator) for _ in range(3))
    picks = torch.rand(200_000, generator=generator) < p
    error = torch.where(picks[:, None], msvr(tracked, new, old, alpha, gamma), tracked) - new
    measured = float(error.square().sum(1).mean())
    e, drift = (tracked - old).square().sum(), (new - old).square().sum()
    expected = (p * (1 - alpha) ** 2 + 1 - p) * e + (p * (gamma - (1 - alpha)) ** 2 + 1 - p) * drift
    assert measured == pytest.approx(float(expected), rel=0.02)


def test_hessians_of_logistic_blocks_are_tracked_with_their_sign() -> None:
    data, labels = normal(6, 30, 3), (normal(6, 30) > 0).double()

    def loss(params: Tree, hparams: Tree, block: Block) -> Tensor:
        logits = block.row(data) @ params["w"]
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, block.row(labels))
        return fit + 0.5 * hparams["decay"].exp() * params["w"].square().sum()

    problem = hg.Problem(loss, loss)
    params, hparams = {"w": normal(6, 3)}, {"decay": torch.tensor(-9.0, dtype=torch.float64)}
    algorithm = BSVRBv1(blocks=6, sampled=2, inner_step=0.1, mu=1e-6)
    state = algorithm.init(problem, params, hparams)
    for _ in range(30):
        state = algorithm.step(problem, state, hparams)[1]
    p = torch.sigmoid(torch.einsum("mnd,md->mn", data, state.params["w"]))
    truth = torch.einsum("mn,mnd,mne->mde", p * (1 - p), data, data) / 30
    assert float(torch.linalg.eigvalsh(state.solution).min()) > 0.01
    assert torch.allclose(state.solution, truth, atol=0.05)


def test_eigenvalues_are_clipped_and_nothing_else() -> None:
    root = torch.linalg.qr(normal(3, 4, 4)).Q
    values = torch.tensor([-1.0, 0.05, 0.3, 7.0], dtype=torch.float64)
    lifted, changed = clipped(root @ torch.diag(values) @ root.mT, 0.1)
    assert torch.allclose(lifted, root @ torch.diag(values.clamp(min=0.1)) @ root.mT, atol=1e-12)
    assert int(changed) == 3
    kept, changed = clipped(lifted, 0.01)
    assert torch.allclose(kept, lifted, atol=1e-12)
    assert int(changed) == 0
    rows = normal(3, 4)
    assert torch.allclose(torch.einsum("mde,me->md", lifted, solved(lifted, 0.1, rows)), rows, atol=1e-12)


def test_rows_are_shortened_to_the_ball() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    shortened, changed = in_ball(rows, 1.0)
    assert torch.allclose(shortened, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert int(changed) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_first_direction_of_all_blocks(kind: Any) -> None:
    """v1: Hessians are exact at once; v2: v = 0, so that the direct part is left."""
    params, hparams = {"y": normal(M, 2, D)}, {"x": normal(2, P)}
    algorithm = kind(blocks=M, sampled=3)
    found, _ = algorithm.step(EXACT, algorithm.init(EXACT, params, hparams), hparams)
    expected = 0.1 * hparams["x"]
    if kind is BSVRBv1:
        gap = params["y"] - TARGET[:, None]
        expected = expected + torch.einsum("mdp,mde,mre->rp", B, INVERSE, gap) / M
    assert torch.allclose(found.grads["x"], expected, atol=1e-12)
    assert found.report.cost == algorithm.budget(M * 2 * D, 2 * P)


def test_one_block_with_whole_weights_is_soba() -> None:
    """m = I = 1 and α = β = 1: γ = 0, and no memory is left."""
    known = problems.quadratic()
    mine = BSVRBv2(inner_step=0.1, linear_step=0.05, alpha=1.0, beta=1.0, radius=math.inf)
    theirs = hg.SOBA(step_size=0.1, linear_step_size=0.05)
    state, other = (
        mine.init(known.problem, known.params, known.hparams),
        theirs.init(known.problem, known.params, known.hparams),
    )
    hparams = known.hparams
    for _ in range(20):
        found, state = mine.step(known.problem, state, hparams)
        same, other = theirs.step(known.problem, other, hparams)
        assert relative_error(found.grads, same.grads) < 1e-13
        assert relative_error(found.params, same.params) < 1e-13
        hparams = {"x": hparams["x"] - 0.05 * found.grads["x"]}


@pytest.mark.parametrize("kind", BOTH)
def test_settled_blocks_give_the_exact_hypergradient(kind: Any) -> None:
    """At a fixed λ, with sampled blocks; the direct part ∂f/∂λ keeps its sign."""
    params, hparams = start()[0], {"x": normal(1, P)}
    algorithm = kind(blocks=M, sampled=10, inner_step=0.15, iterations=400, beta=lambda t: 1 / (1 + t / 40))
    state = algorithm.init(EXACT, params, hparams)
    state = algorithm.step(EXACT, state, hparams)[1]
    settled = dataclasses.replace(algorithm, sampled=None, beta=1.0, iterations=1)
    found, _ = settled.step(EXACT, state, hparams)
    assert relative_error(found.grads, {"x": true_gradient(hparams["x"])}) < 1e-6


def test_a_loop_over_blocks_gives_what_all_at_once_give() -> None:
    def branching(params: Tree, hparams: Tree, block: Block) -> Tensor:
        factor = 2.0 if block.index.item() % 2 else 1.0  # no vmap can follow this
        return factor * inner(params, hparams, block)

    def masked(params: Tree, hparams: Tree, block: Block) -> Tensor:
        return torch.where(block.index % 2 == 1, 2.0, 1.0) * inner(params, hparams, block)

    finals = []
    for objective, vectorise in ((branching, True), (branching, False), (masked, True), (masked, False)):
        problem = hg.Problem(objective, outer)
        algorithm = BSVRBv1(blocks=M, sampled=5, inner_step=0.02, vectorise=vectorise)
        params, hparams = start()
        state = algorithm.init(problem, params, hparams)
        for _ in range(4):
            found, state = algorithm.step(problem, state, hparams)
        finals.append(found.grads)
    for other in finals[1:]:
        assert relative_error(other, finals[0]) < 1e-12


def test_several_tensors_and_a_penalty_of_each_block() -> None:
    """The same problem with y in two tensors and its quadratic part as a penalty."""

    def joined(params: Tree) -> Tree:
        return {"y": torch.cat([params["a"].reshape(1, 2), params["b"]], dim=1)}

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        return sum(((hparams["x"][0, 0] + 2) * value.square().sum() for value in params.values()), torch.zeros(()))

    split = hg.Problem(
        lambda params, hparams, block: inner(joined(params), hparams, block),
        lambda params, hparams, block: outer(joined(params), hparams, block),
        penalty=penalty,
    )
    whole = hg.Problem(lambda params, hparams, block: inner(params, hparams, block) + penalty(params, hparams), outer)
    y, hparams = normal(M, 1, D), {"x": normal(1, P)}
    for kind in BOTH:
        algorithm, answers = kind(blocks=M, sampled=6, inner_step=0.02), []
        for problem, params in ((whole, {"y": y}), (split, {"a": y[:, 0, :2].reshape(M, 2, 1), "b": y[:, :, 2:]})):
            state = algorithm.init(problem, params, hparams)
            for _ in range(5):
                found, state = algorithm.step(problem, state, hparams)
            answers.append(found.grads)
        assert relative_error(answers[1], answers[0]) < 1e-12


def test_blocks_stay_in_their_domain() -> None:
    algorithm = BSVRBv2(blocks=M, sampled=5, inner_step=0.1, params_domain={"y": hg.Ball(0.2)})
    params, hparams = start()
    state = algorithm.init(EXACT, params, hparams)
    for _ in range(20):
        _, state = algorithm.step(EXACT, state, hparams)
    lengths = state.params["y"].flatten(1).norm(dim=1)
    assert float(lengths.max()) == pytest.approx(0.2)
    assert float(lengths.max()) <= 0.2 + 1e-12


def test_masks_are_the_same_at_both_points() -> None:
    """With α → small and γ = 1 the noise of a mask would stay; drawn alike at both points it cancels."""
    problem = hg.Problem(
        lambda params, hparams, block: (
            (params["y"] * (torch.randn(D, dtype=torch.float64) + 1)).sum()
            + 0.5 * params["y"].square().sum() * hparams["x"].square().sum()
        ),
        outer,
    )
    algorithm = BSVRBv2(blocks=M, inner_step=1e-12, alpha=1e-9, gamma=1.0)
    params, hparams = start()
    hparams = {"x": hparams["x"] + 1}
    first = algorithm.step(problem, algorithm.init(problem, params, hparams), hparams)[1]
    second = algorithm.step(problem, first, hparams)[1]
    assert float((second.slopes - first.slopes).abs().max()) < 1e-6


def test_samples_of_blocks_are_without_replacement_and_repeatable() -> None:
    algorithm = BSVRBv2(blocks=M, sampled=7, seed=3)
    stack = Stack(start()[0], M)
    samples = [algorithm._chosen(stack, t) for t in range(1, 40)]
    assert all(len(set(s.tolist())) == 7 for s in samples)
    assert len({tuple(s.tolist()) for s in samples}) > 30
    assert set(torch.cat(samples).tolist()) == set(range(M))
    assert all(torch.equal(s, algorithm._chosen(stack, t)) for t, s in enumerate(samples, start=1))
    other = [BSVRBv2(blocks=M, sampled=7, seed=4)._chosen(stack, t) for t in range(1, 40)]
    assert not all(torch.equal(s, o) for s, o in zip(samples, other, strict=True))


@pytest.mark.parametrize("kind", BOTH)
def test_a_run_is_repeatable_and_resumable_bit_for_bit(kind: Any) -> None:
    def run() -> hg.Run:
        algorithm = kind(blocks=M, sampled=5, inner_step=power(0.1, 0.3))
        return hg.Run(noisy(2), algorithm, *start(2), hg.outer.Torch(torch.optim.SGD, lr=0.05))

    whole, half, again = run(), run(), run()
    for _ in range(12):
        whole.step()
    for _ in range(5):
        half.step()
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    torch.rand(7)
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(7):
        again.step()
    assert torch.equal(whole.hparams["x"], again.hparams["x"])
    assert torch.equal(whole.params["y"], again.params["y"])


@pytest.mark.parametrize("kind", BOTH)
def test_inputs_stay_and_the_state_survives_a_file(kind: Any) -> None:
    algorithm, problem = kind(blocks=M, sampled=5), EXACT
    params, hparams = start()
    before, random = params["y"].clone(), torch.get_rng_state()
    state = algorithm.init(problem, params, hparams)
    for _ in range(3):
        packed = pack(state)
        _, following = algorithm.step(problem, state, hparams)
        assert all(torch.equal(pack(state)[k], v) for k, v in packed.items() if isinstance(v, Tensor))
        state = following
    restored = unpack(state, packed | pack(state))
    assert isinstance(restored, BSVRBState)
    assert torch.equal(params["y"], before)
    assert torch.equal(torch.get_rng_state(), random)
    check_conformance(dataclasses.replace(algorithm, blocks=None, sampled=None), problems.quadratic())


def test_bounds_that_bind_are_told() -> None:
    params, hparams = start()
    tight = BSVRBv2(blocks=M, radius=1e-3, inner_step=0.1)
    _, state = tight.step(EXACT, tight.init(EXACT, params, hparams), hparams)
    found, _ = tight.step(EXACT, state, hparams)
    assert "radius=0.001" in found.report.notes["convergence"]
    lifted = BSVRBv1(blocks=M, mu=1.5)
    found, _ = lifted.step(EXACT, lifted.init(EXACT, params, hparams), hparams)
    assert "mu=1.5" in found.report.notes["curvature"]
    fits = BSVRBv1(blocks=M, mu=0.9)
    assert not fits.step(EXACT, fits.init(EXACT, params, hparams), hparams)[0].report.notes


@pytest.mark.parametrize("kind", BOTH)
def test_an_estimator_that_runs_away_is_an_error(kind: Any) -> None:
    algorithm = kind(blocks=M, sampled=2, inner_step=5.0, **({"radius": math.inf} if kind is BSVRBv2 else {}))
    problem, (params, hparams) = noisy(1, scale=1e30), start()
    run = hg.Run(problem, algorithm, params, hparams, hg.outer.Torch(torch.optim.SGD, lr=1.0))

    def go() -> None:
        for _ in range(2000):
            run.step()

    with pytest.raises(NumericalError):
        go()
    assert bool(torch.isfinite(run.params["y"]).all())
    assert bool(torch.isfinite(run.hparams["x"]).all())


@pytest.mark.parametrize("kind", BOTH)
def test_nan_in_a_batch_is_an_error(kind: Any) -> None:
    problem = noisy(1, scale=math.nan)
    algorithm = kind(blocks=M, sampled=2)
    params, hparams = start()
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        algorithm.step(problem, algorithm.init(problem, params, hparams), hparams)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"blocks": 4, "sampled": 5}, "sampled=5"),
        ({"blocks": 4, "sampled": 0}, "sampled"),
        ({"sampled": 2}, "sampled=2"),
        ({"blocks": 0}, "blocks"),
        ({"blocks": 2.5}, "blocks"),
        ({"inner_step": -0.1}, "inner_step"),
        ({"inner_step": 0.0}, "inner_step"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"beta": 1.5}, "beta"),
        ({"blocks": 4, "sampled": 2, "alpha": 1.0}, "alpha"),
        ({"gamma": -1.0}, "gamma"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(**settings)
    assert named in caught.value.passed


def test_settings_of_one_version_are_refused_out_of_range() -> None:
    for build in (
        lambda: BSVRBv1(mu=0.0),
        lambda: BSVRBv2(radius=0.0),
        lambda: BSVRBv2(linear_step=-1.0),
    ):
        with pytest.raises(InputError):
            build()


@pytest.mark.parametrize("name", ["inner_step", "alpha", "beta", "gamma", "linear_step"])
def test_a_schedule_that_turns_negative_is_refused_when_it_is_read(name: str) -> None:
    algorithm = BSVRBv2(blocks=M, **{name: lambda step: 0.5 - 0.5 * step})  # type: ignore[arg-type]
    params, hparams = start()
    state = algorithm.init(EXACT, params, hparams)

    def go() -> None:
        last = state
        for _ in range(4):
            _, last = algorithm.step(EXACT, last, hparams)

    with pytest.raises(InputError, match=name):
        go()


def test_a_weight_of_one_is_refused_when_it_is_read() -> None:
    algorithm = BSVRBv2(blocks=M, sampled=2, alpha=lambda step: 1.0)
    params, hparams = start()
    _, state = algorithm.step(EXACT, algorithm.init(EXACT, params, hparams), hparams)
    with pytest.raises(InputError, match="below 1"):
        algorithm.step(EXACT, state, hparams)


def test_blocks_of_unequal_shape_are_refused() -> None:
    algorithm, x = BSVRBv1(blocks=2), {"x": torch.zeros(1)}
    ragged: list[Any] = [
        {"y": [torch.zeros(2), torch.zeros(3)]},
        {"y": torch.zeros(3, 2)},
        {"y": torch.zeros(2, 2), "b": torch.zeros(3)},
        {"y": torch.zeros(())},
    ]
    for params in ragged:
        with pytest.raises(InputError) as caught:
            algorithm.init(EXACT, params, x)
        assert "blocks of one shape" in caught.value.expected


def test_problems_that_have_no_blocks_are_refused() -> None:
    params, hparams = start()
    blind = hg.Problem(lambda params, hparams: (params["y"] * hparams["x"][0, 0]).square().sum(), outer)
    with pytest.raises(InputError, match="number of its block"):
        BSVRBv1(blocks=M).init(blind, params, hparams)
    root = hg.Problem.fixed_point(lambda params, hparams: params, lambda params, hparams: params["y"].sum())
    with pytest.raises(UnsupportedError, match="root"):
        BSVRBv2().init(root, params, hparams)
    half: Any = iter([1, 2])
    with pytest.raises(InputError, match="inner_data"):
        BSVRBv2(blocks=M).init(hg.Problem(inner, outer, inner_data=half), params, hparams)
    with pytest.raises(TreeError, match="'z'"):
        BSVRBv2(blocks=M, params_domain={"z": hg.Ball()}).init(EXACT, params, hparams)
    with pytest.raises(InputError, match="domain"):
        BSVRBv2(blocks=M, params_domain={"y": 3}).init(EXACT, params, hparams)  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="one inner problem"):
        hg.solve(EXACT, params, hparams, BSVRBv2(blocks=M))
