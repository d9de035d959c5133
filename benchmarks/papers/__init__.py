"""The published experiments, small enough for two cores: each module prints one table of seeds, mean ± sd."""
