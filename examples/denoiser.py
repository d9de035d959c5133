"""A denoiser with learned filters (Fields of Experts), against total variation with a tuned strength."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

import hypergrad as hg

Tree = dict[str, Tensor]
NOISE = 0.1


def patches(count: int, which: int, seed: int) -> Tensor:
    """Return square cuttings of one of scikit-learn's photographs in shades of grey: (count, 1, 32, 32)."""
    image = torch.tensor(load_sample_images().images[which], dtype=torch.float64).mean(-1) / 255
    image, generator = avg_pool2d(image[None, None], 2)[0], torch.Generator().manual_seed(seed)
    places = [
        [int(torch.randint(side - 32, (), generator=generator)) for side in image.shape[1:]] for _ in range(count)
    ]
    return torch.stack([image[:, top : top + 32, left : left + 32] for top, left in places])


def main(steps: int = 60) -> float:
    """Tune eight filters and their strengths on four patches, and return the test PSNR in decibels."""
    clean, clean_test = patches(4, 0, seed=0), patches(12, 1, seed=1)
    generator = torch.Generator().manual_seed(2)
    noisy, noisy_test = (
        image + NOISE * torch.randn(image.shape, generator=generator, dtype=image.dtype)
        for image in (clean, clean_test)
    )

    def energy(image: Tensor, hparams: Tree, seen: Tensor) -> Tensor:
        """Return ½‖image − seen‖² + Σ strength · |filter ∗ image|, with |t| rounded off at zero."""
        filters = hparams["filters"] - hparams["filters"].mean((2, 3), keepdim=True)
        edges = (conv2d(image, filters).square() + 1e-3).sqrt().sum((0, 2, 3))
        return 0.5 * (image - seen).square().sum() + hparams["log_strength"].exp() @ edges

    problem = hg.Problem(
        inner=lambda params, hparams: energy(params["image"], hparams, noisy),
        outer=lambda params, _: 0.5 * (params["image"] - clean).square().sum(),
    )
    denoise = hg.LBFGS(tolerance=1e-3, steps=300)
    algorithm = hg.Implicit(hg.CG(rtol=1e-3), inner=denoise)

    def psnr(hparams: Tree) -> float:
        """Return the peak signal-to-noise ratio of the denoised test patches."""
        on_test = hg.Problem(lambda params, hparams: energy(params["image"], hparams, noisy_test), problem.outer)
        image = hg.solve(on_test, {"image": noisy_test}, hparams, algorithm)["image"]
        return -10 * float((image.detach() - clean_test).square().mean().log10())

    differences = torch.zeros(2, 1, 3, 3, dtype=clean.dtype)
    differences[0, 0, 1, 1:], differences[1, 0, 1:, 1] = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    variation = {"filters": differences, "log_strength": torch.full((2,), -3.0, dtype=clean.dtype)}
    filters = torch.cat([differences, 0.3 * torch.randn(6, 1, 3, 3, generator=generator, dtype=clean.dtype)])
    experts = {"filters": filters, "log_strength": torch.full((8,), -4.0, dtype=clean.dtype)}
    results = {"the noisy patches": -10 * float((noisy_test - clean_test).square().mean().log10())}
    grid = [
        variation | {"log_strength": torch.full((2,), value, dtype=clean.dtype)} for value in (-4.0, -3.5, -3.0, -2.5)
    ]
    results["total variation, the best of four strengths"] = max(psnr(hparams) for hparams in grid)
    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.05))
    results["eight learned filters"] = psnr(trainer.fit({"image": noisy}, experts, steps).hparams)
    for name, value in results.items():
        print(f"{name}: {value:.2f} dB")
    return value


if __name__ == "__main__":
    main()
