"""How much memory there is, asked before it is needed."""

from __future__ import annotations

import os
from pathlib import Path

from hypergrad.errors import InputError

SHARE = 0.8
"""Part of the available memory that an input may take."""
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Return the bytes that this process may still take: what the machine and the control group have left."""
    found = [_machine()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        found.append(max(left, 0))
    return min(found)


def _machine() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else 2**32


def shown(number: float) -> str:
    """Return a number of bytes for people.

    >>> shown(1536), shown(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.1f} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1024
    return f"{number:.1f} TiB"


def check_fits(what: str, needed: float, do: str) -> None:
    """Raise :class:`~hypergrad.errors.InputError` where something would take more memory than may be used.

    Args:
        what: what would take it.
        needed: bytes at the peak.
        do: how to need less.
    """
    limit = SHARE * available()
    if needed > limit:
        raise InputError(
            passed=f"{what}, which would take about {shown(needed)} of memory",
            expected=f"at most {shown(limit)}, {SHARE:.0%} of what is available",
            do=do,
        )
