"""Differentiate through scikit-learn: its logistic regression becomes a function of per-example weights."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import hypergrad as hg

Tree = dict[str, Tensor]


def main(steps: int = 30) -> float:
    """Down-weight examples with flipped labels and return the share of them among the lowest weights."""
    data = load_breast_cancer()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))
    y = torch.tensor(data.target, dtype=x.dtype)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid = order[:200], order[200:400]
    given = y[train].clone()
    given[:60] = 1 - given[:60]

    def fit(_: Tree, hparams: Tree) -> dict[str, object]:
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
        model.fit(x[train], given, sample_weight=hparams["logit"].sigmoid().numpy())
        return {"weight": model.coef_[0], "bias": model.intercept_}

    def logits(params: Tree, rows: Tensor) -> Tensor:
        return x[rows] @ params["weight"] + params["bias"]

    def inner(params: Tree, hparams: Tree) -> Tensor:
        losses = binary_cross_entropy_with_logits(logits(params, train), given, reduction="none")
        return (hparams["logit"].sigmoid() * losses).sum() + 0.5 * params["weight"].square().sum()

    trained = hg.differentiable(fit, inner, linear=hg.CG(rtol=1e-8))
    start = {"weight": torch.zeros(30, dtype=x.dtype), "bias": torch.zeros(1, dtype=x.dtype)}
    logit = torch.zeros(200, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(logits(trained(start, {"logit": logit}), valid), y[valid])
        loss.backward()
        optimizer.step()
    found = float((logit.argsort()[:60] < 60).double().mean())
    print(f"validation loss {float(loss.detach()):.4f}; {found:.0%} of the 60 lowest weights belong to flipped labels")
    return found


if __name__ == "__main__":
    main()
