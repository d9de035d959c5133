"""Data hyper-cleaning: find the examples whose labels are wrong, by tuning one weight for each."""
