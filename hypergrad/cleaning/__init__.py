"""Data hyper-cleaning: find the examples whose labels are wrong, by tuning one weight for each."""

from hypergrad.cleaning.examples import Examples as Examples
from hypergrad.cleaning.settings import Settings as Settings
