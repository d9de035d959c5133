"""Balance three losses of one network, in three units, so that all three tasks come out well."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]
TASKS = ("digit", "lower half", "ink")


def main(steps: int = 30) -> float:
    """Tune the weights of the losses of a small network and return its mean test loss, 1 being a constant's."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    upper, lower, ink = x[:, :4].flatten(1), x[:, 4:].flatten(1), x.mean((1, 2))  # the network sees the upper half
    generator = torch.Generator().manual_seed(0)
    train, valid, test = torch.randperm(len(x), generator=generator).split([600, 400, len(x) - 1000])
    mean, shade = ink[train].mean(), lower[train].mean(0)
    scales = lower[train].std(), ink[train].std()
    params = {
        "trunk": torch.randn(32, 12, generator=generator) / 32**0.5,
        "shift": torch.zeros(12),
        "heads": torch.randn(12, 10 + 32 + 1, generator=generator) / 12**0.5,
    }

    def losses(params: Tree, rows: Tensor) -> Tensor:
        """Return cross-entropy, and the mean square errors of the pixels and of their mean over the image."""
        shared = (upper[rows] @ params["trunk"] + params["shift"]).tanh() @ params["heads"]
        digit, half, total = shared.split([10, 32, 1], dim=1)
        pixels = (scales[0] * half + shade - lower[rows]).square().mean()
        mean_pixel = (scales[1] * total[:, 0] + mean - ink[rows]).square().mean()
        return torch.stack([cross_entropy(digit, y[rows]), pixels, mean_pixel])

    constant = losses({key: torch.zeros_like(value) for key, value in params.items()}, train)
    problem = hg.Problem(
        inner=lambda params, hparams: hparams["log_weights"].exp() @ losses(params, train),
        outer=lambda params, _: (losses(params, valid) / constant).mean(),
    )
    algorithm = hg.Unrolled(steps=150, inner=hg.GradientDescent(lr=0.1, momentum=0.9))

    def on_test(weights: Tensor) -> list[float]:
        """Return each loss on the test images over that of a constant answer, and their mean."""
        trained = hg.solve(problem, params, {"log_weights": weights.log()}, algorithm)
        found = (losses(trained, test) / constant).detach()
        return [*found.tolist(), float(found.mean())]

    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.3))
    tuned = trainer.fit(params, {"log_weights": torch.zeros(3)}, steps=steps).hparams["log_weights"].exp()
    rows = {"equal weights": torch.ones(3), "tuned weights": tuned}
    for name, weights in rows.items():
        found = on_test(weights)
        each = ", ".join(f"{task} {value:.3f}" for task, value in zip(TASKS, found, strict=False))
        print(f"{name}: {each}, mean {found[-1]:.3f}")
    print("tuned weights are", ", ".join(f"{task} {weight:.1f}" for task, weight in zip(TASKS, tuned, strict=True)))
    return found[-1]


if __name__ == "__main__":
    main()
