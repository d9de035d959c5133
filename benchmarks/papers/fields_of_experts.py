"""Learning the filters of a denoiser: a field of experts, by MAID and HOAG at equal work.

The paper on MAID (Salehi, Mukherjee, Roberts, Ehrhardt, 2025) learns 48 filters of 7 x 7 pixels with their weights and
smoothings, 2,449 parameters, of

    y*(λ) = argmin_y ½ ‖y − noisy‖² + e^a Σ_k e^b_k Σ_pixels ((c_k ∗ y)² + e^2s_k)^½,

for the smallest ½ ‖y* − clean‖². Its figure shows MAID ahead of HOAG with any schedule after equally many inner
iterations and products: 29.7 dB against 28.8 dB. Compared here, from cosines as filters, at equal work:

- MAID from several first accuracies. The potentials are convex and the data term is ½ ‖y − noisy‖², so that µ = 1 holds
  for all hyperparameters; f is convex with L_f = 1. Both are certified, and the decrease of every accepted step is.
  Not certified is the bound on the direction: ‖∂²g/∂λ∂y‖ is an estimate by power iteration at the start, and L_H and
  L_J are 0. A wrong direction costs work, since no step along it is accepted.
- HOAG with its three schedules and with constant accuracies, its step rule unchanged.
- the best total variation of a grid (see ``denoising``), and the noisy images.

All methods have one first step, of length 1: of the lengths 0.3, 1, 3 and √n that was the best on other images for
both MAID and HOAG. All else is as in ``denoising``.

Columns: PSNR on held-out patches and training loss F at the exact y*, after a quarter of the work and when it ran out;
outer steps; CPU seconds of the run.

    python -m benchmarks.papers.fields_of_experts [--full | --smoke] [--seeds N] [--out table.json]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

import hypergrad as hg
from benchmarks.papers.denoising import (
    NOISE,
    TOTAL_VARIATION,
    WEIGHTS,
    Denoiser,
    Patches,
    grid,
    losses,
    moves,
    patches,
    race,
)
from benchmarks.papers.experiment import Options, Table, read_options
from hypergrad.tree import Tree


def experts(images: Tensor, hparams: Tree) -> Tensor:
    """Return e^a Σ_k e^b_k Σ_pixels ((c_k ∗ y)² + e^2s_k)^½, where the filter lies inside the image."""
    edge = hparams["filters"].shape[-1] // 2
    answers = conv2d(pad(images[:, None], (edge,) * 4, mode="replicate"), hparams["filters"][:, None])
    blurs = (2 * hparams["smoothings"]).exp()[:, None, None]
    totals = (answers.square() + blurs).sqrt().sum(dim=(0, 2, 3))
    return hparams["weight"].exp() * torch.dot(hparams["weights"].exp(), totals)


def smoothness(hparams: Tree) -> Tensor:
    """Return 1 + 1.25 e^a max_ω Σ_k e^(b_k − s_k) |ĉ_k(ω)|², about the largest curvature of the inner problem.

    Without the 1.25 it is a bound for filters whose flips have the same spectrum, as all have at the start. The step of
    training depends on it and no certificate does: training is over where the inner gradient says so.
    """
    filters = hparams["filters"]
    points = 8 * filters.shape[-1]
    power = torch.fft.rfft2(filters, s=(points, points)).abs().square()
    scales = (hparams["weights"] - hparams["smoothings"]).exp()
    found: Tensor = 1 + 1.25 * hparams["weight"].exp() * torch.tensordot(scales, power, dims=1).max()
    return found


EXPERTS = Denoiser(
    experts,
    smoothness,
    {
        "weight": hg.Box(-10.0, 0.0),
        "weights": hg.Box(-4.0, 4.0),
        "smoothings": hg.Box(-8.0, 0.0),
        "filters": hg.Box(-2.0, 2.0),
    },
)


def start(side: int, inside: int) -> Tree:
    """Return all cosines on a square but the constant, each in the middle of a filter, with equal weights."""
    places = (torch.arange(inside, dtype=torch.float64) + 0.5) * math.pi / inside
    waves = torch.cos(torch.arange(inside, dtype=torch.float64)[:, None] * places)
    cosines = torch.einsum("ai,bj->abij", waves, waves).flatten(0, 1)[1:]
    cosines /= cosines.flatten(1).norm(dim=1)[:, None, None]
    edge, count = (side - inside) // 2, len(cosines)
    return {
        "weight": torch.tensor(-5.0, dtype=torch.float64),
        "weights": torch.zeros(count, dtype=torch.float64),
        "smoothings": torch.full((count,), -4.0, dtype=torch.float64),
        "filters": pad(cosines, (edge,) * 4),
    }


def coupling(data: Patches, hparams: Tree, rounds: int = 20) -> float:
    """Return the norm of ∂²g/∂λ∂y at the noisy images by power iteration: an estimate from below."""

    images = data.noisy.clone().requires_grad_()
    given = {key: value.clone().requires_grad_() for key, value in hparams.items()}
    value = experts(images, given)
    (by_image,) = torch.autograd.grad(value, images, create_graph=True)
    by_hparams = torch.autograd.grad(value, list(given.values()), create_graph=True)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(images.shape, dtype=images.dtype, generator=generator)
    for _ in range(rounds):
        back = torch.autograd.grad(by_image, list(given.values()), vector / vector.norm(), retain_graph=True)
        (vector,) = torch.autograd.grad(by_hparams, images, back, retain_graph=True)
    return math.sqrt(float(vector.norm()))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment and return its table."""
    options = read_options(__doc__, arguments)
    side, train, test = options.pick(smoke=(16, 2, 4), default=(32, 8, 24), full=(64, 8, 8))
    filters = options.pick(smoke=(3, 3), default=(5, 3), full=(7, 7))
    work = options.pick(smoke=100, default=4000, full=50_000)
    count = sum(value.numel() for value in start(*filters).values())
    table = Table(
        f"Denoising by a field of experts, {count} parameters learned with {work} inner iterations and products",
        f"{train} training and {test} held-out patches of {side} x {side} pixels of the two photographs of "
        f"scikit-learn, noise {NOISE}; for 20 Kodak images of 256 x 256",
        {
            "psnr_at_quarter": ".2f",
            "psnr": ".2f",
            "loss_at_quarter": ".3f",
            "loss": ".3f",
            "steps": ".0f",
            "cpu_seconds": ".2f",
        },
    )
    for seed in options.seeds:
        _run(table, options, *patches(train, test, side, seed), start(*filters), work)
    return table.finish(options)


