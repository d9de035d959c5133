"""Every algorithm, one file each, named as its paper: ``best_response``, ``bilevel``, ``inner``, ``linear``."""
