"""Augmentation of images with strengths, or a whole network, that a gradient can reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError, did_you_mean
from hypergrad.hyperparameters.module import HyperparameterModule
from hypergrad.settings import check_choice, check_count, check_number

LIMITS = {"brightness": 1.0, "contrast": 1.0, "rotation": math.pi, "translation": 0.5, "cutout": 1.0, "noise": 1.0}
"""Largest strength of each operation, in the order in which they act."""


@final
class Augmentation(HyperparameterModule):
    """Random changes of images, each with a strength s = limit · sigmoid(λ) that is learnt; u is uniform in [−1, 1].

    ===============  =====================================  =========  =====================
    name             what is done to each image             limit      unit of s
    ===============  =====================================  =========  =====================
    ``brightness``   x + s u                                1          that of the pixels
    ``contrast``     m + (x − m) exp(s u), m its mean       1          log factor
    ``rotation``     by the angle s u                       π          radians
    ``translation``  by s u in each direction               0.5        width and height
    ``cutout``       a square of side s, with soft edges    1          shorter side
    ``noise``        x + s ε, ε standard normal             1          that of the pixels
    ===============  =====================================  =========  =====================

    All operations can be differentiated any number of times, in the strengths and in the images
    (:func:`torch.nn.functional.grid_sample` only once). Random numbers are torch's.

    Args:
        strengths: initial strengths by name, above 0 and below their limits; operations without one are left out.
        outside: what lies beyond the edges of an image that is moved: ``"zeros"`` or its ``"border"``.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        limits: the largest strength of each operation.

    Raises:
        InputError: no operation, one that does not exist, a strength out of range; at a call, what is no batch of
            images of shape (batch, channels, height, width).

    Example:
        >>> import torch, hypergrad as hg
        >>> augment = hg.Augmentation({"brightness": 0.2, "rotation": 0.3})
        >>> augment(torch.rand(8, 3, 16, 16)).shape
        torch.Size([8, 3, 16, 16])
        >>> {name: round(float(strength.detach()), 3) for name, strength in augment.strengths().items()}
        {'brightness': 0.2, 'rotation': 0.3}
    """

    def __init__(
        self,
        strengths: Mapping[str, float],
        *,
        outside: Literal["zeros", "border"] = "zeros",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check the settings and start at the initial strengths."""
        super().__init__()
        self.outside = outside
        check_choice(self, "outside", ("zeros", "border"))
        if not isinstance(strengths, Mapping) or not strengths:
            raise InputError(
                passed=f"Augmentation({strengths!r})",
                expected=f"initial strengths of some of {list(LIMITS)}",
                do='write Augmentation({"rotation": 0.1})',
            )
        for name, strength in strengths.items():
            if name not in LIMITS:
                raise InputError(
                    passed=f"Augmentation with {name!r}{did_you_mean(str(name), LIMITS)}",
                    expected=f"some of {list(LIMITS)}",
                    do="rename it, or change the images in a function of your own",
                )
            check_number("Augmentation", name, strength, above=0, below=LIMITS[name])
        self.limits = {name: limit for name, limit in LIMITS.items() if name in strengths}
        for name, limit in self.limits.items():
            share = strengths[name] / limit
            start = math.log(share) - math.log1p(-share)
            self.register_parameter(name, nn.Parameter(torch.tensor(start, dtype=dtype, device=device)))

    def strengths(self) -> dict[str, Tensor]:
        """Return the present strengths by name, 0-d tensors."""
        return {name: limit * getattr(self, name).sigmoid() for name, limit in self.limits.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return changed images, each with random numbers of its own; in evaluation mode, the images."""
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            found = f"a {images.dtype} tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else images
            raise InputError(
                passed=f"Augmentation called with {found}",
                expected="floating-point images of shape (batch, channels, height, width)",
                do="add the missing dimensions with unsqueeze, and convert with .float() / 255",
            )
        if not self.training:
            return images
        strengths = {name: strength.to(images.dtype) for name, strength in self.strengths().items()}

        def draw(*shape: int) -> Tensor:
            return 2 * torch.rand(images.shape[0], *shape, dtype=images.dtype, device=images.device) - 1

        x = images
        if "brightness" in strengths:
            x = x + strengths["brightness"] * draw(1, 1, 1)
        if "contrast" in strengths:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * (strengths["contrast"] * draw(1, 1, 1)).exp()
        if "rotation" in strengths or "translation" in strengths:
            still = torch.zeros((), dtype=x.dtype, device=x.device)
            angle = strengths.get("rotation", still) * draw()
            shift = strengths.get("translation", still) * draw(2)
            x = moved(x, angle, shift, border=self.outside == "border")
        if "cutout" in strengths:
            x = x * (1 - _squares(x, strengths["cutout"], draw(2)))
        if "noise" in strengths:
            x = x + strengths["noise"] * torch.randn_like(x)
        return x

    def extra_repr(self) -> str:
        """Return the present strengths."""
        found = ", ".join(f"{name}={float(strength.detach()):.4g}" for name, strength in self.strengths().items())
        return f"{found}, outside={self.outside!r}"


def moved(images: Tensor, angle: Tensor, shift: Tensor, *, border: bool = False) -> Tensor:
    """Return images rotated about their centre and then shifted, sampled bilinearly.

    Args:
        images: of shape (batch, channels, height, width).
        angle: radians, of shape (batch,); positive ones turn the x axis towards the y axis, which points down.
        shift: share of the width and of the height, of shape (batch, 2).
        border: whether the nearest pixel of the border lies beyond the edges, otherwise zeros.
    """
    height, width = images.shape[2:]
    size = torch.tensor([width, height], dtype=images.dtype, device=images.device)
    y, x = torch.meshgrid(*[torch.arange(float(n)).to(images) - (n - 1) / 2 for n in (height, width)], indexing="ij")
    there = torch.stack([x.reshape(-1), y.reshape(-1)], -1) - (shift * size).unsqueeze(1)  # (batch, pixels, 2)
    cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
    x = cos * there[..., 0] + sin * there[..., 1] + (width - 1) / 2
    y = cos * there[..., 1] - sin * there[..., 0] + (height - 1) / 2
    left, top = x.detach().floor(), y.detach().floor()
    flat = images.flatten(2)
    total = torch.zeros_like(flat)
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
            share = across * down
            if not border:
                share = share * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            pixels = flat.gather(2, place.long().unsqueeze(1).expand_as(flat))
            total = total + pixels * share.unsqueeze(1)
    return total.view_as(images)


def _squares(images: Tensor, side: Tensor, centres: Tensor) -> Tensor:
    """Return masks, near 1 inside a square and 0 outside, whose edges are a logistic curve of half a pixel."""
    height, width = images.shape[2:]
    half = side * min(height, width) / 2
    masks = []
    for axis, length in ((1, height), (0, width)):
        places = torch.arange(float(length)).to(images) - (length - 1) / 2
        centre = centres[:, axis : axis + 1] * length / 2
        masks.append(torch.sigmoid(2 * (half - (places - centre).abs())))
    return (masks[0].unsqueeze(2) * masks[1].unsqueeze(1)).unsqueeze(1)


@final
class AugmentationNetwork(HyperparameterModule):
    """A small convolutional network that changes images, x + net(x, ε), with a channel of normal noise ε.

    It starts close to no change. Every weight is a hyperparameter; activations are smooth, so that all products exist.

    Args:
        channels: channels of the images, at least 1.
        width: channels inside, at least 1.
        depth: convolutions of 3 × 3, at least 2.
        scale: initial size of the change relative to a usual initialisation, above 0.

    Raises:
        InputError: settings out of range.

    Source: Lorraine, Vicol, Duvenaud (2020), section 5.2. Deviation: a plain convolutional network in place of a U-Net.

    Example:
        >>> import torch, hypergrad as hg
        >>> augment = hg.AugmentationNetwork(3, width=8)
        >>> augment(torch.rand(4, 3, 16, 16)).shape
        torch.Size([4, 3, 16, 16])
    """

    def __init__(self, channels: int, width: int = 16, *, depth: int = 3, scale: float = 0.01) -> None:
        """Make the layers."""
        super().__init__()
        check_count("AugmentationNetwork", "channels", channels)
        check_count("AugmentationNetwork", "width", width)
        check_count("AugmentationNetwork", "depth", depth, least=2)
        check_number("AugmentationNetwork", "scale", scale, above=0)
        layers: list[nn.Module] = [nn.Conv2d(channels + 1, width, 3, padding=1), nn.SiLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        last = nn.Conv2d(width, channels, 3, padding=1)
        with torch.no_grad():
            for tensor in last.parameters():
                tensor.mul_(scale)
        self.change = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        """Return changed images; in evaluation mode, the images."""
        if not self.training:
            return images
        noise = torch.randn_like(images[:, :1])
        changed: Tensor = images + self.change(torch.cat([images, noise], 1))
        return changed
