"""What a function reads besides its arguments, and what of that it changes."""

from __future__ import annotations

import functools
import operator
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

DEPTH, MOST = 6, 5000
LIBRARIES = ("torch", "numpy", "builtins", "collections", "functools", "typing", "hypergrad", "_pytest", "pytest")
NO_STATE = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"),
    *("_compiled_call_impl", "training"),
}
"""Attributes of every module, which a forward pass does not change."""
OPAQUE = ("an iterator", "a data loader")
"""Kinds whose position cannot always be read."""
NUMPY_GENERATORS = ("Generator", "RandomState")


def held(functions: Iterable[Callable[..., Any]]) -> dict[str, Any]:
    """Return the objects that functions reach through closures, globals, bound objects and attributes.

    Modules and classes are left out, and so is what lies inside other libraries' objects; the search ends after
    6 steps from the function, and after 5,000 objects.

    >>> generator = torch.Generator()
    >>> list(held([lambda: generator.initial_seed()]))
    ['generator']
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("", function) for function in functions]
    for _ in range(DEPTH):
        following: list[tuple[str, Any]] = []
        for path, thing in level:
            for name, part in _parts(thing):
                plain = isinstance(part, int | float | str | None)
                if (id(part) in seen and not plain) or len(found) >= MOST or _is_foreign(part):
                    continue
                seen.add(id(part))
                where = f"{path}{name}" if name.startswith("[") or not path else f"{path}.{name}"
                if not isinstance(part, types.FunctionType | types.MethodType | functools.partial):
                    found[where] = part
                following.append((where if where in found else path, part))
        level = following
    return found


def modules(functions: Iterable[Callable[..., Any]]) -> dict[str, nn.Module]:
    """Return the modules that functions reach, with their submodules, by name."""
    tops = {path: thing for path, thing in held(functions).items() if isinstance(thing, nn.Module)}
    return {
        ".".join(filter(None, (path, name))): part
        for path, module in tops.items()
        for name, part in module.named_modules()
    }


def snapshot(functions: Iterable[Callable[..., Any]]) -> dict[str, tuple[str, Any]]:
    """Return what is held that may change from call to call: (kind, token) under each name.

    A token that is ``None`` stands for something whose position cannot be read.
    """
    tokens: dict[str, tuple[str, Any]] = {}
    for path, thing in held(functions).items():
        token = _token(thing)
        if token is not None:
            tokens[path] = token
    return tokens


def changes(before: Mapping[str, tuple[str, Any]], after: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Return in words what differs between two snapshots."""
    words = []
    for path, (kind, token) in after.items():
        if path not in before:
            words.append(f"{path!r}, which appeared")
        elif before[path] != (kind, token):
            shown = f", from {before[path][1]!r} to {token!r}" if kind == "value" else ""
            words.append(f"{path!r} ({kind}){shown}")
    return words


def unreadable(tokens: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Return the names of iterators and loaders, which may give something else at every call."""
    return [f"{path!r} ({kind})" for path, (kind, token) in tokens.items() if kind in OPAQUE and token is None]


def _is_foreign(thing: Any) -> bool:
    return isinstance(thing, types.ModuleType | type | types.BuiltinFunctionType | torch.dtype | torch.device)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    wrapped = getattr(thing, "__wrapped__", None) if callable(thing) else None
    if wrapped is not None:
        yield "", wrapped
    elif isinstance(thing, types.MethodType):
        yield "self", thing.__self__
        yield "", thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, functools.partial):
        yield "", thing.func
        yield from ((f"[{place}]", value) for place, value in enumerate(thing.args))
        yield from thing.keywords.items()
    elif isinstance(thing, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in list(thing.items())[:100])
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"[{place}]", value) for place, value in enumerate(list(thing)[:100]))
    elif isinstance(thing, nn.Module):
        yield from ((key, value) for key, value in vars(thing).items() if key not in NO_STATE and "_hooks" not in key)
        yield from thing._modules.items()
        yield "forward", type(thing).forward
    elif isinstance(thing, torch.utils.data.DataLoader):
        yield "generator", thing.generator
        yield "sampler", getattr(thing.sampler, "generator", None)
    elif not type(thing).__module__.startswith(LIBRARIES):
        yield from list(getattr(thing, "__dict__", {}).items())[:100]
        call = vars(type(thing)).get("__call__")
        if isinstance(call, types.FunctionType):
            yield "", call


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from ((name, function.__globals__[name]) for name in _names(function.__code__, function.__globals__))
    yield from ((f"[default {place}]", value) for place, value in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def _names(code: types.CodeType, known: Mapping[str, Any]) -> list[str]:
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part, known)]
    return list(dict.fromkeys([*(name for name in code.co_names if name in known), *inner]))


def _token(thing: Any) -> tuple[str, Any] | None:
    if type(thing).__name__ in NUMPY_GENERATORS and type(thing).__module__.startswith("numpy"):
        state = thing.bit_generator.state if hasattr(thing, "bit_generator") else thing.get_state()
        return "a numpy generator", repr(state)
    for kind, (name, read) in READERS.items():
        if isinstance(thing, kind):
            return name, read(thing)
    return None


def _position(iterator: Iterator[Any]) -> Any:
    drawn = getattr(iterator, "_num_yielded", None)  # of a data loader
    if drawn is not None:
        return drawn
    if type(iterator).__module__ == "itertools" and "(" in repr(iterator):  # count(3)
        return repr(iterator) if type(iterator).__name__ == "count" else None
    try:
        left = operator.length_hint(iterator, -1)
    except TypeError:
        return None
    return left if left >= 0 else None


READERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    torch.Generator: ("a torch.Generator", lambda thing: thing.get_state().tolist()),
    random.Random: ("a random.Random", lambda thing: thing.getstate()),
    Tensor: ("a tensor", lambda thing: (id(thing), thing._version)),
    (bool, int, float, str, type(None)): ("value", lambda thing: thing),
    list: ("a list", len),
    dict: ("a dict", len),
    set: ("a set", len),
    Iterator: ("an iterator", _position),
    torch.utils.data.DataLoader: ("a data loader", lambda _: None),
}
"""What tells whether a thing has moved, by its type."""
