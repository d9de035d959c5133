"""A pytest plugin: the ``python`` blocks of README.md and of docs/*.md run in order, in one namespace a file.

``pyproject.toml`` loads it with ``-p tests.blocks``, since the top level has no conftest.py of its own.
"""

from __future__ import annotations

from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)],
    path=str(Path(__file__).parents[1]),
    patterns=["README.md", "docs/*.md", "docs/catalogue/*.md", "docs/migrate/*.md"],
).pytest()
