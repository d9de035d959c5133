"""Tune a learning rate and a momentum, which only the training itself knows, by forward mode."""

from __future__ import annotations

import torch
from torch import Tensor

import hypergrad as hg

Tree = dict[str, Tensor]


def main(steps: int = 60) -> float:
    """Tune both for 20 steps of training on a quadratic and return the loss they reach."""
    curvature = torch.logspace(0, 2, 10, dtype=torch.float64)

    def loss(params: Tree, _: Tree) -> Tensor:
        return 0.5 * (curvature * (params["w"] - 1).square()).sum()

    rule = hg.GradientDescent(
        lr=hg.Tuned(lambda hparams: hparams["log_lr"].exp()),
        momentum=hg.Tuned(lambda hparams: hparams["momentum_logit"].sigmoid()),
    )
    algorithm = hg.ForwardMode(steps=20, inner=rule)
    outer = hg.outer.Torch(torch.optim.Adam, lr=0.1)
    params = {"w": torch.zeros(10, dtype=torch.float64)}
    hparams = {
        "log_lr": torch.tensor(-6.0, dtype=torch.float64),
        "momentum_logit": torch.tensor(-2.0, dtype=torch.float64),
    }
    problem, losses = hg.Problem(loss, loss), []
    for progress in hg.iterate(problem, algorithm, params, hparams, outer=outer, steps=steps):
        losses.append(progress.outer_loss)
        hparams = progress.moved
    lr, momentum = hparams["log_lr"].exp(), hparams["momentum_logit"].sigmoid()
    print(f"loss after 20 steps: {losses[0]:.3g} -> {losses[-1]:.3g} with lr {lr:.4f}, momentum {momentum:.3f}")
    return losses[-1]


if __name__ == "__main__":
    main()
