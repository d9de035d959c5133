"""Random numbers are pinned where the work is, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hypergrad import guards

CPU = torch.device("cpu")


def test_pinning_the_cpu_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*seeds: Any) -> None:
        raise AssertionError(f"every accelerator was seeded with {seeds}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    with pytest.raises(AssertionError, match="every accelerator"):
        torch.manual_seed(0)
    before = torch.get_rng_state()
    with guards.pinned_rng(CPU, 7):
        first = torch.rand(3)
    with guards.pinned_rng(CPU, 7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinning_a_device_seeds_it_and_puts_it_back() -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    with guards.pinned_rng(device, 7):
        first = torch.rand(3, device=device)
    with guards.pinned_rng(device, 7):
        assert torch.equal(torch.rand(3, device=device), first)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
