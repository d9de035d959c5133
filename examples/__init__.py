"""Short scripts, one idea each; ``main(steps=...)`` runs one."""
