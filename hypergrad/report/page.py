"""The page: one HTML file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hypergrad.errors import InputError, MissingDependencyError
from hypergrad.files import write_whole
from hypergrad.report.blocks import Document
from hypergrad.report.document import read_document
from hypergrad.version import __version__

NAME = "report.html"


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write ``directory/report.html``, a page that shows what a run did and asks the network for nothing.

    The directory is one that :class:`hypergrad.report.Record`, :class:`~hypergrad.History`, ``hypergrad demo``,
    ``hypergrad clean`` or ``hypergrad compare`` wrote to; what is missing there is said on the page. Nothing in the
    files is trusted: all text is escaped, pictures are PNG or JPEG, links out of the directory are not followed.

    Args:
        directory: the run's directory; the run may still go on.

    Returns:
        The file's path.

    Raises:
        InputError: no such directory, one without anything of a run, or one that cannot be written to.
        MissingDependencyError: jinja2 is not installed.

    Example:
        >>> import tempfile, torch, hypergrad as hg
        >>> problem = hg.Problem(
        ...     inner=lambda params, hparams: 0.5 * (params["w"] - hparams["x"]).square().sum(),
        ...     outer=lambda params, hparams: 0.5 * (params["w"] - 3).square().sum(),
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> history = hg.History(f"{folder}/history.jsonl")
        >>> move = hg.outer.Torch(torch.optim.SGD, lr=0.5)
        >>> trainer = hg.Trainer(problem, hg.Implicit(hg.CG(), inner=hg.Newton()), move, [history])
        >>> fitted = trainer.fit({"w": torch.zeros(1)}, {"x": torch.zeros(1)}, steps=5)
        >>> hg.report.write_report(folder).name
        'report.html'
    """
    text = render(read_document(directory))
    path = Path(directory) / NAME

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)  # a link that was planted there would be written through
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)

    try:
        write_whole(path, write)
    except OSError as error:
        raise InputError(
            passed=f"{path}, which cannot be written ({error.strerror})",
            expected="a directory with room for report.html",
            do="free some space, change the permissions, or copy the directory; --text needs no file",
        ) from error
    return path


def render(document: Document, *, tag: str = "") -> str:
    """Return the page.

    Args:
        document: what it shows.
        tag: of a page that is served while the run goes on and refreshes itself: what it shows, as an ETag.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    style, script = _file("page.css"), _file("watch.js") if tag else ""
    sources = [
        "default-src 'none'",
        "img-src data:",
        f"style-src {_hash(style)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if tag:
        sources += [f"script-src {_hash(script)}", "connect-src 'self'"]
    page: str = _template().render(
        document=document, style=style, script=script, policy="; ".join(sources), version=__version__, tag=tag
    )
    return page


@cache
def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError(
            passed=f"a report without the package jinja2 ({error})",
            expected="jinja2, which makes the page",
            do='pip install "hypergrad-engine[report]"; hypergrad report DIR --text needs nothing more',
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html"))


@cache
def _file(name: str) -> str:
    return (resources.files("hypergrad.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
