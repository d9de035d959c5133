"""Public names whose modules are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(
    package: str, names: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package some of whose names are imported late.

    Args:
        package: the package's ``__name__``.
        names: module to the public names it has.
        modules: modules that are public names themselves, under the last part of their own.

    Returns:
        What a package binds as ``__getattr__`` and ``__dir__``; a name that was found is an attribute from then on.
    """
    places = {name: module for module, held in names.items() for name in held}
    submodules = {module.rpartition(".")[2]: module for module in modules}

    def find(name: str) -> Any:
        if name in places:
            found = getattr(import_module(places[name]), name)
        elif name in submodules:
            found = import_module(submodules[name])
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        setattr(sys.modules[package], name, found)
        return found

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places, *submodules})

    return find, listed
