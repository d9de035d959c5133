"""What is held still while a loss is evaluated: checkpointing, autocast, and the buffers of the modules it calls."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

_here = threading.local()
_CHECKPOINT: Any = sys.modules["torch.utils.checkpoint"]  # loaded with torch
_NODE = "CheckpointFunction"
_AUTOCAST = torch.amp.autocast_mode.autocast


class _Patch(ABC):
    """A block with some functions of torch replaced; threads outside of it see the originals all the same."""

    def __init__(self) -> None:
        self.lock, self.depth, self.name = threading.Lock(), 0, type(self).__name__
        self.originals: dict[tuple[Any, str], Any] = {}
        self.replaced = self.replacements()

    @abstractmethod
    def replacements(self) -> dict[tuple[Any, str], Any]:
        """Return what stands under an attribute of an owner inside the block, by owner and attribute."""

    def original(self, name: str) -> Any:
        """Return what stands under an attribute outside of the block."""
        return next(value for (_, attribute), value in self.originals.items() if attribute == name)

    @property
    def inside(self) -> bool:
        """Whether this thread is inside."""
        return bool(getattr(_here, self.name, 0))

    def __enter__(self) -> None:
        """Enter; the first thread to do so replaces."""
        inside = getattr(_here, self.name, 0)
        setattr(_here, self.name, inside + 1)
        if inside:
            return
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.originals = {place: getattr(*place) for place in self.replaced}
                for place, value in self.replaced.items():
                    setattr(*place, value)

    def __exit__(self, *failure: object) -> None:
        """Leave; the last thread to do so puts back."""
        inside = getattr(_here, self.name) - 1
        setattr(_here, self.name, inside)
        if inside:
            return
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                for place, value in self.originals.items():
                    setattr(*place, value)


class _WholeGraph(_Patch):
    """Switches gradient checkpointing off.

    A checkpoint runs its part of the module again in the backward pass, when the tensors that a functional call put
    in are gone: gradients would belong to the module's own parameters, without a word. The reentrant form cannot be
    differentiated with respect to given inputs at all.
    """

    def replacements(self) -> dict[tuple[Any, str], Any]:
        return {(_CHECKPOINT, "_checkpoint_without_reentrant_generator"): self.generator, (_CHECKPOINT, _NODE): self}

    def generator(self, *args: Any, **options: Any) -> Iterator[None]:
        """Do nothing around the checkpointed function."""
        if self.inside:
            return _nothing()
        found: Iterator[None] = self.original("_checkpoint_without_reentrant_generator")(*args, **options)
        return found

    def apply(self, function: Any, preserve: bool, *args: Any) -> Any:
        """Call the function of a reentrant checkpoint."""
        return function(*args) if self.inside else self.original(_NODE).apply(function, preserve, *args)


def _nothing() -> Iterator[None]:
    """Yield once, as a generator, which takes exceptions."""
    yield


class _FullPrecision(_Patch):
    """Keeps ``torch.autocast`` blocks inside from taking effect: products of half-precision graphs are wrong."""

    def replacements(self) -> dict[tuple[Any, str], Any]:
        def enter(block: Any) -> Any:  # a function, which binds to the block, unlike a method of this object
            return self.enter(block)

        return {(_AUTOCAST, "__enter__"): enter}

    def enter(self, block: Any) -> Any:
        """Enter an autocast block, disabled where this thread is inside."""
        enabled = block._enabled
        block._enabled = enabled and not self.inside
        try:
            return self.original("__enter__")(block)
        finally:
            block._enabled = enabled


class _UnseenHooks(_Patch):
    """Keeps compiled modules, which run eagerly inside, from warning of the hooks that are ours."""

    def replacements(self) -> dict[tuple[Any, str], Any]:
        found = {}
        if hasattr(nn.modules.module, "_has_any_global_hook"):
            found[nn.modules.module, "_has_any_global_hook"] = self.seen
        return found

    def seen(self) -> bool:
        """Return whether there are hooks for all modules, as far as this thread is outside."""
        return not self.inside and bool(self.original("_has_any_global_hook")())


class _Buffers:
    """Lends the modules that one evaluation calls copies of their buffers, which go on from call to call.

    As a block it is one evaluation of several: the next one starts from the owners' buffers again.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.evaluating = self.used = False
        self.lent: list[tuple[nn.Module, str, Tensor]] = []
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the owner's tensor: it, and its copy

    def before(self, module: nn.Module, _: Any) -> None:
        """Lend to a module that is called, and to its parts, unless it is a part itself."""
        if getattr(_here, "buffers", None) is not self:
            return
        self.depth += 1
        if self.depth > 1:
            return
        for part in module.modules():
            for name, own in [] if isinstance(part, torch.jit.ScriptModule) else part._buffers.items():
                if own is not None:
                    _, copy = self.copies.setdefault(id(own), (own, own.clone()))
                    self.lent.append((part, name, own))
                    part._buffers[name] = copy

    def after(self, *_: Any) -> None:
        """Take back at the end of the outermost call, also of one that failed."""
        if getattr(_here, "buffers", None) is self:
            self.depth -= 1
            if self.depth == 0:
                self.take_back()

    def __enter__(self) -> None:
        self.evaluating = True

    def __exit__(self, *failure: object) -> None:
        self.evaluating = False
        self.take_back()
        self.copies.clear()

    @property
    def current(self) -> bool:
        """Whether these are the buffers that are lent on this thread now."""
        return getattr(_here, "buffers", None) is self

    def take_back(self) -> None:
        """Put the owner's buffers where they were, and remember what the copies have become."""
        self.used = self.used or bool(self.lent)
        for part, name, own in self.lent:
            now = part._buffers.get(name)
            if now is not None:
                self.copies[id(own)] = own, now
            part._buffers[name] = own
        self.lent.clear()


