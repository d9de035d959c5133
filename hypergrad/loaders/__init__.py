"""Samplers of data loaders."""

from hypergrad.loaders.sampler import LoaderSampler as LoaderSampler
