"""The pages' python blocks are tests (see tests/blocks.py); the modules that build the pages are none."""

from __future__ import annotations

collect_ignore_glob = ["*.py"]
