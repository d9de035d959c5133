"""Products with the graph of the inner gradient, against central differences of plain gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hypergrad as hg
from hypergrad.errors import ObjectiveError
from hypergrad.stationarity import Stationarity, pushforward
from hypergrad.tree import Layout, Tree, leaves

DOUBLE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, generator=GENERATOR, dtype=DOUBLE)
IMAGES = torch.randn(3, 4, 5, 5, generator=GENERATOR, dtype=DOUBLE)
TOKENS = torch.randn(2, 3, 4, generator=GENERATOR, dtype=DOUBLE)

LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layer-norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), X),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), X),
    "instance-norm": (lambda: nn.Sequential(nn.Conv2d(4, 2, 2), nn.InstanceNorm2d(2, affine=True)), IMAGES),
    "group-norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4)), IMAGES),
    "rms-norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6)), X),
    "weight-norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), X),
    "weight-norm-conv": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 2)), IMAGES),
    "spectral-norm-eval": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)).eval(), X),
    "lstm": (lambda: nn.LSTM(4, 3, batch_first=True), TOKENS),
    "gru": (lambda: nn.GRU(4, 3, batch_first=True), TOKENS),
    "attention": (lambda: nn.Sequential(Attend()), TOKENS),
    "gelu-mish-silu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Mish(), nn.SiLU()), X),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 2)), X),
    "max-pool": (lambda: nn.Sequential(nn.Conv2d(4, 2, 2), nn.MaxPool2d(2), nn.Tanh()), IMAGES),
    "checkpoint": (lambda: nn.Sequential(Checkpointed()), X),
}


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attend(x, x, x, need_weights=False)[0]
        return out


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        return out


def problem(name: str) -> tuple[hg.Problem, Tree, Tree]:
    """A smooth loss of the layer's output, with a scale per output column as hyperparameter."""
    make, x = LAYERS[name]
    torch.manual_seed(1)
    module = make().double()
    buffers = {key: value.clone() for key, value in module.named_buffers()}

    def inner(params: Tree, hparams: Tree) -> Tensor:
        fresh = {key: value.clone() for key, value in buffers.items()}
        out: Any = torch.func.functional_call(module, params | fresh, (x,))
        out = out[0] if isinstance(out, tuple) else out
        value: Tensor = (out.sin() * hparams["scale"].exp() + 0.1 * out.pow(3)).sum()
        return value

    params = {key: value.detach().clone() for key, value in module.named_parameters()}
    hparams = {"scale": torch.tensor(0.3, dtype=DOUBLE)}
    return hg.Problem(inner, lambda params, _: next(iter(params.values())).sum()), params, hparams


