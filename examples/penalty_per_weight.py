"""One log penalty per weight of a softmax regression, tuned by scipy's L-BFGS-B within bounds."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]


def main(steps: int = 4) -> float:
    """Tune 650 penalties and return the validation loss."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16), torch.tensor(digits.target)
    train, valid = slice(0, 900), slice(900, 1797)

    def logits(params: Tree, rows: slice) -> Tensor:
        return x[rows] @ params["weight"] + params["bias"]

    problem = hg.Problem(
        inner=lambda params, _: cross_entropy(logits(params, train), y[train]),
        outer=lambda params, _: cross_entropy(logits(params, valid), y[valid]),
        penalty=lambda params, hparams: sum((hparams[k].exp() * v.square()).sum() for k, v in params.items()),
        hparams_domain={"weight": hg.Box(-12.0, 3.0), "bias": hg.Box(-12.0, 3.0)},
    )
    params = {"weight": torch.zeros(64, 10, dtype=x.dtype), "bias": torch.zeros(10, dtype=x.dtype)}
    hparams = {key: torch.full_like(value, -8.0) for key, value in params.items()}
    algorithm = hg.Implicit(hg.CG(rtol=1e-5, max_steps=500), inner=hg.LBFGS(tolerance=1e-7, steps=500))
    trainer = hg.Trainer(problem, algorithm, hg.outer.LBFGSB(iterations=5), [hg.ProgressBar()])
    before = hg.hypergradient(problem, params, hparams, algorithm)
    fitted = trainer.fit(params, hparams, steps=steps)
    after = float(problem.outer_value(fitted.params, fitted.hparams))
    print(f"validation loss {float(before.outer_loss):.4f} with one penalty, {after:.4f} with 650")
    return after


if __name__ == "__main__":
    main()
