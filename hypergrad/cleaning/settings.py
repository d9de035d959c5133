"""All settings of data hyper-cleaning, checked where they are passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypergrad.errors import InputError
from hypergrad.settings import check_choice, check_counts, check_numbers

Weighting = Literal["sigmoid", "softmax", "mlp"]
Mode = Literal["auto", "nested", "online"]
ModelName = Literal["linear", "mlp", "convnet"]
Look = Literal["auto", "on", "off"]
Scaling = Literal["auto", "columns", "whole", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of :func:`hypergrad.cleaning.clean`.

    Attributes:
        model: what is trained: "linear" (softmax regression), "mlp" (one hidden layer) or "convnet" (two convolutions,
            for images of shape (channels, height, width) or (height, width)).
        weighting: "sigmoid": a weight from 0 to 1 for each example; "softmax": weights that compete within a batch;
            "mlp": a small network gives the weight from the example's loss.
        mode: "nested": all examples in each step, for up to ten thousand or so; "online": minibatches, training and
            weights side by side; "auto": nested up to 20,000 examples that are held in memory.
        algorithm: how hypergradients are found: "auto" ("neumann" nested, "identity" online), "cg", or a name of the
            catalogue such as "soba".
        correct_labels: whether labels are tuned as well, as a distribution over the classes for each example.
        seeds: number of runs whose rankings are compared and averaged, at least 1. With more than one each run sees
            another random four fifths of the trusted examples.
        seed: of the first run, at least 0; the others follow.
        steps: moves of the weights of a nested run, at least 1.
        inner_steps: training steps between two moves of a nested run, at least 1.
        epochs: passes of an online run over the training examples, at least 1.
        warmup: epochs of an online run before the first move of the weights, at least 0.
        every: training steps of an online run for each move of weights, at least 1.
        batch_size: training examples in a batch of an online run, at least 1.
        trusted_batch_size: trusted examples in a batch of an online run, at least 1.
        lr: step size of training, above 0.
        rate: step size of the weights, above 0: the typical change of a weight's logit in the move that changes most.
        second_look: whether softmax regression, trained out of fold with the tuned weights and the trusted examples,
            judges every label as well: "on", "off", or "auto": with model "linear" on inputs held in memory.
        threshold: examples with a lower weight are suspicious, above 0 and below 1. Without it 1/2 after a second look;
            else where the weights, which start at 1/2, fall into two groups best, at most 1/2.
        penalty: factor of half the squared norm of the model's parameters in every training, at least 0.
        damping: number added to the curvature in linear solves, at least 0.
        most_lost: largest share of a class's examples, and of its weight, that may be lost, above 0 and at most 1.
        held_out: share of the trusted part that is kept for the accuracies where there is no test set, from 0 to
            below 1.
        final_epochs: passes over the examples when a network is trained for the accuracies, at least 1.
        scaling: of the inputs of models named above: "columns" to unit variance each, "whole" centred and by one
            factor, "none", or "auto": columns for tables, whole for all else.
        folds: parts of the cross-validation that estimates the noise of the trusted part, at least 2.
        checkpoint_every: moves between two checkpoints, at least 1.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> from hypergrad.cleaning import Settings
        >>> Settings(model="convnet", mode="online", seeds=5).epochs
        10
    """

    model: ModelName = "linear"
    weighting: Weighting = "sigmoid"
    mode: Mode = "auto"
    algorithm: str = "auto"
    correct_labels: bool = False
    seeds: int = 3
    seed: int = 0
    steps: int = 40
    inner_steps: int = 10
    epochs: int = 10
    warmup: int = 1
    every: int = 2
    batch_size: int = 128
    trusted_batch_size: int = 128
    lr: float = 0.2
    rate: float = 0.2
    second_look: Look = "auto"
    threshold: float | None = None
    penalty: float = 0.001
    damping: float = 0.1
    most_lost: float = 0.9
    held_out: float = 0.2
    final_epochs: int = 10
    scaling: Scaling = "auto"
    folds: int = 5
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        """Check every setting."""
        for name, choices in CHOICES.items():
            check_choice(self, name, choices)
        if not isinstance(self.correct_labels, bool):
            raise InputError(
                passed=f"Settings(correct_labels={self.correct_labels!r})",
                expected="True or False",
                do="leave correct_labels out for False",
            )
        check_counts(self, "seeds", "steps", "inner_steps", "epochs", "every", "batch_size", "trusted_batch_size")
        check_counts(self, "final_epochs", "checkpoint_every")
        check_counts(self, "seed", "warmup", least=0)
        check_counts(self, "folds", least=2)
        check_numbers(self, "lr", "rate", above=0)
        check_numbers(self, "threshold", above=0, below=1)
        check_numbers(self, "most_lost", above=0, below=1 + 1e-12)
        check_numbers(self, "penalty", "damping", least=0)
        check_numbers(self, "held_out", least=0, below=1)


CHOICES: dict[str, tuple[str, ...]] = {
    "model": ("linear", "mlp", "convnet"),
    "weighting": ("sigmoid", "softmax", "mlp"),
    "mode": ("auto", "nested", "online"),
    "second_look": ("auto", "on", "off"),
    "scaling": ("auto", "columns", "whole", "none"),
}
