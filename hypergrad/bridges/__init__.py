"""Bridges to other libraries, each imported by name; none is needed to import hypergrad."""
