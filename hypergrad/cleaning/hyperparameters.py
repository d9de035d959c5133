"""What is tuned: a weight for each example, or a network that gives it from the loss, and labels as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hypergrad.cleaning.settings import Settings
from hypergrad.guards import pinned_rng
from hypergrad.hyperparameters import ExampleWeights, SoftLabels

CONFIDENCE = 0.9
"""Probability of the given label at the start, where labels are tuned."""
HIDDEN = 100
MLP_RATE = 0.01
LABEL_FACTOR = 3.0
"""Step of the labels' logits in units of that of the weights: the given label has a head start."""


@final
class LossNet(nn.Module):
    """Weights in (0, 1) from losses, by one hidden layer; all are 1/2 at the start.

    Source: Shu et al., "Meta-Weight-Net" (2019). Deviations: losses in units of log(classes), and an output layer that
    starts at zero.
    """

    def __init__(self, classes: int) -> None:
        """Draw the hidden layer."""
        super().__init__()
        self.unit = math.log(classes)
        self.hidden, self.out = nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, losses: Tensor) -> Tensor:
        """Return one weight for each loss, without a gradient to the losses."""
        raw = losses.detach().unsqueeze(-1) / self.unit
        weights: Tensor = self.out(torch.relu(self.hidden(raw))).squeeze(-1).sigmoid()
        return weights


@final
class Judgement(nn.Module):
    """The hyperparameters λ of cleaning.

    Args:
        labels: the given labels of all n training examples.
        classes: number of classes.
        settings: which weighting, and whether labels are tuned.
        sparse: whether gradients are of the batch's rows alone, as far as the weighting allows it.
    """

    def __init__(self, labels: Tensor, classes: int, settings: Settings, *, sparse: bool) -> None:
        """Start with equal weights and the given labels."""
        super().__init__()
        self.link, n = settings.weighting, len(labels)
        sparse = sparse and self.link != "mlp"
        self.weights = LossNet(classes) if self.link == "mlp" else ExampleWeights(n, self.link, sparse=sparse)
        self.labels = (
            SoftLabels(n, classes, labels, confidence=CONFIDENCE, sparse=sparse) if settings.correct_labels else None
        )

    def targets(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return what training aims at: the labels, or distributions."""
        return labels if self.labels is None else self.labels(rows)

    def weights_of(self, rows: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of a batch; equal ones are 1/2."""
        weights: Tensor = self.weights(losses if self.link == "mlp" else rows)
        return weights * (len(losses) / 2) if self.link == "softmax" else weights

    def forward(self, rows: Tensor, labels: Tensor, score: Callable[[], Tensor], loss: Any) -> Tensor:
        """Return the training loss of a batch, for the scores that ``score`` computes."""
        losses = loss(score(), self.targets(rows, labels))
        return torch.dot(self.weights_of(rows, losses), losses) / len(losses)


def judge(labels: Tensor, classes: int, settings: Settings, seed: int, *, sparse: bool) -> Judgement:
    """Return the hyperparameters at the start, with the random numbers of a seed; the global ones stay."""
    with pinned_rng(torch.device("cpu"), seed):
        return Judgement(labels, classes, settings, sparse=sparse)


@final
class Levelled(Optimizer):
    """Gradient steps λ ← λ − lr · g / r, where r is the root mean square of the gradient's entries.

    Proportions between entries stay, which tell how harmful a label is; the gradient's scale, which depends on the
    data, the model and the linear solver, goes. Sparse gradients move their rows alone.

    Args:
        params: what is moved.
        lr: typical change of an entry in one step, above 0.
        falling: whether r is the largest one so far, so that steps fall with the gradient; that of a noisy gradient
            would fall too soon.
    """

    def __init__(self, params: Any, lr: float, *, falling: bool = False) -> None:
        """Keep the settings."""
        super().__init__(params, {"lr": lr, "falling": falling})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                entries = tensor.grad.coalesce().values() if tensor.grad.is_sparse else tensor.grad
                level = entries.square().mean().sqrt().clamp_min(torch.finfo(entries.dtype).tiny)
                if group["falling"]:
                    kept = self.state[tensor]
                    level = kept["level"] = torch.maximum(level, kept["level"]) if kept else level
                tensor.add_(tensor.grad * (-group["lr"] / level))
        return value
