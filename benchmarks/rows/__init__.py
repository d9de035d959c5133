"""Methods by library: ``ROWS`` maps a name to ``(problem, arrays, settings) -> function`` that finds a hypergradient.

The function returns ``{"answer": [one array for each hyperparameter], "counts": {…}}``. A module imports its library
at the top, so that a library that cannot be imported is a row with that reason, and has ``version()``.
"""
