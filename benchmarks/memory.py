"""Peak memory of a call, as torch's allocator sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the peak of live bytes on the CPU during a call, above the level before it."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    live = peak = 0
    results: Any = recorded.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
