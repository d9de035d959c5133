"""While a loss is evaluated checkpoints, autocast and buffers stand still, in that thread only, and only then."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypergrad import evaluation

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Counter(nn.Module):
    """Counts its calls in a buffer, and twice in one that it exchanges; recursive on request."""

    count: Tensor
    twice: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("twice", torch.zeros(()))

    def forward(self, again: int = 0, *, fail: bool = False) -> float:
        self.count += 1
        self.twice = self.twice + 2
        if again:
            self(again - 1)
        if fail:
            raise ArithmeticError
        return float(self.count + self.twice)


def dtype_under_autocast() -> torch.dtype:
    with torch.autocast("cpu", torch.bfloat16):
        return (X @ X.mT).dtype


def test_autocast_blocks_have_no_effect_inside() -> None:
    with evaluation.still():
        assert dtype_under_autocast() is torch.float32
        with evaluation.still():
            assert dtype_under_autocast() is torch.float32
        assert dtype_under_autocast() is torch.float32
        decorated = torch.autocast("cpu", torch.bfloat16)(lambda: (X @ X.mT).dtype)
        assert decorated() is torch.float32
    assert dtype_under_autocast() is torch.bfloat16
    assert decorated() is torch.bfloat16, "the block itself is as it was"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_transparent_inside(reentrant: bool) -> None:
    calls = 0

    def body(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.sin()

    x = X.clone().requires_grad_()
    with evaluation.still():
        inside = checkpoint(body, x, use_reentrant=reentrant)
    outside = checkpoint(body, x, use_reentrant=reentrant)
    assert isinstance(inside, Tensor)
    assert isinstance(outside, Tensor)
    torch.autograd.grad(inside.sum(), x)
    assert calls == 2
    outside.sum().backward()
    assert calls == 3, "run again in the backward pass"


def test_a_failing_checkpoint_raises_its_own_error_inside() -> None:
    def body(x: Tensor) -> Tensor:
        raise ArithmeticError("mine")

    with evaluation.still(), pytest.raises(ArithmeticError, match="mine"):
        checkpoint(body, X, use_reentrant=False)


def test_other_threads_see_torch_as_it_is() -> None:
    seen: dict[str, Any] = {}
    module = Counter()

    def elsewhere() -> None:
        seen["dtype"] = dtype_under_autocast()
        module()

    with evaluation.still():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen["dtype"] is torch.bfloat16
    assert float(module.count) == 1


def test_everything_is_put_back() -> None:
    module: Any = torch.utils.checkpoint
    places = [(module, "CheckpointFunction"), (module, "_checkpoint_without_reentrant_generator")]
    places.append((torch.amp.autocast_mode.autocast, "__enter__"))
    before = [getattr(*place) for place in places]
    with pytest.raises(ArithmeticError), evaluation.still():
        raise ArithmeticError
    assert [getattr(*place) for place in places] == before
    hooks: Any = nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_buffers_go_on_inside_and_stay_outside() -> None:
    whole = nn.ModuleList([Counter(), Counter()])
    module: Any = whole[0]
    count, twice = module.count, module.twice
    with evaluation.still():
        assert module() == 3
        assert module() == 6, "one evaluation calls it twice, as a training step would"
        assert module(again=1) == 12
        with pytest.raises(ArithmeticError):
            module(fail=True)
        assert module.count is count
    with evaluation.still():
        assert module() == 3, "every evaluation starts from the owner's buffers"
    assert module.count is count
    assert module.twice is twice
    assert float(count) == float(twice) == count._version == 0
    assert module() == 3


def test_a_shared_buffer_is_lent_once() -> None:
    first, second = Counter(), Counter()
    second.count = first.count
    pair = nn.Sequential(first, second)
    with evaluation.still():
        for part in pair:
            part()
        assert first() == 3 + 4, "three calls counted by both, two of its own"
    assert float(first.count) == 0
