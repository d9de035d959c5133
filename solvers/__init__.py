"""Every algorithm, one file each, named as its paper: ``bilevel``, ``inner`` and ``linear``."""
