"""Peak memory of a call, as torch's allocators see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, RecordScope, _ExperimentalConfig

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
    # allocations alone: a record of every operator, as torch.profiler.profile makes it, costs several times the call
    shapes, memory, stack, flops, modules = False, True, False, False, False
    config = ProfilerConfig(ProfilerState.KINETO, shapes, memory, stack, flops, modules, _ExperimentalConfig())
    activities, profiler = {ProfilerActivity.CPU}, cast("Any", torch.autograd)
    profiler._prepare_profiler(config, activities)
    profiler._enable_profiler(config, activities, {RecordScope.USER_SCOPE})
    try:
        function()
    finally:
        recorded = profiler._disable_profiler()
    live = peak = 0
    for event in recorded.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def resident_bytes(function: Callable[[], Any]) -> int | None:
    """Return the peak of the process's resident memory during a call, above the level before it.

    ``None`` where the operating system does not tell: only Linux does.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    reset.write_text("5")
    before = _resident(status.read_text(), "VmRSS")
    function()
    return _resident(status.read_text(), "VmHWM") - before


def watched(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Return a row's function that also counts ``resident``, the bytes of :func:`resident_bytes`."""

    def run() -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        peak = resident_bytes(lambda: results.append(function()))
        if not results:
            results.append(function())
        return {**results[0], "counts": {**results[0]["counts"], "resident": peak}}

    return run


def _resident(status: str, key: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
