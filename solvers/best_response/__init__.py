"""Best-response networks: weights that are functions of the hyperparameters, learnt while the network trains."""

from hypergrad.solvers.best_response.convert import BestResponse as BestResponse
from hypergrad.solvers.best_response.convert import convert as convert
from hypergrad.solvers.best_response.domains import Choice as Choice
from hypergrad.solvers.best_response.domains import Domain as Domain
from hypergrad.solvers.best_response.domains import Integer as Integer
from hypergrad.solvers.best_response.domains import Log as Log
from hypergrad.solvers.best_response.domains import Logit as Logit
from hypergrad.solvers.best_response.domains import Real as Real
from hypergrad.solvers.best_response.hyperparameters import Hyperparameter as Hyperparameter
from hypergrad.solvers.best_response.hyperparameters import Hyperparameters as Hyperparameters
from hypergrad.solvers.best_response.layers import Dropout as Dropout
from hypergrad.solvers.best_response.layers import Gate as Gate
from hypergrad.solvers.best_response.layers import NormResponse as NormResponse
from hypergrad.solvers.best_response.layers import ResponseLayer as ResponseLayer
from hypergrad.solvers.best_response.layers import WeightResponse as WeightResponse
from hypergrad.solvers.best_response.training import SelfTuning as SelfTuning
from hypergrad.solvers.best_response.training import TuningStep as TuningStep
from hypergrad.solvers.best_response.training import count_examples as count_examples
