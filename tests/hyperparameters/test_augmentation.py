"""Augmentation of images: each operation against a reference, derivatives of every order, hypergradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import InputError
from hypergrad.hyperparameters.augmentation import LIMITS, moved
from tests.hyperparameters.common import FIT, differences

F64 = torch.float64
STRENGTHS = {"brightness": 0.3, "contrast": 0.4, "rotation": 0.5, "translation": 0.2, "cutout": 0.5, "noise": 0.2}


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("border", [False, True], ids=["zeros", "border"])
@pytest.mark.parametrize("shape", [(7, 7), (6, 9)], ids=["square", "wide"])
def test_moves_are_those_of_grid_sample(border: bool, shape: tuple[int, int]) -> None:
    height, width = shape
    x = images(3, 2, height, width)
    angle = torch.tensor([0.3, -1.2, 2.0], dtype=F64)
    shift = torch.tensor([[0.1, 0.2], [-0.3, 0.05], [0.0, -0.4]], dtype=F64)
    found = moved(x, angle, shift, border=border)
    cos, sin = angle.cos(), angle.sin()
    back = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)  # in pixels
    pixels = torch.tensor([width, height], dtype=F64) / 2
    matrix = back * pixels / pixels.unsqueeze(-1)  # in grid_sample's units
    offset = -(matrix @ (2 * shift).unsqueeze(-1))
    grid = nn.functional.affine_grid(torch.cat([matrix, offset], -1), list(x.shape), align_corners=False)
    padding = "border" if border else "zeros"
    expected = nn.functional.grid_sample(x, grid, padding_mode=padding, align_corners=False)
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_quarter_turn_and_a_shift_by_pixels() -> None:
    x = images(1, 1, 5, 5)
    turned = moved(x, torch.tensor([math.pi / 2], dtype=F64), torch.zeros(1, 2, dtype=F64))
    assert torch.allclose(turned, torch.rot90(x, -1, (2, 3)), atol=1e-12)
    shifted = moved(x, torch.zeros(1, dtype=F64), torch.tensor([[0.2, 0.4]], dtype=F64))
    assert torch.allclose(shifted[..., 2:, 1:], x[..., :3, :4], atol=1e-12)
    assert float(shifted[..., :2, :].abs().max()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", LIMITS)
def test_differentiable_twice_in_strength_and_images(name: str) -> None:
    augment = hg.Augmentation({name: STRENGTHS[name]}, dtype=F64)
    x = images(2, 1, 3, 4).requires_grad_()

    def call(raw: Tensor, x: Tensor) -> Any:
        torch.manual_seed(4)
        return augment.read({name: raw}, x)

    raw = augment.tree()[name].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (raw, x))
    assert torch.autograd.gradgradcheck(call, (raw, x))


def test_all_operations_together_start_at_their_strengths() -> None:
    augment = hg.Augmentation(STRENGTHS, dtype=F64)
    found = {name: float(strength.detach()) for name, strength in augment.strengths().items()}
    assert found == pytest.approx(STRENGTHS)
    torch.manual_seed(0)
    x = images(4, 3, 8, 10)
    changed = augment(x)
    assert changed.shape == x.shape
    changed.square().sum().backward()
    assert all(bool(raw.grad.abs() > 0) for raw in augment.parameters() if raw.grad is not None)
    assert all(raw.grad is not None for raw in augment.parameters())
    torch.manual_seed(0)
    assert torch.equal(augment(x), changed)
    augment.eval()
    assert augment(x) is x


def test_simple_operations_do_what_they_say() -> None:
    x = images(500, 2, 4, 4)
    torch.manual_seed(0)
    shift = (hg.Augmentation({"brightness": 0.3}, dtype=F64)(x) - x).detach()
    assert torch.allclose(shift, shift[:, :1, :1, :1].expand_as(shift))
    assert 0.29 < float(shift.abs().max()) <= 0.3
    changed = hg.Augmentation({"contrast": 0.4}, dtype=F64)(x).detach()
    ratio = changed.std((1, 2, 3)) / x.std((1, 2, 3))
    assert torch.allclose(changed.mean((1, 2, 3)), x.mean((1, 2, 3)))
    assert math.exp(-0.4) <= float(ratio.min()) < math.exp(-0.38)
    noise = (hg.Augmentation({"noise": 0.2}, dtype=F64)(x) - x).detach()
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)


def test_cutout_removes_a_square() -> None:
    torch.manual_seed(0)
    x = torch.ones(2000, 1, 20, 20, dtype=F64)
    kept = hg.Augmentation({"cutout": 0.5}, dtype=F64)(x).detach()
    removed = (1 - kept).sum((1, 2, 3))
    assert float(removed.max()) == pytest.approx(100, rel=0.02)  # a square of 10 × 10 pixels that lies inside
    assert float(kept.min()) < 1e-4
    assert float(kept.max()) > 1 - 1e-4


@pytest.mark.parametrize("name", ["rotation", "noise", "contrast"])
def test_hypergradient_is_the_slope_of_retrained_models(name: str) -> None:
    torch.manual_seed(0)
    x, xv = images(2, 10, 1, 4, 4)
    y, yv = torch.randn(2, 10, 1, dtype=F64)
    augment = hg.Augmentation({name: STRENGTHS[name]}, dtype=F64)

    def changed() -> Tensor:
        torch.manual_seed(5)
        out: Tensor = augment(x).flatten(1)
        return out

    model = nn.Linear(16, 1, dtype=F64)

    def inner() -> Tensor:
        value: Tensor = (model(changed()) - y).square().mean() + 0.1 * model.weight.square().sum()
        return value

    def outer() -> Tensor:
        value: Tensor = (model(xv.flatten(1)) - yv).square().mean()
        return value

    hg.Live(model, augment, inner, outer, hg.Implicit(hg.Dense(), inner=FIT)).backward()

    def retrained() -> float:
        flat = torch.cat([changed().detach(), torch.ones(10, 1, dtype=F64)], 1)
        ridge = torch.diag(torch.tensor([0.1] * 16 + [0.0], dtype=F64))
        theta = torch.linalg.solve(flat.T @ flat / 10 + ridge, flat.T @ y / 10)
        return float((xv.flatten(1) @ theta[:16] + theta[16] - yv).square().mean())

    (raw,) = augment.parameters()
    assert raw.grad is not None
    assert torch.allclose(raw.grad, differences(retrained, raw), rtol=1e-5, atol=1e-9)


def test_a_network_starts_near_no_change_and_is_reached() -> None:
    torch.manual_seed(0)
    augment = hg.AugmentationNetwork(1, width=4).to(F64)
    x, y = images(6, 1, 4, 4), torch.randn(6, 1, dtype=F64)
    assert float((augment(x) - x).detach().abs().max()) < 0.02
    model = nn.Linear(16, 1, dtype=F64)
    live = hg.Live(
        model,
        augment,
        lambda: (model(augment(x).flatten(1)) - y).square().mean() + 0.1 * model.weight.square().sum(),
        lambda: (model(x.flatten(1)) - y).square().mean(),
        hg.Implicit(hg.CG(), stationarity=math.inf),
    )
    live.backward()
    assert all(bool(raw.grad.abs().max() > 0) for raw in augment.parameters() if raw.grad is not None)
    assert all(raw.grad is not None for raw in augment.parameters())
    augment.eval()
    assert augment(x) is x


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: hg.Augmentation({}), "strengths"),
    "names only": (lambda: hg.Augmentation(["rotation"]), "strengths"),  # type: ignore[arg-type]
    "misspelt": (lambda: hg.Augmentation({"rotatoin": 0.1}), "did you mean 'rotation'"),
    "zero": (lambda: hg.Augmentation({"rotation": 0.0}), "rotation > 0"),
    "too strong": (lambda: hg.Augmentation({"translation": 0.6}), "< 0.5"),
    "outside": (lambda: hg.Augmentation({"rotation": 0.1}, outside="zero"), "did you mean 'zeros'"),  # type: ignore[arg-type]
    "one image": (lambda: hg.Augmentation({"rotation": 0.1})(torch.rand(3, 8, 8)), "batch, channels"),
    "bytes": (lambda: hg.Augmentation({"rotation": 0.1})(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "floating"),
    "channels": (lambda: hg.AugmentationNetwork(0), "channels > 0"),
    "width": (lambda: hg.AugmentationNetwork(1, 0), "width > 0"),
    "scale": (lambda: hg.AugmentationNetwork(1, scale=0.0), "scale > 0"),
    "depth": (lambda: hg.AugmentationNetwork(1, depth=1), "depth >= 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()
