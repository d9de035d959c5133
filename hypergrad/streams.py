"""The global random generators of Python and numpy, held like torch's."""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from dataclasses import dataclass
from typing import Any, final

_Look = tuple[bytes, float | None] | None


@final
@dataclass(frozen=True, eq=False)
class Streams:
    """The present points of both generators, to come back to.

    Attributes:
        python: state of :mod:`random`.
        numpy: state of ``numpy.random``'s global generator; ``None`` where numpy is not imported.
        look: what Python's generator looked like in memory, where that can be told.
    """

    python: Any
    numpy: _Numpy | None
    look: _Look = None

    @classmethod
    def capture(cls) -> Streams:
        """Return the present points."""
        last, look, numpy = _Last.streams, _look(), _Numpy.capture()
        if look is not None and look == last.look:
            if numpy is last.numpy:
                return last
            python = last.python
        else:
            python = random.getstate()
            if python == last.python:
                python = last.python  # one copy for as long as nobody draws
        _Last.streams = cls(python, numpy, look)
        return _Last.streams

    def restore(self) -> None:
        """Go back, so that the same numbers come again."""
        if self.look is None or self.look != _look():
            random.setstate(self.python)
        if self.numpy is not None:
            self.numpy.restore()

    def moved(self) -> list[str]:
        """Return which of the two stand elsewhere now, by their names."""
        moved = ["Python's random module"] if random.getstate() != self.python else []
        if self.numpy is not None and self.numpy.has_moved():
            moved.append("numpy.random's global generator")
        return moved


def seed(number: int) -> None:
    """Seed both generators."""
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)


@final
@dataclass(frozen=True, eq=False)
class _Numpy:
    """A state of numpy's global generator.

    Asking numpy for it takes tens of microseconds, more than a small step. A Mersenne Twister is therefore looked at
    in memory first: its words move with every draw, but for the second of two normal numbers, which is kept aside.
    """

    state: Any
    words: bytes
    aside: bool

    @classmethod
    def capture(cls) -> _Numpy | None:
        if "numpy" not in sys.modules:
            return None
        last = _Last.streams.numpy
        if last is not None and last.is_present():
            return last
        state = sys.modules["numpy"].random.get_state(legacy=False)
        return cls(state, _words(), bool(state.get("has_gauss")))

    def is_present(self) -> bool:
        """Return whether the generator surely stands here."""
        return not self.aside and bool(self.words) and self.words == _words()

    def has_moved(self) -> bool:
        """Return whether the generator stands elsewhere."""
        if self.words:
            now = sys.modules["numpy"].random.get_state(legacy=False) if self.aside else {"has_gauss": 0}
            return self.words != _words() or bool(now["has_gauss"]) != self.aside
        return repr(self.state) != repr(sys.modules["numpy"].random.get_state(legacy=False))

    def restore(self) -> None:
        if not self.is_present():
            sys.modules["numpy"].random.set_state(self.state)


def _look() -> _Look:
    """Return what tells whether Python's generator stands where it stood, much sooner than ``random.getstate``."""
    if _Last.python is not random.getstate:
        _Last.python, _Last.words = random.getstate, _found_words()
    if _Last.words is None:
        return None
    return ctypes.string_at(_Last.words, 625 * 4), _Last.generator.gauss_next


def _found_words() -> int | None:
    """Return where the generator keeps its 624 words and their index, after comparing them; ``None`` elsewhere."""
    generator: Any = getattr(random.getstate, "__self__", None)
    if type(generator) is not random.Random or sys.implementation.name != "cpython":
        return None
    _Last.generator = generator
    place = id(generator) + object.__basicsize__
    index, *words = struct.unpack("=625I", ctypes.string_at(place, 625 * 4))
    return place if (*words, index) == random.getstate()[1] else None


def _words() -> bytes:
    """Return key and position of a Mersenne Twister; nothing for another generator."""
    numpy: Any = sys.modules["numpy"]
    generator: Any = numpy.random.get_bit_generator() if hasattr(numpy.random, "get_bit_generator") else None
    if type(generator).__name__ != "MT19937":
        return b""
    if generator is not _Last.place[0]:
        _Last.place = generator, generator.ctypes.state_address
    return ctypes.string_at(_Last.place[1], 625 * 4)


class _Last:
    """What was seen last: the streams, and where the words of numpy's generator lie."""

    streams = Streams(None, None)
    place: tuple[Any, int] = None, 0
    python: Any = None
    words: int | None = None
    generator: Any = None