class lending:  # noqa: N801 - used like a function
    """A block in which no module that is called changes its buffers."""

    def __enter__(self) -> _Buffers:
        """Lend from now on."""
        self.outside, mine = getattr(_here, "buffers", None), _Buffers()
        self.first = nn.modules.module.register_module_forward_pre_hook(mine.before)
        self.last = nn.modules.module.register_module_forward_hook(mine.after, always_call=True)
        _here.buffers = self.mine = mine
        return mine

    def __exit__(self, *failure: object) -> None:
        """Take back."""
        _here.buffers = self.outside
        self.first.remove()
        self.last.remove()
        self.mine.take_back()


@contextmanager
def with_own_buffers() -> Iterator[None]:
    """A block whose modules get copies of their buffers from elsewhere."""
    outside, _here.buffers = getattr(_here, "buffers", None), None
    try:
        yield
    finally:
        _here.buffers = outside


whole_graph = _WholeGraph()
"""A block in which forward passes record their whole graph, without gradient checkpointing."""
full_precision = _FullPrecision()
"""A block in which autocast blocks have no effect."""
unseen_hooks = _UnseenHooks()
"""A block whose hooks for all modules do not make compiled modules warn."""
_PATCHES = (whole_graph, full_precision, unseen_hooks)


class held:  # noqa: N801 - used like a function
    """A block of many evaluations, which prepares once what :func:`still` needs for each of them."""

    def __enter__(self) -> Self:
        """Prepare."""
        for patch in _PATCHES:
            patch.__enter__()
        self.outside, self.lending = getattr(_here, "held", None), lending()
        _here.held = self.lending.__enter__()
        return self

    @property
    def used(self) -> bool:
        """Whether a module with buffers was called since."""
        return self.lending.mine.used

    def __exit__(self, *failure: object) -> None:
        """Put everything back."""
        _here.held = self.outside
        self.lending.__exit__()
        for patch in _PATCHES:
            patch.__exit__()


def still() -> AbstractContextManager[None]:
    """Return a block to evaluate a loss in: without checkpoints and autocast, and with buffers that stay as they are.

    Inside of :func:`held` it only takes the buffers back afterwards; an evaluation within an evaluation, or one under
    other buffers, prepares everything anew.
    """
    buffers: _Buffers | None = getattr(_here, "held", None)
    if buffers is None or buffers.evaluating or not buffers.current:
        return _still()
    return buffers


@contextmanager
def _still() -> Iterator[None]:
    with whole_graph, full_precision, unseen_hooks, lending():
        yield