def _run(table: Table, options: Options, data: Patches, test: Patches, first: Tree, work: int) -> None:
    """Add the rows of one seed."""
    table.add("noisy", psnr=test.psnr(test.noisy), loss=0.5 * float((data.noisy - data.clean).square().sum()))
    best, loss, _ = grid(data, options.pick(smoke=WEIGHTS[::5], default=WEIGHTS, full=WEIGHTS))
    table.add("best total variation of a grid", psnr=TOTAL_VARIATION.psnr(test, best), loss=loss)
    table.add("start", psnr=EXPERTS.psnr(test, first), loss=losses(EXPERTS, data, [first])[0][0])
    step = EXPERTS.first_step(data, first, length=1.0)
    accuracies = options.pick(smoke=(0.1,), default=(1.0, 0.01), full=(1.0, 0.1, 0.01, 1e-3))
    for name, move in moves(step, accuracies, mixed=coupling(data, first)).items():
        run = race(EXPERTS, data, first, move, work)
        ends = [run.at(work / 4).hparams, run.at(work).hparams]
        early, late = losses(EXPERTS, data, ends)[0]
        table.add(
            name,
            psnr_at_quarter=EXPERTS.psnr(test, ends[0]),
            psnr=EXPERTS.psnr(test, ends[1]),
            loss_at_quarter=early,
            loss=late,
            steps=len(run.visits),
            cpu_seconds=run.seconds,
        )


if __name__ == "__main__":
    main()
