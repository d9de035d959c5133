"""A study that proposes the features of a classifier, and hypergradients for a weight of each training image."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import hypergrad as hg
from hypergrad.bridges.optuna import HybridObjective, Tuning, load_best

Tree = dict[str, Tensor]


def main(steps: int = 10) -> float:
    """Search with and without weights, ``steps`` trials each, and return the test accuracy with weights."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid, test = order.split([300, 400, len(x) - 700])
    given = y[train].clone()
    given[:120] = (given[:120] + torch.arange(120) % 9 + 1) % 10  # 40 % of the labels are wrong
    noise, phase = torch.randn(64, 200, generator=torch.Generator().manual_seed(1)), torch.arange(200.0)

    def features(trial: Any) -> Tensor:
        """Return random Fourier features, whose number and scale the study proposes."""
        width, scale = trial.suggest_int("width", 50, 200), trial.suggest_float("scale", 0.05, 1.0, log=True)
        found: Tensor = torch.cos(scale * x @ noise[:, :width] + phase[:width]) * (2 / width) ** 0.5
        return found

    def build(trial: Any, *, weighted: bool = True) -> Tuning:
        """Return the training of a softmax regression on them; λ holds a penalty and the images' weights."""
        a = features(trial)

        def inner(params: Tree, hparams: Tree) -> Tensor:
            losses = cross_entropy(a[train] @ params["w"], given, reduction="none")
            weights = 2 * hparams["weights"].sigmoid() if weighted else torch.ones(len(train))
            return (weights * losses).mean() + hparams["decay"].exp() * params["w"].square().sum()

        problem = hg.Problem(
            inner=inner,
            outer=lambda params, hparams: cross_entropy(a[valid] @ params["w"], y[valid]),
            hparams_domain={"decay": hg.Box(-12.0, 0.0)},
        )
        hparams = {"decay": torch.tensor(-6.0), **({"weights": torch.zeros(len(train))} if weighted else {})}
        solver = hg.Implicit(hg.CG(rtol=1e-2), inner=hg.LBFGS(tolerance=1e-4))
        return Tuning(problem, {"w": torch.zeros(a.shape[1], 10)}, hparams, solver)

    def accuracy(study: optuna.Study, store: str) -> float:
        best = load_best(study, store)
        logits = features(optuna.trial.FixedTrial(best.suggested))[test] @ best.params["w"]
        return float((logits.argmax(1) == y[test]).double().mean())

    found = {}
    for weighted in (False, True):
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
        )
        with tempfile.TemporaryDirectory() as store:
            objective = HybridObjective(
                partial(build, weighted=weighted),
                steps=15,
                store=store,
                outer=hg.outer.Torch(torch.optim.Adam, lr=0.3),
            )
            study.optimize(objective, n_trials=steps)
            found[weighted] = accuracy(study, store)
    print(f"test accuracy {found[False]:.3f} with features and a penalty tuned, {found[True]:.3f} with weights, too")
    return found[True]


if __name__ == "__main__":
    main()
