"""Tune a dropout rate, which no loss can be differentiated by, while the network trains (Delta-STN)."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.solvers import best_response as br

Batch = tuple[Tensor, Tensor]


def main(steps: int = 3000) -> float:
    """Train a classifier on labels of which a third is wrong, and return its validation loss."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, valid = order[:400], order[400:1000]
    given = y[train].clone()
    given[:120] = torch.randint(10, (120,))

    hparams = br.Hyperparameters({"rate": br.Hyperparameter(0.05, br.Logit(0, 0.9), scale=1.0)})
    plain = nn.Sequential(br.Dropout(hparams, "rate"), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = br.convert(plain, hparams, centred=True)

    def loss(batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    tuning = br.SelfTuning(
        model,
        loss,
        loss,
        hg.TensorSampler(x[train], given, batch_size=100),
        hg.TensorSampler(x[valid], y[valid], batch_size=100),
        weights=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        hyperparameters=torch.optim.RMSprop([hparams.location], lr=0.01),
        scales=torch.optim.RMSprop([hparams.raw_scale], lr=0.01),
        train_period=5,
        warmup=20,
    )
    losses = []
    for step in range(1, steps + 1):
        tuning.step()
        if step % 100 == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                losses.append(float(loss((x[valid], y[valid]))))
            model.train()
    reached, rate = sum(losses[-5:]) / len(losses[-5:]), float(hparams["rate"])
    print(f"validation loss {reached:.3f} in the end, at best {min(losses):.3f}; dropout rate 0.05 -> {rate:.2f}")
    return reached


if __name__ == "__main__":
    main()
