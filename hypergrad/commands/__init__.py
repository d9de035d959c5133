"""What the command line runs: one dataclass for each command, whose fields are the flags."""
