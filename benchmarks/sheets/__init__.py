"""What is compared with other libraries: one module a sheet, run by ``python -m benchmarks run NAME``."""

from __future__ import annotations

SHEETS = ("cost", "errors", "time_to_error", "scaling", "race", "stochastic")
"""Names of all sheets, in the order of the page of results."""
