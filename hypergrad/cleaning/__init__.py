"""Data hyper-cleaning: find the examples whose labels are wrong, by tuning one weight for each."""

from hypergrad.cleaning.clean import clean as clean
from hypergrad.cleaning.cleaned import Cleaned as Cleaned
from hypergrad.cleaning.examples import Examples as Examples
from hypergrad.cleaning.settings import Settings as Settings
