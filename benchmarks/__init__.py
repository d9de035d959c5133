"""Comparisons of time, memory and error; never imported by the package."""
