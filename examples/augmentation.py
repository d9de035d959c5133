"""Learn how far training images are to be turned, stretched, sheared, shifted and disturbed by noise."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

import hypergrad as hg

Tree = dict[str, Tensor]
NAMES = ("turn", "stretch", "shear", "shift", "noise")


def augment(images: Tensor, ranges: Tensor) -> Tensor:
    """Return images under random affine maps and random noise of these ranges, differentiable in the ranges."""
    turn, stretch, shear, shift, noise = ranges.unbind()
    a, b, c, d, e = torch.randn(5, len(images))
    first = torch.stack([1 + stretch * a, shear * b - turn * c, shift * d], dim=1)
    second = torch.stack([turn * c, 1 - stretch * a, shift * e], dim=1)
    grid = affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    moved: Tensor = grid_sample(images, grid, align_corners=False)
    return moved + noise * torch.randn_like(images)


def main(steps: int = 40) -> float:
    """Tune five ranges for a network that learns from 100 upright images, and return the accuracy on turned ones."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid, test = order.split([100, 600, len(x) - 700])
    torch.manual_seed(0)
    valid_images, test_images = (augment(x[rows], torch.tensor([0.4, 0.0, 0.0, 0.1, 0.0])) for rows in (valid, test))
    draw = torch.Generator().manual_seed(0)
    params = {
        "first": torch.randn(64, 64, generator=draw) / 8,
        "shift": torch.zeros(64),
        "second": torch.randn(64, 10, generator=draw) / 8,
    }

    def logits(params: Tree, images: Tensor) -> Tensor:
        return (images.flatten(1) @ params["first"] + params["shift"]).relu() @ params["second"]

    problem = hg.Problem(
        inner=lambda params, hparams: cross_entropy(
            logits(params, augment(x[train], hparams["log_ranges"].exp())), y[train]
        ),
        outer=lambda params, _: cross_entropy(logits(params, valid_images), y[valid]),
    )
    algorithm = hg.Unrolled(steps=150, inner=hg.GradientDescent(lr=0.1, momentum=0.9))

    def accuracy(log_ranges: Tensor) -> float:
        """Return the mean test accuracy of three trainings with other random numbers."""
        torch.manual_seed(1)
        trained = [hg.solve(problem, params, {"log_ranges": log_ranges}, algorithm) for _ in range(3)]
        right = [(logits(network, test_images).argmax(1) == y[test]).double().mean() for network in trained]
        return float(torch.stack(right).mean())

    start = {"log_ranges": torch.full((5,), -3.0)}
    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.15))
    tuned = trainer.fit(params, start, steps=steps).hparams["log_ranges"]
    before, after = accuracy(torch.full((5,), -30.0)), accuracy(tuned)
    ranges = ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, tuned.exp().tolist(), strict=True))
    print(f"test accuracy {before:.3f} without augmentation, {after:.3f} with the learned one: {ranges}")
    return after


if __name__ == "__main__":
    main()
