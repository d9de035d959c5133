"""Hyperparameters that are declared: with names, domains and initial values, and ready-made modules of them."""

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
