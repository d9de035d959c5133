"""An existing training loop gains three lines: one weight per training example, tuned while the model trains."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hypergrad as hg


def main(steps: int = 400) -> float:
    """Train a classifier on labels of which a third is wrong, and return the validation accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, valid = order[:600], order[600:1000]
    given = y[train].clone()
    given[:200] = (given[:200] + torch.randint(1, 10, (200,))) % 10

    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    weights = torch.zeros(len(train), requires_grad=True)
    outer_optimizer = torch.optim.Adam([weights], lr=0.1)

    def train_loss(rows: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(model(x[train[rows]]), given[rows], reduction="none")
        return (weights[rows].sigmoid() * losses).mean() + 1e-3 * model.weight.square().sum()

    def valid_loss() -> Tensor:
        return nn.functional.cross_entropy(model(x[valid]), y[valid])

    hyper = hg.Live(model, [weights], train_loss, valid_loss, hg.Implicit(hg.Neumann(5), stationarity=float("inf")))
    for step in range(steps):
        rows = torch.randperm(len(train))[:200]
        optimizer.zero_grad()
        train_loss(rows).backward()
        optimizer.step()
        if step >= 50:
            outer_optimizer.zero_grad()  # the training loss's backward() has filled weights.grad, too
            hyper.backward(rows)
            outer_optimizer.step()

    accuracy = float((model(x[valid]).argmax(1) == y[valid]).float().mean())
    wrong, right = weights[:200].sigmoid().mean(), weights[200:].sigmoid().mean()
    print(f"validation accuracy {accuracy:.3f}; mean weight of wrong labels {wrong:.2f}, of right ones {right:.2f}")
    return accuracy


if __name__ == "__main__":
    main()
