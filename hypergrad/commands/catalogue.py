"""What the classes say about themselves: the source of the tables in the documentation and on the command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, final

import hypergrad as hg
from hypergrad.commands.fields import description, unmarked


@final
@dataclass(frozen=True)
class Entry:
    """An algorithm in the catalogue.

    Attributes:
        name: of the class.
        summary: what it is, in one sentence.
        exact: when its estimate tends to dF/dλ: ``yes``, ``no`` or a condition.
        stochastic: when it draws random directions of its own, likewise.
        order: highest order of derivative of the inner objective, 0 to 2.
        cost: passes of one step, in words.
        needs: what it asks of the problem, in words.
    """

    name: str
    summary: str
    exact: str
    stochastic: str
    order: int
    cost: str
    needs: str


def entries() -> list[Entry]:
    """Return the catalogue of algorithms, by name."""
    return [
        Entry(
            name=kind.__name__,
            summary=unmarked(summary(kind)),
            exact=trait(kind, "exact"),
            stochastic=trait(kind, "stochastic"),
            order=int(trait(kind, "order")),
            cost=trait(kind, "cost"),
            needs=trait(kind, "needs"),
        )
        for kind in public(hg.Algorithm)
    ]


def details(name: str) -> dict[str, str]:
    """Return what more the docstring of an algorithm says: its signature, its text, its source.

    Args:
        name: of the class.
    """
    kind = getattr(hg, name)
    plain = [one.replace(annotation=one.empty) for one in inspect.signature(kind).parameters.values()]
    return {
        "signature": f"hypergrad.{name}{inspect.Signature(plain)}",
        "text": description(kind),
        "source": unmarked(paragraph(kind, "Source")),
    }


def public(base: type) -> list[type]:
    """Return the public concrete classes of ``hypergrad`` under an interface, by name.

    Args:
        base: the interface.
    """
    found = {
        value
        for value in (getattr(hg, name) for name in dir(hg))
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    }
    return sorted(found, key=lambda kind: kind.__name__.lower())


def summary(kind: type) -> str:
    """Return the first paragraph of a class docstring on one line.

    Args:
        kind: the class.
    """
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def paragraph(kind: type, name: str) -> str:
    """Return the paragraph of a class docstring that begins with ``name:``, without that word.

    Args:
        kind: the class.
        name: the word.
    """
    for text in (inspect.getdoc(kind) or "").split("\n\n"):
        if text.startswith(f"{name}: "):
            return " ".join(text.removeprefix(f"{name}: ").split())
    return ""


def trait(kind: type, name: str) -> str:
    """Return a trait: a class attribute's value, or for a property what its docstring says it depends on.

    Args:
        kind: the class.
        name: of the attribute.
    """
    value: Any = inspect.getattr_static(kind, name)
    if isinstance(value, property):
        text = (value.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        condition = text.removeprefix("Whether ")
        return "no" if condition.endswith(": never") else f"if {condition}"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
