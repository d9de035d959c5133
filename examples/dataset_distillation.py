"""Distil a data set: ten synthetic images, one a digit, from which a network learns in ten steps."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]


def main(steps: int = 300) -> float:
    """Tune 640 pixels and the learning rate of training on them, and return the test accuracy."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order.split([1200, len(x) - 1200])
    classes = torch.arange(10)
    examples = torch.stack([x[train][y[train] == digit][0] for digit in classes])  # real ones, to start from

    def fresh(_: Tree) -> Tree:
        """Return a new random network: the images must teach any of them."""
        return {"first": torch.randn(64, 64) / 8, "shift": torch.zeros(64), "second": torch.randn(64, 10) / 8}

    def logits(params: Tree, images: Tensor) -> Tensor:
        return (images @ params["first"] + params["shift"]).relu() @ params["second"]

    problem = hg.Problem(
        inner=lambda params, hparams: cross_entropy(logits(params, hparams["images"]), classes),
        outer=lambda params, _, batch: cross_entropy(logits(params, batch[0]), batch[1]),
        outer_data=hg.TensorSampler(x[train], y[train], batch_size=256),
        initial=fresh,
    )
    rule = hg.GradientDescent(lr=hg.Tuned(lambda hparams: hparams["log_lr"].exp()))
    algorithm = hg.Unrolled(steps=10, inner=rule)
    start = {"images": examples, "log_lr": torch.tensor(-1.0)}
    params = fresh({})

    def accuracy(hparams: Tree) -> float:
        """Return the mean over five new networks."""
        torch.manual_seed(1)
        trained = [hg.solve(problem, params, hparams, algorithm) for _ in range(5)]
        right = [(logits(network, x[test]).argmax(1) == y[test]).double().mean() for network in trained]
        return float(torch.stack(right).mean())

    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.03))
    found = trainer.fit(params, start, steps=steps).hparams
    rates = (0.2, 0.5, 1.0, 2.0)
    best = max(accuracy(start | {"log_lr": torch.tensor(rate).log()}) for rate in rates)
    reached = accuracy(found)
    print(f"test accuracy after ten steps on ten real images {best:.3f} (the best of {len(rates)} learning rates)")
    print(f"on ten synthetic ones {reached:.3f}, learning rate {float(found['log_lr'].exp()):.2f}")
    return reached


if __name__ == "__main__":
    main()
