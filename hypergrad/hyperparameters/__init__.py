"""Hyperparameters that are declared: with names, domains and initial values, and ready-made modules of them."""

from typing import TYPE_CHECKING

from hypergrad.lazy import on_first_use

if TYPE_CHECKING:
    from hypergrad.hyperparameters.augmentation import Augmentation as Augmentation
    from hypergrad.hyperparameters.augmentation import AugmentationNetwork as AugmentationNetwork
    from hypergrad.hyperparameters.collection import Hyperparameters as Hyperparameters
    from hypergrad.hyperparameters.declaration import Hyperparameter as Hyperparameter
    from hypergrad.hyperparameters.dropout import Dropout as Dropout
    from hypergrad.hyperparameters.example_weights import ExampleWeights as ExampleWeights
    from hypergrad.hyperparameters.labels import LabelSmoothing as LabelSmoothing
    from hypergrad.hyperparameters.labels import SoftLabels as SoftLabels
    from hypergrad.hyperparameters.mixtures import DomainMixture as DomainMixture
    from hypergrad.hyperparameters.mixtures import LossWeights as LossWeights
    from hypergrad.hyperparameters.schedule import LearningRateSchedule as LearningRateSchedule
    from hypergrad.hyperparameters.weight_decay import WeightDecay as WeightDecay

NAMES = {
    "augmentation": ("Augmentation", "AugmentationNetwork"),
    "collection": ("Hyperparameters",),
    "declaration": ("Hyperparameter",),
    "dropout": ("Dropout",),
    "example_weights": ("ExampleWeights",),
    "labels": ("LabelSmoothing", "SoftLabels"),
    "mixtures": ("DomainMixture", "LossWeights"),
    "schedule": ("LearningRateSchedule",),
    "weight_decay": ("WeightDecay",),
}
"""Module to its public names: the same as above, where they are imported for type checkers."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(__name__, {f"{__name__}.{module}": names for module, names in NAMES.items()})