def gradient(problem: hg.Problem, params: Tree, hparams: Tree) -> Tensor:
    """The inner gradient at a point, always with the same draw of noise."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Layout.of(params).flatten(problem.residual(leaves(params), hparams))


def shifted(tree: Tree, direction: Tensor, step: float) -> Tree:
    views = Layout.of(tree).views(direction)
    return {key: value + step * views[key] for key, value in tree.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_products_equal_central_differences(name: str) -> None:
    known, params, hparams = problem(name)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        point = known.linearise(params, hparams)
    generator = torch.Generator().manual_seed(2)
    u, v = (torch.randn(point.layout.size, generator=generator, dtype=DOUBLE) for _ in range(2))
    step = 1e-6
    along_v = [gradient(known, shifted(params, v, sign * step), hparams) for sign in (1, -1)]
    expected = (along_v[0] - along_v[1]) / (2 * step)
    scale = float(expected.norm())
    assert float((point.hvp(v) - expected).norm()) < 1e-6 * scale
    assert float((point.jvp(v, None) - expected).norm()) < 1e-6 * scale
    assert float(u @ point.hvp(v) - v @ point.hvp(u)) == pytest.approx(0, abs=1e-9 * scale)
    one = {"scale": torch.ones((), dtype=DOUBLE)}
    along = [gradient(known, params, {"scale": hparams["scale"] + sign * step}) for sign in (1, -1)]
    mixed = (along[0] - along[1]) / (2 * step)
    assert float((point.jvp(None, one) - mixed).norm()) < 1e-6 * float(mixed.norm())
    assert float(point.cross(u)["scale"]) == pytest.approx(float(u @ mixed), rel=1e-6)
    assert torch.equal(point.hvp(v), point.hvp(v)), "one draw of noise in every product"


@pytest.mark.parametrize("name", ["weight-norm", "attention"])
def test_kernels_without_a_right_second_derivative_really_need_replacing(name: str) -> None:
    """The day torch repairs them this fails, and the replacement can go."""
    known, params, hparams = problem(name)
    theta = leaves(params)
    assert known.inner is not None
    loss = known.inner(theta, hparams)
    slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    v = [torch.ones_like(value) for value in theta.values()]
    if name == "attention":
        with pytest.raises(RuntimeError, match="not implemented"):
            torch.autograd.grad(slopes, list(theta.values()), v, allow_unused=True)
        return
    plain = torch.autograd.grad(slopes, list(theta.values()), v, allow_unused=True, materialize_grads=True)
    right = known.linearise(params, hparams).hvp(torch.ones(Layout.of(params).size, dtype=DOUBLE))
    gap = torch.cat([value.reshape(-1) for value in plain]) - right
    assert float(gap.norm() / right.norm()) > 1e-3


def test_unrolled_and_forward_replace_such_kernels_as_well() -> None:
    known, params, hparams = problem("weight-norm")
    rule = hg.GradientDescent(lr=0.01)
    for algorithm in (hg.Unrolled(4, rule), hg.Unrolled(4, rule, keep="sqrt"), hg.ForwardMode(4, rule)):
        assert hg.check(known, params, hparams, algorithm, tolerance=1e-6, verbose=False).passed


def test_operation_without_a_second_derivative_is_named() -> None:
    centres = torch.randn(3, 2, generator=GENERATOR, dtype=DOUBLE)
    known = hg.Problem(lambda params, _: torch.cdist(params["w"], centres).sum(), lambda params, _: params["w"].sum())
    params, hparams = {"w": torch.randn(4, 2, generator=GENERATOR, dtype=DOUBLE)}, {"x": torch.ones((), dtype=DOUBLE)}
    with pytest.raises(ObjectiveError, match="_cdist_backward"):
        known.linearise(params, hparams).hvp(torch.ones(8, dtype=DOUBLE))


def test_penalty_is_a_diagonal_and_costs_one_product_of_its_own() -> None:
    normal = torch.randn(5, 5, generator=GENERATOR, dtype=DOUBLE)
    calls = {"data": 0, "penalty": 0}

    class Count(torch.autograd.Function):
        """Counts passes through the penalty's gradient."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
            calls["penalty"] += 1
            return grad_outputs[0].clone()

    count: Any = Count.apply

    def penalty(params: Tree, hparams: Tree) -> Tensor:
        value: Tensor = (hparams["x"].exp() * count(params["w"]).pow(4)).sum()
        return value

    known = hg.Problem(
        inner=lambda params, _: (normal @ params["w"]).square().sum(),
        outer=lambda params, _: params["w"].sum(),
        penalty=penalty,
    )
    params, hparams = {"w": torch.linspace(1, 2, 5, dtype=DOUBLE)}, {"x": torch.linspace(-1, 1, 5, dtype=DOUBLE)}
    point = known.linearise(params, hparams)
    expected = 12 * hparams["x"].exp() * params["w"].square()
    assert point.diagonal is not None
    assert torch.allclose(point.diagonal, expected)
    before = calls["penalty"]
    hessian = 2 * normal.mT @ normal + torch.diag(expected)
    for v in torch.eye(5, dtype=DOUBLE):
        assert torch.allclose(point.hvp(v), hessian @ v)
    assert calls["penalty"] == before, "products walk through the data's graph only"
    v = torch.ones(5, dtype=DOUBLE)
    assert torch.allclose(point.cross(v)["x"], 4 * hparams["x"].exp() * params["w"].pow(3))


def test_pushforward_is_the_transpose_of_the_pullback() -> None:
    x = {
        "a": torch.randn(3, generator=GENERATOR, dtype=DOUBLE).requires_grad_(),
        "b": torch.ones((), dtype=DOUBLE).requires_grad_(),
    }
    outputs = {"y": functional.layer_norm(x["a"] * x["b"], (3,)), "constant": torch.ones(2, dtype=DOUBLE)}
    tangents = {"a": torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE), "b": torch.tensor(0.3, dtype=DOUBLE)}
    pushed = pushforward(outputs, x, tangents)
    cotangent = torch.tensor([0.2, 0.4, -1.0], dtype=DOUBLE)
    pulled = torch.autograd.grad(outputs["y"], list(x.values()), cotangent)
    expected = sum((p * t).sum() for p, t in zip(pulled, tangents.values(), strict=True))
    assert float((pushed["y"] * cotangent).sum()) == pytest.approx(float(expected))
    assert not pushed["constant"].any()


def test_linear_parts_of_the_inner_loss_have_zero_curvature() -> None:
    known = hg.Problem(
        inner=lambda params, hparams: params["curved"].square().sum() + (hparams["x"] * params["linear"]).sum(),
        outer=lambda params, _: params["curved"].sum(),
    )
    params = {"curved": torch.ones(2, dtype=DOUBLE), "linear": torch.ones(3, dtype=DOUBLE)}
    point: Stationarity = known.linearise(params, {"x": torch.ones(3, dtype=DOUBLE)})
    assert torch.equal(point.hvp(torch.ones(5, dtype=DOUBLE)), torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0], dtype=DOUBLE))
    assert torch.equal(point.cross(torch.arange(5.0, dtype=DOUBLE))["x"], torch.tensor([2.0, 3.0, 4.0], dtype=DOUBLE))
