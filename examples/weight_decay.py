"""One weight decay for every single weight of a convolutional network, tuned through its training."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]


def main(steps: int = 25) -> float:
    """Tune a decay for each weight of a network that sees 40 % wrong labels, and return the test accuracy."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid, test = order.split([300, 400, len(x) - 700])
    given = y[train].clone()
    given[:120] = (given[:120] + torch.arange(120) % 9 + 1) % 10

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    params = {key: value.detach() for key, value in model.named_parameters()}

    def logits(params: Tree, rows: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, params, (x[rows],))
        return found

    problem = hg.Problem(
        inner=lambda params, _: cross_entropy(logits(params, train), given),
        outer=lambda params, _: cross_entropy(logits(params, valid), y[valid]),
        penalty=lambda params, hparams: sum((hparams[key].exp() * params[key].square()).sum() for key in params),
    )
    algorithm = hg.Unrolled(steps=120, inner=hg.GradientDescent(lr=0.1, momentum=0.9), keep="iterates")

    def log_decays(value: float) -> Tree:
        return {key: torch.full_like(weight, value) for key, weight in params.items()}

    def accuracies(hparams: Tree) -> tuple[float, float]:
        """Return the accuracy on validation and test images after training with these decays."""
        trained = hg.solve(problem, params, hparams, algorithm)
        right = [(logits(trained, rows).argmax(1) == y[rows]).double().mean() for rows in (valid, test)]
        return float(right[0]), float(right[1])

    start = log_decays(-6.0)
    tuned = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.3)).fit(params, start, steps).hparams
    plain, reached = accuracies(log_decays(-30.0))[1], accuracies(tuned)[1]
    grid = (-30.0, -8.0, -7.0, -6.0, -5.0, -4.0)[:steps]
    best = max(accuracies(log_decays(value)) for value in grid)
    entries = torch.cat([value.flatten() for value in tuned.values()])
    spread = ", ".join(f"e^{float(entries.quantile(share)):.1f}" for share in (0.1, 0.5, 0.9))
    print(f"test accuracy {plain:.3f} without decay, {best[1]:.3f} with the best of {len(grid)} single decays,")
    print(f"{reached:.3f} with {len(entries):,} tuned ones; their 10, 50 and 90 % quantiles are {spread}")
    return reached


if __name__ == "__main__":
    main()
