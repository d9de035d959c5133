"""Peak memory of a call, as torch's allocators see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.problems import DEVICE


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the peak of live bytes during a call, above the level before it."""
    function()
    return _on_cuda(function) if DEVICE.type == "cuda" else _on_cpu(function)


def _on_cuda(function: Callable[[], Any]) -> int:
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    function()
    return torch.cuda.max_memory_allocated(DEVICE) - before


def _on_cpu(function: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    live = peak = 0
    results: Any = recorded.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
