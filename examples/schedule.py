"""Learn a learning-rate schedule with seven knots, by forward mode through stochastic training."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]
LENGTH, KNOTS = 60, 7


def learning_rate(hparams: Tree, step: int) -> Tensor:
    """Return the rate at a step: the logarithm is linear between the knots."""
    place = step * (KNOTS - 1) / LENGTH
    left = int(place)
    share = place - left
    knots = hparams["log_lr"]
    return ((1 - share) * knots[left] + share * knots[left + 1]).exp()


def main(steps: int = 60) -> float:
    """Tune the schedule of 60 steps of SGD and return the test loss they reach."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid, test = order.split([800, 500, len(x) - 1300])
    draw = torch.Generator().manual_seed(1)
    params = {
        "first": torch.randn(64, 32, generator=draw) / 8,
        "shift": torch.zeros(32),
        "second": torch.randn(32, 10, generator=draw) / 32**0.5,
    }

    def loss(params: Tree, _: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = (batch[0] @ params["first"] + params["shift"]).tanh()
        return cross_entropy(hidden @ params["second"], batch[1])

    problem = hg.Problem(
        loss,
        loss,
        inner_data=hg.TensorSampler(x[train], y[train], batch_size=8),
        outer_data=hg.Fixed((x[valid], y[valid])),
    )
    rule = hg.GradientDescent(lr=hg.Tuned(learning_rate), momentum=0.9)
    algorithm = hg.ForwardMode(steps=LENGTH, inner=rule)

    def test_loss(log_lr: Tensor) -> float:
        """Return the mean over three trainings on other batches."""
        found = []
        for seed in (1, 2, 3):
            sampler = hg.TensorSampler(x[train], y[train], batch_size=8, seed=seed)
            trained = hg.solve(hg.Problem(loss, loss, inner_data=sampler), params, {"log_lr": log_lr}, algorithm)
            found.append(float(loss(trained, {}, (x[test], y[test]))))
        return sum(found) / len(found)

    start = {"log_lr": torch.full((KNOTS,), -3.0)}
    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.05))
    knots = trainer.fit(params, start, steps=steps).hparams["log_lr"]
    constants = {rate: test_loss(torch.full((KNOTS,), rate).log()) for rate in (0.01, 0.02, 0.05, 0.1, 0.2)}
    best, reached = min(constants, key=lambda rate: constants[rate]), test_loss(knots)
    print(f"test loss {test_loss(start['log_lr']):.3f} at first, {constants[best]:.3f} with the best constant {best}")
    print(f"{reached:.3f} with the schedule {' '.join(f'{rate:.3f}' for rate in knots.exp().tolist())}")
    return reached


if __name__ == "__main__":
    main()
