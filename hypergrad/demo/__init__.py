"""The demo: data hyper-cleaning, one weight for each training example."""

from hypergrad.demo.experiment import run as run
