"""Other libraries, each in an environment and a process of its own, on the same problems."""
