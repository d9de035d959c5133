"""Exit statuses."""

SUCCESS, FAILED, MISUSED, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
"""It worked; it did not; a mistake in what was passed; a check that could not decide; Ctrl-C."""
