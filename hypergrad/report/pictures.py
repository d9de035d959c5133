"""Pictures in data addresses, which nobody vouches for: PNG and JPEG of bounded size only."""

from __future__ import annotations

import base64
import binascii

MOST_BYTES, MOST_SIDE = 300_000, 4096
KINDS = {"data:image/png;base64,": b"\x89PNG\r\n\x1a\n", "data:image/jpeg;base64,": b"\xff\xd8\xff"}


def picture(address: object) -> str | None:
    """Return a data address that can be shown as it is, ``None`` for anything that is no small PNG or JPEG."""
    if not isinstance(address, str) or len(address) > 4 * MOST_BYTES // 3 + 64:
        return None
    for start, magic in KINDS.items():
        if address.startswith(start):
            content = _decoded(address[len(start) :])
            if content is None or not content.startswith(magic):
                return None
            sides = _png(content) if magic.startswith(b"\x89") else _jpeg(content)
            good = sides is not None and all(0 < side <= MOST_SIDE for side in sides)
            return start + base64.b64encode(content).decode("ascii") if good else None
    return None


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _png(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR" or len(content) < 33:
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _jpeg(content: bytes) -> tuple[int, int] | None:
    """Return the sides that the frame header of a JPEG claims."""
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(content[place + 7 : place + 9], "big"), int.from_bytes(
                content[place + 5 : place + 7], "big"
            )
        place += 2 + max(2, length)
    return None
